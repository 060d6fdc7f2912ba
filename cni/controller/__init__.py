"""Kubernetes objects in, OVN northbound rows out."""
