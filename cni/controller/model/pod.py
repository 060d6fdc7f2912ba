"""A pod: where it runs, whether it needs addresses, what it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cni.controller.errors import InvalidAnnotation
from cni.controller.model import bandwidth
from cni.controller.model.addressing import AddressRequest, Attachment
from cni.controller.model.annotations import ADDRESSES, POD_NETWORKS
from foundation.kube.models import core

_REQUEST = msgspec.json.Decoder(AddressRequest)
_WRITTEN = msgspec.json.Decoder(dict[str, Attachment])

FINISHED = ("Succeeded", "Failed")

# Facts of KubeVirt (staging/src/kubevirt.io/api/core/v1/types.go).
_LAUNCHER, _DOMAIN, _VM_NAME = ("kubevirt.io", "virt-launcher"), "kubevirt.io/domain", "vm.kubevirt.io/name"


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A container port that a policy or service may name."""

    name: str
    protocol: str
    port: int


@dataclass(frozen=True, slots=True)
class Pod:
    """`wired`: has a port of its own now (scheduled, not on the host's network, not finished).

    `ips` are the status' addresses; only those of host-network pods mean anything here.
    """

    key: str
    namespace: str
    name: str
    uid: str
    node: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    host_network: bool
    finished: bool
    ports: tuple[NamedPort, ...]
    ips: tuple[str, ...]
    created: str = ""
    leaving: bool = False
    """It is being deleted."""

    @property
    def wired(self) -> bool:
        return bool(self.node) and not self.host_network and not self.finished

    @property
    def machine(self) -> str:
        """The key of the virtual machine that this pod runs (KubeVirt's virt-launcher); "" for any other pod.

        A label holds 63 characters, a machine's name may have more: the annotation comes first.
        """
        label, launcher = _LAUNCHER
        if self.labels.get(label) != launcher:
            return ""
        name = self.annotations.get(_DOMAIN) or self.labels.get(_VM_NAME, "")
        return f"{self.namespace}/{name}" if name else ""

    def request(self) -> AddressRequest:
        """Addresses asked for on the default network. Raises InvalidAnnotation."""
        text = self.annotations.get(ADDRESSES)
        if text is None:
            return AddressRequest()
        try:
            return _REQUEST.decode(text)
        except (msgspec.DecodeError, RecursionError) as error:
            raise InvalidAnnotation(
                f'annotation {ADDRESSES} is not of the form {{"ips": ["10.1.2.3"], "mac": "02:…"}}: {error}'
            ) from None

    def bandwidth(self) -> dict[str, int]:
        """kbit/s by direction, as far as asked for. Raises InvalidBandwidth."""
        return bandwidth.parse(self.annotations)

    def written(self) -> Mapping[str, Attachment]:
        """What annotation pod-networks says; empty when it is missing or unreadable, for then it is written anew."""
        text = self.annotations.get(POD_NETWORKS)
        if text is None:
            return {}
        try:
            return _WRITTEN.decode(text)
        except (msgspec.DecodeError, RecursionError):
            return {}


def parse(pod: core.Pod) -> Pod:
    """From the API's object."""
    spec, metadata = pod.spec, pod.metadata
    ports = tuple(
        NamedPort(port.name, port.protocol or "TCP", port.container_port)
        for container in (*spec.containers, *(c for c in spec.init_containers or () if c.restart_policy == "Always"))
        for port in container.ports or ()
        if port.name
    )
    return Pod(
        key=metadata.key,
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid,
        node=spec.node_name,
        labels=metadata.labels,
        annotations=metadata.annotations,
        host_network=spec.host_network,
        finished=pod.status.phase in FINISHED,
        ports=ports,
        ips=tuple(each.ip for each in pod.status.pod_ips or ()),
        created=metadata.creation_timestamp or "",
        leaving=metadata.deletion_timestamp is not None,
    )
