"""PCI functions, representors and NVMe controllers as a sysfs tree shows them."""
