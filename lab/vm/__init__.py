"""A guest with real SR-IOV, VFIO, NVMe and kernel datapath devices, whose root is this machine's own."""
