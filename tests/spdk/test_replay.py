"""The stand-in against recordings of SPDK 26.05: every answer to every recorded request, in order."""

from __future__ import annotations

import json
import lzma
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report
from lab.spdk.methods import METHODS
from lab.spdk.replay import Replay

RECORDING = Path(__file__).with_name("recorded.jsonl.xz")
# The recording waited in seconds; what is compared is the order of events.
FAST = ("--beat-ms", "1", "--attach-ms", "2", "--dhchap-ms", "5", "--stall-ms", "200", "--second-ms", "150")


def recording() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = [json.loads(line) for line in lzma.decompress(RECORDING.read_bytes()).splitlines()]
    return lines[0], [line for line in lines[1:] if "raw" not in line]


async def test_every_recorded_answer_comes_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, steps = recording()
    asked = {step["q"]["method"] for step in steps if "do" not in step}
    # A method that SPDK itself does not know must be unknown here too, so it stays in.
    unknown = {step["q"]["method"] for step in steps if step.get("r", {}).get("error", {}).get("code") == -32601}
    skipped = frozenset(asked - METHODS.keys() - unknown)

    replay = Replay(tmp_path, arguments=FAST, skip=skipped)
    await replay.run(steps)

    wrong = [outcome for outcome in replay.outcomes if outcome.problem]
    exchanges, reproduced = len(replay.outcomes), len(replay.outcomes) - len(wrong)
    report.merge(
        "spdk_replay.json",
        {
            "recorded_exchanges": head["recorded"],
            "exchanges": exchanges,
            "reproduced": reproduced,
            "unsupported_methods": replay.unsupported,
            "transient_answers_left_out": len(head["dropped"]),
        },
    )
    with capsys.disabled():
        sys.stdout.write(f"\nSPDK replay: {reproduced} of {exchanges}; unsupported: {sorted(replay.unsupported)}\n")
    assert not wrong, "\n".join(f"{it.section}: {it.note} {it.method}: {it.problem}" for it in wrong)
