"""How each host uses a volume, so that nobody reads or writes beside a writer who was promised to be alone.

A target's access list says who is let in, not for what. This process remembers what it has published; before that
counts what a VolumeAttachment carries, which is what an earlier process answered.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Final, Literal

from csi import capabilities
from csi.identity import VolumeId
from dpu_offload_stubs.csi import csi_pb2

Use = Literal["single", "shared", "reader"]
_WORDS: Final[Mapping[Use, str]] = {
    "single": "for writing alone",
    "shared": "for shared writing",
    "reader": "for reading",
}


class Uses:
    """`recorded`: uses by host NQN of one volume, as Kubernetes has them."""

    def __init__(self, recorded: Callable[[VolumeId], Mapping[str, Use]]) -> None:
        self._recorded = recorded
        self._known: dict[VolumeId, dict[str, Use]] = {}

    def note(self, volume: VolumeId, host_nqn: str, use: Use) -> None:
        self._known.setdefault(volume, {})[host_nqn] = use

    def forget(self, volume: VolumeId, host_nqn: str) -> None:
        known = self._known.get(volume, {})
        known.pop(host_nqn, None)
        if not known:
            self._known.pop(volume, None)

    def of(self, volume: VolumeId) -> Mapping[str, Use]:
        return {**self._recorded(volume), **self._known.get(volume, {})}


def use_of(capability: csi_pb2.VolumeCapability, *, readonly: bool) -> Use:
    if readonly or capabilities.read_only(capability):
        return "reader"
    return "shared" if capabilities.shared(capability) else "single"


def conflict(mine: Use, others: Iterable[str], known: Mapping[str, Use]) -> str:
    """Why a volume that `others` (host NQNs) have cannot be had as `mine` too; empty when it can."""
    for host in sorted(others):
        theirs = known.get(host)
        if theirs is None:
            return f"{host} is let in already, and it is not known for what"
        if mine == "single" or theirs != mine:
            return f"{host} has it {_WORDS[theirs]}, so it cannot be had {_WORDS[mine]} elsewhere"
    return ""
