"""A stand-in for the Kubernetes API server: one process, objects in memory, the real one's rules."""
