"""VFs and other PCI functions, prepared and advertised to kubelet."""
