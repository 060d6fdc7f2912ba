"""Attaching one interface of one sandbox: what is asked for, written down, done on both sides, undone when it fails."""

import asyncio
from dataclasses import dataclass
from typing import Any

import msgspec

from cni.node import result
from cni.node.assignment import Assignment, port_name
from cni.node.attachments import Attachment, AttachmentStore
from cni.node.container import ContainerSide, veth_name
from cni.node.device_info import write_device_info
from cni.node.devices import Device, resolve
from cni.node.errors import (
    BadConfiguration,
    BadEnvironment,
    DeviceInUse,
    InterfaceTaken,
    TryLater,
    UnknownContainer,
)
from cni.node.finishing import to_the_end, together
from cni.node.held_devices import HeldDevices
from cni.node.netns import NetworkNamespace, opened
from cni.node.ovs_side import OvsSide
from cni.node.pods import Pods
from cni.node.removing import STEPS, Removing
from cni.node.request import Call
from cni.node.result import Interface
from foundation.daemon import metrics
from foundation.pci import Sysfs


@dataclass(frozen=True)
class Limits:
    """Seconds."""

    assignment: float
    flows: float


class Turn:
    """How long an ADD may take (`end`, in the loop's time), and what it waits for."""

    def __init__(self, end: float) -> None:
        self.end = end
        self.waits_for = "an earlier call for the same sandbox"

    def reached(self, step: str) -> None:
        self.waits_for = step


