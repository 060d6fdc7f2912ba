"""A page to look at: pairs of host and DPU with their ports and disks, live. Read-only, off unless it is configured."""
