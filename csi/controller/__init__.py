"""The CSI controller service."""
