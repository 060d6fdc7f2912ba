"""An attachment as callers see it; pure."""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from volume_attacher import naming
from volume_attacher.actual import Actual, Parts, complete, portals
from volume_attacher.addresses import Addresses
from volume_attacher.model import Phase, Place, Portal, Record

_TRANSPORTS: Final = {"tcp": pb.TRANSPORT_TCP, "rdma": pb.TRANSPORT_RDMA}


def attachment(
    record: Record,
    actual: Actual,
    *,
    addresses: Addresses,
    shared_nqn: str,
    error: str = "",
    working: bool = False,
    size: int = 0,
) -> pb.Attachment:
    """The attachment of `record` as `actual` shows it; `error` is why the last repair failed, `size` overrides."""
    wanted = record.specification
    parts = actual.of(naming.object_id(record.volume_id))
    disk = parts.disk(wanted.remote.uuid)
    ways = len(portals(record, addresses))
    state, reason = _state(record, actual, parts, ways=ways, error=error, working=working)
    return pb.Attachment(
        volume_id=record.volume_id,
        state=state,
        reason=reason,
        function=function(record.place),
        subsystem_nqn=shared_nqn if record.shared else wanted.remote.nqn,
        nsid=record.nsid,
        namespace_uuid=wanted.remote.uuid,
        size_bytes=size or (disk.size if disk is not None else 0) or wanted.remote.size,
        paths=[
            pb.PathState(path=path(way.portal), connected=way.usable, ana_state=way.ana)
            for way in sorted(parts.ways, key=lambda way: way.portal)
        ],
    )


def fresh(
    record: Record, actual: Actual, *, addresses: Addresses, shared_nqn: str, size: int, unopened: Collection[Portal]
) -> pb.Attachment:
    """An attachment that was made just now: `actual` is older than that, `unopened` are portals without a path."""
    result = attachment(record, actual, addresses=addresses, shared_nqn=shared_nqn, size=size)
    result.state, result.reason = pb.ATTACHMENT_STATE_ATTACHED, ""
    if not result.paths:
        result.paths.extend(
            pb.PathState(path=path(portal), connected=portal not in unopened)
            for portal in record.specification.remote.portals
        )
    if unopened:
        result.state = pb.ATTACHMENT_STATE_DEGRADED
        result.reason = f"no path over {', '.join(str(portal) for portal in unopened)}"
    return result


def _state(
    record: Record, actual: Actual, parts: Parts, *, ways: int, error: str, working: bool
) -> tuple[pb.AttachmentState.ValueType, str]:
    if record.phase is Phase.DETACHING:
        return pb.ATTACHMENT_STATE_DETACHING, error
    if not complete(record, actual):
        if record.phase is Phase.ATTACHING or (working and not error):
            return pb.ATTACHMENT_STATE_ATTACHING, error
        return pb.ATTACHMENT_STATE_FAILED, error or "the host does not have its disk; it is being brought back"
    lost = [way for way in parts.ways if not way.usable]
    if lost:
        what = ", ".join(f"{way.portal} is {way.ana if way.connected else way.state}" for way in lost)
        whole = len(lost) == len(parts.ways)
        return pb.ATTACHMENT_STATE_DEGRADED, f"{'no path works' if whole else 'a path is lost'}: {what}"
    if len(parts.ways) < ways:
        return pb.ATTACHMENT_STATE_DEGRADED, error or "a path could not be opened yet"
    return pb.ATTACHMENT_STATE_ATTACHED, ""


def function(place: Place) -> pb.Function:
    return pb.Function(
        vuid=place.vuid,
        port=place.port,
        physical_function=place.pf,
        virtual_function=place.vf,
        pci_address=place.pci_address,
    )


def path(portal: Portal) -> pb.Path:
    return pb.Path(transport=_TRANSPORTS.get(portal.transport, 0), address=portal.address, port=portal.port)  # type: ignore[arg-type]  # 0 is UNSPECIFIED
