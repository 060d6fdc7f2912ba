"""NvmeRemoteController resources: what the paths to one remote subsystem have in common.

SPDK has no such object before the first path, so the ledger carries it from the start.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from dpu_offload_stubs.opi.storage import backend_nvme_pb2 as pb
from foundation.spdk.errors import SpdkError
from opi_bridge import names
from opi_bridge.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from opi_bridge.keys import Keys
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.resources import immutable
from opi_bridge.session import Session
from opi_bridge.volumes import stats, together

COLLECTION: Final = "nvmeRemoteControllers"
PATHS: Final = "nvmePaths"
NAMESPACE_COLLECTION: Final = "nvmeRemoteNamespaces"
_MODES: Final = {
    pb.NVME_MULTIPATH_DISABLE: "disable",
    pb.NVME_MULTIPATH_FAILOVER: "failover",
    pb.NVME_MULTIPATH_MULTIPATH: "multipath",
}
_QUEUE_SIZE_MAXIMUM: Final = 65536


@dataclass(frozen=True)
class Timeouts:
    """In seconds; loss -1 never gives up, fast fail 0 lets I/O wait as long as the path is away."""

    loss: int = -1
    delay: int = 2
    fast_fail: int = 0

    def check(self) -> None:
        """SPDK's rules for the three. Raises InvalidArgument."""
        if self.loss < -1 or self.delay < 0 or self.fast_fail < 0:
            raise InvalidArgument("time-outs are not negative; only ctrlr_loss_timeout may be -1: never give up")
        if (self.loss == 0) != (self.delay == 0):
            raise InvalidArgument("ctrlr_loss_timeout and reconnect_delay are both 0 (no reconnecting) or both not")
        if self.loss > 0 and (self.delay > self.loss or self.fast_fail > self.loss):
            raise InvalidArgument("reconnect_delay and fast_io_fail_timeout must not exceed ctrlr_loss_timeout")
        if self.fast_fail and self.fast_fail < self.delay:
            raise InvalidArgument("fast_io_fail_timeout must not be below reconnect_delay")


@dataclass(frozen=True)
class RemoteSettings:
    """All that a path needs to know about its controller."""

    multipath: str = "multipath"
    queues: int = 0
    queue_size: int = 0
    header_digest: bool = False
    data_digest: bool = False
    timeouts: Timeouts = Timeouts()
    psk: str = ""
    dhchap_key: str = ""
    dhchap_ctrlr_key: str = ""

    def entry(self) -> dict[str, str]:
        """As the ledger keeps it: what differs from the defaults."""
        plain = {
            "multipath": self.multipath,
            "queues": self.queues,
            "queue_size": self.queue_size,
            "hdgst": int(self.header_digest),
            "ddgst": int(self.data_digest),
            "loss": self.timeouts.loss,
            "delay": self.timeouts.delay,
            "fast_fail": self.timeouts.fast_fail,
            "psk": self.psk,
            "key": self.dhchap_key,
            "ckey": self.dhchap_ctrlr_key,
        }
        return {key: str(value) for key, value in plain.items() if value or key in {"loss", "delay"}}

    @classmethod
    def read(cls, entry: Mapping[str, str]) -> "RemoteSettings":
        return cls(
            multipath=entry.get("multipath", "multipath"),
            queues=int(entry.get("queues", 0)),
            queue_size=int(entry.get("queue_size", 0)),
            header_digest=entry.get("hdgst") == "1",
            data_digest=entry.get("ddgst") == "1",
            timeouts=Timeouts(int(entry.get("loss", -1)), int(entry.get("delay", 2)), int(entry.get("fast_fail", 0))),
            psk=entry.get("psk", ""),
            dhchap_key=entry.get("key", ""),
            dhchap_ctrlr_key=entry.get("ckey", ""),
        )

    def params(self) -> dict[str, Any]:
        """For bdev_nvme_attach_controller."""
        result: dict[str, Any] = {
            "multipath": self.multipath,
            "ctrlr_loss_timeout_sec": self.timeouts.loss,
            "reconnect_delay_sec": self.timeouts.delay,
            "fast_io_fail_timeout_sec": self.timeouts.fast_fail,
        }
        if self.queues:
            result["num_io_queues"] = self.queues
        if self.header_digest:
            result["hdgst"] = True
        if self.data_digest:
            result["ddgst"] = True
        keys = (("psk", self.psk), ("dhchap_key", self.dhchap_key), ("dhchap_ctrlr_key", self.dhchap_ctrlr_key))
        result.update({key: name for key, name in keys if name})
        return result


