"""Pod and VM networking: OVN rows, the node's wiring and the link between a host and its DPU."""
