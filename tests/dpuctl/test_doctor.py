"""dpuctl doctor finds seeded faults, one at a time, and names the cure of each."""

from __future__ import annotations

import pytest

from dpuctl.doctor.checks import ALL
from dpuctl.inspection import machine, switch
from tests.dpuctl.faults import FAULTS
from tests.dpuctl.installation import Installation

in_one_loop = pytest.mark.asyncio(loop_scope="session")


@in_one_loop
async def test_a_healthy_installation_has_no_findings(installation: Installation) -> None:
    verdicts = await installation.examine()
    found = [(verdict.check.name, one.where, one.problem) for verdict in verdicts for one in verdict.findings]
    assert found == []
    assert len(verdicts) == len(ALL)


@in_one_loop
@pytest.mark.root
@pytest.mark.parametrize("name", FAULTS)
async def test_a_seeded_fault_is_found_with_its_cure(
    installation: Installation, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    if fault.check in ("switches", "ovn-controllers", "northbound"):
        # A database that is away is waited for; here it is known to stay away.
        for module in (switch, machine):
            monkeypatch.setattr(module, "SECONDS", 0.5)
    async with fault.seed(installation) as changed:
        verdicts = await installation.examine(changed)
    findings = [one for verdict in verdicts for one in verdict.findings if verdict.check.name == fault.check]
    told = [(one.where, one.problem, one.cure) for one in findings]
    assert any(fault.problem in one.problem and fault.cure in one.cure for one in findings), told


@in_one_loop
async def test_the_installation_is_healthy_again_after_all_faults(installation: Installation) -> None:
    verdicts = await installation.examine()
    assert [one for verdict in verdicts for one in verdict.findings] == []


def test_every_check_has_a_seeded_fault() -> None:
    without = {check.name for check in ALL} - {fault.check for fault in FAULTS.values()}
    assert without == set()
