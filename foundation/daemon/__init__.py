"""A daemon's life: configuration, logs, metrics, health, gRPC, per-key work and an orderly stop."""
