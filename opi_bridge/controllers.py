"""NvmeController resources."""

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode

from dpu_offload_stubs.opi.storage import frontend_nvme_pb2 as pb
from opi_bridge.cards.card import Card
from opi_bridge.cards.model import Controller, Limits, Namespace, Qos, Subsystem
from opi_bridge.endpoints import endpoint_of, put_endpoint, qos_of
from opi_bridge.errors import DEFINITE, AlreadyExists, InvalidArgument, NotFound
from opi_bridge.frontend_names import FrontendNames, at
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.resources import immutable
from opi_bridge.session import Session
from opi_bridge.subsystems import SubsystemStore
from opi_bridge.volumes import stats, together

# What a card does not say again, so that the ledger has to.
_NUMBERS: Final = ("nvme_controller_id", "max_nsq", "max_ncq", "sqes", "cqes", "max_namespaces")
_LIMITS: Final = ("min_limit", "max_limit")


class ControllerStore:
    def __init__(
        self, session: Session, card: Card, ledger: Ledger, frontend: FrontendNames, subsystems: SubsystemStore
    ) -> None:
        self._session = session
        self._card = card
        self._ledger = ledger
        self._names = frontend
        self._subsystems = subsystems

    def check(self, message: pb.NvmeController) -> None:
        spec = message.spec
        self._card.check_endpoint(endpoint_of(spec))
        for field in _NUMBERS:
            if getattr(spec, field) < 0:
                raise InvalidArgument(f"spec.{field} is negative")
        if spec.nvme_controller_id > 0xFFEF:
            raise InvalidArgument(f"spec.nvme_controller_id {spec.nvme_controller_id} is above 65519")
        if spec.max_nsq > 65535 or spec.max_ncq > 65535:
            raise InvalidArgument("spec.max_nsq and spec.max_ncq are at most 65535")
        for field in _LIMITS:
            qos_of(getattr(spec, field), f"spec.{field}")

    def normalise(self, message: pb.NvmeController) -> pb.NvmeController:
        result = pb.NvmeController()
        result.CopyFrom(message)
        put_endpoint(endpoint_of(message.spec), result.spec)
        return result

    async def listing(self, parent: Name) -> Sequence[pb.NvmeController]:
        subsystems = await self._subsystems.under(parent)
        if parent.id != "-" and not subsystems:
            raise NotFound(f"there is no {parent}")
        return [
            self._message(name, controller)
            for subsystem_name, subsystem in subsystems
            for name, controller in self._names.controllers(subsystem_name, subsystem)
        ]

    async def get(self, name: Name) -> pb.NvmeController | None:
        found = await self._find(name)
        return self._message(name, found[1]) if found is not None else None

    async def _find(self, name: Name) -> tuple[Subsystem, Controller] | None:
        subsystem = await self._subsystems.find(name.parent)
        if subsystem is None:
            return None
        for own, controller in self._names.controllers(name.parent, subsystem):
            if own == name:
                return subsystem, controller
        return None

    async def create(self, name: Name, message: pb.NvmeController) -> pb.NvmeController:
        spec = message.spec
        endpoint = endpoint_of(spec)
        nqn = self._names.nqn(name.parent)
        if nqn is None:
            subsystem = await self._subsystems.find(name.parent)
            if subsystem is None:
                raise NotFound(f"there is no {name.parent}: create it first")
            nqn = subsystem.nqn
        if self._ledger.get(name) is not None and await self._find(name) is not None:
            raise AlreadyExists(f"{name} exists already")
        limits = Limits(
            queues=spec.max_nsq or spec.max_ncq,
            completion_queues=spec.max_ncq,
            namespaces=spec.max_namespaces,
            controller_id=spec.nvme_controller_id if spec.HasField("nvme_controller_id") else None,
        )
        entry = {"at": at(endpoint), **_extras(spec)}
        making = self._card.create_controller(nqn, endpoint, limits)
        if len(entry) == 1 and name.id == endpoint.id:
            controller = await making
        else:
            try:
                controller = await together(self._ledger.put(name, entry), making)
            except DEFINITE:
                await self._ledger.drop(name)
                raise
        try:
            await self._finish(controller, spec)
        except BaseException:
            await self._card.delete_controller(controller)
            await self._ledger.drop(name)
            raise
        return self._message(name, controller)

    async def _finish(self, controller: Controller, spec: pb.NvmeControllerSpec) -> None:
        least, most = qos_of(spec.min_limit, "spec.min_limit"), qos_of(spec.max_limit, "spec.max_limit")
        if least != Qos() or most != Qos():
            await self._card.limit_controller(controller, least, most)
        if self._card.capabilities.explicit_attach:
            for namespace in await self._namespaces(controller.nqn):
                await self._card.attach_namespace(controller, namespace)
        await self._card.expose(controller)

    async def _namespaces(self, nqn: str) -> tuple[Namespace, ...]:
        subsystem = await self._card.subsystem(nqn)
        return subsystem.namespaces if subsystem is not None else ()

    async def update(self, name: Name, current: pb.NvmeController, wanted: pb.NvmeController) -> Any:
        immutable(current, wanted, [f"spec.{one}.{f.name}" for one in _LIMITS for f in _limit_fields()])
        found = await self._find(name)
        if found is None:
            raise NotFound(f"there is no {name}")
        controller = found[1]
        spec = wanted.spec
        await self._card.limit_controller(
            controller, qos_of(spec.min_limit, "spec.min_limit"), qos_of(spec.max_limit, "spec.max_limit")
        )
        await self._ledger.put(name, {"at": at(controller.endpoint), **_extras(spec)})
        return self._message(name, controller)

    async def delete(self, name: Name) -> bool:
        nqn = self._names.nqn(name.parent)
        endpoint = self._names.endpoint(name)
        controller = None
        if nqn is not None and endpoint is not None and not self._card.capabilities.explicit_attach:
            controller = Controller(nqn, endpoint, handle=str(endpoint))
        else:
            found = await self._find(name)
            if found is not None:
                controller = found[1]
        if controller is None:
            await self._ledger.drop(name)
            if endpoint is not None:
                await self._card.abandon(endpoint)
            return False
        await self._card.hide(controller)
        deleted = await self._card.delete_controller(controller)
        await self._ledger.drop(name)
        return deleted

    async def stats(self, name: Name) -> Any | None:
        found = await self._find(name)
        return await stats(self._session, [ns.bdev for ns in found[0].namespaces]) if found is not None else None

    def _message(self, name: Name, controller: Controller) -> pb.NvmeController:
        result = pb.NvmeController(name=str(name))
        put_endpoint(controller.endpoint, result.spec)
        _put_extras(result.spec, self._ledger.get(name) or {})
        if controller.controller_id is not None:
            result.spec.nvme_controller_id = controller.controller_id
        result.status.active = controller.active
        return result


def _limit_fields() -> Any:
    return pb.NvmeControllerSpec().max_limit.DESCRIPTOR.fields


def _extras(spec: pb.NvmeControllerSpec) -> dict[str, str]:
    result = {}
    for field, value in spec.ListFields():
        if field.name in _NUMBERS:
            result[field.name] = str(value)
        elif field.name in _LIMITS:
            result[field.name] = urlencode([(one.name, number) for one, number in value.ListFields()])
    return result


def _put_extras(spec: pb.NvmeControllerSpec, entry: Mapping[str, str]) -> None:
    for field in _NUMBERS:
        if field in entry:
            setattr(spec, field, int(entry[field]))
    for field in _LIMITS:
        for one, number in parse_qsl(entry.get(field, "")):
            setattr(getattr(spec, field), one, int(number))
