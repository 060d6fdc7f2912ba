"""What an attachment asks of a bridge, as the OPI API's own requests; pure."""

from __future__ import annotations

from typing import Final

from google.protobuf.message import Message

from dpu_offload_stubs.card.v1 import card_pb2
from dpu_offload_stubs.opi.storage import (
    backend_nvme_pb2,
    frontend_nvme_pb2,
    middleend_encryption_pb2,
    middleend_qos_volume_pb2,
    opicommon_pb2,
)
from volume_attacher.model import Limits, Place, Portal, Secrets
from volume_attacher.naming import controller_id, namespace_id, path_id, remote_name, subsystem_name

_TRANSPORTS: Final = {
    "tcp": opicommon_pb2.NVME_TRANSPORT_TYPE_TCP,
    "rdma": opicommon_pb2.NVME_TRANSPORT_TYPE_RDMA,
}


def creation(request: Message, *, any_of: bool = False) -> card_pb2.Creation:
    """An OPI create request as an element of many; `any_of` as in the contract."""
    result = card_pb2.Creation(any_of=any_of)
    result.create.Pack(request)
    return result


def remote_controller(identifier: str) -> Message:
    return backend_nvme_pb2.CreateNvmeRemoteControllerRequest(
        nvme_remote_controller_id=identifier,
        nvme_remote_controller=backend_nvme_pb2.NvmeRemoteController(
            multipath=backend_nvme_pb2.NVME_MULTIPATH_MULTIPATH
        ),
    )


def keys(identifier: str, secrets: Secrets) -> card_pb2.SetRemoteControllerOptionsRequest:
    return card_pb2.SetRemoteControllerOptionsRequest(
        name=remote_name(identifier),
        keep_timeouts=True,
        dhchap_key=secrets.dhchap_key,
        dhchap_ctrlr_key=secrets.dhchap_ctrlr_key,
        tls_psk=secrets.tls_psk,
    )


def path(identifier: str, portal: Portal, *, nqn: str, host_nqn: str) -> Message:
    """The path over `portal`, whose address is an IP address."""
    address = portal.address
    family = opicommon_pb2.NVME_ADDRESS_FAMILY_IPV6 if ":" in address else opicommon_pb2.NVME_ADDRESS_FAMILY_IPV4
    return backend_nvme_pb2.CreateNvmePathRequest(
        parent=remote_name(identifier),
        nvme_path_id=path_id(portal),
        nvme_path=backend_nvme_pb2.NvmePath(
            trtype=_TRANSPORTS[portal.transport],
            traddr=address,
            fabrics=backend_nvme_pb2.FabricsPath(trsvcid=portal.port, subnqn=nqn, adrfam=family, hostnqn=host_nqn),
        ),
    )


def wait(identifier: str, nsid: int, uuid: str) -> card_pb2.WaitRemoteNamespaceRequest:
    return card_pb2.WaitRemoteNamespaceRequest(remote_controller=remote_name(identifier), nsid=nsid, uuid=uuid)


def encrypted(identifier: str, volume: str, secrets: Secrets) -> Message:
    wide = len(secrets.key) == 64
    cipher = opicommon_pb2.ENCRYPTION_TYPE_AES_XTS_256 if wide else opicommon_pb2.ENCRYPTION_TYPE_AES_XTS_128
    return middleend_encryption_pb2.CreateEncryptedVolumeRequest(
        encrypted_volume_id=identifier,
        encrypted_volume=middleend_encryption_pb2.EncryptedVolume(
            volume_name_ref=volume, key=bytes.fromhex(secrets.key + secrets.tweak_key), cipher=cipher
        ),
    )


def limited(identifier: str, volume: str, limits: Limits) -> Message:
    most = opicommon_pb2.QosLimit(
        rd_iops_kiops=limits.read_iops // 1000,
        wr_iops_kiops=limits.write_iops // 1000,
        rw_iops_kiops=limits.read_write_iops // 1000,
        rd_bandwidth_mbs=limits.read_mb,
        wr_bandwidth_mbs=limits.write_mb,
        rw_bandwidth_mbs=limits.read_write_mb,
    )
    return middleend_qos_volume_pb2.CreateQosVolumeRequest(
        qos_volume_id=identifier,
        qos_volume=middleend_qos_volume_pb2.QosVolume(
            volume_name_ref=volume, limits=middleend_qos_volume_pb2.Limits(max=most)
        ),
    )


def subsystem(identifier: str, nqn: str, *, serial: str, namespaces: int) -> Message:
    return frontend_nvme_pb2.CreateNvmeSubsystemRequest(
        nvme_subsystem_id=identifier,
        nvme_subsystem=frontend_nvme_pb2.NvmeSubsystem(
            spec=frontend_nvme_pb2.NvmeSubsystemSpec(
                nqn=nqn, serial_number=serial, model_number="DPU Offload volume", max_namespaces=namespaces
            )
        ),
    )


def namespace(subsystem: str, nsid: int, *, uuid: str, volume: str) -> Message:
    return frontend_nvme_pb2.CreateNvmeNamespaceRequest(
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
    )


def controller(subsystem: str, place: Place) -> Message:
    endpoint = opicommon_pb2.PciEndpoint()
    endpoint.port_id.value = place.port
    endpoint.physical_function.value = place.pf
    endpoint.virtual_function.value = place.vf
    return frontend_nvme_pb2.CreateNvmeControllerRequest(
        parent=subsystem_name(subsystem),
        nvme_controller_id=controller_id(*place.key),
        nvme_controller=frontend_nvme_pb2.NvmeController(
            spec=frontend_nvme_pb2.NvmeControllerSpec(trtype=opicommon_pb2.NVME_TRANSPORT_TYPE_PCIE, pcie_id=endpoint)
        ),
    )
