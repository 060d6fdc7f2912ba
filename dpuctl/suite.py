"""Names by which the suite's objects are known in a cluster, with a view of the suite's own pods."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from foundation.kube.models.meta import Condition, KubernetesObject, Model
from foundation.kube.resources import Resource

DRIVER: Final = "csi.dpu-offload.io"
MODE_LABEL: Final = "dpu-offload.io/mode"
HOST_LABEL: Final = "dpu-offload.io/host-node"
LINK_ANNOTATION: Final = "dpu-offload.io/link"
STORAGE_ANNOTATION: Final = "dpu-offload.io/storage"
OFFLOAD_ANNOTATION: Final = "dpu-offload.io/offload"
NETWORKS_ANNOTATION: Final = "dpu-offload.io/pod-networks"
PART_OF: Final = "app.kubernetes.io/part-of=dpu-offload"
VERSION_LABEL: Final = "app.kubernetes.io/version"
DEGRADED: Final = "DpuStorageDegraded"
CONTROLLER_LEASE: Final = "cni-controller"

DAEMONS: Final = (
    "cni-controller",
    "cni-node",
    "sriov-device-plugin",
    "csi-controller",
    "csi-node-host",
    "csi-node-dpu",
    "volume-attacher",
    "opi-bridge",
)


class Running(Model, frozen=True):
    """How a container does: `waiting` says why it does not run."""

    name: str = ""
    ready: bool = False
    restart_count: int = 0
    state: Mapping[str, Mapping[str, object]] | None = None

    @property
    def waiting(self) -> str:
        """CrashLoopBackOff, ImagePullBackOff, ..., or "" while it runs."""
        return str(((self.state or {}).get("waiting") or {}).get("reason", ""))


class SuiteContainer(Model, frozen=True):
    """A container of the suite's, or a side-car of it."""

    name: str = ""
    image: str = ""


class SuitePodSpec(Model, frozen=True):
    """Where it runs, and what is in it."""

    node_name: str = ""
    containers: tuple[SuiteContainer, ...] = ()


class SuitePodStatus(Model, frozen=True):
    """What kubelet says of it."""

    phase: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] | None = None
    container_statuses: tuple[Running, ...] | None = None


class SuitePod(KubernetesObject, frozen=True):
    """A pod as `doctor` looks at it: with images and the state of each container."""

    spec: SuitePodSpec = SuitePodSpec()
    status: SuitePodStatus = SuitePodStatus()

    def daemons(self) -> list[str]:
        """Names of its containers that are daemons of the suite."""
        return [one.name for one in self.spec.containers if one.name in DAEMONS]


SUITE_PODS: Final = Resource("", "v1", "pods", True, SuitePod, kind="Pod")


class GivenNetwork(msgspec.Struct, frozen=True):
    """What cni-controller has given a pod in one network, as far as dpuctl shows it. `port` is empty where the pod's
    name makes it."""

    ips: tuple[str, ...] = ()
    mac: str = ""
    port: str = ""
    mtu: int = 0


class LinkAnnouncement(msgspec.Struct, frozen=True, rename="camel"):
    """What a DPU's cni-node writes on its Node: where its host finds it."""

    endpoint: str
    server_name: str


class OffloadShare(msgspec.Struct, frozen=True, rename="camel"):
    """What cni-node writes on a Node whose switch it watches: how much of the traffic the card carries."""

    hardware_flows: int = 0
    software_flows: int = 0
    hardware_bytes: int = 0
    software_bytes: int = 0
