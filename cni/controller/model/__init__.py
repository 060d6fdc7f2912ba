"""Kubernetes objects as the controller sees them: parsed once, frozen, only what its rows depend on."""
