"""NvmeSubsystem resources."""

import re
from collections.abc import Sequence
from typing import Any, Final

from dpu_offload_stubs.opi.storage import frontend_nvme_pb2 as pb
from opi_bridge import masks
from opi_bridge.cards.card import Card
from opi_bridge.cards.model import Subsystem
from opi_bridge.errors import DEFINITE, AlreadyExists, Different, FailedPrecondition, InvalidArgument
from opi_bridge.frontend_names import (
    CONTROLLERS,
    NAMESPACES,
    SUBSYSTEMS,
    FrontendNames,
    foreign_id,
    subsystem_name,
)
from opi_bridge.keys import Keys
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.resources import immutable
from opi_bridge.session import Session
from opi_bridge.volumes import prefixed, stats, together

# NVMe base specification 2.0, 4.5: at most 223 bytes; SPDK also wants the colon and what follows.
_NQN: Final = re.compile(r"nqn\.\d{4}-\d{2}\.[A-Za-z0-9.-]+:\S(?:.*\S)?")
_NQN_BYTES: Final = 223


def check_nqn(nqn: str, field: str) -> None:
    if not nqn:
        raise InvalidArgument(f"{field} is required")
    if len(nqn.encode()) > _NQN_BYTES or not _NQN.fullmatch(nqn):
        raise InvalidArgument(
            f"{field} {nqn[:100]!r} is not an NQN: nqn.yyyy-mm.reverse.domain:name, at most 223 bytes"
        )


class SubsystemStore:
    def __init__(self, session: Session, card: Card, ledger: Ledger, frontend: FrontendNames, keys: Keys) -> None:
        self._session = session
        self._card = card
        self._ledger = ledger
        self._names = frontend
        self._keys = keys

    def check(self, message: pb.NvmeSubsystem) -> None:
        spec = message.spec
        check_nqn(spec.nqn, "spec.nqn")
        if len(spec.serial_number) > 20 or not spec.serial_number.isascii():
            raise InvalidArgument("spec.serial_number has at most 20 ASCII characters")
        if len(spec.model_number) > 40 or not spec.model_number.isascii():
            raise InvalidArgument("spec.model_number has at most 40 ASCII characters")
        if not 0 <= spec.max_namespaces < 2**32 - 1:
            raise InvalidArgument(f"spec.max_namespaces {spec.max_namespaces} is out of range")
        if spec.hostnqn:
            check_nqn(spec.hostnqn, "spec.hostnqn")
        elif spec.psk:
            raise InvalidArgument("spec.psk is the key of one host: spec.hostnqn is required with it")

    def normalise(self, message: pb.NvmeSubsystem) -> pb.NvmeSubsystem:
        return message

    async def listing(self, parent: Name) -> Sequence[pb.NvmeSubsystem]:
        ids = self._names.ids()
        state = await self._card.state()
        return [
            _message(subsystem_name(ids.get(s.nqn) or foreign_id(s.nqn)), s, self._session.version)
            for s in state.subsystems
        ]

    async def get(self, name: Name) -> pb.NvmeSubsystem | None:
        found = await self.find(name)
        return _message(name, found, self._session.version) if found is not None else None

    async def find(self, name: Name) -> Subsystem | None:
        """The subsystem behind a name, as the card has it."""
        nqn = self._names.nqn(name)
        if nqn is not None:
            return await self._card.subsystem(nqn)
        named = self._names.ids()
        for subsystem in (await self._card.state()).subsystems:
            if subsystem.nqn not in named and foreign_id(subsystem.nqn) == name.id:
                return subsystem
        return None

    async def under(self, parent: Name) -> list[tuple[Name, Subsystem]]:
        """Subsystems that a list's parent means: one, or all for the wildcard."""
        if parent.id != "-":
            found = await self.find(parent)
            return [(parent, found)] if found is not None else []
        ids = self._names.ids()
        state = await self._card.state()
        every = [(subsystem_name(ids.get(s.nqn) or foreign_id(s.nqn)), s) for s in state.subsystems]
        return prefixed(every, parent)

    async def create(self, name: Name, message: pb.NvmeSubsystem) -> pb.NvmeSubsystem:
        spec = message.spec
        owner = self._names.ids().get(spec.nqn)
        if owner not in (None, name.id):
            raise AlreadyExists(f"NQN {spec.nqn} belongs to {SUBSYSTEMS}/{owner}")
        earlier = self._names.nqn(name)
        if earlier is not None and await self._card.subsystem(earlier) is not None:
            raise AlreadyExists(f"{name} exists already")
        psk = await self._keys.put(f"{name.id}-psk", spec.psk) if spec.psk else ""
        wanted = Subsystem(
            nqn=spec.nqn,
            serial=spec.serial_number,
            model=spec.model_number,
            max_namespaces=spec.max_namespaces,
            hosts=(spec.hostnqn,) if spec.hostnqn else (),
        )
        try:
            await together(
                self._ledger.put(name, {"nqn": spec.nqn}),
                self._card.create_subsystem(wanted, psk=psk),
            )
        except AlreadyExists:
            return await self._adopt(name, message)
        except DEFINITE:
            await self._ledger.drop(name)
            raise
        result = pb.NvmeSubsystem(name=str(name), spec=spec)
        result.spec.ClearField("psk")
        result.status.firmware_revision = self._session.version
        return result

    async def _adopt(self, name: Name, message: pb.NvmeSubsystem) -> pb.NvmeSubsystem:
        """Give `name` to a subsystem of this NQN which nobody has named, if it is as `message` wants it."""
        found = await self._card.subsystem(message.spec.nqn)
        there = _message(name, found, self._session.version) if found is not None else None
        wrong = masks.differing(message, there) if there is not None else ["spec.nqn"]
        if there is None or wrong:
            await self._ledger.drop(name)
            raise Different(f"a subsystem with NQN {message.spec.nqn} exists with another {', '.join(wrong)}")
        return there

    async def update(self, name: Name, current: pb.NvmeSubsystem, wanted: pb.NvmeSubsystem) -> Any:
        immutable(current, wanted)
        return current

    async def delete(self, name: Name) -> bool:
        found = await self.find(name)
        if found is None:
            await self._ledger.drop_under(name, NAMESPACES, CONTROLLERS)
            await self._ledger.drop(name)
            return False
        children = [f"namespace {ns.nsid}" for ns in found.namespaces]
        children += [f"a controller on {c.endpoint}" for c in found.controllers]
        if children:
            raise FailedPrecondition(f"{name} still has {', '.join(children[:5])}: delete those first")
        await self._ledger.drop_under(name, NAMESPACES, CONTROLLERS)
        deleted = await together(self._ledger.drop(name), self._card.delete_subsystem(found.nqn))
        await self._keys.drop(f"{name.id}-psk")
        return deleted

    async def stats(self, name: Name) -> Any | None:
        found = await self.find(name)
        return await stats(self._session, [ns.bdev for ns in found.namespaces]) if found is not None else None


def _message(name: Name, subsystem: Subsystem, version: str) -> pb.NvmeSubsystem:
    result = pb.NvmeSubsystem(name=str(name))
    result.spec.nqn = subsystem.nqn
    result.spec.serial_number = subsystem.serial
    result.spec.model_number = subsystem.model
    result.spec.max_namespaces = subsystem.max_namespaces
    result.spec.hostnqn = subsystem.hosts[0] if subsystem.hosts else ""
    result.status.firmware_revision = version
    return result
