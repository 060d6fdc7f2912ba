"""The CSI node service on a host: finds the disk which the DPU made appear."""
