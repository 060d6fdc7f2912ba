"""NvmeNamespace resources."""

import re
import uuid as uuids
from collections.abc import Sequence
from typing import Any, Final

from dpu_offload_stubs.opi.storage import frontend_nvme_pb2 as pb
from opi_bridge.cards.card import Card
from opi_bridge.cards.model import Namespace, Subsystem
from opi_bridge.errors import DEFINITE, AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from opi_bridge.frontend_names import FrontendNames, namespace_id
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.resources import immutable
from opi_bridge.session import Session
from opi_bridge.subsystems import SubsystemStore
from opi_bridge.volumes import bdev_of, stats, together

_NGUID: Final = re.compile(r"[0-9a-f]{32}")
_EUI64_MASK: Final = 2**64 - 1
_EUI64_SIGN: Final = 2**63


class NamespaceStore:
    def __init__(
        self, session: Session, card: Card, ledger: Ledger, frontend: FrontendNames, subsystems: SubsystemStore
    ) -> None:
        self._session = session
        self._card = card
        self._ledger = ledger
        self._names = frontend
        self._subsystems = subsystems

    def check(self, message: pb.NvmeNamespace) -> None:
        spec = message.spec
        bdev_of(spec.volume_name_ref, "spec.volume_name_ref")
        if spec.host_nsid < 0:
            raise InvalidArgument(f"spec.host_nsid {spec.host_nsid} is negative: use 1 or more, or 0 for a free one")
        if spec.uuid:
            _uuid(spec.uuid)
        if spec.nguid:
            _nguid(spec.nguid)

    def normalise(self, message: pb.NvmeNamespace) -> pb.NvmeNamespace:
        result = pb.NvmeNamespace()
        result.CopyFrom(message)
        spec = result.spec
        spec.volume_name_ref = self._resolved(bdev_of(spec.volume_name_ref))
        if spec.uuid:
            spec.uuid = _uuid(spec.uuid)
        if spec.nguid:
            spec.nguid = _nguid(spec.nguid)
        return result

    def _resolved(self, bdev: str) -> str:
        """A QosVolume is no bdev of its own but a limit on one; nor is a volume that the card itself encrypts."""
        for collection in ("encryptedVolumes", "qosVolumes"):
            entry = self._ledger.get(Name(((collection, bdev),)))
            bdev = entry["bdev"] if entry else bdev
        return bdev

    async def listing(self, parent: Name) -> Sequence[pb.NvmeNamespace]:
        subsystems = await self._subsystems.under(parent)
        if parent.id != "-" and not subsystems:
            raise NotFound(f"there is no {parent}")
        return [
            _message(name, namespace)
            for subsystem_name, subsystem in subsystems
            for name, namespace in self._names.namespaces(subsystem_name, subsystem)
        ]

    async def get(self, name: Name) -> pb.NvmeNamespace | None:
        found = await self.find(name)
        return _message(name, found[1]) if found is not None else None

    async def find(self, name: Name) -> tuple[Subsystem, Namespace] | None:
        subsystem = await self._subsystems.find(name.parent)
        nsid = self._names.nsid(name)
        if subsystem is None or nsid is None:
            return None
        namespace = subsystem.namespace(nsid)
        if namespace is None or (name, namespace) not in self._names.namespaces(name.parent, subsystem):
            return None
        return subsystem, namespace

    async def create(self, name: Name, message: pb.NvmeNamespace) -> pb.NvmeNamespace:
        spec = message.spec
        nqn = self._names.nqn(name.parent)
        entry = self._ledger.get(name)
        if nqn is None or not spec.host_nsid or entry is not None or self._card.capabilities.explicit_attach:
            subsystem = await self._subsystems.find(name.parent)
            if subsystem is None:
                raise NotFound(f"there is no {name.parent}: create it first")
            nqn = subsystem.nqn
            if entry is not None and subsystem.namespace(int(entry["nsid"])) is not None:
                raise AlreadyExists(f"{name} exists already")
            nsid = spec.host_nsid or _free(subsystem)
        else:
            subsystem = None
            nsid = spec.host_nsid
        wanted = Namespace(
            nsid=nsid,
            bdev=spec.volume_name_ref,
            uuid=spec.uuid,
            nguid=spec.nguid,
            eui64=f"{spec.eui64 & _EUI64_MASK:016x}" if spec.eui64 else "",
        )
        making = self._card.create_namespace(nqn, wanted)
        if name.id == namespace_id(nsid):
            made = await making
        else:
            try:
                made = await together(self._ledger.put(name, {"nsid": str(nsid)}), making)
            except DEFINITE:
                await self._ledger.drop(name)
                raise
        if subsystem is not None and self._card.capabilities.explicit_attach:
            for controller in subsystem.controllers:
                await self._card.attach_namespace(controller, made)
        return _message(name, made)

    async def update(self, name: Name, current: pb.NvmeNamespace, wanted: pb.NvmeNamespace) -> Any:
        immutable(current, wanted)
        return current

    async def delete(self, name: Name) -> bool:
        nqn = self._names.nqn(name.parent)
        nsid = self._names.nsid(name)
        if nqn is not None and nsid is not None and not self._card.capabilities.explicit_attach:
            deleted = await self._card.delete_namespace(nqn, Namespace(nsid, "", handle=str(nsid)))
        else:
            found = await self.find(name)
            deleted = found is not None
            if found is not None:
                subsystem, namespace = found
                for controller in subsystem.controllers:
                    await self._card.detach_namespace(controller, namespace)
                await self._card.delete_namespace(subsystem.nqn, namespace)
        await self._ledger.drop(name)
        return deleted

    async def rescan(self, name: Name) -> None:
        """Tell the host that the namespace may have grown. Raises NotFound."""
        found = await self.find(name)
        if found is None:
            raise NotFound(f"there is no {name}")
        await self._card.resized(found[0].nqn, found[1])

    async def stats(self, name: Name) -> Any | None:
        found = await self.find(name)
        return await stats(self._session, [found[1].bdev]) if found is not None else None


def _free(subsystem: Subsystem) -> int:
    used = {namespace.nsid for namespace in subsystem.namespaces}
    nsid = next(number for number in range(1, len(used) + 2) if number not in used)
    if subsystem.max_namespaces and nsid > subsystem.max_namespaces:
        raise FailedPrecondition(f"{subsystem.nqn} has all its {subsystem.max_namespaces} namespaces")
    return nsid


def _uuid(text: str) -> str:
    try:
        return str(uuids.UUID(text))
    except ValueError:
        raise InvalidArgument(f"spec.uuid {text[:60]!r} is not a UUID") from None


def _nguid(text: str) -> str:
    plain = text.replace("-", "").lower()
    if not _NGUID.fullmatch(plain):
        raise InvalidArgument(f"spec.nguid {text[:60]!r} is not 32 hexadecimal digits")
    return plain


def _message(name: Name, namespace: Namespace) -> pb.NvmeNamespace:
    result = pb.NvmeNamespace(name=str(name))
    spec = result.spec
    spec.host_nsid = namespace.nsid
    spec.uuid = namespace.uuid
    spec.nguid = namespace.nguid
    if namespace.eui64:
        number = int(namespace.eui64, 16)
        spec.eui64 = number - 2 * _EUI64_SIGN if number >= _EUI64_SIGN else number
    spec.volume_name_ref = namespace.bdev
    result.status.state = pb.NvmeNamespaceStatus.STATE_ENABLED
    result.status.oper_state = pb.NvmeNamespaceStatus.OPER_STATE_ONLINE
    return result
