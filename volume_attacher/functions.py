"""Which function a volume gets; pure.

A function of its own for a volume: the lowest free one of the wanted kind. The shared controller: the lowest function
that carries it already, or else a free one; its NSIDs are handed out upwards, and from the start again after the last,
so that the host has long let go of one that is used again: a host which finds another volume under an NSID it still
holds shows neither.
"""

from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Final

from volume_attacher.actual import Actual
from volume_attacher.errors import FunctionTaken, InvalidRequest, NoFunction
from volume_attacher.model import Pinned, Place, Policy, Record
from volume_attacher.naming import shared_id

# SPDK's default of 32 namespaces a subsystem is far below what one host may want.
SHARED_NAMESPACES: Final = 1024


def choose(
    policy: Policy, actual: Actual, records: Iterable[Record], *, avoid: frozenset[tuple[int, int, int]]
) -> Place:
    """The function for a new attachment; `avoid` are places found taken meanwhile. Raises NoFunction."""
    every = list(records)
    taken = {record.place.key for record in every} | avoid
    shared = sorted({record.place for record in every if record.shared})
    if policy is Policy.SHARED and shared:
        return shared[0]
    for place in sorted(actual.functions):
        if place.key in taken or actual.functions[place]:
            continue
        if (place.key in actual.hotplug) == (policy is Policy.HOTPLUG):
            return place
    kind = "hot-plug" if policy is Policy.HOTPLUG else "static"
    raise NoFunction(
        f"no free {kind} function: the card has {len(actual.functions)}, {len(every)} are reserved for attachments;"
        " detach a volume or configure more functions"
    )


def pin(pinned: Pinned, policy: Policy, actual: Actual, records: Iterable[Record]) -> Place:
    """The function that the host was told of. Raises InvalidRequest if there is none such, FunctionTaken."""
    place = next((place for place in actual.functions if pinned.fits(place, pinned.nsid)), None)
    if place is None:
        raise InvalidRequest(f"the card has no function {pinned.place}: it has {len(actual.functions)} functions")
    user = actual.functions[place]
    for record in records:
        if record.place.key != place.key:
            continue
        if policy is Policy.SHARED and record.shared and record.nsid != pinned.nsid:
            user = ""
            continue
        raise FunctionTaken(f"function {pinned} is taken by {record.volume_id}: detach that first")
    if user and not (policy is Policy.SHARED and actual.of(shared_id(*place.key)).subsystem == user):
        raise FunctionTaken(f"function {place} carries subsystem {user}, which is not this volume's")
    return place


def free(actual: Actual, records: Iterable[Record]) -> list[Place]:
    """The functions which a new attachment could still get."""
    taken = {record.place.key for record in records}
    return [place for place, user in sorted(actual.functions.items()) if not user and place.key not in taken]


class Nsids:
    """NSIDs of shared controllers, each used once until the host has let go of all."""

    def __init__(self, known: Mapping[tuple[int, int, int], int]) -> None:
        self._next = dict(known)

    def take(self, place: Place, records: Iterable[Record], actual: Actual, *, wanted: int = 0) -> int:
        """The next NSID on the controller at `place`, or the wanted one. Raises NoFunction, FunctionTaken."""
        used = {record.nsid for record in records if record.shared and record.place.key == place.key}
        used |= {shown.nsid for shown in actual.of(shared_id(*place.key)).namespaces}
        # With the controller itself all that the host knew of it is gone.
        following = self._next.get(place.key, max(used) + 1) if used else 1
        if wanted:
            if wanted in used:
                raise FunctionTaken(f"NSID {wanted} of the shared controller on {place} is another volume's")
            self._next[place.key] = max(following, wanted + 1)
            return wanted
        for nsid in chain(range(following, SHARED_NAMESPACES + 1), range(1, following)):
            if nsid not in used:
                self._next[place.key] = nsid + 1
                return nsid
        raise NoFunction(f"the shared controller on {place} has all of its {SHARED_NAMESPACES} namespaces")

    def used(self) -> Mapping[tuple[int, int, int], int]:
        return self._next
