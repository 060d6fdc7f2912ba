"""The steps of an attachment, each with its undo and with how to see that it is done.

They run in the order listed; a step may start as soon as those named in `after` are done. Undoing goes backwards: the
host's side first, so that a disk is hidden before anything under it goes.
"""

import asyncio
import hashlib
import itertools
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Final

from google.protobuf.message import Message

from dpu_offload_stubs.card.v1 import card_pb2
from foundation.daemon import metrics
from volume_attacher import naming
from volume_attacher import opi_requests as opi
from volume_attacher.actual import Actual, lacking_portals, maybe_moved, stray_ways, subsystem_id
from volume_attacher.addresses import Addresses
from volume_attacher.bridge import Bridge
from volume_attacher.errors import BridgeAway, Missing, Refused, Unsupported
from volume_attacher.functions import SHARED_NAMESPACES
from volume_attacher.model import Portal, Record, Secrets

log: Final = logging.getLogger(__name__)
ATTACH_SECONDS: Final = metrics.steps("attach_step_seconds", "Time of each step of an attachment.")
DETACH_SECONDS: Final = metrics.steps("detach_step_seconds", "Time of each step of undoing an attachment.")
_REMOTE_NSID: Final = 1


@dataclass(frozen=True)
class Step:
    """`done` looks at the state; `creations` and `undo` change it, both harmless when there is nothing to do."""

    name: str
    after: Sequence[str]
    done: Callable[[Actual], bool]
    creations: Callable[[], list[card_pb2.Creation]]
    undo: Callable[[], Awaitable[None]]