def controller_name(identifier: str) -> Name:
    return Name(((COLLECTION, identifier),))


class RemoteControllerStore:
    def __init__(self, session: Session, ledger: Ledger, keys: Keys, timeouts: Timeouts) -> None:
        self._session = session
        self._ledger = ledger
        self._keys = keys
        self._timeouts = timeouts

    def check(self, message: pb.NvmeRemoteController) -> None:
        if message.multipath not in _MODES:
            raise InvalidArgument("multipath is required: NVME_MULTIPATH_DISABLE, _FAILOVER or _MULTIPATH")
        if not 0 <= message.io_queues_count <= _QUEUE_SIZE_MAXIMUM:
            raise InvalidArgument(f"io_queues_count {message.io_queues_count} is out of range")
        if not 0 <= message.queue_size <= _QUEUE_SIZE_MAXIMUM:
            raise InvalidArgument(f"queue_size {message.queue_size} is out of range")

    def normalise(self, message: pb.NvmeRemoteController) -> pb.NvmeRemoteController:
        return message

    def settings(self, name: Name) -> RemoteSettings | None:
        """What was asked for; None for a controller that this bridge has no entry for."""
        entry = self._ledger.get(name)
        return RemoteSettings.read(entry) if entry is not None else None

    async def paths(self, name: Name) -> list[Mapping[str, Any]]:
        """The paths of one controller as SPDK lists them; empty when it has none."""
        try:
            found = await self._session.call("bdev_nvme_get_controllers", {"name": name.id})
        except SpdkError as error:
            if error.missing or error.code == -22:
                return []
            raise
        result: list[Mapping[str, Any]] = found[0]["ctrlrs"]
        return result

    async def every(self) -> dict[Name, list[Mapping[str, Any]]]:
        """The paths of all controllers with a usable name."""
        result: dict[Name, list[Mapping[str, Any]]] = {
            name: [] for name, _ in self._ledger.under(names.ROOT, COLLECTION)
        }
        for one in await self._session.call("bdev_nvme_get_controllers"):
            if names.is_id(one["name"]):
                result[controller_name(one["name"])] = one["ctrlrs"]
        return result

    async def listing(self, parent: Name) -> Sequence[pb.NvmeRemoteController]:
        return [self._message(name) for name in await self.every()]

    async def get(self, name: Name) -> pb.NvmeRemoteController | None:
        return self._message(name) if await self.exists(name) else None

    async def exists(self, name: Name) -> bool:
        return self._ledger.get(name) is not None or bool(await self.paths(name))

    async def create(self, name: Name, message: pb.NvmeRemoteController) -> pb.NvmeRemoteController:
        if self._ledger.get(name) is not None:
            raise AlreadyExists(f"{name} exists already")
        psk = message.tcp.psk
        settings = RemoteSettings(
            multipath=_MODES[message.multipath],
            queues=message.io_queues_count,
            queue_size=message.queue_size,
            header_digest=message.tcp.hdgst,
            data_digest=message.tcp.ddgst,
            timeouts=self._timeouts,
            psk=await self._keys.put(f"{name.id}-psk", psk) if psk else "",
        )
        await self._ledger.put(name, settings.entry())
        return self._message(name)

    async def set_options(
        self,
        name: Name,
        *,
        timeouts: Timeouts | None,
        dhchap_key: str = "",
        dhchap_ctrlr_key: str = "",
        tls_psk: str = "",
    ) -> None:
        """Change what paths are made with; keys of connected paths are rotated. Raises NotFound, FailedPrecondition."""
        settings = self.settings(name)
        if settings is None:
            raise NotFound(f"there is no {name}: create it first")
        if dhchap_ctrlr_key and not dhchap_key:
            raise InvalidArgument("dhchap_ctrlr_key needs dhchap_key beside it")
        wanted = replace(settings, timeouts=timeouts if timeouts is not None else settings.timeouts)
        wanted.timeouts.check()
        if dhchap_key:
            wanted = replace(wanted, dhchap_key=await self._keys.put(f"{name.id}-key", dhchap_key.encode()))
        if dhchap_ctrlr_key:
            wanted = replace(
                wanted, dhchap_ctrlr_key=await self._keys.put(f"{name.id}-ckey", dhchap_ctrlr_key.encode())
            )
        if tls_psk:
            wanted = replace(wanted, psk=await self._keys.put(f"{name.id}-psk", tls_psk.encode()))
        if wanted == settings:
            return
        if await self.paths(name):
            await self._change_connected(name, settings, wanted)
        await self._ledger.put(name, wanted.entry())
        await self._keys.drop(f"{name.id}-key", keep=wanted.dhchap_key)
        await self._keys.drop(f"{name.id}-ckey", keep=wanted.dhchap_ctrlr_key)
        await self._keys.drop(f"{name.id}-psk", keep=wanted.psk)

    async def _change_connected(self, name: Name, settings: RemoteSettings, wanted: RemoteSettings) -> None:
        rotated = replace(settings, dhchap_key=wanted.dhchap_key, dhchap_ctrlr_key=wanted.dhchap_ctrlr_key)
        if rotated != wanted:
            raise FailedPrecondition(
                f"{name} is connected: only its DH-HMAC-CHAP keys can be changed now; detach the volume first"
            )
        keys = {"dhchap_key": wanted.dhchap_key}
        if wanted.dhchap_ctrlr_key:
            keys["dhchap_ctrlr_key"] = wanted.dhchap_ctrlr_key
        try:
            await self._session.call("bdev_nvme_set_keys", {"name": name.id, **keys})
        except SpdkError as error:
            raise FailedPrecondition(f"the target did not accept the new keys of {name}: {error.message}") from error

    async def update(self, name: Name, current: pb.NvmeRemoteController, wanted: pb.NvmeRemoteController) -> Any:
        if await self.paths(name):
            immutable(current, wanted)
        settings = self.settings(name) or RemoteSettings(timeouts=self._timeouts)
        changed = replace(
            settings,
            multipath=_MODES[wanted.multipath],
            queues=wanted.io_queues_count,
            queue_size=wanted.queue_size,
            header_digest=wanted.tcp.hdgst,
            data_digest=wanted.tcp.ddgst,
        )
        await self._ledger.put(name, changed.entry())
        return self._message(name)

    async def delete(self, name: Name) -> bool:
        entry = self._ledger.get(name)
        # In one write; the entry is put back in the rare case that it was too early.
        paths = await together(self._ledger.drop(name), self.paths(name))
        if paths:
            if entry is not None:
                await self._ledger.put(name, entry)
            raise FailedPrecondition(f"{name} still has {len(paths)} paths: delete those first")
        found = entry is not None
        await self._ledger.drop_under(name, PATHS)
        for kind in ("key", "ckey", "psk"):
            await self._keys.drop(f"{name.id}-{kind}")
        return found

    async def reset(self, name: Name) -> None:
        try:
            await self._session.call("bdev_nvme_reset_controller", {"name": name.id})
        except SpdkError as error:
            if error.missing:
                raise FailedPrecondition(f"{name} has no path to reset") from error
            raise

    async def stats(self, name: Name) -> Any | None:
        if not await self.exists(name):
            return None
        return await stats(self._session, [str(bdev["name"]) for bdev in await self.bdevs(name)])

    async def bdevs(self, name: Name | None) -> list[Mapping[str, Any]]:
        """The namespaces' bdevs of one controller, or of all."""
        found = []
        for bdev in await self._session.call("bdev_get_bdevs"):
            owner = owner_of(bdev)
            if owner is not None and name in (None, controller_name(owner)):
                found.append(bdev)
        return found

    def _message(self, name: Name) -> pb.NvmeRemoteController:
        settings = self.settings(name) or RemoteSettings(multipath="failover")
        result = pb.NvmeRemoteController(
            name=str(name),
            multipath=next(number for number, word in _MODES.items() if word == settings.multipath),
            io_queues_count=settings.queues,
            queue_size=settings.queue_size,
        )
        if settings.header_digest or settings.data_digest:
            result.tcp.hdgst = settings.header_digest
            result.tcp.ddgst = settings.data_digest
        return result


def owner_of(bdev: Mapping[str, Any]) -> str | None:
    """The controller behind an NVMe namespace's bdev, "<controller>n<nsid>"; None for any other bdev."""
    if bdev.get("product_name") != "NVMe disk":
        return None
    owner, _, nsid = str(bdev["name"]).rpartition("n")
    return owner if owner and nsid.isdecimal() else None
