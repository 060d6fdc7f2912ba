"""Stand-ins for what a cluster runs beside its API server: the CSI sidecars and the volume controllers."""
