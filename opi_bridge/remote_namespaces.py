"""NvmeRemoteNamespace resources: the volumes behind a remote controller, named as their bdevs."""

from collections.abc import Mapping, Sequence
from typing import Any

from dpu_offload_stubs.opi.storage import backend_nvme_pb2 as pb
from foundation.spdk.errors import SpdkError
from opi_bridge.errors import FailedPrecondition, NotFound, Unimplemented
from opi_bridge.names import Name
from opi_bridge.remote_controllers import NAMESPACE_COLLECTION, RemoteControllerStore, controller_name, owner_of
from opi_bridge.session import Session
from opi_bridge.volumes import find


class RemoteNamespaceStore:
    def __init__(self, session: Session, controllers: RemoteControllerStore) -> None:
        self._session = session
        self._controllers = controllers

    def check(self, message: Any) -> None:
        raise Unimplemented("remote namespaces appear and go with the target")

    def normalise(self, message: Any) -> Any:
        return message

    async def listing(self, parent: Name) -> Sequence[pb.NvmeRemoteNamespace]:
        if parent.id == "-":
            return [message_of(bdev) for bdev in await self._controllers.bdevs(None)]
        if not await self._controllers.exists(parent):
            raise NotFound(f"there is no {parent}")
        return [message_of(bdev) for bdev in await self._controllers.bdevs(parent)]

    async def get(self, name: Name) -> pb.NvmeRemoteNamespace | None:
        bdev = await find(self._session, name.id)
        if bdev is None or owner_of(bdev) != name.parent.id:
            return None
        return message_of(bdev)

    async def create(self, name: Name, message: Any) -> Any:
        raise Unimplemented("remote namespaces appear with the target")

    async def update(self, name: Name, current: Any, wanted: Any) -> Any:
        raise Unimplemented("remote namespaces are as the target has them")

    async def delete(self, name: Name) -> bool:
        raise Unimplemented("remote namespaces go with the target")

    async def stats(self, name: Name) -> Any | None:
        raise Unimplemented("ask for the figures of the remote controller")

    async def wait(self, controller: Name, nsid: int, uuid: str, *, seconds: float) -> Mapping[str, Any]:
        """The bdev of a namespace as soon as it is there. Raises TimeoutError, FailedPrecondition for another uuid."""
        name = f"{controller.id}n{nsid}"
        try:
            found = await self._session.call(
                "bdev_get_bdevs", {"name": name, "timeout": max(1, int(seconds * 1000))}, deadline=seconds + 2
            )
        except SpdkError as error:
            if error.timed_out or error.missing:
                raise TimeoutError(f"{controller} shows no namespace {nsid} after {seconds:.1f} s") from error
            raise
        bdev: Mapping[str, Any] = found[0]
        if uuid and str(bdev["uuid"]).lower() != uuid.lower():
            raise FailedPrecondition(
                f"namespace {nsid} of {controller} has uuid {bdev['uuid']}, not {uuid}:"
                " the target serves another volume"
            )
        return bdev


def name_of(bdev: Mapping[str, Any]) -> Name:
    owner = owner_of(bdev) or ""
    return controller_name(owner).child(NAMESPACE_COLLECTION, str(bdev["name"]))


def nsid_of(bdev: Mapping[str, Any]) -> int:
    return int(str(bdev["name"]).rpartition("n")[2])


def size_of(bdev: Mapping[str, Any]) -> int:
    """In bytes."""
    return int(bdev["block_size"]) * int(bdev["num_blocks"])


def message_of(bdev: Mapping[str, Any]) -> pb.NvmeRemoteNamespace:
    return pb.NvmeRemoteNamespace(
        name=str(name_of(bdev)),
        nsid=nsid_of(bdev),
        uuid=str(bdev["uuid"]).lower(),
        nguid=str(bdev["uuid"]).replace("-", "").lower(),
    )
