"""The table of all resources that the bridge serves."""

from collections.abc import Sequence
from dataclasses import dataclass

from dpu_offload_stubs.opi.storage import (
    backend_aio_pb2,
    backend_malloc_pb2,
    backend_null_pb2,
    backend_nvme_pb2,
    frontend_nvme_pb2,
    frontend_virtio_blk_pb2,
    middleend_encryption_pb2,
    middleend_qos_volume_pb2,
)
from opi_bridge import bdev_sorts, encrypted_volumes, qos_volumes, virtio_blks
from opi_bridge.bdev_volumes import BdevStore
from opi_bridge.cards.card import Card
from opi_bridge.controllers import ControllerStore
from opi_bridge.encrypted_volumes import EncryptedStore
from opi_bridge.frontend_names import CONTROLLERS, NAMESPACES, SUBSYSTEMS, FrontendNames
from opi_bridge.in_card_encryption import InCardEncryptedStore, KeyHolder
from opi_bridge.keys import Keys
from opi_bridge.ledger import Ledger
from opi_bridge.namespaces import NamespaceStore
from opi_bridge.paths import PathStore
from opi_bridge.qos_volumes import QosStore
from opi_bridge.remote_controllers import COLLECTION, NAMESPACE_COLLECTION, PATHS, RemoteControllerStore, Timeouts
from opi_bridge.remote_namespaces import RemoteNamespaceStore
from opi_bridge.resources import Kind
from opi_bridge.session import Session
from opi_bridge.subsystems import SubsystemStore
from opi_bridge.virtio_blks import VirtioBlkStore


@dataclass(frozen=True)
class Stores:
    """One store a kind, made once."""

    frontend: FrontendNames
    subsystems: SubsystemStore
    controllers: ControllerStore
    namespaces: NamespaceStore
    remote_controllers: RemoteControllerStore
    paths: PathStore
    remote_namespaces: RemoteNamespaceStore
    null: BdevStore
    aio: BdevStore
    malloc: BdevStore
    encrypted: EncryptedStore
    qos: QosStore
    virtio_blks: VirtioBlkStore


def stores(session: Session, card: Card, ledger: Ledger, keys: Keys, timeouts: Timeouts) -> Stores:
    frontend = FrontendNames(ledger)
    subsystems = SubsystemStore(session, card, ledger, frontend, keys)
    remote_controllers = RemoteControllerStore(session, ledger, keys, timeouts)
    return Stores(
        frontend=frontend,
        subsystems=subsystems,
        controllers=ControllerStore(session, card, ledger, frontend, subsystems),
        namespaces=NamespaceStore(session, card, ledger, frontend, subsystems),
        remote_controllers=remote_controllers,
        paths=PathStore(session, ledger, remote_controllers),
        remote_namespaces=RemoteNamespaceStore(session, remote_controllers),
        null=BdevStore(session, bdev_sorts.NULL),
        aio=BdevStore(session, bdev_sorts.AIO),
        malloc=BdevStore(session, bdev_sorts.MALLOC),
        encrypted=(
            InCardEncryptedStore(session, ledger, card) if isinstance(card, KeyHolder) else EncryptedStore(session)
        ),
        qos=QosStore(session, ledger),
        virtio_blks=VirtioBlkStore(session, card, ledger),
    )


def kinds(made: Stores) -> Sequence[Kind]:
    front, back = "FrontendNvmeService", "NvmeRemoteControllerService"
    fpb, bpb = frontend_nvme_pb2, backend_nvme_pb2
    remote = (COLLECTION,)
    return [
        Kind("NvmeSubsystem", "NvmeSubsystems", (SUBSYSTEMS,), front, fpb, made.subsystems),
        Kind("NvmeController", "NvmeControllers", (SUBSYSTEMS, CONTROLLERS), front, fpb, made.controllers),
        Kind("NvmeNamespace", "NvmeNamespaces", (SUBSYSTEMS, NAMESPACES), front, fpb, made.namespaces),
        Kind(
            "NvmeRemoteController",
            "NvmeRemoteControllers",
            remote,
            back,
            bpb,
            made.remote_controllers,
            extra={"reset": made.remote_controllers.reset},
        ),
        Kind("NvmePath", "NvmePaths", (*remote, PATHS), back, bpb, made.paths),
        Kind(
            "NvmeRemoteNamespace",
            "NvmeRemoteNamespaces",
            (*remote, NAMESPACE_COLLECTION),
            back,
            bpb,
            made.remote_namespaces,
            verbs=("list", "get"),
        ),
        Kind("NullVolume", "NullVolumes", ("nullVolumes",), "NullVolumeService", backend_null_pb2, made.null),
        Kind("AioVolume", "AioVolumes", ("aioVolumes",), "AioVolumeService", backend_aio_pb2, made.aio),
        Kind(
            "MallocVolume", "MallocVolumes", ("mallocVolumes",), "MallocVolumeService", backend_malloc_pb2, made.malloc
        ),
        Kind(
            "EncryptedVolume",
            "EncryptedVolumes",
            (encrypted_volumes.COLLECTION,),
            "MiddleendEncryptionService",
            middleend_encryption_pb2,
            made.encrypted,
        ),
        Kind(
            "QosVolume",
            "QosVolumes",
            (qos_volumes.COLLECTION,),
            "MiddleendQosVolumeService",
            middleend_qos_volume_pb2,
            made.qos,
        ),
        Kind(
            "VirtioBlk",
            "VirtioBlks",
            (virtio_blks.COLLECTION,),
            "FrontendVirtioBlkService",
            frontend_virtio_blk_pb2,
            made.virtio_blks,
        ),
    ]
