"""What a DPU does for the pods of its host: checks who asks for what, plugs representors, keeps them plugged."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import msgspec

from cni.link.errors import BadMessage, PlugFailed, SwitchAway
from cni.link.service import Progress
from cni.node.assignment import ANNOTATION, parse, port_name
from cni.node.attachments import Attachment, AttachmentStore
from cni.node.errors import BadConfiguration, CniNodeError, InputFailed, LinkFailed, TryLater
from cni.node.finishing import to_the_end, together
from cni.node.keyed_locks import KeyedLocks
from cni.node.link_messages import flows_message, from_message, to_message
from cni.node.ovs_side import LocalOvsSide
from cni.node.pods import Pods
from dpu_offload_stubs.link.v1 import link_pb2
from foundation.kube.models.core import Pod

_log = logging.getLogger(__name__)

# The host has seen the pod's annotation already; the same event may be on its way to us.
_POD_SECONDS = 3.0
_RESTORE_SECONDS = 20.0
_STAGES = {
    "representor": link_pb2.STAGE_REPRESENTOR_FOUND,
    "port": link_pb2.STAGE_PORT_ADDED,
}


class HostPods:
    """Serves one host. `serials` are the card's serial numbers, by which a host with several DPUs tells them apart.

    `flows_problem` tells why no flows can be installed now, "" when they can.
    """

    def __init__(
        self,
        *,
        node: str,
        store: AttachmentStore,
        locks: KeyedLocks,
        ovs: LocalOvsSide,
        host_controller: int,
        serials: Sequence[str],
        later: Callable[[str], None],
        flows_problem: Callable[[], str],
    ) -> None:
        self._node = node
        self._store = store
        self._locks = locks
        self._ovs = ovs
        self._host_controller = host_controller
        self._serials = tuple(serials)
        self._later = later
        self._flows_problem = flows_problem
        self._pods: Pods | None = None
        self._plugging: dict[str, asyncio.Task[None]] = {}
        self._health_changed = asyncio.Event()

    def serve(self, pods: Pods) -> None:
        """From now on for the host whose pods these are."""
        self._pods = pods

    @property
    def host(self) -> str:
        return self._pods.node if self._pods is not None else ""

    # --- the link's verbs ------------------------------------------------------------------------------------------

    async def plug(self, wanted: link_pb2.Attachment, *, deadline: float, progress: Progress) -> None:
        attachment = self._accepted(wanted)
        await self._stop(attachment.id)
        task = asyncio.create_task(self._plug(attachment, deadline, progress), name=f"Plug {attachment.id}")
        self._plugging[attachment.id] = task
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError:
            if task.cancelled():
                raise PlugFailed(
                    link_pb2.REASON_STALE, f"plugging {attachment.describe()} was ended by a later call for it"
                ) from None
            task.cancel()
            await asyncio.wait({task})
            raise
        finally:
            if self._plugging.get(attachment.id) is task:
                del self._plugging[attachment.id]

    async def unplug(self, identity: str, generation: int) -> bool:
        known = self._store.get(identity)
        if known is not None and known.generation <= generation:
            await self._stop(identity)
        async with self._locks.hold(identity):
            known = self._store.get(identity)
            if known is None or known.host != self.host or known.generation > generation:
                return False
            await self.remove(known)
            return True

    async def sync(self, wanted: Sequence[link_pb2.Attachment]) -> link_pb2.SyncResponse:
        answer = link_pb2.SyncResponse()
        listed = {message.id: message for message in wanted}
        unlisted = [one.id for one in self._store if one.host == self.host and one.id not in listed]
        for identity, error in zip(unlisted, await _all(self._forget(one) for one in unlisted), strict=True):
            if error is None:
                answer.removed.append(identity)
            else:
                answer.failed.append(_failed(identity, error))
        changed = [message for message in wanted if not await self._in_order(message)]
        done = await _all(self._restore(message) for message in changed)
        for message, error in zip(changed, done, strict=True):
            if error is None:
                answer.plugged.append(message.id)
            else:
                answer.failed.append(_failed(message.id, error))
        return answer

    async def describe(self, identities: Sequence[str], *, flows: int) -> Sequence[link_pb2.Description]:
        wanted = set(identities)
        asked = [one for one in self._store if one.host == self.host and (not wanted or one.id in wanted)]
        found = await asyncio.gather(*(self._describe(one) for one in asked))
        if flows and asked:
            try:
                reports = await self._ovs.offload(asked, most=flows)
            except TryLater as error:
                raise SwitchAway(str(error)) from error
            for description in found:
                description.flows.CopyFrom(flows_message(reports[description.attachment.id]))
        return found

    def health(self) -> link_pb2.HealthReport:
        problem = (
            self._ovs.problem()
            or self._flows_problem()
            or (self._pods.problem() if self._pods is not None else "the host is not known yet")
        )
        return link_pb2.HealthReport(
            ready=not problem, reason=problem, node=self._node, epoch=self._store.epoch, card_serials=self._serials
        )

    @property
    def health_changed(self) -> asyncio.Event:
        return self._health_changed

    def note_health(self) -> None:
        """Tells every stream of the health that it may have changed."""
        self._health_changed.set()
        self._health_changed = asyncio.Event()

    # --- work ------------------------------------------------------------------------------------------------------

    async def ensure(self, attachment: Attachment) -> None:
        """Under its lock: a host's live attachment is on the bridge again. Raises a CniNodeError."""
        await self._ovs.ensure(attachment)

    async def remove(self, attachment: Attachment) -> None:
        """Under its lock. Raises a CniNodeError when OVS is away; the attachment then stays, to be removed later."""
        attachment = msgspec.structs.replace(attachment, phase="deleting")
        try:
            self._store.put(attachment)
        except InputFailed as error:
            _log.warning("%s", error)
        try:
            await self._ovs.unplug(attachment)
        except CniNodeError:
            self._later(attachment.id)
            raise
        self._store.remove(attachment.id)

    def _accepted(self, wanted: link_pb2.Attachment) -> Attachment:
        """Checks all that needs no waiting. Raises PlugFailed."""
        try:
            attachment = from_message(wanted, host=self.host)
        except BadMessage as error:
            raise PlugFailed(link_pb2.REASON_BAD_REQUEST, str(error)) from error
        assert attachment.function is not None
        if attachment.function.controller not in (0, self._host_controller):
            raise PlugFailed(
                link_pb2.REASON_NOT_YOURS,
                f"controller {attachment.function.controller} is not that of host {self.host} "
                f"({self._host_controller}); a host may plug its own functions only",
            )
        known = self._store.get(attachment.id)
        if known is not None and known.host != self.host:
            raise PlugFailed(link_pb2.REASON_NOT_YOURS, f"attachment {attachment.id} is not one of host {self.host}")
        if known is not None and known.generation > attachment.generation:
            raise PlugFailed(
                link_pb2.REASON_STALE,
                f"generation {attachment.generation} of {attachment.describe()} is older than {known.generation}, "
                "which is known already",
            )
        return attachment

    async def _plug(self, attachment: Attachment, deadline: float, progress: Progress) -> None:
        end = asyncio.get_running_loop().time() + deadline
        async with self._locks.hold(attachment.id):
            known = self._store.get(attachment.id)
            if known is not None and known.generation == attachment.generation and known.phase == "ready":
                if not await self._ovs.mismatch(known):
                    progress(link_pb2.STAGE_REPRESENTOR_FOUND, known.link)
                    progress(link_pb2.STAGE_FLOWS_INSTALLED, known.link)
                    return
            elif known is not None:
                await self._removed(known)
            attachment = await self._permitted(attachment, deadline=min(deadline, _POD_SECONDS))
            try:
                await self._plug_permitted(attachment, end, progress)
            except BaseException:
                await to_the_end(self._undo(attachment.id))
                raise

    async def _plug_permitted(self, attachment: Attachment, end: float, progress: Progress) -> None:
        loop = asyncio.get_running_loop()
        try:
            link = await self._ovs.find(attachment, deadline=end - loop.time())
        except CniNodeError as error:
            raise PlugFailed(link_pb2.REASON_NO_REPRESENTOR, str(error)) from error
        await self._make_free(attachment, link)
        attachment = msgspec.structs.replace(attachment, link=link)
        self._store.put(attachment)
        reached = ["representor"]

        def note(stage: str, netdev: str) -> None:
            reached.append(stage)
            if stage in _STAGES:
                progress(_STAGES[stage], netdev)

        try:
            plugging = self._ovs.plug(attachment, deadline=end - loop.time(), reached=note)
            await together(plugging, self._store.flush(attachment.id))
        except CniNodeError as error:
            reason = link_pb2.REASON_FLOWS_MISSING if reached[-1] == "port" else link_pb2.REASON_SWITCH_FAILED
            if reached[-1] == "representor" and isinstance(error, LinkFailed):
                reason = link_pb2.REASON_NO_REPRESENTOR
            raise PlugFailed(reason, f"{error}{f' ({error.details})' if error.details else ''}") from error
        # Ready only now: a predecessor killed before this point undoes it.
        self._store.put(msgspec.structs.replace(attachment, phase="ready"))
        progress(link_pb2.STAGE_FLOWS_INSTALLED, link)

    async def _permitted(self, attachment: Attachment, *, deadline: float) -> Attachment:
        """The host may only have pods that Kubernetes scheduled to it, each on its own port. Raises PlugFailed."""
        assert self._pods is not None

        def settled(pod: Pod | None) -> bool:
            return pod is not None and pod.metadata.uid == attachment.pod_uid and ANNOTATION in pod.metadata.annotations

        pod = await self._pods.until(attachment.pod_namespace, attachment.pod_name, settled, deadline=deadline)
        if pod is None:
            problem = (
                self._pods.problem() or f"Kubernetes does not show it on node {self.host} with an assigned network"
            )
            raise PlugFailed(
                link_pb2.REASON_NOT_YOURS,
                f"pod {attachment.pod} (uid {attachment.pod_uid}) is not one of host {self.host}: {problem}",
            )
        try:
            assignment = parse(pod.metadata.annotations, attachment.network)
        except BadConfiguration as error:
            raise PlugFailed(link_pb2.REASON_BAD_REQUEST, str(error)) from error
        if assignment is None:
            raise PlugFailed(link_pb2.REASON_NOT_YOURS, f"pod {attachment.pod} is not in network {attachment.network}")
        port = port_name(
            assignment, network=attachment.network, namespace=attachment.pod_namespace, pod=attachment.pod_name
        )
        if port != attachment.port:
            raise PlugFailed(
                link_pb2.REASON_NOT_YOURS,
                f"port {attachment.port} is not that of pod {attachment.pod}, which is {port}",
            )
        # Addresses are Kubernetes' word, not the host's.
        return msgspec.structs.replace(attachment, assignment=assignment)

    async def _make_free(self, attachment: Attachment, link: str) -> None:
        """An older sandbox of the same pod lets go of the function; anybody else's stays. Raises PlugFailed."""
        for other in self._store:
            if other.link != link or other.id == attachment.id:
                continue
            if other.phase != "deleting" and not (other.host == self.host and other.pod_uid == attachment.pod_uid):
                raise PlugFailed(
                    link_pb2.REASON_FUNCTION_IN_USE,
                    f"representor {link} is in use by {other.describe()}; that pod has to go first",
                )
            async with self._locks.hold(other.id):
                if (still := self._store.get(other.id)) is not None:
                    await self._removed(still)

    async def _removed(self, attachment: Attachment) -> None:
        try:
            await self.remove(attachment)
        except CniNodeError as error:
            raise PlugFailed(link_pb2.REASON_SWITCH_FAILED, str(error)) from error

    async def _undo(self, identity: str) -> None:
        attachment = self._store.get(identity)
        if attachment is None:
            return
        try:
            await self.remove(attachment)
        except CniNodeError as error:
            _log.error("undoing %s failed and is repeated in the background: %s", attachment.describe(), error)

    async def _forget(self, identity: str) -> None:
        await self._stop(identity)
        async with self._locks.hold(identity):
            attachment = self._store.get(identity)
            if attachment is not None:
                await self.remove(attachment)

    async def _restore(self, message: link_pb2.Attachment) -> None:
        """Puts a live pod's port back. Its flows are not waited for: a port without them is better than none.

        Raises PlugFailed, a CniNodeError.
        """
        attachment = self._accepted(message)
        async with self._locks.hold(attachment.id):
            known = self._store.get(attachment.id)
            if known is None or known.phase != "ready" or known.generation != attachment.generation:
                if known is not None:
                    await self._removed(known)
                attachment = await self._permitted(attachment, deadline=_POD_SECONDS)
                link = await self._ovs.find(attachment, deadline=_RESTORE_SECONDS)
                await self._make_free(attachment, link)
                known = msgspec.structs.replace(attachment, link=link, phase="ready")
                self._store.put(known)
            await self._ovs.ensure(known)

    async def _in_order(self, message: link_pb2.Attachment) -> bool:
        known = self._store.get(message.id)
        if known is None or known.phase != "ready" or known.generation != message.generation:
            return False
        return not await self._ovs.mismatch(known)

    async def _stop(self, identity: str) -> None:
        task = self._plugging.get(identity)
        if task is not None:
            task.cancel()
            await asyncio.wait({task})

    async def _describe(self, attachment: Attachment) -> link_pb2.Description:
        problem = await self._ovs.mismatch(attachment)
        if attachment.phase != "ready":
            problem = problem or f"it is {attachment.phase}"
        return link_pb2.Description(
            attachment=to_message(attachment),
            representor=attachment.link,
            port_present=not problem,
            flows_installed=not problem,
            mtu=attachment.assignment.mtu,
            up=not problem,
            problem=problem,
        )


async def _all(works: Iterable[Awaitable[None]]) -> list[Exception | None]:
    """Side by side; an expected failure of one does not end the others."""
    done = await asyncio.gather(*works, return_exceptions=True)
    for error in done:
        if error is not None and not isinstance(error, (CniNodeError, PlugFailed)):
            raise error
    return [error if isinstance(error, Exception) else None for error in done]


def _failed(identity: str, error: Exception) -> link_pb2.SyncFailure:
    reason = error.reason if isinstance(error, PlugFailed) else link_pb2.REASON_SWITCH_FAILED
    return link_pb2.SyncFailure(id=identity, failure=link_pb2.Failure(reason=reason, message=str(error)))
