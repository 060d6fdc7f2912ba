"""Attachments of the pods that the runtime on this machine starts: what ADD, DEL, CHECK, GC, STATUS mean."""

import asyncio
import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec

from cni.node import result
from cni.node.assignment import Assignment, port_name
from cni.node.attachments import Attachment, AttachmentStore, attachment_id
from cni.node.container import ContainerSide, veth_name
from cni.node.device_info import remove_device_info, write_device_info
from cni.node.devices import Device, resolve
from cni.node.errors import (
    BadConfiguration,
    BadEnvironment,
    CniNodeError,
    DeviceInUse,
    InputFailed,
    InterfaceTaken,
    Mismatch,
    NotAvailable,
    TryLater,
    UnknownContainer,
)
from cni.node.finishing import to_the_end, together
from cni.node.keyed_locks import KeyedLocks
from cni.node.netns import NetworkNamespace, opened
from cni.node.ovs_side import OvsSide
from cni.node.pods import Pods
from cni.node.request import Call
from cni.node.result import Interface
from foundation.daemon import metrics
from foundation.pci import Sysfs

_log = logging.getLogger(__name__)
STEPS = metrics.steps("cni_step_seconds", "Time of each step of ADD and DEL.", ("verb",))

# Kept of the caller's time for undoing and answering.
_RESERVE_SECONDS = 1.0
_CHECK_SECONDS = 10.0


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    assignment: float
    flows: float


@dataclass
class _Running:
    fingerprint: str
    task: asyncio.Task[dict[str, Any]]
    callers: int = 0


