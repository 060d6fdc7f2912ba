"""Sizes that a volume can really have."""

from typing import Final

from csi.errors import InvalidArgument, OutOfRange
from csi.framework.backend import SizeRange

MIB: Final = 1 << 20


def rounded(size: SizeRange, *, cluster: int, default: int) -> int:
    """The bytes a volume will really have: whole allocation units, and whole MiB since SPDK takes nothing finer.

    Raises InvalidArgument for a range that contradicts itself, OutOfRange where no such size lies within the limit.
    """
    if size.required < 0 or size.limit < 0:
        raise InvalidArgument(f"capacity_range {size.required}..{size.limit}: bytes cannot be negative")
    if size.limit and size.required > size.limit:
        raise InvalidArgument(f"capacity_range: required_bytes {size.required} is more than limit_bytes {size.limit}")
    unit = max(cluster, MIB)
    wanted = size.required or (min(default, size.limit) if size.limit else default)
    units = max(1, -(-wanted // unit))
    if not size.required and size.limit and units * unit > size.limit:
        units = size.limit // unit
    if not units or (size.limit and units * unit > size.limit):
        raise OutOfRange(
            f"no volume size lies within {size.required}..{size.limit} bytes: sizes are whole multiples of {unit}"
        )
    return units * unit
