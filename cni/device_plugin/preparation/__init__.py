"""Bringing physical functions to their declared state: VFs, eswitch mode, drivers, MTU, MACs."""
