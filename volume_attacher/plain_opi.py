"""What an OPI bridge without our card service can tell: the state, put together from its lists, resource by resource.

OPI knows neither sizes nor whether a path works, so the volume's own size stands in and every path counts as connected.
The functions come from configuration.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final

from dpu_offload_stubs.card.v1 import card_pb2
from dpu_offload_stubs.opi.storage import (
    backend_nvme_pb2,
    frontend_nvme_pb2,
    middleend_encryption_pb2,
    middleend_qos_volume_pb2,
    opicommon_pb2,
)
from foundation.daemon.backoff import Backoff
from volume_attacher import naming
from volume_attacher.errors import BridgeError, Missing, Unsupported
from volume_attacher.model import Place

_PAGE: Final = 500
_PREFIX: Final = "//storage.opiproject.org/"
_TRANSPORTS: Final = {opicommon_pb2.NVME_TRANSPORT_TYPE_TCP: "tcp", opicommon_pb2.NVME_TRANSPORT_TYPE_RDMA: "rdma"}
Ask = Callable[..., Awaitable[Any]]


class PlainOpi:
    """`ask(method, request)` is one call; `poll` is how often something may have changed unseen, in seconds."""

    def __init__(
        self,
        ask: Ask,
        *,
        frontend: Any,
        backend: Any,
        encryption: Any,
        qos: Any,
        functions: Sequence[Place],
        poll: float,
    ) -> None:
        self._ask = ask
        self._frontend = frontend
        self._backend = backend
        self._encryption = encryption
        self._qos = qos
        self._functions = functions
        self._poll = poll

    async def events(self) -> AsyncIterator[card_pb2.Event]:
        """On each beat: look again."""
        while True:
            try:
                await self._ask(
                    self._frontend.ListNvmeSubsystems, frontend_nvme_pb2.ListNvmeSubsystemsRequest(page_size=1)
                )
            except BridgeError as error:
                yield card_pb2.Event(connected=False, reason=str(error))
            else:
                yield card_pb2.Event(connected=True, instance="opi", changed=True)
            await asyncio.sleep(self._poll)

    async def state(self) -> card_pb2.State:
        result = card_pb2.State(instance="opi")
        await self._put_remotes(result)
        await self._put_subsystems(result)
        for place in self._functions:
            shown = result.functions.add(
                port=place.port,
                physical_function=place.pf,
                virtual_function=place.vf,
                vuid=place.vuid,
                pci_address=place.pci_address,
            )
            for subsystem in result.subsystems:
                if any(_key(function) == place.key for function in subsystem.functions):
                    shown.subsystem_nqn = subsystem.nqn
        await self._put_between(result)
        return result

    async def _every(self, method: Any, request: Any, field: str) -> list[Any]:
        found: list[Any] = []
        request.page_size = _PAGE
        while True:
            answer = await self._ask(method, request)
            found += getattr(answer, field)
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    async def _put_remotes(self, result: card_pb2.State) -> None:
        listing = backend_nvme_pb2.ListNvmeRemoteControllersRequest()
        for one in await self._every(self._backend.ListNvmeRemoteControllers, listing, "nvme_remote_controllers"):
            identifier = _id(one.name)
            if not naming.is_ours(identifier):
                continue
            name = naming.remote_name(identifier)
            remote = result.remote_controllers.add(name=name)
            paths = backend_nvme_pb2.ListNvmePathsRequest(parent=name)
            for path in await self._every(self._backend.ListNvmePaths, paths, "nvme_paths"):
                remote.paths.add(
                    name=f"{name}/nvmePaths/{_id(path.name)}",
                    state="enabled",
                    connected=True,
                    transport=_TRANSPORTS.get(path.trtype, ""),
                    address=path.traddr,
                    port=path.fabrics.trsvcid,
                    subsystem_nqn=path.fabrics.subnqn,
                )
            remote.namespaces.extend(await self.remote_namespaces(identifier))

    async def remote_namespaces(self, identifier: str) -> list[card_pb2.RemoteNamespace]:
        name = naming.remote_name(identifier)
        spaces = backend_nvme_pb2.ListNvmeRemoteNamespacesRequest(parent=name)
        try:
            found = await self._every(self._backend.ListNvmeRemoteNamespaces, spaces, "nvme_remote_namespaces")
        except Unsupported:
            # A bridge that cannot say names its volumes as SPDK does.
            return [card_pb2.RemoteNamespace(name=name, volume=f"{identifier}n1", nsid=1)]
        return [
            card_pb2.RemoteNamespace(name=one.name, volume=_id(one.name), nsid=one.nsid, uuid=one.uuid.lower())
            for one in found
        ]

    async def wait(self, request: card_pb2.WaitRemoteNamespaceRequest, *, seconds: float) -> card_pb2.RemoteNamespace:
        """The namespace as soon as it is there. Raises Missing after `seconds`."""
        identifier = _id(request.remote_controller)
        pauses = Backoff(0.02, 0.5)
        failures = 0
        try:
            async with asyncio.timeout(seconds):
                while True:
                    for one in await self.remote_namespaces(identifier):
                        if one.nsid == request.nsid and one.uuid in ("", request.uuid):
                            return one
                    failures += 1
                    await asyncio.sleep(pauses.delay(failures))
        except TimeoutError:
            raise Missing(
                f"{identifier} shows no namespace {request.nsid} with uuid {request.uuid} after {seconds:g} s"
            ) from None

    async def _put_subsystems(self, result: card_pb2.State) -> None:
        listing = frontend_nvme_pb2.ListNvmeSubsystemsRequest()
        for one in await self._every(self._frontend.ListNvmeSubsystems, listing, "nvme_subsystems"):
            identifier = _id(one.name)
            if not naming.is_ours(identifier):
                continue
            name = naming.subsystem_name(identifier)
            shown = result.subsystems.add(name=name, nqn=one.spec.nqn)
            spaces = frontend_nvme_pb2.ListNvmeNamespacesRequest(parent=name)
            for ns in await self._every(self._frontend.ListNvmeNamespaces, spaces, "nvme_namespaces"):
                spec = ns.spec
                shown.namespaces.add(
                    name=ns.name, nsid=spec.host_nsid, uuid=spec.uuid.lower(), volume=spec.volume_name_ref
                )
            places = frontend_nvme_pb2.ListNvmeControllersRequest(parent=name)
            for controller in await self._every(self._frontend.ListNvmeControllers, places, "nvme_controllers"):
                at = controller.spec.pcie_id
                shown.functions.add(
                    port=at.port_id.value,
                    physical_function=at.physical_function.value,
                    virtual_function=at.virtual_function.value,
                    subsystem_nqn=one.spec.nqn,
                )
                shown.controllers.append(controller.name)

    async def _put_between(self, result: card_pb2.State) -> None:
        encrypted = middleend_encryption_pb2.ListEncryptedVolumesRequest(parent="volumes")
        limited = middleend_qos_volume_pb2.ListQosVolumesRequest(parent="volumes")
        for method, request, field, names in (
            (self._encryption.ListEncryptedVolumes, encrypted, "encrypted_volumes", result.encrypted_volumes),
            (self._qos.ListQosVolumes, limited, "qos_volumes", result.qos_volumes),
        ):
            try:
                names.extend(_id(one.name) for one in await self._every(method, request, field))
            except Unsupported:
                continue


def _id(name: str) -> str:
    return name.removeprefix(_PREFIX).rpartition("/")[2]


def _key(function: card_pb2.Function) -> tuple[int, int, int]:
    return function.port, function.physical_function, function.virtual_function
