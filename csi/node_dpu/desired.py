"""What this DPU must have, worked out from VolumeAttachments and volumes; pure."""

from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from csi import identity
from csi.controller import volume_context
from csi.errors import InvalidArgument
from csi.framework.backend import Portal
from csi.publication import PublishContext
from dpu_offload_stubs.attacher.v1 import attacher_pb2
from foundation.kube.models.core import PersistentVolume
from foundation.kube.models.storage import VolumeAttachment

_POLICIES: Final[Mapping[str, attacher_pb2.FunctionPolicy.ValueType]] = {
    "default": attacher_pb2.FUNCTION_POLICY_UNSPECIFIED,
    "hotplug": attacher_pb2.FUNCTION_POLICY_HOTPLUG,
    "static": attacher_pb2.FUNCTION_POLICY_STATIC,
    "shared": attacher_pb2.FUNCTION_POLICY_SHARED_CONTROLLER,
}
_TRANSPORTS: Final[Mapping[str, attacher_pb2.Transport.ValueType]] = {
    "tcp": attacher_pb2.TRANSPORT_TCP,
    "rdma": attacher_pb2.TRANSPORT_RDMA,
}
_READ_ONLY: Final = "ReadOnlyMany"


class Wanted(msgspec.Struct, frozen=True):
    """A VolumeAttachment of a host of this DPU, with the volume it means ("" while that is not known).

    `certain`: Kubernetes says that it is attached here, so it must be; else it may be on its way. `told` is what the
    host was told of it, as far as it was.
    """

    name: str
    persistent_volume: str
    volume_id: str
    certain: bool
    told: PublishContext | None = None


def concerns(attachment: VolumeAttachment, *, node: str, hosts: frozenset[str]) -> bool:
    """Whether the attachment is our driver's, of a host of this DPU, and not another DPU's of that host."""
    spec = attachment.spec
    if spec.attacher != identity.DRIVER_NAME or spec.node_name not in hosts:
        return False
    where = (attachment.status.attachment_metadata or {}).get("dpuNode", "")
    return where in ("", node)


def wanted(attachment: VolumeAttachment, volumes: Mapping[str, PersistentVolume]) -> Wanted:
    """What an attachment that concerns this DPU says."""
    name = attachment.spec.source.persistent_volume_name or ""
    volume = volumes.get(name)
    source = volume.spec.csi if volume is not None else None
    return Wanted(
        name=attachment.metadata.name,
        persistent_volume=name,
        volume_id=source.volume_handle if source is not None else "",
        certain=attachment.status.attached and attachment.metadata.deletion_timestamp is None,
        told=_told(attachment),
    )


def _told(attachment: VolumeAttachment) -> PublishContext | None:
    try:
        return PublishContext.parse(attachment.status.attachment_metadata or {})
    except InvalidArgument:
        return None


def request(
    volume: PersistentVolume, *, transports: frozenset[str], told: PublishContext | None = None
) -> attacher_pb2.AttachRequest:
    """The call that csi-controller would make for this volume, secrets apart.

    It insists on the function that the host was `told`, since the host will look nowhere else.
    Raises InvalidArgument for a volume that says too little.
    """
    source = volume.spec.csi
    if source is None:
        raise InvalidArgument(f"PersistentVolume {volume.metadata.name} is not a CSI volume")
    try:
        volume_id = identity.parse_volume_id(source.volume_handle)
    except identity.MalformedId as error:
        raise InvalidArgument(f"PersistentVolume {volume.metadata.name}: {error}") from error
    context = volume_context.parse(source.volume_attributes or {})
    try:
        portals = msgspec.json.decode(context.portals, type=list[Portal])
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidArgument(f"PersistentVolume {volume.metadata.name}: volumeAttributes.portals: {error}") from error
    usable = [portal for portal in portals if portal.transport in transports]
    if not usable:
        raise InvalidArgument(f"PersistentVolume {volume.metadata.name} names no portal that this DPU can reach")
    modes = volume.spec.access_modes or ()
    where = {"function": _function(told), "nsid": told.nsid} if told is not None else {}
    return attacher_pb2.AttachRequest(
        volume_id=str(volume_id),
        remote=attacher_pb2.RemoteVolume(
            subsystem_nqn=identity.subsystem_nqn(volume_id),
            paths=[
                attacher_pb2.Path(transport=_TRANSPORTS[one.transport], address=one.address, port=one.port)
                for one in usable
            ],
            namespace_uuid=identity.namespace_uuid(volume_id),
        ),
        function_policy=_POLICIES.get(context.function_policy, attacher_pb2.FUNCTION_POLICY_UNSPECIFIED),
        read_only=source.read_only or (bool(modes) and all(mode == _READ_ONLY for mode in modes)),
        **where,  # type: ignore[arg-type]  # either both fields or none
    )


def _function(told: PublishContext) -> attacher_pb2.Function:
    return attacher_pb2.Function(
        vuid=told.vuid,
        port=told.port,
        physical_function=told.pf,
        virtual_function=told.vf,
        pci_address=told.pci_address,
    )


def missing(desired: Iterable[Wanted], there: Iterable[str]) -> list[Wanted]:
    """Attachments that Kubernetes is certain of and the DPU does not have."""
    have = set(there)
    return [one for one in desired if one.certain and one.volume_id and one.volume_id not in have]


def needs_keys(volume: PersistentVolume) -> bool:
    """Whether it can only be attached with secrets; a volume that says nonsense cannot be attached at all."""
    source = volume.spec.csi
    try:
        context = volume_context.parse((source.volume_attributes if source is not None else None) or {})
    except InvalidArgument:
        return False
    return context.encryption or context.authentication or context.encryption_in_transit


def keyless(
    desired: Iterable[Wanted], there: Mapping[str, attacher_pb2.Attachment], volumes: Mapping[str, PersistentVolume]
) -> list[Wanted]:
    """Attachments that the DPU has lost and cannot bring back by itself, since keys are never on its disk."""
    lost = {volume for volume, one in there.items() if one.state == attacher_pb2.ATTACHMENT_STATE_FAILED}
    return [
        one
        for one in desired
        if one.certain and one.volume_id in lost and one.persistent_volume in volumes
        if needs_keys(volumes[one.persistent_volume])
    ]


def orphans(desired: Iterable[Wanted], there: Iterable[str]) -> list[str]:
    """Volumes of ours on the DPU that no VolumeAttachment accounts for.

    None while any attachment's volume is not known: it might be that one.
    """
    every = list(desired)
    if any(not one.volume_id for one in every):
        return []
    accounted = {one.volume_id for one in every}
    return sorted(volume for volume in there if volume not in accounted and _is_ours(volume))


def _is_ours(volume_id: str) -> bool:
    try:
        identity.parse_volume_id(volume_id)
    except identity.MalformedId:
        return False
    return True
