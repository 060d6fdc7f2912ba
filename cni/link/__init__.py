"""The gRPC service between a host's cni-node and its DPU's."""
