"""What KubeVirt and QEMU do to a virtual machine's network, as far as a machine without them can do it."""
