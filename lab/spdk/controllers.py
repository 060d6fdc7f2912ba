"""NVMe controllers of the initiator: their paths, their states, the bdevs that they make."""

from __future__ import annotations

import asyncio
import errno
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lab.spdk.bdevs import Backing, Bdev
from lab.spdk.failures import RpcFailure, refused
from lab.spdk.initiator import ConnectFailed, Connection, Credentials, TransportId, connect

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

_log = logging.getLogger(__name__)

ENABLED, DELAYED, FAILED, DELETING = "enabled", "reconnect_is_delayed", "failed", "deleting"
# SPDK without reconnect parameters tries about 100 times a second; this does the same with less noise.
_EAGER = 0.05


DEFAULT_OPTIONS: dict[str, Any] = {
    "action_on_timeout": "none",
    "timeout_us": 0,
    "timeout_admin_us": 0,
    "keep_alive_timeout_ms": 10000,
    "arbitration_burst": 0,
    "low_priority_weight": 0,
    "medium_priority_weight": 0,
    "high_priority_weight": 0,
    "nvme_adminq_poll_period_us": 10000,
    "nvme_ioq_poll_period_us": 0,
    "io_queue_requests": 0,
    "delay_cmd_submit": True,
    "transport_retry_count": 4,
    "bdev_retry_count": 3,
    "transport_ack_timeout": 0,
    "ctrlr_loss_timeout_sec": 0,
    "reconnect_delay_sec": 0,
    "fast_io_fail_timeout_sec": 0,
    "disable_auto_failback": False,
    "generate_uuids": False,
    "transport_tos": 0,
    "nvme_error_stat": False,
    "rdma_srq_size": 0,
    "io_path_stat": False,
    "allow_accel_sequence": False,
    "rdma_max_cq_size": 0,
    "rdma_cm_event_timeout_ms": 0,
    "dhchap_digests": ["sha256", "sha384", "sha512"],
    "dhchap_dhgroups": ["null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"],
    "rdma_umr_per_io": False,
    "tcp_connect_timeout_ms": 0,
    "enable_flush": False,
    "multipath_opts": {"policy": "active_passive"},
}


@dataclass(frozen=True)
class Times:
    """Seconds; 0, 0, 0 is SPDK's default. ``loss`` -1: for ever."""

    loss: int = 0
    delay: int = 0
    fast_fail: int = 0

    def check(self) -> None:
        """Raises -22 when they contradict each other."""
        loss, delay, fast = self.loss, self.delay, self.fast_fail
        bad = (
            loss < -1
            or (loss == -1 and delay == 0)
            or (loss == 0 and (delay != 0 or fast != 0))
            or (loss > 0 and (delay == 0 or delay > loss or fast > loss))
            or (fast != 0 and fast < delay)
        )
        if bad:
            raise refused(errno.EINVAL)


