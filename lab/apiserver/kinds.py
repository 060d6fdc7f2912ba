"""The kinds that are served, and how each of them behaves."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """One served kind. The flags are the differences that the real server's strategies make between kinds."""

    group: str
    version: str
    plural: str
    kind: str
    namespaced: bool = True
    status: bool = False
    """Has `/status`; then a write to the object leaves status alone and one to `/status` leaves all else."""
    status_on_create: bool = False
    """A create keeps the status it brings (nodes: kubelet registers with it)."""
    status_metadata: bool = True
    """A write to `/status` may change labels and annotations."""
    generation: bool = False
    unconditional: bool = True
    """PUT without resourceVersion is allowed."""
    create_on_update: bool = False
    subresources: tuple[str, ...] = ()
    short: tuple[str, ...] = ()
    custom: bool = False
    model: str = ""
    """Module of the official package's model, which knows the fields of a built-in kind."""
    schema: Json | None = field(default=None, hash=False, compare=False)
    """OpenAPI schema of a custom kind."""
    virtual: bool = False
    """Answers to POST only, and stores nothing (reviews)."""

    @property
    def api_version(self) -> str:
        """`v1` or `group/version`."""
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def table(self) -> tuple[str, str]:
        """Where objects are stored: all versions of a kind share one place."""
        return self.group, self.plural


def _core(plural: str, kind: str, namespaced: bool = True, **flags: Any) -> Kind:
    return Kind("", "v1", plural, kind, namespaced, model=f"V1{kind}", **flags)


def _builtin(group: str, plural: str, kind: str, namespaced: bool = True, **flags: Any) -> Kind:
    return Kind(group, "v1", plural, kind, namespaced, model=f"V1{kind}", **flags)


def _custom(group: str, version: str, plural: str, kind: str, namespaced: bool = True, **flags: Any) -> Kind:
    flags = {"status": False, "status_metadata": False, "generation": True, "unconditional": False} | flags
    return Kind(group, version, plural, kind, namespaced, custom=True, **flags)


_APPS = {"status": True, "status_metadata": False, "generation": True}
_CNCF = "k8s.cni.cncf.io"
_KUBEVIRT = "kubevirt.io"
_POLICY = "policy.networking.k8s.io"
_SNAPSHOT = "snapshot.storage.k8s.io"
_RBAC = "rbac.authorization.k8s.io"

BUILT_IN: tuple[Kind, ...] = (
    _core("pods", "Pod", status=True, generation=True, subresources=("binding", "eviction"), short=("po",)),
    _core("nodes", "Node", False, status=True, status_on_create=True, short=("no",)),
    _core("namespaces", "Namespace", False, status=True, subresources=("finalize",), short=("ns",)),
    _core("services", "Service", status=True, create_on_update=True, short=("svc",)),
    _core("endpoints", "Endpoints", create_on_update=True, short=("ep",)),
    _core("secrets", "Secret"),
    _core("configmaps", "ConfigMap", short=("cm",)),
    _core("serviceaccounts", "ServiceAccount", short=("sa",)),
    Kind("", "v1", "events", "Event", create_on_update=True, short=("ev",), model="CoreV1Event"),
    _core("persistentvolumes", "PersistentVolume", False, status=True, short=("pv",)),
    _core("persistentvolumeclaims", "PersistentVolumeClaim", status=True, short=("pvc",)),
    _builtin("apps", "deployments", "Deployment", **_APPS, short=("deploy",)),
    _builtin("apps", "daemonsets", "DaemonSet", **_APPS, short=("ds",)),
    _builtin("apps", "statefulsets", "StatefulSet", **_APPS, short=("sts",)),
    _builtin("apps", "replicasets", "ReplicaSet", **_APPS, short=("rs",)),
    _builtin("batch", "jobs", "Job", **_APPS),
    _builtin("discovery.k8s.io", "endpointslices", "EndpointSlice", generation=True),
    _builtin("networking.k8s.io", "networkpolicies", "NetworkPolicy", generation=True, short=("netpol",)),
    _builtin("coordination.k8s.io", "leases", "Lease", unconditional=False, create_on_update=True),
    _builtin(
        "certificates.k8s.io",
        "certificatesigningrequests",
        "CertificateSigningRequest",
        False,
        status=True,
        subresources=("approval",),
        short=("csr",),
    ),
    _builtin("storage.k8s.io", "storageclasses", "StorageClass", False, short=("sc",)),
    _builtin(
        "storage.k8s.io",
        "volumeattachments",
        "VolumeAttachment",
        False,
        status=True,
        status_metadata=False,
        unconditional=False,
    ),
    _builtin("storage.k8s.io", "csinodes", "CSINode", False, unconditional=False),
    _builtin("storage.k8s.io", "csidrivers", "CSIDriver", False, unconditional=False),
    _builtin("storage.k8s.io", "csistoragecapacities", "CSIStorageCapacity"),
    _builtin("storage.k8s.io", "volumeattributesclasses", "VolumeAttributesClass", False, short=("vac",)),
    _builtin("scheduling.k8s.io", "priorityclasses", "PriorityClass", False, short=("pc",)),
    _builtin("policy", "poddisruptionbudgets", "PodDisruptionBudget", **_APPS, short=("pdb",)),
    _builtin(_RBAC, "roles", "Role"),
    _builtin(_RBAC, "rolebindings", "RoleBinding"),
    _builtin(_RBAC, "clusterroles", "ClusterRole", False),
    _builtin(_RBAC, "clusterrolebindings", "ClusterRoleBinding", False),
    _builtin(
        "admissionregistration.k8s.io",
        "validatingadmissionpolicies",
        "ValidatingAdmissionPolicy",
        False,
        status=True,
        generation=True,
    ),
    _builtin(
        "admissionregistration.k8s.io",
        "validatingadmissionpolicybindings",
        "ValidatingAdmissionPolicyBinding",
        False,
        generation=True,
    ),
    _builtin(
        "apiextensions.k8s.io",
        "customresourcedefinitions",
        "CustomResourceDefinition",
        False,
        status=True,
        generation=True,
        unconditional=False,
        short=("crd",),
    ),
    _builtin("authentication.k8s.io", "selfsubjectreviews", "SelfSubjectReview", False, virtual=True),
    _builtin("authorization.k8s.io", "selfsubjectaccessreviews", "SelfSubjectAccessReview", False, virtual=True),
)