class OwnPods:
    """`later` is told of attachments whose removal could not be finished."""

    def __init__(
        self,
        *,
        store: AttachmentStore,
        locks: KeyedLocks,
        pods: Pods,
        sysfs: Sysfs,
        container: ContainerSide,
        ovs: OvsSide,
        node_inode: int,
        limits: Limits,
        later: Callable[[str], None],
    ) -> None:
        self._store = store
        self._locks = locks
        self._pods = pods
        self._sysfs = sysfs
        self._container = container
        self._ovs = ovs
        self._node_inode = node_inode
        self._limits = limits
        self._later = later
        self._running: dict[str, _Running] = {}
        self._reserved: dict[str, str] = {}

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
                await self.remove(attachment)

    async def check(self, call: Call) -> None:
        """Raises Mismatch with the first thing that is not as ADD left it."""
        attachment = self._store.get(attachment_id(call.container_id, call.ifname))
        if attachment is None or attachment.phase != "ready":
            raise UnknownContainer(
                f"interface {call.ifname} of sandbox {call.container_id[:12]} is not attached; ADD comes before CHECK"
            )
        if difference := _unlike(attachment.result or {}, call.previous or {}):
            raise Mismatch(f"prevResult is not the result of ADD: {difference}")
        async with asyncio.timeout(_CHECK_SECONDS):
            found = await asyncio.gather(self._container.mismatch(attachment), self._ovs.mismatch(attachment))
        if problem := next(filter(None, found), ""):
            raise Mismatch(f"{attachment.describe()} is not as ADD left it: {problem}")

    async def gc(self, call: Call) -> None:
        """Removes this network's attachments that the runtime does not list. Raises the first failure after all."""
        valid = {(one.container_id, one.ifname) for one in call.valid}
        unlisted = [
            one
            for one in self._store
            if not one.host
            and one.network_name == call.network_name
            and (one.container_id, one.ifname) not in valid
            and one.id not in self._running
        ]
        done = await asyncio.gather(*(self._collect(one.id) for one in unlisted), return_exceptions=True)
        for error in done:
            if isinstance(error, BaseException):
                raise error

    def status(self) -> None:
        """Raises NotAvailable with the reason why ADD would fail now."""
        for problem in (self._ovs.problem(), self._pods.problem()):
            if problem:
                raise NotAvailable(f"pods cannot be attached now: {problem}")

    # --- adding ----------------------------------------------------------------------------------------------------

    async def _add(self, call: Call, identity: str, fingerprint: str) -> dict[str, Any]:
        budget = max(call.deadline - _RESERVE_SECONDS, call.deadline / 2)
        waited_for = ["its turn"]
        try:
            async with asyncio.timeout(budget), self._locks.hold(identity):
                return await self._add_alone(call, identity, fingerprint, waited_for)
        except TimeoutError:
            raise TryLater(
                f"interface {call.ifname} of pod {call.pod_namespace}/{call.pod_name} was not attached within "
                f"{budget:.1f} s: it still waited for {waited_for[-1]}; everything is undone, try again"
            ) from None

    async def _add_alone(self, call: Call, identity: str, fingerprint: str, waited_for: list[str]) -> dict[str, Any]:
        known = self._store.get(identity)
        if known is not None:
            if known.phase == "ready" and await self._still_there(known):
                if known.fingerprint == fingerprint and known.result is not None:
                    return known.result
                raise InterfaceTaken(
                    f"this sandbox already has interface {call.ifname} with other parameters; DEL comes before ADD"
                )
            await self.remove(known)
        with opened(call.netns) as namespace:
            if namespace.inode == self._node_inode:
                raise BadEnvironment(f"CNI_NETNS {call.netns} is the node's own network namespace, not a pod's")
            namespace.warm()
            device = await asyncio.to_thread(resolve, self._sysfs, call.device_id) if call.device_id else None
            waited_for.append("the device")
            await self._reserve(call, identity, device)
            try:
                waited_for.append("the pod's addresses")
                with metrics.step_timer(STEPS, verb="ADD", step="assignment"):
                    assignment = await self._assignment(call)
                draft = self._draft(call, identity, fingerprint, device, assignment, namespace)
                self._ovs.admit(draft)
                if device is not None:
                    draft = await self._examined(draft, device, namespace)
                return await self._attach(call, draft, device, namespace, waited_for)
            finally:
                if device is not None and self._reserved.get(device.function.address) == identity:
                    del self._reserved[device.function.address]

    async def _attach(
        self,
        call: Call,
        attachment: Attachment,
        device: Device | None,
        namespace: NetworkNamespace,
        waited_for: list[str],
    ) -> dict[str, Any]:
        with metrics.step_timer(STEPS, verb="ADD", step="intent"):
            await self._store.put(attachment)
        try:
            waited_for.append("OVS and OVN" if attachment.function is None else "the function's port and flows")
            interfaces = await self._both_sides(attachment, namespace)
            if device is not None:
                await asyncio.to_thread(write_device_info, attachment, device)
            answer = result.build(
                version=call.version,
                interfaces=interfaces,
                assignment=attachment.assignment,
                previous=call.previous,
            )
            await self._store.put(msgspec.structs.replace(attachment, phase="ready", result=answer), durable=False)
            return answer
        except BaseException:
            await to_the_end(self._undo(attachment))
            raise

    async def _both_sides(self, attachment: Attachment, namespace: NetworkNamespace) -> tuple[Interface, ...]:
        """Container and OVS side at the same time; a veth pair must exist before it can be plugged."""
        linked = asyncio.Event()

        async def container() -> tuple[Interface, ...]:
            with metrics.step_timer(STEPS, verb="ADD", step="container"):
                return await self._container.attach(attachment, namespace, linked=linked)

        async def switch() -> None:
            if attachment.kind == "veth":
                await linked.wait()
            loop = asyncio.get_running_loop()
            started = loop.time()

            def reached(step: str, _: str) -> None:
                STEPS.labels(verb="ADD", step=step, outcome="ok").observe(loop.time() - started)

            await self._ovs.plug(attachment, deadline=self._limits.flows, reached=reached)

        interfaces, _ = await together(container(), switch())
        return interfaces

    async def _assignment(self, call: Call) -> Assignment:
        _, assignment = await self._pods.assignment(
            namespace=call.pod_namespace,
            name=call.pod_name,
            uid=call.pod_uid,
            network=call.network,
            deadline=self._limits.assignment,
        )
        if call.mac and call.mac != assignment.mac:
            raise BadConfiguration(
                f"runtimeConfig asks for MAC {call.mac} but cni-controller assigned {assignment.mac} to pod "
                f"{call.pod_namespace}/{call.pod_name}; ask for it by the pod's network annotation"
            )
        asked = {address.partition("/")[0] for address in call.ips}
        given = {address.partition("/")[0] for address in assignment.ips}
        if asked - given:
            raise BadConfiguration(
                f"runtimeConfig asks for {', '.join(sorted(asked - given))} but cni-controller assigned "
                f"{', '.join(sorted(given)) or 'no address'}; ask for it by the pod's network annotation"
            )
        return assignment

    def _draft(
        self,
        call: Call,
        identity: str,
        fingerprint: str,
        device: Device | None,
        assignment: Assignment,
        namespace: NetworkNamespace,
    ) -> Attachment:
        return Attachment(
            id=identity,
            generation=self._store.generation(),
            phase="adding",
            kind="veth" if device is None else device.kind,
            container_id=call.container_id,
            ifname=call.ifname,
            network=call.network,
            network_name=call.network_name,
            pod_namespace=call.pod_namespace,
            pod_name=call.pod_name,
            pod_uid=call.pod_uid,
            port=port_name(assignment, network=call.network, namespace=call.pod_namespace, pod=call.pod_name),
            assignment=assignment,
            fingerprint=fingerprint,
            netns=call.netns,
            netns_inode=namespace.inode,
            function=None if device is None else device.function,
            link=veth_name(identity) if device is None else "",
            bandwidth=call.bandwidth,
            device_info_file=call.device_info_file,
        )

    async def _examined(self, draft: Attachment, device: Device, namespace: NetworkNamespace) -> Attachment:
        """The draft with what must be restored one day. Raises DeviceInUse, InterfaceTaken."""
        if device.kind == "vfio":
            return draft
        await self._container.free_name(namespace, draft.ifname)
        original = await self._container.examine(device)
        if original is None:
            raise DeviceInUse(
                f"function {device.function.address} has no network device on the node: another pod or program has it, "
                "or it has no driver; see who was given it"
            )
        return msgspec.structs.replace(draft, original=original)

    async def _reserve(self, call: Call, identity: str, device: Device | None) -> None:
        """Makes the function this sandbox's alone. Raises DeviceInUse."""
        if device is None:
            return
        address = device.function.address
        for _ in range(2):
            other = self._store.using(address)
            holder = self._reserved.get(address, other.id if other else identity)
            if holder == identity:
                self._reserved[address] = identity
                return
            if other is None or not (other.phase == "deleting" or _same_pod(other, call)):
                break
            # An older sandbox of the same pod, or one on its way out: first it has to be gone.
            await self._collect(other.id)
        raise DeviceInUse(
            f"function {address} is in use by {other.describe() if other else 'a pod that is just being attached'}; "
            "the device plugin must not hand it out twice"
        )

    async def _still_there(self, attachment: Attachment) -> bool:
        try:
            return await self._container.present(attachment)
        except UnknownContainer:
            return False

    # --- removing --------------------------------------------------------------------------------------------------

    async def remove(self, attachment: Attachment) -> None:
        """Under the attachment's lock. What the switch's side cannot finish now is left to the background."""
        attachment = msgspec.structs.replace(attachment, phase="deleting")
        with metrics.step_timer(STEPS, verb="DEL", step="intent"):
            try:
                await self._store.put(attachment)
            except InputFailed as error:
                # A full disk needs removing most of all; the older record leads here too after a kill.
                _log.warning("%s", error)
        with metrics.step_timer(STEPS, verb="DEL", step="both"):
            detached, unplugged = await asyncio.gather(
                self._container.detach(attachment), self._ovs.unplug(attachment), return_exceptions=True
            )
        remove_device_info(attachment)
        if isinstance(detached, BaseException):
            self._later(attachment.id)
            raise detached
        if isinstance(unplugged, BaseException):
            if not isinstance(unplugged, CniNodeError):
                raise unplugged
            _log.warning("%s: %s", attachment.describe(), unplugged)
            self._later(attachment.id)
            return
        await self._store.remove(attachment.id)

    async def finish(self, attachment: Attachment) -> None:
        """Under the attachment's lock: removes it in whole, or raises the reason why that is not possible yet."""
        await self.remove(attachment)
        if self._store.get(attachment.id) is not None:
            raise TryLater(f"{attachment.describe()} is not wholly removed yet")

    async def _undo(self, attachment: Attachment) -> None:
        try:
            await self.remove(attachment)
        except CniNodeError as error:
            _log.error("undoing %s failed and is repeated in the background: %s", attachment.describe(), error)

    async def _collect(self, identity: str) -> None:
        async with self._locks.hold(identity):
            attachment = self._store.get(identity)
            if attachment is not None:
                await self.remove(attachment)

    async def _stop_adding(self, identity: str) -> None:
        running = self._running.get(identity)
        if running is not None:
            running.task.cancel()
            await asyncio.wait({running.task})


def _same_pod(other: Attachment, call: Call) -> bool:
    """Kubelet may start a pod's new sandbox before it has taken down the old one."""
    return bool(call.pod_uid) and other.pod_uid == call.pod_uid and other.container_id != call.container_id


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
