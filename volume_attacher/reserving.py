"""Choosing where a new attachment goes and writing that down in one go, so that no two volumes get one function."""

from typing import Final

from volume_attacher.actual import Actual
from volume_attacher.errors import RemoteTaken
from volume_attacher.functions import Nsids, choose, pin
from volume_attacher.model import Phase, Pinned, Policy, Record, Specification
from volume_attacher.records import Records

_REMOTE_NSID: Final = 1


class Reservations:
    def __init__(self, records: Records) -> None:
        self._records = records
        self._nsids = Nsids(records.nsids)

    def make(
        self,
        wanted: Specification,
        actual: Actual,
        *,
        secured: bool,
        avoid: frozenset[tuple[int, int, int]],
        pinned: Pinned | None,
    ) -> Record:
        """The written intent. `avoid` are places found taken.

        Raises RemoteTaken, NoFunction, FunctionTaken, InvalidRequest.
        """
        for other in self._records:
            if other.specification.remote.nqn == wanted.remote.nqn:
                raise RemoteTaken(f"{wanted.remote.nqn} is attached as {other.volume_id} already: detach that first")
        if pinned is not None:
            place = pin(pinned, wanted.policy, actual, self._records)
        else:
            place = choose(wanted.policy, actual, self._records, avoid=avoid)
        nsid = _REMOTE_NSID
        if wanted.policy is Policy.SHARED:
            wish = pinned.nsid if pinned is not None else 0
            nsid = self._nsids.take(place, self._records, actual, wanted=wish)
            self._records.keep_nsids(self._nsids.used())
        record = Record(specification=wanted, place=place, nsid=nsid, phase=Phase.ATTACHING, secured=secured)
        self._records.put(record)
        return record
