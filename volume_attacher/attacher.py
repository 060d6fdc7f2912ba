"""Attaching and detaching volumes, each volume's work one after another, different volumes side by side."""

import asyncio
import logging
from typing import Final

import msgspec

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from foundation.daemon import logs
from foundation.daemon.backoff import Backoff
from foundation.daemon.sharing import SharedRead
from foundation.daemon.work import Joining, KeyedQueue
from volume_attacher import actual as reading
from volume_attacher import naming, opi_requests, views
from volume_attacher.actual import Actual
from volume_attacher.addresses import Addresses
from volume_attacher.board import Board
from volume_attacher.bridge import Bridge
from volume_attacher.errors import BridgeAway, BridgeError, Exists, FunctionTaken, NoFunction, OtherSpecification
from volume_attacher.functions import free
from volume_attacher.looks import Looks
from volume_attacher.model import Phase, Pinned, Place, Record, Secrets, Specification
from volume_attacher.records import Records
from volume_attacher.reserving import Reservations
from volume_attacher.steps import Attachment
from volume_attacher.sweeping import sweep

log: Final = logging.getLogger(__name__)
_OTHER_PLACES: Final = 3
# Long enough that work of its own never gives up on itself; each of its calls has a deadline.
_UNBOUNDED: Final = 3600.0


