"""Settings of cni-node."""

from typing import Annotated, Literal

import msgspec

from cni.node.modes import ModeName
from foundation.daemon.configuration import DaemonConfig

Seconds = Annotated[float, msgspec.Meta(gt=0, le=600)]


class TlsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Certificate of this node's cni-node (name `<node>.cni-node.dpu-offload.io`) with the CA of its peers."""

    ca: str = "/etc/dpu-offload/tls/ca.crt"
    """CA that has signed the peers' certificates."""
    certificate: str = "/etc/dpu-offload/tls/tls.crt"
    """This node's certificate."""
    key: str = "/etc/dpu-offload/tls/tls.key"
    """Its private key."""


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The way between a host and its DPU."""

    listen: str = "0.0.0.0:9441"
    """DPU: address to serve the host on, host:port (port 0: any free one)."""
    advertise: str = ""
    """DPU: host:port that the host shall call; empty: the node's internal address and the port listened on."""
    peers: dict[str, str] = {}
    """Host: {DPU's node name: host:port}; empty: found by the DPU nodes' label and annotation."""
    functions: dict[str, tuple[str, ...]] = {}
    """Host with several DPUs: {DPU's node name: addresses of its physical functions}; else known by card serial."""
    tls: TlsConfig = TlsConfig()
    """Certificates for both directions."""
    accept_seconds: Seconds = 0.8
    """Host: a DPU that gives no sign of life for so long after a request counts as away."""
    host_controller: Annotated[int, msgspec.Meta(ge=0)] = 1
    """DPU: controller index by which its representors name the host's functions."""


class OffloadConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Flows in hardware."""

    hardware: Literal["", "on", "off"] = ""
    """OVS' hardware offload (Open_vSwitch other_config:hw-offload), kept so; empty: left as it is."""
    tc_policy: Literal["", "none", "skip_sw", "skip_hw"] = ""
    """Where OVS puts tc rules (other_config:tc-policy): none means card and kernel, skip_sw the card only, skip_hw the
    kernel only; empty: left as it is."""
    report_seconds: Annotated[float, msgspec.Meta(ge=0)] = 60.0
    """Beat at which the switch's flows are counted for the metrics and the Node's annotation; 0: never."""


class PodResourcesConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What kubelet knows of pods' devices, asked where a network configuration has no deviceID."""

    socket: str = "/var/lib/kubelet/pod-resources/kubelet.sock"
    """Kubelet's pod resources API."""
    resource: str = ""
    """Resource, such as dpu-offload.io/vf, whose device the default network takes; empty: on a host with a DPU any
    function that the pod has alone, elsewhere none."""


class CniNodeConfig(DaemonConfig, frozen=True, kw_only=True):
    """cni-node attaches the pods of one machine; on a DPU those of its host too."""

    mode: ModeName = "default"
    """default: everything is done here; host: a DPU does the OVS side; dpu: this is that DPU."""
    node_name: Annotated[str, msgspec.Meta(min_length=1)]
    """This machine's Kubernetes node name."""
    host_node: str = ""
    """DPU: node name of the host it serves; empty: from its own node's label dpu-offload.io/host-node."""
    kubeconfig: str = ""
    """Kubernetes credentials; empty: in-cluster, then $KUBECONFIG."""
    host_kubeconfig: str = ""
    """DPU: credentials for the host's cluster where that is another one."""
    cni_socket: str = "/run/dpu-offload/cni.sock"
    """Where cni-bin calls."""
    state_dir: str = "/var/lib/dpu-offload/cni-node"
    """Attachments are kept here, through restarts."""
    node_netns: str = ""
    """Network namespace of the node's links, such as /run/netns/x; empty: the daemon's own."""
    sysfs_root: str = "/sys"
    """Where sysfs is."""
    ovsdb: str = "unix:/var/run/openvswitch/db.sock"
    """OVS' database."""
    integration_bridge: str = "br-int"
    """Bridge that ovn-controller manages."""
    ovs_run_dir: str = "/var/run/openvswitch"
    """Control socket of ovs-vswitchd is here."""
    ovn_run_dir: str = "/var/run/ovn"
    """Control socket of ovn-controller is here."""
    management_port: Annotated[str, msgspec.Meta(max_length=15)] = "dpo-mgmt"
    """Internal port of the bridge by which the node reaches its pods; empty: none is made."""
    link: LinkConfig = LinkConfig()
    """The way between a host and its DPU."""
    pod_resources: PodResourcesConfig = PodResourcesConfig()
    """What kubelet knows of pods' devices."""
    offload: OffloadConfig = OffloadConfig()
    """Flows in hardware."""
    assignment_seconds: Seconds = 30.0
    """How long ADD waits for the pod's addresses."""
    flows_seconds: Seconds = 30.0
    """How long ADD waits for OVN to install a port's flows."""
    representor_seconds: Seconds = 5.0
    """How long a missing representor is waited for."""
    unplug_seconds: Seconds = 5.0
    """How long DEL waits for the DPU; what is left is undone in the background."""
    sweep_seconds: Annotated[float, msgspec.Meta(ge=1)] = 60.0
    """Beat at which everything is compared even without an event."""