PREINSTALLED: tuple[Kind, ...] = (
    _custom(_CNCF, "v1", "network-attachment-definitions", "NetworkAttachmentDefinition", short=("net-attach-def",)),
    _custom(_CNCF, "v1alpha1", "ipamclaims", "IPAMClaim", status=True),
    _custom(_CNCF, "v1beta2", "multi-networkpolicies", "MultiNetworkPolicy"),
    _custom(_CNCF, "v1beta1", "multi-networkpolicies", "MultiNetworkPolicy", short=("multi-policy",)),
    _custom(_KUBEVIRT, "v1", "virtualmachines", "VirtualMachine", status=True, short=("vm",)),
    _custom(_KUBEVIRT, "v1", "virtualmachineinstances", "VirtualMachineInstance", short=("vmi",)),
    _custom(
        _KUBEVIRT,
        "v1",
        "virtualmachineinstancemigrations",
        "VirtualMachineInstanceMigration",
        status=True,
        short=("vmim",),
    ),
    _custom(_POLICY, "v1alpha1", "adminnetworkpolicies", "AdminNetworkPolicy", False, status=True, short=("anp",)),
    _custom(
        _POLICY,
        "v1alpha1",
        "baselineadminnetworkpolicies",
        "BaselineAdminNetworkPolicy",
        False,
        status=True,
        short=("banp",),
    ),
    _custom(_SNAPSHOT, "v1", "volumesnapshots", "VolumeSnapshot", status=True),
    _custom(_SNAPSHOT, "v1", "volumesnapshotcontents", "VolumeSnapshotContent", False, status=True),
    _custom(_SNAPSHOT, "v1", "volumesnapshotclasses", "VolumeSnapshotClass", False),
)
"""Custom kinds that a cluster for this suite has; their definitions are not part of the stand-in."""


class Kinds:
    """What is served now: built-in kinds, and custom ones that come and go with their definitions."""

    def __init__(self, kinds: Iterable[Kind] = (*BUILT_IN, *PREINSTALLED)) -> None:
        self._by_path: dict[tuple[str, str, str], Kind] = {}
        for kind in kinds:
            self.add(kind)

    def add(self, kind: Kind) -> None:
        """Serve a kind, in the place of an older one at the same path."""
        self._by_path[kind.group, kind.version, kind.plural] = kind

    def remove(self, group: str, plural: str) -> None:
        """Serve a kind no more, in no version."""
        for path in [path for path in self._by_path if (path[0], path[2]) == (group, plural)]:
            del self._by_path[path]

    def find(self, group: str, version: str, plural: str) -> Kind | None:
        """The kind at a path."""
        return self._by_path.get((group, version, plural))

    def of_table(self, table: tuple[str, str]) -> Kind | None:
        """A kind whose objects are stored in a table."""
        return next((kind for kind in self._by_path.values() if kind.table == table), None)

    def __iter__(self) -> Iterator[Kind]:
        return iter(self._by_path.values())

    def versions(self, group: str) -> list[str]:
        """The versions of a group, the preferred one first."""
        return list(dict.fromkeys(kind.version for kind in self._by_path.values() if kind.group == group))

    def groups(self) -> list[str]:
        """All groups but core, in order of their first kind."""
        return list(dict.fromkeys(kind.group for kind in self._by_path.values() if kind.group))


def from_definition(crd: Json) -> list[Kind]:
    """The kinds that a CustomResourceDefinition serves."""
    spec = crd["spec"]
    names = spec["names"]
    return [
        _custom(
            spec["group"],
            version["name"],
            names["plural"],
            names["kind"],
            spec.get("scope") == "Namespaced",
            status="status" in (version.get("subresources") or {}),
            short=tuple(names.get("shortNames") or ()),
            schema=(version.get("schema") or {}).get("openAPIV3Schema"),
        )
        for version in spec["versions"]
        if version.get("served")
    ]