class Attacher:
    """All work on this DPU. `shared_nqn` is a template with {port}, {pf} and {vf}."""

    def __init__(self, bridge: Bridge, records: Records, *, host_nqn: str, shared_nqn: str, workers: int = 32) -> None:
        self._bridge = bridge
        self._records = records
        self._host_nqn = host_nqn
        self._shared_nqn = shared_nqn
        self._secrets: dict[str, Secrets] = {}
        self._actual: Actual | None = None
        self._away = "the bridge was not asked yet"
        self._reservations = Reservations(records)
        self._work: Joining[str, pb.Attachment | None] = Joining(name="volume")
        self._repairs: KeyedQueue[str] = KeyedQueue(
            self._repair, workers=workers, backoff=Backoff(0.3, 15.0), name="repair"
        )
        self._sweeps: KeyedQueue[str] = KeyedQueue(self._sweep, workers=4, backoff=Backoff(1.0, 30.0), name="sweep")
        self._looks = Looks()
        self._seen_instance = ""
        # As the host was last told of them, in bytes.
        self._sizes: dict[str, int] = {}
        self._addresses = Addresses()
        self._shared_read = SharedRead(self._read)
        self.board = Board()

    # --- what callers want

    async def attach(
        self, wanted: Specification, secrets: Secrets, *, deadline: float, pinned: Pinned | None = None
    ) -> pb.Attachment:
        """Attach, or find attached; if `pinned`, nowhere else. Raises AttacherError, Conflict, StillRunning."""
        with logs.bound(volume=wanted.volume_id), self._looks.working():
            result = await self._work.run(
                wanted.volume_id, wanted.fingerprint(), lambda: self._attach(wanted, secrets, pinned), deadline=deadline
            )
        if result is None:
            raise BridgeAway(f"{wanted.volume_id} was detached meanwhile: try again")
        if pinned is not None and not pinned.fits(reading.place_of(result.function), result.nsid):
            raise OtherSpecification(f"{wanted.volume_id} is attached, but not on {pinned}: detach it first")
        return result

    async def detach(self, volume_id: str, *, deadline: float) -> None:
        """Detach; succeeds for a volume that is not there."""
        with logs.bound(volume=volume_id), self._looks.working():
            await self._work.run(volume_id, "detach", lambda: self._detach(volume_id), deadline=deadline)

    async def stop(self) -> None:
        """Leave all work where it stands; the next start goes on from the records."""
        await self._work.stop()

    def attachments(self) -> list[pb.Attachment]:
        """All, as last seen."""
        return list(self.board.shown.values())

    def inventory(self) -> tuple[list[Place], list[Place]]:
        """All functions, and those a new attachment could get. Raises BridgeAway."""
        actual = self._known()
        return sorted(actual.functions), free(actual, self._records)

    # --- attaching

    async def _attach(self, wanted: Specification, secrets: Secrets, pinned: Pinned | None) -> pb.Attachment:
        record = self._records.get(wanted.volume_id)
        if record is not None and record.phase is Phase.DETACHING:
            await self._unwind(record)
            record = None
        if record is None:
            return await self._attach_new(wanted, secrets, pinned)
        confirmed = record.confirmed(wanted)
        if confirmed is None:
            raise OtherSpecification(
                f"{wanted.volume_id} is attached with another {', '.join(record.specification.differences(wanted))}:"
                " detach it first"
            )
        if confirmed is not record:
            self._records.put(record := confirmed)
        actual = self._actual
        if actual is None or self._away or not reading.complete(record, actual):
            actual = await self.refresh()
        if secrets:
            await self._renew_keys(record, secrets, actual)
        return await self._bring_back(record, actual)

    async def _attach_new(self, wanted: Specification, secrets: Secrets, pinned: Pinned | None) -> pb.Attachment:
        avoid: frozenset[tuple[int, int, int]] = frozenset()
        found = ""
        if secrets:
            self._secrets[wanted.volume_id] = secrets
        for _ in range(_OTHER_PLACES):
            record = await self._reserve(wanted, secrets, avoid, pinned)
            attachment = self._steps(record)
            try:
                await attachment.do()
            except BridgeError as error:
                await self._give_up(record, attachment)
                if isinstance(error, Exists) and pinned is not None:
                    raise FunctionTaken(f"function {pinned} is taken: {error}") from error
                if isinstance(error, Exists):
                    # Somebody else holds the function, unknown to us: look again and take another one.
                    avoid |= {record.place.key}
                    found = str(error)
                    await self.refresh()
                    continue
                raise
            record = self._set_phase(record, Phase.ATTACHED)
            await self._records.settle()
            log.info("attached %s on %s", record.volume_id, record.place)
            self._looks.soon()
            return self._fresh_view(record, attachment)
        raise NoFunction(f"something is in the way of {wanted.volume_id} on every function tried: {found}")

    async def _reserve(
        self,
        wanted: Specification,
        secrets: Secrets,
        avoid: frozenset[tuple[int, int, int]],
        pinned: Pinned | None,
    ) -> Record:
        def reserve() -> Record:
            return self._reservations.make(wanted, self._known(), secured=bool(secrets), avoid=avoid, pinned=pinned)

        if pinned is not None:
            await self.refresh()
        try:
            record = reserve()
        except NoFunction:
            await self.refresh()
            record = reserve()
        self._show(record)
        return record

    async def _give_up(self, record: Record, attachment: Attachment) -> None:
        """Undo a first attachment that failed; what cannot be undone now is left to the repairs."""
        record = self._set_phase(record, Phase.DETACHING)
        try:
            await attachment.undo()
        except BridgeError as error:
            log.warning("%s could not be undone yet: %s", record.volume_id, error)
            self._repairs.add(record.volume_id, delay=1.0)
            return
        self._forget(record.volume_id)

    async def _bring_back(self, record: Record, actual: Actual) -> pb.Attachment:
        """Do what `actual` lacks of an attachment that was there before."""
        if reading.complete(record, actual):
            return self._show(await self._confirmed(record))
        attachment = self._steps(record)
        await attachment.do(actual)
        log.info("brought %s back on %s", record.volume_id, record.place)
        self._looks.soon()
        return self._fresh_view(await self._confirmed(record), attachment)

    async def _confirmed(self, record: Record) -> Record:
        if record.phase is Phase.ATTACHED:
            return record
        changed = self._set_phase(record, Phase.ATTACHED)
        await self._records.settle()
        return changed

    async def _renew_keys(self, record: Record, secrets: Secrets, actual: Actual) -> None:
        """Have a connected volume go on with other keys; the bridge refuses what it can only do when connecting."""
        identifier = naming.object_id(record.volume_id)
        connected = actual.of(identifier).ways
        if connected and secrets != self._secrets.get(record.volume_id) and (secrets.dhchap_key or secrets.tls_psk):
            await self._bridge.set_options(opi_requests.keys(identifier, secrets))
        self._secrets[record.volume_id] = secrets

    # --- detaching

    async def _detach(self, volume_id: str) -> None:
        record = self._records.get(volume_id)
        if record is not None:
            await self._unwind(record)
            return
        identifier = naming.object_id(volume_id)
        if self._actual is None or not self._actual.of(identifier).empty:
            parts = (await self.refresh()).of(identifier)
            if not parts.empty:
                await sweep(self._bridge, identifier, parts)
                self._looks.soon()

    async def _unwind(self, record: Record) -> None:
        record = self._set_phase(record, Phase.DETACHING)
        await self._steps(record).undo()
        # A record that a loss of power brings back says that it is being detached, and is detached again.
        self._forget(record.volume_id)
        log.info("detached %s from %s", record.volume_id, record.place)
        self._looks.soon()

    def _forget(self, volume_id: str) -> None:
        self._records.drop(volume_id)
        self._secrets.pop(volume_id, None)
        self._sizes.pop(volume_id, None)
        self._repairs.forget(volume_id)
        self.board.remove(volume_id)

    # --- keeping things as they should be

    def look_soon(self) -> None:
        self._looks.soon()

    async def run(self) -> None:
        """Repair what is not as recorded until cancelled; the queues run beside."""
        await asyncio.gather(self._repairs.run(), self._sweeps.run(), self._look())

    async def _look(self) -> None:
        while True:
            await self._looks.turn()
            try:
                await self.compare()
            except BridgeError as error:
                self.went_away(str(error))

    async def compare(self) -> None:
        """Read the state and start a repair for whatever differs from the records. Raises BridgeError."""
        actual = await self.refresh()
        fresh = actual.instance != self._seen_instance
        self._seen_instance = actual.instance
        for record, size in reading.sizes(actual, self._records):
            if size > self._sizes.get(record.volume_id, size):
                log.info("%s has grown to %d bytes", record.volume_id, size)
                await self._bridge.rescan(reading.subsystem_id(record), record.nsid)
            self._sizes[record.volume_id] = size
        for record in self._records:
            if self._work.running(record.volume_id):
                continue
            if not reading.settled(record, actual, self._addresses):
                if fresh or record.volume_id not in self._repairs.errors:
                    self._repairs.add(record.volume_id)
            else:
                self._repairs.forget(record.volume_id)
        for identifier in reading.strangers(actual, self._records):
            self._take_stranger(identifier, actual)

    def _take_stranger(self, identifier: str, actual: Actual) -> None:
        volume_id = naming.volume_of(identifier)
        if volume_id is not None and self._work.running(volume_id):
            return
        record = reading.adoptable(identifier, actual)
        if record is not None:
            log.warning("found %s attached on %s with no record of it: adopted", record.volume_id, record.place)
            self._records.put(record)
            self._show(record)
        elif volume_id is not None or actual.of(identifier).subsystem == "" or identifier.startswith("dpus-"):
            self._sweeps.add(identifier)
        else:
            log.warning("%s is ours but its volume is not known: left alone until it is attached again", identifier)

    async def _sweep(self, identifier: str) -> None:
        parts = (await self.refresh()).of(identifier)
        if identifier in reading.strangers(self._known(), self._records) and not parts.empty:
            await sweep(self._bridge, identifier, parts)
            self._looks.soon()

    async def _repair(self, volume_id: str) -> None:
        record = self._records.get(volume_id)
        if record is None:
            return
        with logs.bound(volume=volume_id), self._looks.working():
            if record.phase is Phase.DETACHING:
                await self.detach(volume_id, deadline=_UNBOUNDED)
                return
            await self._work.run(
                volume_id,
                record.specification.fingerprint(),
                lambda: self._repair_now(volume_id),
                deadline=_UNBOUNDED,
                background=True,
            )

    async def _repair_now(self, volume_id: str) -> pb.Attachment | None:
        record = self._records.get(volume_id)
        if record is None:
            return None
        try:
            result = await self._bring_back(record, self._known())
            await self._steps(record).mend_paths(self._known())
        except BridgeError as error:
            self._show(record, error=str(error))
            raise
        self._looks.soon()
        return result

    # --- what is known

    async def refresh(self) -> Actual:
        """Read the bridge's state and show what it means. Raises BridgeError."""
        await self._shared_read()
        return self._known()

    async def _read(self) -> None:
        self._actual = reading.read(await self._bridge.state())
        self._away = ""
        for record in self._records:
            self._show(record)

    def went_away(self, reason: str, *, card: bool = False) -> None:
        """Note that nothing can be known at present; with `card`, that all on the card's process is lost."""
        if card:
            self._actual = Actual()
        if self._away != reason:
            log.warning("the bridge cannot be asked: %s", reason)
        self._away = reason
        for record in self._records:
            self._show(record)

    def _known(self) -> Actual:
        if self._actual is None or self._away:
            raise BridgeAway(f"the card's bridge does not answer: {self._away}")
        return self._actual

    def _steps(self, record: Record) -> Attachment:
        alone = not any(
            other.place.key == record.place.key and other.volume_id != record.volume_id for other in self._records
        )
        return Attachment(
            self._bridge,
            record,
            addresses=self._addresses,
            host_nqn=self._host_nqn,
            secrets=self._secrets.get(record.volume_id),
            shared_nqn=self._nqn_of(record),
            alone=alone,
        )

    def _nqn_of(self, record: Record) -> str:
        place = record.place
        return self._shared_nqn.format(port=place.port, pf=place.pf, vf=place.vf)

    def _set_phase(self, record: Record, phase: Phase) -> Record:
        changed = msgspec.structs.replace(record, phase=phase)
        self._records.put(changed)
        self._show(changed)
        return changed

    def _show(self, record: Record, *, error: str = "") -> pb.Attachment:
        failed = self._repairs.errors.get(record.volume_id)
        shown = views.attachment(
            record,
            self._actual or Actual(),
            addresses=self._addresses,
            shared_nqn=self._nqn_of(record),
            error=error or self._away or (str(failed) if failed is not None else ""),
            working=self._work.running(record.volume_id),
        )
        self.board.publish(shown)
        return shown

    def _fresh_view(self, record: Record, attachment: Attachment) -> pb.Attachment:
        """As `_show` after the next look will have it, without waiting for that."""
        if attachment.size:
            self._sizes[record.volume_id] = attachment.size
        result = views.fresh(
            record,
            self._actual or Actual(),
            addresses=self._addresses,
            shared_nqn=self._nqn_of(record),
            size=attachment.size,
            unopened=attachment.unopened,
        )
        self.board.publish(result)
        return result
