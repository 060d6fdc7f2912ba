"""Hosts that were cut off from a volume: what may still be there of them, and what must not let them in again.

Two things outlive a fence. An older look at Kubernetes still says that the host has the volume. And SPDK on a DPU that
could not be reached keeps the writes of its host for as long as the target refuses it (fast_io_fail_timeout_sec 0, seen
with SPDK 26.05): let in again, it would send them over what another host has written since. So such a DPU is made to
let go first.
"""

from collections.abc import Callable, Collection
from typing import Final

from csi.identity import VolumeId

_LET_GO: Final = "let go"
_UNKNOWN: Final = "unknown"


class Fences:
    """By host NQN. `attached`: the hosts of a volume that Kubernetes says have it, and shall keep it."""

    def __init__(self, attached: Callable[[VolumeId], Collection[str]]) -> None:
        self._attached = attached
        self._cut: dict[VolumeId, dict[str, str]] = {}

    def cut(self, volume: VolumeId, host_nqn: str) -> None:
        """To be called before the target is."""
        self._cut.setdefault(volume, {})[host_nqn] = _UNKNOWN

    def let_go(self, volume: VolumeId, host_nqn: str) -> None:
        """Its DPU has nothing of the volume any more."""
        if self.stands(volume, host_nqn):
            self._cut[volume][host_nqn] = _LET_GO

    def lift(self, volume: VolumeId, host_nqn: str) -> None:
        """The host is about to be let in by a call."""
        self._cut.get(volume, {}).pop(host_nqn, None)

    def forget(self, volume: VolumeId) -> None:
        """The volume does not exist any more."""
        self._cut.pop(volume, None)

    def stands(self, volume: VolumeId, host_nqn: str) -> bool:
        return host_nqn in self._cut.get(volume, {})

    def suspect(self, volume: VolumeId, host_nqn: str) -> bool:
        """Whether the DPU of a host that is not let in may have kept something of an earlier time."""
        state = self._cut.get(volume, {}).get(host_nqn)
        if state is None:
            # Of an earlier process nothing is known. A running machine whose target has lost its list keeps its disk.
            return host_nqn not in self._attached(volume)
        return state == _UNKNOWN
