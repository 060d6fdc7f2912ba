"""The executable that the container runtime calls."""
