"""The checks that make a daemon ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Check:
    """One named condition; `reason` says why it does not hold."""

    ok: bool
    reason: str = ""


class Health:
    """Named checks; the daemon is ready when all hold."""

    def __init__(self) -> None:
        self._checks: dict[str, Check] = {}

    def set(self, check: str, ok: bool, reason: str = "") -> None:
        """Record a check. A check counts from the first time it is set."""
        self._checks[check] = Check(ok, reason)

    def drop(self, check: str) -> None:
        """Forget a check that no longer means anything."""
        self._checks.pop(check, None)

    @property
    def checks(self) -> Mapping[str, Check]:
        """A copy of all checks."""
        return dict(self._checks)

    @property
    def ready(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self._checks.values())
