"""Storage classes, attachments and CSI nodes (API groups storage.k8s.io/v1 and snapshot.storage.k8s.io/v1)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from foundation.kube.models.core import PersistentVolumeSpec, Quantity
from foundation.kube.models.meta import KubernetesObject, Model, ObjectReference


class TopologyRequirement(Model, frozen=True):
    """The values that a node's topology label may have."""

    key: str = ""
    values: tuple[str, ...] = ()


class TopologyTerm(Model, frozen=True):
    """All expressions must hold."""

    match_label_expressions: tuple[TopologyRequirement, ...] | None = None


class StorageClass(KubernetesObject, frozen=True):
    """A class of volumes."""

    provisioner: str = ""
    parameters: Mapping[str, str] | None = None
    reclaim_policy: str | None = None
    volume_binding_mode: str | None = None
    allow_volume_expansion: bool | None = None
    mount_options: tuple[str, ...] | None = None
    allowed_topologies: tuple[TopologyTerm, ...] | None = None


class VolumeAttachmentSource(Model, frozen=True):
    """The volume: by name, or inline for a migrated in-tree volume."""

    persistent_volume_name: str | None = None
    inline_volume_spec: PersistentVolumeSpec | None = None


class VolumeAttachmentSpec(Model, frozen=True):
    """Which volume shall be attached to which node, and by which driver."""

    attacher: str = ""
    node_name: str = ""
    source: VolumeAttachmentSource = VolumeAttachmentSource()


class VolumeError(Model, frozen=True):
    """Why attaching or detaching failed last."""

    time: str | None = None
    message: str = ""


class VolumeAttachmentStatus(Model, frozen=True):
    """`attachment_metadata` is the publish context of ControllerPublishVolume."""

    attached: bool = False
    attachment_metadata: Mapping[str, str] | None = None
    attach_error: VolumeError | None = None
    detach_error: VolumeError | None = None


class VolumeAttachment(KubernetesObject, frozen=True):
    """One volume on one node."""

    spec: VolumeAttachmentSpec = VolumeAttachmentSpec()
    status: VolumeAttachmentStatus = VolumeAttachmentStatus()


class VolumeNodeResources(Model, frozen=True):
    """How many volumes a node takes; None is no limit."""

    count: int | None = None


class CSINodeDriver(Model, frozen=True):
    """A driver that is registered on a node."""

    name: str = ""
    node_id: str = msgspec.field(name="nodeID", default="")
    topology_keys: tuple[str, ...] | None = None
    allocatable: VolumeNodeResources | None = None


class CSINodeSpec(Model, frozen=True):
    """The registered drivers; an empty list arrives as null."""

    drivers: tuple[CSINodeDriver, ...] | None = None


class CSINode(KubernetesObject, frozen=True):
    """What CSI knows of a node."""

    spec: CSINodeSpec = CSINodeSpec()


class CSIDriverSpec(Model, frozen=True):
    """How Kubernetes shall treat a driver."""

    attach_required: bool | None = None
    pod_info_on_mount: bool | None = None
    fs_group_policy: str | None = None
    storage_capacity: bool | None = None
    requires_republish: bool | None = None
    volume_lifecycle_modes: tuple[str, ...] | None = None


class CSIDriver(KubernetesObject, frozen=True):
    """A driver."""

    spec: CSIDriverSpec = CSIDriverSpec()


class VolumeAttributesClass(KubernetesObject, frozen=True):
    """A named set of changeable volume parameters."""

    driver_name: str = ""
    parameters: Mapping[str, str] | None = None


class VolumeSnapshotContentSource(Model, frozen=True):
    """What the snapshot was taken of, or the ready-made snapshot's handle."""

    volume_handle: str | None = None
    snapshot_handle: str | None = None


class VolumeSnapshotContentSpec(Model, frozen=True):
    """What a snapshot is."""

    driver: str = ""
    deletion_policy: str = ""
    source: VolumeSnapshotContentSource = VolumeSnapshotContentSource()
    volume_snapshot_ref: ObjectReference | None = None


class VolumeSnapshotContentStatus(Model, frozen=True):
    """State of a snapshot; size in bytes."""

    snapshot_handle: str | None = None
    ready_to_use: bool | None = None
    restore_size: Quantity | None = None


class VolumeSnapshotContent(KubernetesObject, frozen=True):
    """A snapshot of the cluster."""

    spec: VolumeSnapshotContentSpec = VolumeSnapshotContentSpec()
    status: VolumeSnapshotContentStatus | None = None
