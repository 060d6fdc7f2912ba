"""The annotations and labels that carry this suite's contracts on Kubernetes objects."""

from __future__ import annotations

GROUP = "dpu-offload.io"

POD_NETWORKS = f"{GROUP}/pod-networks"
"""On a pod, written here: {network: {ips, mac, gateways, routes, mtu}}."""

ADDRESSES = f"{GROUP}/addresses"
"""On a pod, by its author: {"ips": ["10.1.2.3"], "mac": "02:…"}, addresses wanted on the default network."""

NODE_SUBNETS = f"{GROUP}/node-subnets"
"""On a node, written here when the cluster gives it no podCIDRs: ["10.1.2.0/24"]."""

MANAGEMENT = f"{GROUP}/management"
"""On a node, written here: {ips, mac, gateways, routes, mtu, port} of its management port, by which the node reaches
pods and services. cni-node makes it."""

HEALTH_CHECKS = f"{GROUP}/health-checks"
"""On a node, written here: [{"port": 32109, "service": {"namespace": "ns", "name": "web"}, "localEndpoints": 2}] for
each service with a healthCheckNodePort. cni-node answers there; absent while there is no such service."""

MODE = f"{GROUP}/mode"
HOST_NODE = f"{GROUP}/host-node"

ACL_LOGGING = f"{GROUP}/acl-logging"
"""On a namespace: {"deny": "alert", "allow": "notice"}, severities with which its policies' verdicts are logged."""

EGRESS_IPS = f"{GROUP}/egress-ips"
"""On a namespace: ["192.0.2.200"], its pods' addresses outside; each must lie in the network of some gateway."""

ISOLATION = f"{GROUP}/isolation"
"""On a namespace: "true" lets only pods of the same namespace in, as far as no policy lets in more."""

GATEWAY = f"{GROUP}/gateway"
"""On a node: {"ips": ["192.0.2.10/24"], "nextHops": ["192.0.2.1"], "physicalNetwork": "physnet1", "vlan": 0}, the
addresses of its gateway router; without it the node's pods do not get out."""

VM_NETWORKS = f"{GROUP}/vm-networks"
"""On a VirtualMachine (or an instance without one), written here: {network: {ips, mac}}, which it keeps while it
exists, whether it runs or not; without what an IPAMClaim keeps."""
