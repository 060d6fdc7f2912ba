"""What Kubernetes says about volumes: which exist, where each shall be let in, which limits it has. Pure reading."""

from collections.abc import Iterator, Mapping

import msgspec

from csi import identity
from csi.controller.directory import Directory, Dpu
from csi.controller.uses import Use
from csi.controller.volume_context import VolumeContext, parse
from csi.errors import InvalidArgument
from csi.framework import naming, parameters
from csi.framework.backend import Qos
from foundation.kube.models.core import PersistentVolume, SecretReference
from foundation.kube.models.storage import VolumeAttachment, VolumeAttributesClass


class Access(msgspec.Struct, frozen=True, kw_only=True):
    """A DPU which one volume's target shall let in. `settled`: attached, and nobody is detaching it."""

    volume: identity.VolumeId
    host: str
    host_nqn: str
    context: VolumeContext
    secret: SecretReference | None
    use: Use
    settled: bool


class Cluster:
    """Live views of reflectors' stores."""

    def __init__(
        self,
        *,
        volumes: Mapping[str, PersistentVolume],
        attachments: Mapping[str, VolumeAttachment],
        classes: Mapping[str, VolumeAttributesClass],
        directory: Directory,
    ) -> None:
        self._volumes = volumes
        self._attachments = attachments
        self._classes = classes
        self._directory = directory

    def volume_ids(self) -> set[identity.VolumeId]:
        return {volume_id for _, volume_id in self._ours()}

    def context_of(self, name: str) -> VolumeContext | None:
        """The volume context of a volume by its CSI name, by which external-provisioner names the PersistentVolume."""
        volume = self._volumes.get(name)
        volume_id = _id_of(volume) if volume is not None else None
        if volume is None or volume_id is None or volume.spec.csi is None:
            return None
        if not volume_id.key.endswith(naming.volume(identity.hashed(name))):
            return None
        try:
            return parse(volume.spec.csi.volume_attributes or {})
        except InvalidArgument:
            return None

    def accesses(self, of: identity.VolumeId | None = None) -> Iterator[Access]:
        """One for each VolumeAttachment of this driver, or of one volume, whose volume and DPU are known."""
        for attachment in self._attachments.values():
            name = attachment.spec.source.persistent_volume_name or ""
            volume = self._volumes.get(name)
            volume_id = _id_of(volume) if volume is not None else None
            if attachment.spec.attacher != identity.DRIVER_NAME or volume is None or volume_id is None:
                continue
            if volume.spec.csi is None or of not in (None, volume_id):
                continue
            try:
                context = parse(volume.spec.csi.volume_attributes or {})
            except InvalidArgument:
                continue
            dpu = self._dpu(attachment)
            host_nqn = dpu.announcement.host_nqn if dpu is not None else _name_of(attachment)
            if context.transport == "kernel" and identity.is_node_name(attachment.spec.node_name):
                host_nqn = identity.host_nqn(attachment.spec.node_name)
            if not host_nqn:
                continue
            yield Access(
                volume=volume_id,
                host=attachment.spec.node_name,
                host_nqn=host_nqn,
                context=context,
                secret=volume.spec.csi.controller_publish_secret_ref,
                use=_use(attachment, volume),
                settled=attachment.status.attached and attachment.metadata.deletion_timestamp is None,
            )

    def uses(self, volume_id: identity.VolumeId) -> dict[str, Use]:
        """By host NQN."""
        return {access.host_nqn: access.use for access in self.accesses(of=volume_id)}

    def attached(self, volume_id: identity.VolumeId) -> set[str]:
        """The host NQNs that have the volume and shall keep it."""
        return {access.host_nqn for access in self.accesses(of=volume_id) if access.settled}

    def named(self, volume_id: identity.VolumeId, node: str) -> set[str]:
        """The host NQNs by which a node got the volume, as its publish context says."""
        return {
            nqn
            for attachment in self._attachments.values()
            if attachment.spec.attacher == identity.DRIVER_NAME and attachment.spec.node_name == node
            if self._volume_of(attachment) == volume_id
            if (nqn := _name_of(attachment))
        }

    def hosts_with_attachment(self) -> dict[identity.VolumeId, set[str]]:
        """Hosts by volume, and the NQNs by which they got it, whatever state the attachment is in: none is stale."""
        hosts: dict[identity.VolumeId, set[str]] = {}
        for attachment in self._attachments.values():
            volume_id = self._volume_of(attachment)
            if volume_id is not None:
                hosts.setdefault(volume_id, set()).update((attachment.spec.node_name, _name_of(attachment)))
        return hosts

    def limits(self) -> dict[identity.VolumeId, Qos]:
        """Of volumes with a VolumeAttributesClass that can be understood."""
        found: dict[identity.VolumeId, Qos] = {}
        for volume, volume_id in self._ours():
            attributes = self._classes.get(volume.spec.volume_attributes_class_name or "")
            if attributes is None or attributes.driver_name != identity.DRIVER_NAME:
                continue
            try:
                found[volume_id] = parameters.parse_qos(attributes.parameters or {})
            except InvalidArgument:
                continue
        return found

    def _ours(self) -> Iterator[tuple[PersistentVolume, identity.VolumeId]]:
        for volume in self._volumes.values():
            volume_id = _id_of(volume)
            if volume_id is not None:
                yield volume, volume_id

    def _volume_of(self, attachment: VolumeAttachment) -> identity.VolumeId | None:
        volume = self._volumes.get(attachment.spec.source.persistent_volume_name or "")
        return _id_of(volume) if volume is not None else None

    def _dpu(self, attachment: VolumeAttachment) -> Dpu | None:
        """The one which the publish context names; without it, the host's only one."""
        dpus = self._directory.of_host(attachment.spec.node_name)
        named = (attachment.status.attachment_metadata or {}).get("dpuNode", "")
        if named:
            return next((dpu for dpu in dpus if dpu.node == named), None)
        return dpus[0] if len(dpus) == 1 else None


def _name_of(attachment: VolumeAttachment) -> str:
    """The host NQN which the publish context tells; empty before there is one."""
    return (attachment.status.attachment_metadata or {}).get("hostNqn", "")


def _use(attachment: VolumeAttachment, volume: PersistentVolume) -> Use:
    """As it was published; before the answer is noted, as external-attacher asks for it (RWX first, then ROX)."""
    match (attachment.status.attachment_metadata or {}).get("access", ""):
        case "single" | "shared" | "reader" as use:
            return use
    modes = volume.spec.access_modes or ()
    if volume.spec.csi is not None and volume.spec.csi.read_only:
        return "reader"
    if "ReadWriteMany" in modes:
        return "shared"
    return "reader" if "ReadOnlyMany" in modes else "single"


def _id_of(volume: PersistentVolume) -> identity.VolumeId | None:
    source = volume.spec.csi
    if source is None or source.driver != identity.DRIVER_NAME:
        return None
    try:
        return identity.parse_volume_id(source.volume_handle)
    except identity.MalformedId:
        return None
