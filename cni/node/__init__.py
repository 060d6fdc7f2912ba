"""One node's side of CNI: the container side, the OVS side, and which of them is local."""
