"""The suite's certificate authority in a cluster."""