class Adding:
    def __init__(
        self,
        *,
        store: AttachmentStore,
        pods: Pods,
        sysfs: Sysfs,
        container: ContainerSide,
        ovs: OvsSide,
        removing: Removing,
        node_inode: int,
        limits: Limits,
        held: HeldDevices,
    ) -> None:
        self._store = store
        self._pods = pods
        self._sysfs = sysfs
        self._container = container
        self._ovs = ovs
        self._removing = removing
        self._node_inode = node_inode
        self._limits = limits
        self._held = held
        self._reserved: dict[str, str] = {}

    async def add(self, call: Call, *, identity: str, fingerprint: str, turn: Turn) -> dict[str, Any]:
        """Under the attachment's lock; the CNI result. Raises a CniNodeError with everything undone."""
        known = self._store.get(identity)
        if known is not None:
            if known.phase == "ready" and await self._still_there(known):
                if known.fingerprint == fingerprint and known.result is not None:
                    return known.result
                raise InterfaceTaken(
                    f"this sandbox already has interface {call.ifname} with other parameters; DEL comes before ADD"
                )
            await self._removing.remove(known)
        with opened(call.netns) as namespace:
            if namespace.inode == self._node_inode:
                raise BadEnvironment(f"CNI_NETNS {call.netns} is the node's own network namespace, not a pod's")
            turn.reached("the device")
            device_id = call.device_id or await self._held.choose(
                call, required=self._ovs.needs_function, deadline=self._limits.assignment
            )
            device = await asyncio.to_thread(resolve, self._sysfs, device_id) if device_id else None
            if device is None or device.kind != "vfio":
                namespace.warm()
            await self._reserve(call, identity, device)
            try:
                turn.reached("the pod's addresses")
                with metrics.step_timer(STEPS, verb="ADD", step="assignment"):
                    pod_uid, network, assignment = await self._assignment(call)
                draft = self._draft(
                    call, identity, fingerprint, device, assignment, namespace, pod_uid=pod_uid, network=network
                )
                self._ovs.admit(draft)
                turn.reached("an older sandbox of the pod")
                await self._make_way(draft)
                if device is not None:
                    draft = await self._examined(draft, device, namespace)
                return await self._attach(call, draft, device, namespace, turn)
            finally:
                if device is not None and self._reserved.get(device.function.address) == identity:
                    del self._reserved[device.function.address]

    async def _attach(
        self,
        call: Call,
        attachment: Attachment,
        device: Device | None,
        namespace: NetworkNamespace,
        turn: Turn,
    ) -> dict[str, Any]:
        with metrics.step_timer(STEPS, verb="ADD", step="intent"):
            self._store.put(attachment)
        try:
            turn.reached("OVS and OVN" if attachment.function is None else "the function's port and flows")
            interfaces, _ = await together(
                self._both_sides(attachment, namespace, turn.end), self._store.flush(attachment.id)
            )
            if device is not None and attachment.device_info_file:
                await asyncio.to_thread(write_device_info, attachment, device)
            answer = result.build(
                version=call.version,
                interfaces=interfaces,
                assignment=attachment.assignment,
                previous=call.previous,
            )
            self._store.put(msgspec.structs.replace(attachment, phase="ready", result=answer))
            return answer
        except BaseException:
            await to_the_end(self._removing.undo(attachment))
            raise

    async def _both_sides(
        self, attachment: Attachment, namespace: NetworkNamespace, end: float
    ) -> tuple[Interface, ...]:
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

            # A little before the caller's end, so that the reason arrives and not just the time-out.
            await self._ovs.plug(attachment, deadline=min(self._limits.flows, end - started - 0.5), reached=reached)

        # The switch's side first: it has a way to go, to OVN and maybe to the DPU.
        _, interfaces = await together(switch(), container())
        return interfaces

    async def _assignment(self, call: Call) -> tuple[str, str, Assignment]:
        """With the pod's uid, which not every runtime gives and OVN compares, and the assignment's key."""
        pod, network, assignment = await self._pods.assignment(
            namespace=call.pod_namespace,
            name=call.pod_name,
            uid=call.pod_uid,
            network=call.network,
            ifname=call.ifname,
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
        return pod.metadata.uid, network, assignment

    async def _make_way(self, attachment: Attachment) -> None:
        """A logical port is bound once: an older sandbox of the pod, or of an earlier one of its name, lets go of it.

        Raises BadConfiguration where this sandbox has it already, by another interface.
        """
        for other in self._store:
            same_port = not other.host and other.port == attachment.port and other.id != attachment.id
            if not same_port or other.generation > attachment.generation:
                continue
            if other.container_id == attachment.container_id:
                raise BadConfiguration(
                    f"pod {attachment.pod} is in network {attachment.network} already, by its interface "
                    f"{other.ifname}; to be in it twice, the pod must select it twice"
                )
            await self._removing.collect(other.id)

    def _draft(
        self,
        call: Call,
        identity: str,
        fingerprint: str,
        device: Device | None,
        assignment: Assignment,
        namespace: NetworkNamespace,
        *,
        pod_uid: str,
        network: str,
    ) -> Attachment:
        return Attachment(
            id=identity,
            generation=self._store.generation(),
            phase="adding",
            kind="veth" if device is None else device.kind,
            container_id=call.container_id,
            ifname=call.ifname,
            network=network,
            network_name=call.network_name,
            pod_namespace=call.pod_namespace,
            pod_name=call.pod_name,
            pod_uid=pod_uid,
            port=port_name(assignment, network=network, namespace=call.pod_namespace, pod=call.pod_name),
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
        if device.kind != "vfio":
            await self._container.free_name(namespace, draft.ifname)
        original = await self._container.examine(device)
        if original is None:
            raise DeviceInUse(
                f"function {device.function.address} has no network device on the node: another pod or program has it, "
                "or it has no driver; see who was given it"
            )
        return msgspec.structs.replace(draft, original=original)

    async def _reserve(self, call: Call, identity: str, device: Device | None) -> None:
        """Makes the function this sandbox's alone. Raises DeviceInUse; TryLater while an ended pod's port is on it."""
        if device is None:
            return
        address = device.function.address
        for _ in range(2):
            other = self._store.using(address)
            holder = self._reserved.get(address, other.id if other else identity)
            if holder == identity:
                self._reserved[address] = identity
                return
            if other is None or not (other.phase == "deleting" or is_older_sandbox(other, call)):
                break
            # An older sandbox of the same pod, or one on its way out: first it has to be gone.
            await self._removing.collect(other.id)
        if other is not None and other.phase == "deleting":
            raise TryLater(
                f"function {address} still has the port of {other.describe()}, which has ended: "
                f"{self._ovs.problem() or 'it is being removed'}; try again"
            )
        raise DeviceInUse(
            f"function {address} is in use by {other.describe() if other else 'a pod that is just being attached'}; "
            "the device plugin must not hand it out twice"
        )

    async def _still_there(self, attachment: Attachment) -> bool:
        try:
            return await self._container.present(attachment)
        except UnknownContainer:
            return False


def is_older_sandbox(other: Attachment, call: Call) -> bool:
    """Kubelet may start a sandbox of a pod, or of the next one of its name, before it has taken down the old one."""
    same_pod = (other.pod_namespace, other.pod_name) == (call.pod_namespace, call.pod_name)
    return same_pod and other.container_id != call.container_id
