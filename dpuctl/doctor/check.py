"""What a check is: a name, a sentence, and a function from what was seen to findings."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

from dpuctl.inspection.facts import DaemonFacts, DpuFacts, Machine, PortFacts, SwitchFacts
from dpuctl.snapshot import Snapshot

Severity = Literal["error", "warning"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is not as it should be: where, what, and what to do about it."""

    where: str
    problem: str
    cure: str
    severity: Severity = "error"


@dataclasses.dataclass(frozen=True)
class View:
    """All that the checks may look at."""

    cluster: Snapshot
    machines: Sequence[Machine] = ()

    @property
    def now(self) -> float:
        """When the cluster was read."""
        return self.cluster.taken

    def daemons(self) -> Iterator[tuple[Machine, DaemonFacts]]:
        """Every daemon that was found running."""
        for machine in self.machines:
            for daemon in machine.daemons:
                yield machine, daemon

    def switches(self) -> Iterator[SwitchFacts]:
        """Every switch that was looked at."""
        for machine in self.machines:
            yield from machine.switches

    def ports(self) -> Iterator[tuple[SwitchFacts, PortFacts]]:
        """Every port of ours on one of them."""
        for switch in self.switches():
            for port in switch.ports:
                yield switch, port

    def dpus(self) -> Iterator[DpuFacts]:
        """The storage half of every DPU that was looked at."""
        for machine in self.machines:
            yield from machine.dpus


@dataclasses.dataclass(frozen=True)
class Check:
    """`about` completes the sentence "It is checked that ..."."""

    name: str
    about: str
    look: Callable[[View], Iterable[Finding]]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """A check with what it has found."""

    check: Check
    findings: tuple[Finding, ...]


def examine(view: View, checks: Sequence[Check]) -> list[Verdict]:
    """All checks, in their order."""
    return [Verdict(check, tuple(check.look(view))) for check in checks]
