"""Kubernetes objects into northbound rows, one module a kind; pure."""