class Attachment:
    """The steps of one record. `secrets` is None when they are not known (any more)."""

    def __init__(
        self,
        bridge: Bridge,
        record: Record,
        *,
        addresses: Addresses,
        host_nqn: str,
        secrets: Secrets | None,
        shared_nqn: str,
        alone: bool,
    ) -> None:
        self._bridge = bridge
        self._record = record
        self._host_nqn = host_nqn
        self._secrets = secrets
        self._shared_nqn = shared_nqn
        self._alone = alone
        self._id = naming.object_id(record.volume_id)
        self._subsystem = subsystem_id(record)
        self._portals = record.specification.remote.portals
        self._addresses = addresses
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
        if not todo:
            return
        await self._addresses.resolve(self._portals)
        with metrics.step_timer(ATTACH_SECONDS, step="all"):
            try:
                await self._do_at_once(todo)
            except Unsupported:
                await self._do_in_turn(todo)

    async def _do_at_once(self, todo: Sequence[Step]) -> None:
        first = [step for step in todo if not step.after]
        then = [step for step in todo if step.after]
        wanted = {step.name: step.creations() for step in todo}
        created = await self._bridge.create_all(
            [wanted[step.name] for step in first],
            [creation for step in then for creation in wanted[step.name]],
            paths=len(self._portals),
        )
        rest = iter(created)
        for step in (*first, *then):
            self._learn(step, list(itertools.islice(rest, len(wanted[step.name]))))

    async def _do_in_turn(self, todo: Sequence[Step]) -> None:
        tasks: dict[str, asyncio.Task[None]] = {}
        async with _Group() as group:
            for step in todo:
                before = [tasks[name] for name in step.after if name in tasks]
                tasks[step.name] = group.start(self._run(step, before))

    async def _run(self, step: Step, before: Sequence[asyncio.Task[None]]) -> None:
        for task in before:
            await asyncio.shield(task)
        self._learn(step, await self._bridge.single.create_chain(step.creations()))

    def _learn(self, step: Step, created: Sequence[card_pb2.Created]) -> None:
        ATTACH_SECONDS.labels(step=step.name, outcome="ok").observe(sum(one.seconds for one in created))
        if step.name != "connect":
            return
        found = created[-1].namespace
        self.size, self._disk = found.size_bytes, found.volume
        for portal, one in zip(self._portals, created[-1 - len(self._portals) : -1], strict=True):
            if one.refused:
                log.warning("%s: no path over %s: %s", self._record.volume_id, portal, one.refused)
                self.unopened.append(portal)

    async def undo(self) -> None:
        """Take everything down, in reverse; what is gone already does not matter. Raises the first BridgeError."""
        try:
            with metrics.step_timer(DETACH_SECONDS, step="all"):
                await self._bridge.delete_all(*self._names())
        except (Refused, Unsupported):
            # Another's bridge, or something is there that only a look can find: step by step.
            await self._undo_step_by_step()

    def _names(self) -> tuple[list[str], list[list[str]]]:
        """What the steps make, in the order in which `_undo_step_by_step` removes it."""
        wanted = self._record.specification
        first = [naming.namespace_name(self._subsystem, self._record.nsid)]
        if wanted.limits:
            first.insert(0, naming.qos_name(self._id))
        storage = [naming.encrypted_name(self._id)] if wanted.encrypted else []
        storage += [*self._paths(), naming.remote_name(self._id)]
        host = [self._controller, naming.subsystem_name(self._subsystem)]
        return first, [host, storage] if self._alone else [storage]

    def _paths(self) -> list[str]:
        return [naming.path_name(self._id, self._addresses.of(portal)) for portal in self._portals]

    @property
    def _controller(self) -> str:
        return naming.controller_name(self._subsystem, *self._record.place.key)

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

    def _connect(self) -> list[card_pb2.Creation]:
        result = [opi.creation(opi.remote_controller(self._id))]
        if self._record.secured and self._secrets is None:
            raise Refused("its keys are not known here: they come with the next Attach call")
        if self._secrets is not None and (self._secrets.dhchap_key or self._secrets.tls_psk):
            result.append(card_pb2.Creation(options=opi.keys(self._id, self._secrets)))
        result += [opi.creation(self._path(portal), any_of=True) for portal in self._portals]
        wait = opi.wait(self._id, _REMOTE_NSID, self._record.specification.remote.uuid)
        return [*result, card_pb2.Creation(wait=wait)]

    def _path(self, portal: Portal) -> Message:
        return opi.path(
            self._id,
            self._addresses.of(portal),
            nqn=self._record.specification.remote.nqn,
            host_nqn=self._host_nqn,
        )

    async def _disconnect(self) -> None:
        for path in self._paths():
            await self._bridge.single.delete(path)
        try:
            await self._bridge.single.delete(naming.remote_name(self._id))
        except Refused:
            # There are paths that the record does not tell: a name had another address then, or was not resolved here.
            for path in await self._bridge.path_names(self._id):
                await self._bridge.single.delete(path)
            await self._bridge.single.delete(naming.remote_name(self._id))

    async def mend_paths(self, actual: Actual) -> None:
        """Open the paths that are lacking, and close lost ones to where no target is any more. Raises BridgeError.

        Also when a target that is called by name is lost where the name leads.
        """
        await self._addresses.resolve(self._portals)
        lacking = lacking_portals(self._record, actual, self._addresses)
        for portal in lacking:
            await self._bridge.single.create(self._path(portal))
        strays = stray_ways(self._record, actual, self._addresses)
        for way in strays:
            log.info("%s: %s is no address of its target any more", self._record.volume_id, way.portal)
            await self._bridge.single.delete(naming.path_name(self._id, way.portal))
        if not lacking and not strays and maybe_moved(self._record, actual):
            raise BridgeAway("its target does not answer at any address that its name has now")

    # --- encrypt and limit

    def _has_encryption(self, actual: Actual) -> bool:
        return actual.of(self._id).encrypted

    def _encrypt(self) -> list[card_pb2.Creation]:
        if self._secrets is None or not self._secrets.key:
            raise Refused("its encryption key is not known here: it comes with the next Attach call")
        return [opi.creation(opi.encrypted(self._id, self._disk, self._secrets))]

    async def _decrypt(self) -> None:
        await self._bridge.single.delete(naming.encrypted_name(self._id))

    def _has_limits(self, actual: Actual) -> bool:
        return actual.of(self._id).limited

    def _limit(self) -> list[card_pb2.Creation]:
        return [opi.creation(opi.limited(self._id, self._volume, self._record.specification.limits))]

    async def _unlimit(self) -> None:
        await self._bridge.single.delete(naming.qos_name(self._id))

    # --- the host's side

    def _has_subsystem(self, actual: Actual) -> bool:
        return bool(actual.of(self._subsystem).subsystem)

    def _make_subsystem(self) -> list[card_pb2.Creation]:
        if self._record.shared:
            nqn, namespaces = self._shared_nqn, SHARED_NAMESPACES
        else:
            nqn, namespaces = self._record.specification.remote.nqn, 1
        serial = hashlib.sha256(nqn.encode()).hexdigest()[:20]
        return [opi.creation(opi.subsystem(self._subsystem, nqn, serial=serial, namespaces=namespaces))]

    async def _drop_subsystem(self) -> None:
        if self._alone:
            await self._bridge.single.delete(naming.subsystem_name(self._subsystem))

    def _has_namespace(self, actual: Actual) -> bool:
        shown = actual.of(self._subsystem).namespaces
        return any(ns.nsid == self._record.nsid and ns.uuid == self._record.specification.remote.uuid for ns in shown)

    def _show(self) -> list[card_pb2.Creation]:
        uuid = self._record.specification.remote.uuid
        return [opi.creation(opi.namespace(self._subsystem, self._record.nsid, uuid=uuid, volume=self._volume))]

    async def _unshow(self) -> None:
        await self._bridge.single.delete(naming.namespace_name(self._subsystem, self._record.nsid))

    def _has_controller(self, actual: Actual) -> bool:
        return any(place.key == self._record.place.key for place in actual.of(self._subsystem).places)

    def _expose(self) -> list[card_pb2.Creation]:
        return [opi.creation(opi.controller(self._subsystem, self._record.place))]

    async def _hide(self) -> None:
        if self._alone:
            await self._bridge.single.delete(self._controller)


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
