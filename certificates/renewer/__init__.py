"""Keeps one pod's certificate."""
