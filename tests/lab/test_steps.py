"""The demo's record: what held, what failed, what was not run, and the exit code that follows."""

import io
import json
from pathlib import Path

import pytest

from lab.demo.steps import Recorder, StepFailed


async def test_each_step_is_a_line_and_the_table_counts_them(tmp_path: Path) -> None:
    output = io.StringIO()
    steps = Recorder(output)
    steps.section("One")
    async with steps.step("first") as notes:
        notes.text = "seen"
    steps.not_run("second", "no guest")
    steps.table()
    text = output.getvalue()
    assert "  ok" in text
    assert "first  (seen)" in text
    assert "not run" in text
    assert "every step held" in text
    assert steps.held
    steps.write(tmp_path / "reports" / "demo.json")
    written = json.loads((tmp_path / "reports" / "demo.json").read_text())
    assert [(step["name"], step["ok"]) for step in written["steps"]] == [("first", True), ("second", None)]
    assert all(step["seconds"] >= 0 for step in written["steps"])


async def test_a_failure_is_recorded_and_raised() -> None:
    output = io.StringIO()
    steps = Recorder(output)
    steps.section("One")
    with pytest.raises(StepFailed, match="wrong: it broke"):
        async with steps.step("wrong"):
            raise RuntimeError("it broke")
    assert not steps.held
    steps.table()
    assert "1 step(s) failed" in output.getvalue()
    assert "One: wrong: it broke" in output.getvalue()


def test_nothing_run_is_not_success() -> None:
    assert not Recorder(io.StringIO()).held