@dataclass(eq=False)
class NvmeBdev(Bdev):
    controller: Controller = field(kw_only=True)
    nsid: int = field(kw_only=True)
    policy: str = "active_passive"

    product = "NVMe disk"
    takes = frozenset(
        [
            "read",
            "write",
            "unmap",
            "flush",
            "reset",
            "nvme_admin",
            "nvme_io",
            "write_zeroes",
            "compare",
            "compare_and_write",
            "abort",
            "copy",
        ]
    )
    numa_id = -1
    memory_domains = ("DMA",)

    @property
    def granularity(self) -> tuple[int, int, int, int, int]:
        return (1, 1, 131072 // self.block_size, 1, 1)

    def paths(self) -> list[Path]:
        return [path for path in self.controller.paths if self.nsid in path.namespaces]

    def backing(self) -> Backing | None:
        for path in self.paths():
            namespace = path.namespaces[self.nsid]
            if namespace["file"]:
                return Backing(namespace["file"], namespace["offset"], namespace["encrypted"])
        return None

    def driver_specific(self) -> dict[str, Any]:
        return {"nvme": [path.describe_namespace(self.nsid) for path in self.paths()], "mp_policy": self.policy}


@dataclass(eq=False)
class Path:
    controller: Controller
    trid: TransportId
    credentials: Credentials
    times: Times
    state: str = ENABLED
    cntlid: int = 0
    connection: Connection | None = None
    greeting: dict[str, Any] = field(default_factory=dict)
    namespaces: dict[int, dict[str, Any]] = field(default_factory=dict)
    ana: dict[str, str] = field(default_factory=dict)
    retrying: asyncio.Task[None] | None = None

    def describe(self) -> dict[str, Any]:
        host = {"nqn": self.credentials.hostnqn, "addr": "", "svcid": "", "no_shn_notification": False}
        return {"state": self.state, "trid": self.trid.describe(), "cntlid": self.cntlid, "host": host}

    def describe_namespace(self, nsid: int) -> dict[str, Any]:
        data: dict[str, Any] = {"id": nsid}
        reporting = self.greeting["ana_reporting"]
        if reporting:
            data["ana_state"] = self.ana_state(nsid)
        data["can_share"] = True
        return {
            "trid": self.trid.describe(),
            "ctrlr_data": {
                "cntlid": self.cntlid,
                "vendor_id": "0x8086",
                "model_number": self.greeting["model"],
                "serial_number": self.greeting["serial"],
                "firmware_revision": self.greeting["firmware"],
                "subnqn": self.trid.subnqn,
                "oacs": {"security": 0, "format": 0, "firmware": 0, "ns_manage": 0},
                "multi_ctrlr": True,
                "ana_reporting": reporting,
            },
            "vs": {"nvme_version": "2.0"},
            "ns_data": data,
        }

    def ana_state(self, nsid: int) -> str:
        return self.ana.get(str(self.namespaces[nsid]["anagrpid"]), "optimized")

    def stalled(self) -> bool:
        """Whether a namespace came up that can't be read: its first read never ends, and holds the controller."""
        return any(namespace.get("stalled") for namespace in self.namespaces.values())


@dataclass(eq=False)
class Controller:
    name: str
    paths: list[Path] = field(default_factory=list)
    policy: str = "active_passive"

    def describe(self) -> dict[str, Any]:
        return {"name": self.name, "ctrlrs": [path.describe() for path in self.paths]}


class Controllers:
    """``options``: bdev_nvme_set_options' parameters as they are in force."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.all: dict[str, Controller] = {}
        self.options = dict(DEFAULT_OPTIONS)
        # Connections under way: (name, address), so that two attaches of one name meet.
        self.attaching: set[tuple[str, TransportId]] = set()

    @property
    def times(self) -> Times:
        """What an attach gets that does not say otherwise."""
        options = self.options
        return Times(
            options["ctrlr_loss_timeout_sec"], options["reconnect_delay_sec"], options["fast_io_fail_timeout_sec"]
        )

    @property
    def dhchap(self) -> tuple[str, str]:
        """Digest and group that an authentication picks: the last of each, which is the strongest."""
        return self.options["dhchap_digests"][-1], self.options["dhchap_dhgroups"][-1]

    def bdevs(self, controller: Controller) -> list[NvmeBdev]:
        return [bdev for bdev in self._instance.bdevs if isinstance(bdev, NvmeBdev) and bdev.controller is controller]

    async def attach(self, name: str, trid: TransportId, credentials: Credentials, times: Times) -> list[str]:
        """The controller's bdevs after a path was connected. Raises -5, -17."""
        key = (name, trid)
        if key in self.attaching:
            raise RpcFailure(
                -errno.EALREADY, f"A controller named {name} already exists with the specified network path"
            )
        self.attaching.add(key)
        try:
            await asyncio.sleep(self._instance.settings.attach)
            path = Path(Controller(name), trid, credentials, times)
            await self._connect(path)
        except ConnectFailed as error:
            _log.info("cannot attach %s: %s", name, error)
            raise refused(errno.EIO) from error
        finally:
            self.attaching.discard(key)
        controller = self.all.setdefault(name, path.controller)
        path.controller = controller
        controller.paths.append(path)
        keyring = self._instance.keyring
        for held in (credentials.dhchap_key, credentials.dhchap_ctrlr_key, credentials.psk):
            keyring.hold(held)
        self._match_bdevs(controller)
        return [bdev.name for bdev in self.bdevs(controller)]

    async def _connect(self, path: Path) -> None:
        connection, greeting = await connect(self._instance, path.trid, path.credentials)
        ready = asyncio.get_running_loop().create_future()
        namespaces: dict[int, dict[str, Any]] = {}
        fresh = True

        def on_event(event: dict[str, Any]) -> None:
            nonlocal fresh
            if event["event"] == "ready":
                path.namespaces, fresh = namespaces, False
                if not ready.done():
                    ready.set_result(None)
                return
            self._event(path, event, namespaces if fresh else path.namespaces, live=not fresh)

        def on_lost() -> None:
            if not ready.done():
                ready.set_exception(ConnectFailed("the target closed the connection"))
            elif path.connection is connection:
                self._lost(path)

        connection.follow(on_event, on_lost)
        try:
            async with asyncio.timeout(10):
                await ready
        except TimeoutError as error:
            connection.close()
            raise ConnectFailed("the target tells no namespaces") from error
        path.connection, path.greeting, path.cntlid = connection, greeting, greeting["cntlid"]
        path.state = ENABLED
        if connection.lost:
            self._lost(path)

    def _event(self, path: Path, event: dict[str, Any], namespaces: dict[int, dict[str, Any]], *, live: bool) -> None:
        kind = event["event"]
        if kind == "namespace_add":
            namespaces[event["nsid"]] = event
            event["stalled"] = live and path.ana.get(str(event["anagrpid"])) == "inaccessible"
        elif kind == "namespace_remove":
            namespaces.pop(event["nsid"], None)
        elif kind == "namespace_resize":
            namespaces[event["nsid"]]["size"] = event["size"]
        elif kind == "ana":
            path.ana = event["states"]
        if live:
            self._match_bdevs(path.controller)

    def _match_bdevs(self, controller: Controller) -> None:
        """Makes the bdevs what the paths' namespaces say."""
        bdevs = self._instance.bdevs
        wanted = {nsid: namespace for path in controller.paths for nsid, namespace in path.namespaces.items()}
        for bdev in self.bdevs(controller):
            namespace = wanted.get(bdev.nsid)
            if namespace is None or _uuid(namespace) != bdev.uuid:
                bdevs.remove(bdev)
            else:
                bdevs.resize(bdev, namespace["size"] // bdev.block_size)
        have = {bdev.nsid for bdev in self.bdevs(controller)}
        for nsid in sorted(wanted.keys() - have):
            namespace = wanted[nsid]
            name, block = f"{controller.name}n{nsid}", namespace["block_size"]
            bdev = NvmeBdev(name, _uuid(namespace), block, namespace["size"] // block, controller=controller, nsid=nsid)
            try:
                bdevs.add(bdev)
            except RpcFailure:
                _log.info("no bdev for namespace %d of %s: its name or uuid is taken", nsid, controller.name)

    def _lost(self, path: Path) -> None:
        path.connection = None
        if path.state == DELETING:
            self._forget(path)
            return
        path.state = DELAYED if path.times.delay else FAILED
        path.retrying = asyncio.get_running_loop().create_task(self._retry(path))

    async def _retry(self, path: Path) -> None:
        loop = asyncio.get_running_loop()
        second = self._instance.settings.second
        since, loss = loop.time(), path.times.loss * second
        while True:
            pause = path.times.delay * second or _EAGER
            if loss > 0:
                pause = min(pause, max(0.0, since + loss - loop.time()))
            await asyncio.sleep(pause)
            if 0 < loss <= loop.time() - since:
                _log.info("path %s of %s is given up", path.trid.traddr, path.controller.name)
                self._forget(path)
                return
            try:
                await self._connect(path)
            except ConnectFailed:
                continue
            self._match_bdevs(path.controller)
            return

    def _forget(self, path: Path) -> None:
        controller = path.controller
        if path.connection is not None:
            path.connection.close()
            path.connection = None
        if path in controller.paths:
            controller.paths.remove(path)
            keyring = self._instance.keyring
            for key in (path.credentials.dhchap_key, path.credentials.dhchap_ctrlr_key, path.credentials.psk):
                keyring.let_go(key)
        if not controller.paths:
            self.all.pop(controller.name, None)
        self._match_bdevs(controller)

    async def detach(self, paths: list[Path]) -> None:
        """Raises -110 after a while when I/O is stuck; the paths are then ``deleting`` until the target lets go."""
        stuck = [path for path in paths if path.stalled()]
        for path in paths:
            path.state = DELETING
            if path.retrying is not None and not path.retrying.done():
                path.retrying.cancel()
            if path not in stuck:
                self._forget(path)
        if stuck:
            await asyncio.sleep(self._instance.settings.stall)
            raise refused(errno.ETIMEDOUT)
        await asyncio.sleep(self._instance.beat)

    async def authenticate_again(self, controller: Controller) -> None:
        """Proves the keys anew over a second connection. Raises -13 when the target does not take them."""
        for path in controller.paths:
            if path.connection is None:
                continue
            try:
                probe, _ = await connect(self._instance, path.trid, path.credentials, probe=True)
            except ConnectFailed as error:
                raise refused(errno.EACCES) from error
            probe.close()

    async def reset(self, controller: Controller) -> None:
        for path in controller.paths:
            if path.connection is None:
                continue
            old, path.connection = path.connection, None
            old.close()
            try:
                await self._connect(path)
            except ConnectFailed:
                self._lost(path)
        self._match_bdevs(controller)


def _uuid(namespace: dict[str, Any]) -> str:
    """A bdev's uuid is its namespace's NGUID."""
    nguid = namespace["nguid"]
    return "-".join((nguid[:8], nguid[8:12], nguid[12:16], nguid[16:20], nguid[20:]))
