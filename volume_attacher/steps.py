"""The steps of an attachment, each with its undo and with how to see that it is done.

They run in the order listed; a step may start as soon as those named in `after` are done. Undoing goes backwards: the
host's side first, so that a disk is hidden before anything under it goes.
"""

import asyncio
import hashlib
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from foundation.daemon import metrics
from volume_attacher import naming
from volume_attacher.actual import Actual, lacking_portals, subsystem_id
from volume_attacher.bridge import Bridge, resolve
from volume_attacher.errors import BridgeError, Missing, Refused, Unsupported
from volume_attacher.functions import SHARED_NAMESPACES
from volume_attacher.model import Portal, Record, Secrets

log: Final = logging.getLogger(__name__)
ATTACH_SECONDS: Final = metrics.steps("attach_step_seconds", "Time of each step of an attachment.")
DETACH_SECONDS: Final = metrics.steps("detach_step_seconds", "Time of each step of undoing an attachment.")
_REMOTE_NSID: Final = 1
_NAMESPACE_SECONDS: Final = 10.0


@dataclass(frozen=True)
class Step:
    """`done` looks at the state; `do` and `undo` change it, both harmless when there is nothing to do."""

    name: str
    after: Sequence[str]
    done: Callable[[Actual], bool]
    do: Callable[[], Awaitable[None]]
    undo: Callable[[], Awaitable[None]]


