"""What the attacher asks of an OPI bridge, one method a question.

Works with any bridge of the OPI storage API; what the API lacks comes from the card service beside it, if there is one.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, Final, TypeVar

import grpc
import grpc.aio

from dpu_offload_stubs.card.v1 import card_pb2, card_pb2_grpc
from dpu_offload_stubs.opi.storage import (
    backend_nvme_pb2,
    backend_nvme_pb2_grpc,
    frontend_nvme_pb2,
    frontend_nvme_pb2_grpc,
    middleend_encryption_pb2,
    middleend_encryption_pb2_grpc,
    middleend_qos_volume_pb2,
    middleend_qos_volume_pb2_grpc,
    opicommon_pb2,
)
from volume_attacher.errors import BridgeAway, BridgeError, Exists, Missing, Refused, Unsupported
from volume_attacher.model import Limits, Place, Portal, Secrets
from volume_attacher.naming import controller_id, namespace_id, path_id, remote_name, subsystem_name
from volume_attacher.plain_opi import PlainOpi

log: Final = logging.getLogger(__name__)
T = TypeVar("T")
_AWAY: Final = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
}
_KINDS: Final = {
    grpc.StatusCode.NOT_FOUND: Missing,
    grpc.StatusCode.ALREADY_EXISTS: Exists,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
}
_TRANSPORTS: Final = {
    "tcp": opicommon_pb2.NVME_TRANSPORT_TYPE_TCP,
    "rdma": opicommon_pb2.NVME_TRANSPORT_TYPE_RDMA,
}
# A path which the target refuses may take its time-outs to say so.
_CONNECT_SECONDS: Final = 35.0
_DEADLINE: Final = 20.0


class Bridge:
    """Calls over one channel; `deadline` in seconds bounds each."""

    def __init__(
        self,
        channel: grpc.aio.Channel,
        *,
        host_nqn: str,
        functions: Sequence[Place] = (),
        poll: float = 10.0,
    ) -> None:
        self._host_nqn = host_nqn
        self._frontend: Any = frontend_nvme_pb2_grpc.FrontendNvmeServiceStub(channel)
        self._backend: Any = backend_nvme_pb2_grpc.NvmeRemoteControllerServiceStub(channel)
        self._encryption: Any = middleend_encryption_pb2_grpc.MiddleendEncryptionServiceStub(channel)
        self._qos: Any = middleend_qos_volume_pb2_grpc.MiddleendQosVolumeServiceStub(channel)
        self._card: Any = card_pb2_grpc.CardStub(channel)
        self._plain = PlainOpi(
            _ask,
            frontend=self._frontend,
            backend=self._backend,
            encryption=self._encryption,
            qos=self._qos,
            functions=functions,
            poll=poll,
        )

    # --- the card service

    async def capabilities(self) -> card_pb2.Capabilities:
        try:
            return await _ask(self._card.GetCapabilities, card_pb2.GetCapabilitiesRequest())
        except Unsupported:
            return card_pb2.Capabilities(card="opi", transports=["tcp"])

    async def state(self) -> card_pb2.State:
        try:
            return await _ask(self._card.GetState, card_pb2.GetStateRequest())
        except Unsupported:
            return await self._plain.state()

    async def watch(self) -> AsyncIterator[card_pb2.Event]:
        """Events until the bridge goes away, which raises BridgeAway."""
        try:
            async for event in self._card.Watch(card_pb2.WatchRequest()):
                yield event
        except grpc.aio.AioRpcError as error:
            if error.code() is not grpc.StatusCode.UNIMPLEMENTED:
                raise _error(error) from error
            async for event in self._plain.events():
                yield event
        raise BridgeAway("the bridge ended its events")

    async def wait_remote_namespace(
        self, identifier: str, nsid: int, uuid: str, *, seconds: float
    ) -> card_pb2.RemoteNamespace:
        request = card_pb2.WaitRemoteNamespaceRequest(remote_controller=remote_name(identifier), nsid=nsid, uuid=uuid)
        try:
            return await _ask(self._card.WaitRemoteNamespace, request, seconds=seconds)
        except Unsupported:
            return await self._plain.wait(identifier, nsid, uuid, seconds=seconds)

    async def set_keys(self, identifier: str, secrets: Secrets) -> None:
        await _ask(
            self._card.SetRemoteControllerOptions,
            card_pb2.SetRemoteControllerOptionsRequest(
                name=remote_name(identifier),
                keep_timeouts=True,
                dhchap_key=secrets.dhchap_key,
                dhchap_ctrlr_key=secrets.dhchap_ctrlr_key,
                tls_psk=secrets.tls_psk,
            ),
        )

    async def rescan(self, subsystem: str, nsid: int) -> None:
        name = f"{subsystem_name(subsystem)}/nvmeNamespaces/{namespace_id(nsid)}"
        await _ask(self._card.Rescan, card_pb2.RescanRequest(namespace=name))

    async def delete_all(self, first: Sequence[str], rest: Sequence[Sequence[str]]) -> None:
        """Delete by resource names: `first` in order, then the chains of `rest` side by side, in one call."""
        await _ask(
            self._card.DeleteAll,
            card_pb2.DeleteAllRequest(
                first=card_pb2.Chain(names=first), rest=[card_pb2.Chain(names=names) for names in rest]
            ),
            seconds=_CONNECT_SECONDS,
        )

    # --- the remote side

    async def create_remote(self, identifier: str) -> None:
        await _ask(
            self._backend.CreateNvmeRemoteController,
            backend_nvme_pb2.CreateNvmeRemoteControllerRequest(
                nvme_remote_controller_id=identifier,
                nvme_remote_controller=backend_nvme_pb2.NvmeRemoteController(
                    multipath=backend_nvme_pb2.NVME_MULTIPATH_MULTIPATH
                ),
            ),
        )

    async def connect(self, identifier: str, portal: Portal, address: str, nqn: str) -> None:
        """Open the path over `portal`, whose name was resolved to `address`."""
        family = opicommon_pb2.NVME_ADDRESS_FAMILY_IPV6 if ":" in address else opicommon_pb2.NVME_ADDRESS_FAMILY_IPV4
        await _ask(
            self._backend.CreateNvmePath,
            backend_nvme_pb2.CreateNvmePathRequest(
                parent=remote_name(identifier),
                nvme_path_id=path_id(portal.transport, address, portal.port),
                nvme_path=backend_nvme_pb2.NvmePath(
                    trtype=_TRANSPORTS[portal.transport],
                    traddr=address,
                    fabrics=backend_nvme_pb2.FabricsPath(
                        trsvcid=portal.port, subnqn=nqn, adrfam=family, hostnqn=self._host_nqn
                    ),
                ),
            ),
            seconds=_CONNECT_SECONDS,
        )

    async def path_names(self, identifier: str) -> list[str]:
        request = backend_nvme_pb2.ListNvmePathsRequest(parent=remote_name(identifier), page_size=1000)
        try:
            answer = await _ask(self._backend.ListNvmePaths, request)
        except Missing:
            return []
        return [path.name for path in answer.nvme_paths]

    async def disconnect(self, path: str) -> None:
        request = backend_nvme_pb2.DeleteNvmePathRequest(name=path, allow_missing=True)
        await _ask(self._backend.DeleteNvmePath, request)

    async def delete_remote(self, identifier: str) -> None:
        request = backend_nvme_pb2.DeleteNvmeRemoteControllerRequest(name=remote_name(identifier), allow_missing=True)
        await _ask(self._backend.DeleteNvmeRemoteController, request)

    # --- between

    async def create_encrypted(self, identifier: str, volume: str, secrets: Secrets) -> None:
        wide = len(secrets.key) == 64
        cipher = opicommon_pb2.ENCRYPTION_TYPE_AES_XTS_256 if wide else opicommon_pb2.ENCRYPTION_TYPE_AES_XTS_128
        await _ask(
            self._encryption.CreateEncryptedVolume,
            middleend_encryption_pb2.CreateEncryptedVolumeRequest(
                encrypted_volume_id=identifier,
                encrypted_volume=middleend_encryption_pb2.EncryptedVolume(
                    volume_name_ref=volume, key=bytes.fromhex(secrets.key + secrets.tweak_key), cipher=cipher
                ),
            ),
        )

    async def delete_encrypted(self, identifier: str) -> None:
        await _ask(
            self._encryption.DeleteEncryptedVolume,
            middleend_encryption_pb2.DeleteEncryptedVolumeRequest(
                name=f"encryptedVolumes/{identifier}", allow_missing=True
            ),
        )

    async def create_qos(self, identifier: str, volume: str, limits: Limits) -> None:
        most = opicommon_pb2.QosLimit(
            rd_iops_kiops=limits.read_iops // 1000,
            wr_iops_kiops=limits.write_iops // 1000,
            rw_iops_kiops=limits.read_write_iops // 1000,
            rd_bandwidth_mbs=limits.read_mb,
            wr_bandwidth_mbs=limits.write_mb,
            rw_bandwidth_mbs=limits.read_write_mb,
        )
        await _ask(
            self._qos.CreateQosVolume,
            middleend_qos_volume_pb2.CreateQosVolumeRequest(
                qos_volume_id=identifier,
                qos_volume=middleend_qos_volume_pb2.QosVolume(
                    volume_name_ref=volume, limits=middleend_qos_volume_pb2.Limits(max=most)
                ),
            ),
        )

    async def delete_qos(self, identifier: str) -> None:
        request = middleend_qos_volume_pb2.DeleteQosVolumeRequest(name=f"qosVolumes/{identifier}", allow_missing=True)
        await _ask(self._qos.DeleteQosVolume, request)

    # --- the host's side

    async def create_subsystem(self, identifier: str, nqn: str, *, serial: str, namespaces: int) -> None:
        await _ask(
            self._frontend.CreateNvmeSubsystem,
            frontend_nvme_pb2.CreateNvmeSubsystemRequest(
                nvme_subsystem_id=identifier,
                nvme_subsystem=frontend_nvme_pb2.NvmeSubsystem(
                    spec=frontend_nvme_pb2.NvmeSubsystemSpec(
                        nqn=nqn, serial_number=serial, model_number="DPU Offload volume", max_namespaces=namespaces
                    )
                ),
            ),
        )

    async def delete_subsystem(self, identifier: str) -> None:
        await _ask(
            self._frontend.DeleteNvmeSubsystem,
            frontend_nvme_pb2.DeleteNvmeSubsystemRequest(name=subsystem_name(identifier), allow_missing=True),
        )

    async def create_namespace(self, subsystem: str, nsid: int, *, uuid: str, volume: str) -> None:
        await _ask(
            self._frontend.CreateNvmeNamespace,
            frontend_nvme_pb2.CreateNvmeNamespaceRequest(
                parent=subsystem_name(subsystem),
                nvme_namespace_id=namespace_id(nsid),
                nvme_namespace=frontend_nvme_pb2.NvmeNamespace(
                    spec=frontend_nvme_pb2.NvmeNamespaceSpec(
                        # Both, since SPDK's own initiator goes by the NGUID and Linux by the UUID.
                        host_nsid=nsid,
                        uuid=uuid,
                        nguid=uuid.replace("-", ""),
                        volume_name_ref=volume,
                    )
                ),
            ),
        )

    async def delete_namespace(self, subsystem: str, nsid: int) -> None:
        await _ask(
            self._frontend.DeleteNvmeNamespace,
            frontend_nvme_pb2.DeleteNvmeNamespaceRequest(
                name=f"{subsystem_name(subsystem)}/nvmeNamespaces/{namespace_id(nsid)}", allow_missing=True
            ),
        )

    async def create_controller(self, subsystem: str, place: Place) -> None:
        endpoint = opicommon_pb2.PciEndpoint()
        endpoint.port_id.value = place.port
        endpoint.physical_function.value = place.pf
        endpoint.virtual_function.value = place.vf
        await _ask(
            self._frontend.CreateNvmeController,
            frontend_nvme_pb2.CreateNvmeControllerRequest(
                parent=subsystem_name(subsystem),
                nvme_controller_id=controller_id(*place.key),
                nvme_controller=frontend_nvme_pb2.NvmeController(
                    spec=frontend_nvme_pb2.NvmeControllerSpec(
                        trtype=opicommon_pb2.NVME_TRANSPORT_TYPE_PCIE, pcie_id=endpoint
                    )
                ),
            ),
        )

    async def delete_controller(self, subsystem: str, place: Place) -> None:
        await _ask(
            self._frontend.DeleteNvmeController,
            frontend_nvme_pb2.DeleteNvmeControllerRequest(
                name=f"{subsystem_name(subsystem)}/nvmeControllers/{controller_id(*place.key)}", allow_missing=True
            ),
        )


async def _ask(method: Callable[..., Awaitable[T]], request: object, *, seconds: float = _DEADLINE) -> T:
    try:
        return await method(request, timeout=seconds)
    except grpc.aio.AioRpcError as error:
        raise _error(error) from error


def _error(error: grpc.aio.AioRpcError) -> BridgeError:
    code, details = error.code(), error.details() or "the bridge gave no reason"
    if code in _AWAY:
        return BridgeAway(details)
    return _KINDS.get(code, Refused)(details)


async def resolve(address: str) -> str:
    """The first IP address of a host name; an IP address is its own. Raises BridgeAway."""
    if ":" in address or address.replace(".", "").isdecimal():
        return address
    try:
        found = await asyncio.get_running_loop().getaddrinfo(address, None, type=1)
    except OSError as error:
        raise BridgeAway(f"the name {address} cannot be resolved: {error}") from error
    return str(found[0][4][0])
