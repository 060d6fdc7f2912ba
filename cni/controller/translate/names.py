"""The names and ids of rows that more than one translator refers to."""

from __future__ import annotations

from cni.controller.rows import Owner, RowId

CLUSTER = Owner("cluster", "default")
CLUSTER_ROUTER = RowId("Logical_Router", "cluster", "default", "router")
CLUSTER_ROUTER_NAME = "dpu-offload-cluster"


def node_owner(node: str) -> Owner:
    """The owner of a node's rows."""
    return Owner("node", node)


def node_switch(node: str) -> RowId:
    """A node's switch of the default network; its name is the node's."""
    return RowId("Logical_Switch", "node", node, "switch")


def pod_owner(key: str) -> Owner:
    """The owner of a pod's rows; `key` is namespace/name."""
    return Owner("pod", key)


def pod_port(key: str, network: str = "default") -> RowId:
    """A pod's port on a network."""
    return RowId("Logical_Switch_Port", "pod", key, network)


def pod_port_name(namespace: str, name: str) -> str:
    """The name of a pod's port on the default network: what OVS' `iface-id` must be.

    Whoever makes a namespace and a pod chooses it, so no other port's name may have that form: those of nodes have two
    underscores one behind the other, or none.
    """
    return f"{namespace}_{name}"


def selector_owner(selector_id: str) -> Owner:
    """The owner of a selector's port groups and address sets."""
    return Owner("selector", selector_id)


def policy_owner(key: str) -> Owner:
    """The owner of a NetworkPolicy's rows; `key` is namespace/name."""
    return Owner("networkpolicy", key)


def multi_policy_owner(key: str) -> Owner:
    """The owner of a MultiNetworkPolicy's rows; `key` is namespace/name."""
    return Owner("multinetworkpolicy", key)


def admin_policy_owner(name: str) -> Owner:
    """The owner of an AdminNetworkPolicy's rows."""
    return Owner("adminnetworkpolicy", name)


def baseline_policy_owner(name: str) -> Owner:
    """The owner of a BaselineAdminNetworkPolicy's rows."""
    return Owner("baselineadminnetworkpolicy", name)


def namespace_owner(name: str) -> Owner:
    """The owner of a namespace's own rows."""
    return Owner("namespace", name)


SWITCH_BALANCERS = RowId("Load_Balancer_Group", "cluster", "default", "switches")
"""Load balancers on every node's switch: for connections that pods begin."""
ROUTER_BALANCERS = RowId("Load_Balancer_Group", "cluster", "default", "gateways")
"""Load balancers on every gateway router: for connections from outside."""
OUTSIDE = RowId("Port_Group", "cluster", "default", "outside")
"""The ports by which all gateways' traffic from outside comes in."""
OUTSIDE_NAME = "dpu_offload_outside"
JOIN_SWITCH = RowId("Logical_Switch", "cluster", "default", "join")


def gateway_router(node: str) -> RowId:
    """A node's gateway router."""
    return RowId("Logical_Router", "node", node, "gateway")


def service_owner(key: str) -> Owner:
    """The owner of a service's load balancers; `key` is namespace/name."""
    return Owner("service", key)


def vm_owner(key: str) -> Owner:
    """The owner of a virtual machine's rows; `key` is namespace/name."""
    return Owner("vm", key)


def vm_port_name(name: str) -> str:
    """What stands for the pod in the names of a virtual machine's ports; no pod's name has an underscore."""
    return f"vm_{name}"
