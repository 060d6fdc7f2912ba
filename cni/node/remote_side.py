"""The OVS side of a host's attachments, which its DPUs do."""

from collections.abc import Callable, Mapping, Sequence

from cni.link.client import LinkClient
from cni.link.errors import PeerAway, PlugFailed
from cni.node.attachments import Attachment
from cni.node.errors import BadConfiguration, DpuRefused, TryLater
from cni.node.link_messages import report_of, to_message
from cni.node.offload import OffloadReport
from cni.node.ovs_side import Reached
from dpu_offload_stubs.link.v1 import link_pb2

_FLOWS_SECONDS = 20.0
# A message has at most 4 MiB.
_DESCRIBED_AT_ONCE = 64
_STAGES = {
    link_pb2.STAGE_REPRESENTOR_FOUND: "representor",
    link_pb2.STAGE_PORT_ADDED: "port",
    link_pb2.STAGE_FLOWS_INSTALLED: "flows",
}


class RemoteOvsSide:
    """`clients` are the links by DPU node name, as they come and go. `functions`: {DPU: its PFs on this host}."""

    needs_function = True

    def __init__(
        self,
        clients: Mapping[str, LinkClient],
        *,
        functions: Mapping[str, tuple[str, ...]],
        unplug_seconds: float,
        missing: Callable[[], str],
    ) -> None:
        self._clients = clients
        self._functions = functions
        self._unplug_seconds = unplug_seconds
        self._missing = missing

    def problem(self) -> str:
        """With several DPUs: one that is away is enough, because any pod may need it."""
        if not self._clients:
            return self._missing()
        return next((problem for client in self._clients.values() if (problem := client.problem())), "")

    def dpu_of(self, attachment: Attachment) -> str:
        """Node name of the DPU that has the attachment's function; "" when no DPU is known. Raises BadConfiguration."""
        function = attachment.function
        if function is None:
            raise BadConfiguration(f"{attachment.describe()} has no function, and a DPU plugs nothing else")
        for dpu, addresses in self._functions.items():
            if function.pf_address in addresses:
                return dpu
        if len(self._clients) == 1:
            return next(iter(self._clients))
        for dpu, client in self._clients.items():
            if function.card and function.card in client.cards:
                return dpu
        if not self._clients:
            return ""
        raise BadConfiguration(
            f"function {function.address} belongs to none of the DPUs {', '.join(sorted(self._clients))} by its card's "
            f"serial number {function.card or '(none)'}; name its physical function in link.functions"
        )

    def admit(self, attachment: Attachment) -> None:
        self.dpu_of(attachment)

    async def plug(self, attachment: Attachment, *, deadline: float, reached: Reached) -> None:
        client = self._client(attachment)

        def progress(stage: link_pb2.Stage.ValueType, representor: str) -> None:
            if name := _STAGES.get(stage):
                reached(name, representor)

        try:
            await client.plug(to_message(attachment), deadline=deadline, progress=progress)
        except PlugFailed as failed:
            raise DpuRefused(
                f"DPU {client.dpu} cannot plug {attachment.describe()}: {failed}",
                details=link_pb2.Reason.Name(failed.reason),
            ) from failed
        except PeerAway as away:
            raise TryLater(f"{away}; the pod is tried again") from away

    async def unplug(self, attachment: Attachment) -> None:
        if attachment.function is None:
            # Of a time when this node had a switch of its own.
            return
        try:
            client = self._client(attachment)
            await client.unplug(attachment.id, attachment.generation, deadline=self._unplug_seconds)
        except PeerAway as away:
            raise TryLater(f"{away}; the port is removed when it is back") from away

    async def mismatch(self, attachment: Attachment) -> str:
        try:
            found = await self._client(attachment).describe(attachment.id)
        except (PeerAway, TryLater) as away:
            return str(away)
        return found[0].problem if found else f"the DPU does not know {attachment.describe()}"

    async def ensure(self, attachment: Attachment) -> None:
        """Nothing: Sync says it all at each connection, and the DPU keeps its own watch between."""

    async def offload(self, attachments: Sequence[Attachment], *, most: int) -> Mapping[str, OffloadReport]:
        by_dpu: dict[LinkClient, list[str]] = {}
        for one in attachments:
            by_dpu.setdefault(self._client(one), []).append(one.id)
        found: dict[str, OffloadReport] = {}
        try:
            for client, ids in by_dpu.items():
                for begin in range(0, len(ids), _DESCRIBED_AT_ONCE):
                    part = ids[begin : begin + _DESCRIBED_AT_ONCE]
                    answer = await client.describe(*part, flows=most, deadline=_FLOWS_SECONDS)
                    found |= {one.attachment.id: report_of(one) for one in answer}
        except PeerAway as away:
            raise TryLater(str(away)) from away
        return {one.id: found.get(one.id, OffloadReport("")) for one in attachments}

    def _client(self, attachment: Attachment) -> LinkClient:
        client = self._clients.get(self.dpu_of(attachment))
        if client is None:
            raise TryLater(self._missing() or f"the DPU of {attachment.describe()} is not known; try again")
        return client
