"""References to volumes, and figures of them: what every kind of resource needs of a bdev."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Final, TypeVar

from dpu_offload_stubs.opi.storage import opicommon_pb2
from foundation.spdk.errors import SpdkError
from opi_bridge.errors import InvalidArgument
from opi_bridge.names import VOLUME_COLLECTIONS, Name
from opi_bridge.session import Session

T = TypeVar("T")
_INT32_MAX: Final = 2**31 - 1
_PREFIX: Final = "//storage.opiproject.org/"


def bdev_of(reference: str, field: str = "volume_name_ref") -> str:
    """The bdev that a reference means: "volumes/x", the pattern of any kind of volume, or the bdev's own name."""
    if not reference:
        raise InvalidArgument(f"{field} is required: the name of a volume")
    words = reference.removeprefix(_PREFIX).split("/")
    if len(words) == 2 and words[0] in VOLUME_COLLECTIONS and words[1]:
        return words[1]
    if len(words) == 4 and words[0] == "nvmeRemoteControllers" and words[2] == "nvmeRemoteNamespaces":
        return words[3]
    return reference


async def find(session: Session, bdev: str) -> Mapping[str, Any] | None:
    """What SPDK says of a bdev, by name, alias or uuid; None if there is none."""
    try:
        found: list[Mapping[str, Any]] = await session.call("bdev_get_bdevs", {"name": bdev})
    except SpdkError as error:
        if error.missing:
            return None
        raise
    return found[0]


async def stats(session: Session, bdevs: Iterable[str]) -> opicommon_pb2.VolumeStats:
    """The sum over `bdevs`; OPI's counters have 32 bits, so a larger number reads as the largest one.

    Raises SpdkError for a bdev that is not there.
    """
    names = list(bdevs)
    total: dict[str, int] = {}
    if names:
        answer = await session.call("bdev_get_iostat", {"names": names})
        for one in answer["bdevs"]:
            for key, value in one.items():
                if isinstance(value, int):
                    total[key] = total.get(key, 0) + value

    def count(key: str) -> int:
        return min(total.get(key, 0), _INT32_MAX)

    return opicommon_pb2.VolumeStats(
        read_bytes_count=count("bytes_read"),
        read_ops_count=count("num_read_ops"),
        write_bytes_count=count("bytes_written"),
        write_ops_count=count("num_write_ops"),
        unmap_bytes_count=count("bytes_unmapped"),
        unmap_ops_count=count("num_unmap_ops"),
        read_latency_ticks=count("read_latency_ticks"),
        write_latency_ticks=count("write_latency_ticks"),
        unmap_latency_ticks=count("unmap_latency_ticks"),
    )


def prefixed(values: Iterable[tuple[Name, T]], parent: Name) -> list[tuple[Name, T]]:
    """Those whose name lies under `parent`, whose ids may be wildcards."""
    depth = len(parent.parts)
    return [
        (name, value)
        for name, value in values
        if all(wanted in ("-", own) for (_, wanted), (_, own) in zip(parent.parts, name.parts[:depth], strict=True))
    ]


async def together(first: Awaitable[object], second: Awaitable[T]) -> T:
    """Send both in one go and return the second's result; raise the first error only when both have ended."""
    one, two = await asyncio.gather(first, second, return_exceptions=True)
    if isinstance(two, BaseException):
        raise two
    if isinstance(one, BaseException):
        raise one
    return two
