"""Who holds which address: pools of subnets, without any I/O."""
