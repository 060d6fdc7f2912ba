"""A multi-node OVN on one machine: network namespaces for nodes, OVS with its userspace datapath, no card."""

from lab.network.central import Central
from lab.network.chassis import Chassis
from lab.network.network import Network, NetworkSpec, NodeSpec, VirtualFunction

__all__ = ["Central", "Chassis", "Network", "NetworkSpec", "NodeSpec", "VirtualFunction"]
