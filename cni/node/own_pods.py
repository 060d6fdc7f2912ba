"""Attachments of the pods that the runtime on this machine starts: what ADD, DEL, CHECK, GC, STATUS mean."""

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from cni.node.adding import Adding, Turn
from cni.node.attachments import AttachmentStore, attachment_id
from cni.node.container import ContainerSide
from cni.node.errors import Mismatch, NotAvailable, TryLater, UnknownContainer
from cni.node.keyed_locks import KeyedLocks
from cni.node.netns import opened
from cni.node.ovs_side import OvsSide
from cni.node.pods import Pods
from cni.node.removing import Removing
from cni.node.request import Call

# Kept of the caller's time for undoing and answering.
_RESERVE_SECONDS = 1.0
_CHECK_SECONDS = 10.0


@dataclass
class _Running:
    fingerprint: str
    task: asyncio.Task[dict[str, Any]]
    callers: int = 0


class OwnPods:
    """`flows_problem` tells why no flows can be installed now, "" when they can."""

    def __init__(
        self,
        *,
        store: AttachmentStore,
        locks: KeyedLocks,
        pods: Pods,
        container: ContainerSide,
        ovs: OvsSide,
        adding: Adding,
        removing: Removing,
        flows_problem: Callable[[], Awaitable[str]],
    ) -> None:
        self._store = store
        self._locks = locks
        self._pods = pods
        self._container = container
        self._ovs = ovs
        self._adding = adding
        self._removing = removing
        self._flows_problem = flows_problem
        self._running: dict[str, _Running] = {}

    # --- verbs -----------------------------------------------------------------------------------------------------

    async def add(self, call: Call) -> dict[str, Any]:
        """The CNI result. A repeated request joins the first one, or gets its answer again."""
        identity, fingerprint = attachment_id(call.container_id, call.ifname), _fingerprint(call)
        running = self._running.get(identity)
        if running is None:
            task = asyncio.create_task(self._add(call, identity, fingerprint), name=f"ADD {identity}")
            running = self._running[identity] = _Running(fingerprint, task)
            task.add_done_callback(lambda _: self._running.pop(identity, None))
        elif running.fingerprint != fingerprint:
            raise TryLater(
                f"another ADD of interface {call.ifname} with other parameters runs for this sandbox; try again"
            )
        running.callers += 1
        try:
            await asyncio.wait({running.task})
        finally:
            running.callers -= 1
            # The runtime has given up: nobody would use what is being made.
            if running.callers == 0 and not running.task.done():
                running.task.cancel()
                await asyncio.wait({running.task})
        if running.task.cancelled():
            raise TryLater(f"ADD of interface {call.ifname} was ended by a DEL for the same sandbox")
        return running.task.result()

    async def delete(self, call: Call) -> None:
        """Succeeds for what is not there. Raises a CniNodeError only when the pod's side could not be undone."""
        identity = attachment_id(call.container_id, call.ifname)
        await self._stop_adding(identity)
        async with self._locks.hold(identity):
            attachment = self._store.get(identity)
            if attachment is not None and not attachment.host:
                await self._removing.remove(attachment)

    async def check(self, call: Call) -> None:
        """Raises Mismatch with the first thing that is not as ADD left it."""
        attachment = self._store.get(attachment_id(call.container_id, call.ifname))
        if attachment is None or attachment.phase != "ready":
            raise UnknownContainer(
                f"interface {call.ifname} of sandbox {call.container_id[:12]} is not attached; ADD comes before CHECK"
            )
        with opened(call.netns) as namespace:
            if attachment.netns_inode not in (0, namespace.inode):
                raise Mismatch(f"{call.netns} is another network namespace than that of ADD, {attachment.netns}")
        if difference := _unlike(attachment.result or {}, call.previous or {}):
            raise Mismatch(f"prevResult is not the result of ADD: {difference}")
        async with asyncio.timeout(_CHECK_SECONDS):
            found = await asyncio.gather(self._container.mismatch(attachment), self._ovs.mismatch(attachment))
        if problem := next(filter(None, found), ""):
            raise Mismatch(f"{attachment.describe()} is not as ADD left it: {problem}")

    async def gc(self, call: Call) -> None:
        """Removes this network's attachments that the runtime does not list. Raises the first failure after all.

        Without a list (libcni sends none where its caller gave none) nothing is known to be invalid, so all stay.
        """
        if call.valid is None:
            return
        valid = {(one.container_id, one.ifname) for one in call.valid}
        unlisted = [
            one
            for one in self._store
            if not one.host
            and one.network_name == call.network_name
            and (one.container_id, one.ifname) not in valid
            and one.id not in self._running
        ]
        done = await asyncio.gather(*(self._removing.collect(one.id) for one in unlisted), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error

    async def status(self) -> None:
        """Raises NotAvailable with the reason why ADD would fail now."""
        for problem in (self._ovs.problem(), self._pods.problem(), await self._flows_problem()):
            if problem:
                raise NotAvailable(f"pods cannot be attached now: {problem}")

    async def _add(self, call: Call, identity: str, fingerprint: str) -> dict[str, Any]:
        budget = max(call.deadline - _RESERVE_SECONDS, call.deadline / 2)
        turn = Turn(asyncio.get_running_loop().time() + budget)
        try:
            async with asyncio.timeout_at(turn.end), self._locks.hold(identity):
                return await self._adding.add(call, identity=identity, fingerprint=fingerprint, turn=turn)
        except TimeoutError:
            raise TryLater(
                f"interface {call.ifname} of pod {call.pod_namespace}/{call.pod_name} was not attached within "
                f"{budget:.1f} s: it still waited for {turn.waits_for}; everything is undone, try again"
            ) from None

    async def _stop_adding(self, identity: str) -> None:
        running = self._running.get(identity)
        if running is not None:
            running.task.cancel()
            await asyncio.wait({running.task})


def _fingerprint(call: Call) -> str:
    parts = (
        call.netns,
        call.pod_uid,
        call.device_id,
        call.network,
        call.network_name,
        call.mac,
        call.ips,
        call.version,
    )
    return hashlib.sha256(repr((parts, call.bandwidth)).encode()).hexdigest()[:16]


def _unlike(given: dict[str, Any], previous: dict[str, Any]) -> str:
    """What of ADD's answer a later prevResult lacks; other plugins may have added to it."""
    for kind, keys in (("interfaces", ("name", "mac", "sandbox")), ("ips", ("address", "gateway"))):
        present = [tuple(entry.get(key) for key in keys) for entry in previous.get(kind) or ()]
        for entry in given.get(kind) or ():
            if tuple(entry.get(key) for key in keys) not in present:
                return f"it lacks {json.dumps(entry)}"
    return ""
