"""The service beside OPI: functions, capabilities, state in one answer, keys, events."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Final

import grpc.aio

from dpu_offload_stubs.card.v1 import card_pb2 as pb
from dpu_offload_stubs.card.v1 import card_pb2_grpc
from opi_bridge import names
from opi_bridge.batches import Batches
from opi_bridge.cards.card import Card
from opi_bridge.cards.model import CardState, Function, Slot
from opi_bridge.errors import InvalidArgument
from opi_bridge.frontend_names import NAMESPACES, SUBSYSTEMS, FrontendNames, foreign_id, subsystem_name
from opi_bridge.ledger import Ledger
from opi_bridge.monitor import Monitor
from opi_bridge.namespaces import NamespaceStore
from opi_bridge.paths import PathStore
from opi_bridge.remote_controllers import COLLECTION, RemoteControllerStore, Timeouts, owner_of
from opi_bridge.remote_namespaces import RemoteNamespaceStore, name_of, nsid_of, size_of
from opi_bridge.resources import Creation, Locks, Removal
from opi_bridge.session import Session

Context = grpc.aio.ServicerContext[Any, Any]
_DEFAULT_WAIT: Final = 10.0
_CONNECTED: Final = "enabled"


class CardService(card_pb2_grpc.CardServicer):
    def __init__(
        self,
        *,
        session: Session,
        card: Card,
        ledger: Ledger,
        frontend: FrontendNames,
        namespaces: NamespaceStore,
        controllers: RemoteControllerStore,
        paths: PathStore,
        volumes: RemoteNamespaceStore,
        monitor: Monitor,
        locks: Locks,
        transports: Sequence[str],
        creation: Creation,
        removal: Removal,
    ) -> None:
        self._session = session
        self._card = card
        self._ledger = ledger
        self._names = frontend
        self._namespaces = namespaces
        self._controllers = controllers
        self._paths = paths
        self._volumes = volumes
        self._monitor = monitor
        self._locks = locks
        self._transports = transports
        self._batches = Batches(creation, removal, set_options=self._set_options, wait=self._wait)

    async def GetCapabilities(self, request: pb.GetCapabilitiesRequest, context: Context) -> pb.Capabilities:
        has = self._card.capabilities
        return pb.Capabilities(
            card=has.card,
            hotplug=has.hotplug,
            suspend=has.suspend,
            vuid=has.vuid,
            encryption=has.encryption,
            qos=has.qos,
            shared_controller=has.shared_controller,
            namespaces_per_controller=has.namespaces_per_controller,
            transports=self._transports or has.transports,
        )

    async def ListFunctions(self, request: pb.ListFunctionsRequest, context: Context) -> pb.ListFunctionsResponse:
        return pb.ListFunctionsResponse(functions=[_function(f) for f in await self._card.functions()])

    async def GetState(self, request: pb.GetStateRequest, context: Context) -> pb.State:
        state, controllers, bdevs = await asyncio.gather(
            self._card.state(), self._controllers.every(), self._session.call("bdev_get_bdevs")
        )
        result = pb.State(instance=self._monitor.situation.instance)
        self._put_remote(result, controllers, bdevs)
        self._put_subsystems(result, state)
        result.functions.extend(_function(f) for f in state.functions)
        result.encrypted_volumes.extend(str(b["name"]) for b in bdevs if b.get("product_name") == "crypto")
        result.encrypted_volumes.extend(name.id for name, _ in self._ledger.under(names.ROOT, "encryptedVolumes"))
        result.qos_volumes.extend(name.id for name, _ in self._ledger.under(names.ROOT, "qosVolumes"))
        return result

    def _put_remote(
        self, result: pb.State, controllers: Mapping[names.Name, list[Mapping[str, Any]]], bdevs: list[dict[str, Any]]
    ) -> None:
        disks: dict[str, list[Mapping[str, Any]]] = {}
        for bdev in bdevs:
            owner = owner_of(bdev)
            if owner is not None:
                disks.setdefault(owner, []).append(bdev)
        for name, paths in controllers.items():
            remote = result.remote_controllers.add(name=str(name))
            mine = disks.get(name.id, [])
            for path in paths:
                remote.paths.append(self._path(name, path, mine))
            remote.namespaces.extend(_volume(bdev) for bdev in mine)

    def _path(self, owner: names.Name, path: Mapping[str, Any], disks: list[Mapping[str, Any]]) -> pb.RemotePath:
        trid = path["trid"]
        port = trid.get("trsvcid", "")
        return pb.RemotePath(
            name=str(self._paths.name(owner, trid)),
            state=path["state"],
            connected=path["state"] == _CONNECTED,
            ana_state=_ana(trid, disks),
            transport=trid["trtype"].lower(),
            address=trid["traddr"],
            port=int(port) if port.isdecimal() else 0,
            subsystem_nqn=trid.get("subnqn", ""),
        )

    def _put_subsystems(self, result: pb.State, state: CardState) -> None:
        ids = self._names.ids()
        functions = {f.slot: f for f in state.functions}
        for subsystem in state.subsystems:
            name = subsystem_name(ids.get(subsystem.nqn) or foreign_id(subsystem.nqn))
            shown = result.subsystems.add(name=str(name), nqn=subsystem.nqn)
            for own, namespace in self._names.namespaces(name, subsystem):
                shown.namespaces.add(name=str(own), nsid=namespace.nsid, uuid=namespace.uuid, volume=namespace.bdev)
            for own, controller in self._names.controllers(name, subsystem):
                if isinstance(controller.endpoint, Slot):
                    at = functions.get(controller.endpoint) or Function(controller.endpoint, nqn=subsystem.nqn)
                    shown.functions.append(_function(at))
                    shown.controllers.append(str(own))

    async def WaitRemoteNamespace(self, request: pb.WaitRemoteNamespaceRequest, context: Context) -> pb.RemoteNamespace:
        remaining = context.time_remaining()
        seconds = _DEFAULT_WAIT if remaining is None else max(0.1, min(remaining - 0.2, 60.0))
        return await self._wait(request, seconds)

    async def _wait(self, request: pb.WaitRemoteNamespaceRequest, seconds: float) -> pb.RemoteNamespace:
        name = names.parse(request.remote_controller, (COLLECTION,), "remote_controller")
        if not request.nsid:
            raise InvalidArgument("nsid is required: NSIDs count from 1")
        return _volume(await self._volumes.wait(name, request.nsid, request.uuid, seconds=seconds))

    async def SetRemoteControllerOptions(
        self, request: pb.SetRemoteControllerOptionsRequest, context: Context
    ) -> pb.SetRemoteControllerOptionsResponse:
        await self._set_options(request)
        return pb.SetRemoteControllerOptionsResponse()

    async def _set_options(self, request: pb.SetRemoteControllerOptionsRequest) -> None:
        name = names.parse(request.name, (COLLECTION,))
        timeouts = None
        if not request.keep_timeouts:
            timeouts = Timeouts(
                request.ctrlr_loss_timeout_seconds,
                request.reconnect_delay_seconds,
                request.fast_io_fail_timeout_seconds,
            )
        async with self._locks.hold(name.root):
            await self._controllers.set_options(
                name,
                timeouts=timeouts,
                dhchap_key=request.dhchap_key,
                dhchap_ctrlr_key=request.dhchap_ctrlr_key,
                tls_psk=request.tls_psk,
            )

    async def Rescan(self, request: pb.RescanRequest, context: Context) -> pb.RescanResponse:
        await self._namespaces.rescan(names.parse(request.namespace, (SUBSYSTEMS, NAMESPACES), "namespace"))
        return pb.RescanResponse()

    async def CreateAll(self, request: pb.CreateAllRequest, context: Context) -> pb.CreateAllResponse:
        return pb.CreateAllResponse(created=await self._batches.create(request))

    async def DeleteAll(self, request: pb.DeleteAllRequest, context: Context) -> pb.DeleteAllResponse:
        await self._batches.delete(request)
        return pb.DeleteAllResponse()

    async def Watch(self, request: pb.WatchRequest, context: Context) -> AsyncIterator[pb.Event]:
        async for situation, changed in self._monitor.watch():
            yield pb.Event(
                connected=situation.connected,
                instance=situation.instance,
                changed=changed,
                reason=situation.reason,
            )


def _function(function: Function) -> pb.Function:
    return pb.Function(
        port=function.slot.port,
        physical_function=function.slot.pf,
        virtual_function=function.slot.vf,
        vuid=function.vuid,
        pci_address=function.pci_address,
        hotplug=function.hotplug,
        subsystem_nqn=function.nqn,
    )


def _volume(bdev: Mapping[str, Any]) -> pb.RemoteNamespace:
    return pb.RemoteNamespace(
        name=str(name_of(bdev)),
        volume=str(bdev["name"]),
        nsid=nsid_of(bdev),
        uuid=str(bdev["uuid"]).lower(),
        size_bytes=size_of(bdev),
    )


def _ana(trid: Mapping[str, str], disks: list[Mapping[str, Any]]) -> str:
    """The access state of the first disk over this path; "" where the target reports none."""
    for disk in disks:
        for way in disk.get("driver_specific", {}).get("nvme", ()):
            if way.get("trid") == trid:
                return str(way.get("ns_data", {}).get("ana_state", "")).replace("-", "_")
    return ""
