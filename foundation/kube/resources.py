"""The Kubernetes resources that the suite reads or writes, each with its model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from foundation.kube.models import (
    certificates,
    cncf,
    coordination,
    core,
    discovery,
    kubevirt,
    networking,
    policy,
    storage,
)
from foundation.kube.models.meta import KubernetesObject

T = TypeVar("T", bound=KubernetesObject)


@dataclass(frozen=True, slots=True)
class Resource(Generic[T]):
    """One resource of the API: where it is served, and what its objects decode to.

    `group` is "" for core/v1. `kind` is the model's class name unless given.
    """

    group: str
    version: str
    plural: str
    namespaced: bool
    model: type[T]
    kind: str = field(default="")

    def __post_init__(self) -> None:
        if not self.kind:
            object.__setattr__(self, "kind", self.model.__name__)

    @property
    def api_version(self) -> str:
        """`v1` or `group/version`, as objects carry it."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of an object, or of the collection when `name` is empty.

        Raises ValueError for an object of a namespaced resource without its namespace, and for names which would
        leave their place in the path.
        """
        if not self.namespaced and namespace:
            raise ValueError(f"{self.plural} have no namespace, but {namespace!r} was given")
        if name and self.namespaced and not namespace:
            raise ValueError(f"a namespace is needed to name one of {self.plural}: {name!r}")
        for part in (namespace, name, subresource):
            if "/" in part or "%" in part or "?" in part or "#" in part or part in (".", ".."):
                raise ValueError(f"{part!r} can't be part of a Kubernetes path")
        pieces = [f"/apis/{self.group}/{self.version}" if self.group else f"/api/{self.version}"]
        if namespace:
            pieces.append(f"namespaces/{namespace}")
        pieces.append(self.plural)
        if name:
            pieces.append(name)
        if subresource:
            pieces.append(subresource)
        return "/".join(pieces)


_CNCF = "k8s.cni.cncf.io"
_STORAGE = "storage.k8s.io"
_KUBEVIRT = "kubevirt.io"
_POLICY = "policy.networking.k8s.io"

PODS = Resource("", "v1", "pods", True, core.Pod)
NODES = Resource("", "v1", "nodes", False, core.Node)
NAMESPACES = Resource("", "v1", "namespaces", False, core.Namespace)
SERVICES = Resource("", "v1", "services", True, core.Service)
SECRETS = Resource("", "v1", "secrets", True, core.Secret)
CONFIG_MAPS = Resource("", "v1", "configmaps", True, core.ConfigMap)
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", True, core.ServiceAccount)
EVENTS = Resource("", "v1", "events", True, core.Event)
PERSISTENT_VOLUMES = Resource("", "v1", "persistentvolumes", False, core.PersistentVolume)
PERSISTENT_VOLUME_CLAIMS = Resource("", "v1", "persistentvolumeclaims", True, core.PersistentVolumeClaim)
ENDPOINT_SLICES = Resource("discovery.k8s.io", "v1", "endpointslices", True, discovery.EndpointSlice)
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", True, networking.NetworkPolicy)
STORAGE_CLASSES = Resource(_STORAGE, "v1", "storageclasses", False, storage.StorageClass)
VOLUME_ATTACHMENTS = Resource(_STORAGE, "v1", "volumeattachments", False, storage.VolumeAttachment)
CSI_NODES = Resource(_STORAGE, "v1", "csinodes", False, storage.CSINode)
CSI_DRIVERS = Resource(_STORAGE, "v1", "csidrivers", False, storage.CSIDriver)
VOLUME_ATTRIBUTES_CLASSES = Resource(_STORAGE, "v1", "volumeattributesclasses", False, storage.VolumeAttributesClass)
VOLUME_SNAPSHOT_CONTENTS = Resource(
    "snapshot.storage.k8s.io", "v1", "volumesnapshotcontents", False, storage.VolumeSnapshotContent
)
CERTIFICATE_SIGNING_REQUESTS = Resource(
    "certificates.k8s.io", "v1", "certificatesigningrequests", False, certificates.CertificateSigningRequest
)
LEASES = Resource("coordination.k8s.io", "v1", "leases", True, coordination.Lease)
NETWORK_ATTACHMENT_DEFINITIONS = Resource(
    _CNCF, "v1", "network-attachment-definitions", True, cncf.NetworkAttachmentDefinition
)
IPAM_CLAIMS = Resource(_CNCF, "v1alpha1", "ipamclaims", True, cncf.IPAMClaim)
MULTI_NETWORK_POLICIES = Resource(_CNCF, "v1beta1", "multi-networkpolicies", True, cncf.MultiNetworkPolicy)
VIRTUAL_MACHINES = Resource(_KUBEVIRT, "v1", "virtualmachines", True, kubevirt.VirtualMachine)
VIRTUAL_MACHINE_INSTANCES = Resource(_KUBEVIRT, "v1", "virtualmachineinstances", True, kubevirt.VirtualMachineInstance)
VIRTUAL_MACHINE_INSTANCE_MIGRATIONS = Resource(
    _KUBEVIRT, "v1", "virtualmachineinstancemigrations", True, kubevirt.VirtualMachineInstanceMigration
)
ADMIN_NETWORK_POLICIES = Resource(_POLICY, "v1alpha1", "adminnetworkpolicies", False, policy.AdminNetworkPolicy)
BASELINE_ADMIN_NETWORK_POLICIES = Resource(
    _POLICY, "v1alpha1", "baselineadminnetworkpolicies", False, policy.BaselineAdminNetworkPolicy
)

ALL: tuple[Resource[Any], ...] = tuple(value for value in globals().values() if isinstance(value, Resource))

_BY_MODEL: dict[type[KubernetesObject], Resource[Any]] = {resource.model: resource for resource in ALL}


def resource_of(obj: KubernetesObject) -> Resource[Any]:
    """The resource that an object belongs to; KeyError for a struct which is no top-level object."""
    return _BY_MODEL[type(obj)]
