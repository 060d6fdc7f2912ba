"""Which function a pod means when its network configuration names none: the one that kubelet has given it.

With Multus or another caller that knows, the configuration has a deviceID. Where it has none, kubelet's pod resources
API tells the pod's devices; one that cannot be told from another is not guessed, because two networks of a pod would
then take the same function.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import grpc
import grpc.aio

from cni.node.errors import BadConfiguration, TryLater
from cni.node.pods import Pods
from cni.node.request import DEFAULT_NETWORK, Call, is_device
from cni.selection import NETWORKS

if TYPE_CHECKING:
    from cni.device_plugin.pod_resources import Holder

_SECONDS = 5.0


class HeldDevices:
    """`socket` is kubelet's, `resource` the one whose device is the default network's ("" for any).

    `usable` tells whether a device is a function that a pod can have; `taken` whether an attachment that stays has it.
    """

    def __init__(
        self,
        pods: Pods,
        *,
        socket: Path,
        resource: str,
        usable: Callable[[str], bool],
        taken: Callable[[Call, str], bool],
    ) -> None:
        self._pods = pods
        self._socket = socket
        self._resource = resource
        self._usable = usable
        self._taken = taken

    async def choose(self, call: Call, *, required: bool, deadline: float) -> str:
        """The deviceID of a call that has none; "" for a pod that needs none. `deadline`: for the pod to be known.

        Raises BadConfiguration where that cannot be known, TryLater where it cannot be known yet.
        """
        named = self._resource if call.network == DEFAULT_NETWORK else ""
        if not (required or named):
            return ""
        where = f"pod {call.pod_namespace}/{call.pod_name}"
        pod = await self._pods.until(
            call.pod_namespace, call.pod_name, lambda found: found is not None, deadline=deadline
        )
        others = pod is not None and bool(pod.metadata.annotations.get(NETWORKS))
        held = [one for one in await self._held(call, where) if named in ("", one.resource)]
        free = sorted({one.device for one in held if is_device(one.device) and not self._taken(call, one.device)})
        free = [device for device in free if self._usable(device)]
        if not free and not required:
            return ""
        if len(free) == 1 and (named or not others):
            return free[0]
        raise BadConfiguration(_refusal(where, named, held, free, others))

    async def _held(self, call: Call, where: str) -> Sequence[Holder]:
        if not self._socket.exists():
            raise BadConfiguration(
                "the network configuration has no deviceID, and kubelet's pod resources API, which tells the devices "
                f"of {where}, is not at {self._socket}; set deviceID, or pod_resources.socket"
            )
        # Loaded here, because most nodes never need it.
        from cni.device_plugin.pod_resources import PodResources

        try:
            async with PodResources(self._socket) as kubelet:
                return await kubelet.of_pod(call.pod_namespace, call.pod_name, deadline=_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise TryLater(
                f"the network configuration has no deviceID, and kubelet does not tell the devices of {where}: "
                f"{error.code().name} at {self._socket} ({error.details()}); try again, or set deviceID"
            ) from error


def _refusal(where: str, resource: str, held: Sequence[Holder], free: Sequence[str], others: bool) -> str:
    begin = f"the network configuration has no deviceID, and {where}"
    of = f" of {resource}" if resource else ""
    if not free:
        had = ", ".join(sorted({one.device for one in held}))
        return (
            f"{begin} has no free function{of}{f' among its devices {had}' if had else ''}; every pod here needs a "
            "VF: request one as a resource of the device plugin, or set deviceID"
        )
    names = ", ".join(free)
    if len(free) > 1:
        return (
            f"{begin} has several functions{of}: {names}; set deviceID, or pod_resources.resource to a resource of "
            "which it has one"
        )
    return (
        f"{begin} has {names} but also other networks, whose function it may be; set deviceID, or "
        "pod_resources.resource to the default network's resource"
    )
