"""The lab's hardware: what a kernel and a card would show of VFs, representors and emulated disks."""