class Attachment:
    """The steps of one record. `secrets` is None when they are not known (any more)."""

    def __init__(
        self, bridge: Bridge, record: Record, *, secrets: Secrets | None, shared_nqn: str, alone: bool
    ) -> None:
        self._bridge = bridge
        self._record = record
        self._secrets = secrets
        self._shared_nqn = shared_nqn
        self._alone = alone
        self._id = naming.object_id(record.volume_id)
        self._subsystem = subsystem_id(record)
        self.size = 0
        """In bytes, once connected."""
        self.unopened: list[Portal] = []
        """Portals over which there was no path when it connected."""
        self._disk = f"{self._id}n{_REMOTE_NSID}"

    @property
    def _volume(self) -> str:
        """What the host's namespace is made of."""
        return self._id if self._record.specification.encrypted else self._disk

    def steps(self) -> list[Step]:
        wanted = self._record.specification
        result = [
            Step("connect", (), self._connected, self._connect, self._disconnect),
            Step("subsystem", (), self._has_subsystem, self._make_subsystem, self._drop_subsystem),
        ]
        under = "connect"
        if wanted.encrypted:
            result.append(Step("encrypt", (under,), self._has_encryption, self._encrypt, self._decrypt))
            under = "encrypt"
        result.append(Step("namespace", ("subsystem", under), self._has_namespace, self._show, self._unshow))
        if wanted.limits:
            # After the namespace: SPDK cannot change the limits of a disk that nobody has opened.
            result.append(Step("limit", ("namespace",), self._has_limits, self._limit, self._unlimit))
        result.append(Step("controller", (result[-1].name,), self._has_controller, self._expose, self._hide))
        return result

    async def do(self, actual: Actual | None = None) -> None:
        """Run the steps; with `actual`, only those not yet done there. On failure nothing is undone here."""
        todo = [step for step in self.steps() if actual is None or not step.done(actual)]
        tasks: dict[str, asyncio.Task[None]] = {}
        async with _Group() as group:
            for step in todo:
                before = [tasks[name] for name in step.after if name in tasks]
                tasks[step.name] = group.start(self._run(step, before))

    async def _run(self, step: Step, before: Sequence[asyncio.Task[None]]) -> None:
        for task in before:
            await asyncio.shield(task)
        with metrics.step_timer(ATTACH_SECONDS, step=step.name):
            await step.do()

    async def undo(self) -> None:
        """Take everything down, in reverse; what is gone already does not matter. Raises the first BridgeError."""
        try:
            with metrics.step_timer(DETACH_SECONDS, step="all"):
                await self._bridge.delete_all(*await self._names())
        except (Refused, Unsupported):
            # Another's bridge, or something is there that only a look can find: step by step.
            await self._undo_step_by_step()

    async def _names(self) -> tuple[list[str], list[list[str]]]:
        """What the steps make, in the order in which `_undo_step_by_step` removes it."""
        subsystem, wanted = naming.subsystem_name(self._subsystem), self._record.specification
        first = [f"{subsystem}/nvmeNamespaces/{naming.namespace_id(self._record.nsid)}"]
        if wanted.limits:
            first.insert(0, f"qosVolumes/{self._id}")
        storage = [f"encryptedVolumes/{self._id}"] if wanted.encrypted else []
        for portal in wanted.remote.portals:
            path = naming.path_id(portal.transport, await resolve(portal.address), portal.port)
            storage.append(naming.path_name(self._id, path))
        storage.append(naming.remote_name(self._id))
        host = [f"{subsystem}/nvmeControllers/{naming.controller_id(*self._record.place.key)}", subsystem]
        return first, [host, storage] if self._alone else [storage]

    async def _undo_step_by_step(self) -> None:
        steps = {step.name: step for step in self.steps()}
        # The namespace first: a host whose controller vanishes with a disk on it hangs until its I/O times out.
        for name in ("limit", "namespace"):
            if name in steps:
                await self._back(steps[name])

        async def in_turn(*names: str) -> None:
            for name in names:
                if name in steps:
                    await self._back(steps[name])

        async with _Group() as group:
            group.start(in_turn("controller", "subsystem"))
            group.start(in_turn("encrypt", "connect"))

    async def _back(self, step: Step) -> None:
        with metrics.step_timer(DETACH_SECONDS, step=step.name):
            try:
                await step.undo()
            except Missing:
                log.debug("%s: nothing to undo of step %s", self._record.volume_id, step.name)

    # --- connect

    def _connected(self, actual: Actual) -> bool:
        return actual.of(self._id).disk(self._record.specification.remote.uuid) is not None

    async def _connect(self) -> None:
        remote = self._record.specification.remote
        await self._bridge.create_remote(self._id)
        if self._record.secured:
            if self._secrets is None:
                raise Refused("its keys are not known here: they come with the next Attach call")
            if self._secrets.dhchap_key or self._secrets.tls_psk:
                await self._bridge.set_keys(self._id, self._secrets)
        self.unopened.clear()
        failures: list[BridgeError] = []
        for portal in remote.portals:
            try:
                await self._bridge.connect(self._id, portal, await resolve(portal.address), remote.nqn)
            except BridgeError as error:
                log.warning("%s: no path over %s: %s", self._record.volume_id, portal, error)
                failures.append(error)
                self.unopened.append(portal)
        if len(failures) == len(remote.portals):
            raise failures[0]
        found = await self._bridge.wait_remote_namespace(
            self._id, _REMOTE_NSID, remote.uuid, seconds=_NAMESPACE_SECONDS
        )
        self.size = found.size_bytes
        self._disk = found.volume

    async def _disconnect(self) -> None:
        for portal in self._record.specification.remote.portals:
            path = naming.path_id(portal.transport, await resolve(portal.address), portal.port)
            await self._bridge.disconnect(naming.path_name(self._id, path))
        try:
            await self._bridge.delete_remote(self._id)
        except Refused:
            # There are paths that the record does not know.
            for name in await self._bridge.path_names(self._id):
                await self._bridge.disconnect(name)
            await self._bridge.delete_remote(self._id)

    async def add_paths(self, actual: Actual) -> None:
        """Open the paths that are lacking beside those that work."""
        remote = self._record.specification.remote
        addresses = {portal.address: await resolve(portal.address) for portal in remote.portals}
        for portal in lacking_portals(self._record, actual, addresses):
            await self._bridge.connect(self._id, portal, addresses[portal.address], remote.nqn)

    # --- encrypt and limit

    def _has_encryption(self, actual: Actual) -> bool:
        return actual.of(self._id).encrypted

    async def _encrypt(self) -> None:
        if self._secrets is None or not self._secrets.key:
            raise Refused("its encryption key is not known here: it comes with the next Attach call")
        await self._bridge.create_encrypted(self._id, self._disk, self._secrets)

    async def _decrypt(self) -> None:
        await self._bridge.delete_encrypted(self._id)

    def _has_limits(self, actual: Actual) -> bool:
        return actual.of(self._id).limited

    async def _limit(self) -> None:
        await self._bridge.create_qos(self._id, self._volume, self._record.specification.limits)

    async def _unlimit(self) -> None:
        await self._bridge.delete_qos(self._id)

    # --- the host's side

    def _has_subsystem(self, actual: Actual) -> bool:
        return bool(actual.of(self._subsystem).subsystem)

    async def _make_subsystem(self) -> None:
        if self._record.shared:
            nqn, namespaces = self._shared_nqn, SHARED_NAMESPACES
        else:
            nqn, namespaces = self._record.specification.remote.nqn, 1
        serial = hashlib.sha256(nqn.encode()).hexdigest()[:20]
        await self._bridge.create_subsystem(self._subsystem, nqn, serial=serial, namespaces=namespaces)

    async def _drop_subsystem(self) -> None:
        if self._alone:
            await self._bridge.delete_subsystem(self._subsystem)

    def _has_namespace(self, actual: Actual) -> bool:
        shown = actual.of(self._subsystem).namespaces
        return any(ns.nsid == self._record.nsid and ns.uuid == self._record.specification.remote.uuid for ns in shown)

    async def _show(self) -> None:
        await self._bridge.create_namespace(
            self._subsystem,
            self._record.nsid,
            uuid=self._record.specification.remote.uuid,
            volume=self._volume,
        )

    async def _unshow(self) -> None:
        await self._bridge.delete_namespace(self._subsystem, self._record.nsid)

    def _has_controller(self, actual: Actual) -> bool:
        return any(place.key == self._record.place.key for place in actual.of(self._subsystem).places)

    async def _expose(self) -> None:
        await self._bridge.create_controller(self._subsystem, self._record.place)

    async def _hide(self) -> None:
        if self._alone:
            await self._bridge.delete_controller(self._subsystem, self._record.place)


class _Group:
    """A task group that raises its first error itself, bare, after all its tasks have ended."""

    def __init__(self) -> None:
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, work: Awaitable[None]) -> asyncio.Task[None]:
        async def run() -> None:
            await work

        task = asyncio.get_running_loop().create_task(run())
        self._tasks.append(task)
        return task

    async def __aenter__(self) -> "_Group":
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            results = await asyncio.gather(*self._tasks, return_exceptions=True)
        except asyncio.CancelledError:
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            raise
        for result in results:
            if isinstance(result, BaseException):
                raise result
