"""All checks, in the order in which their findings are best cured."""

from __future__ import annotations

from typing import Final

from dpuctl.doctor import daemons, network, pairs, storage, trust
from dpuctl.doctor.check import Check

ALL: Final[tuple[Check, ...]] = (
    *daemons.CHECKS,
    *pairs.CHECKS,
    *trust.CHECKS,
    *network.CHECKS,
    *storage.CHECKS,
)
