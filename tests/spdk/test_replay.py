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
from lab.spdk.process import real_binary
from lab.spdk.replay import Replay

RECORDING = Path(__file__).with_name("recorded.jsonl.xz")
# The recording waited in seconds; what is compared is the order of events.
FAST = ("--beat-ms", "1", "--attach-ms", "2", "--dhchap-ms", "5", "--stall-ms", "200", "--second-ms", "150")


def recording() -> tuple[dict[str, Any], list[dict[str, Any]]]:
    lines = [json.loads(line) for line in lzma.decompress(RECORDING.read_bytes()).splitlines()]
    return lines[0], [line for line in lines[1:] if "raw" not in line]


def left_out(steps: list[dict[str, Any]]) -> frozenset[str]:
    """Recorded methods that the stand-in leaves out. One that SPDK itself does not know must be unknown here too."""
    asked = {step["q"]["method"] for step in steps if "do" not in step}
    unknown = {step["q"]["method"] for step in steps if step.get("r", {}).get("error", {}).get("code") == -32601}
    return frozenset(asked - METHODS.keys() - unknown)


# A dozen processes one after another: a loaded machine may take longer than the usual minute.
@pytest.mark.timeout(240)
async def test_every_recorded_answer_comes_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head, steps = recording()
    replay = Replay(tmp_path, arguments=FAST, skip=left_out(steps))
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


def of_the_build(step: dict[str, Any]) -> bool:
    """What depends on how spdk_tgt was built, on a hypervisor, or on where it crashes."""
    return (
        step.get("s") in ("vhost_qemu", "hazard_crypto_key_destroy")
        or step.get("q", {}).get("method") in ("rpc_get_methods", "framework_get_subsystems")
        or step.get("n") == "RDMA here"
        or step.get("do") in ("guest", "guest_leaves")
    )


@pytest.mark.real_spdk
@pytest.mark.timeout(600)
@pytest.mark.skipif(not real_binary(), reason="SPDK_TGT names no spdk_tgt")
async def test_the_real_one_gives_its_recorded_answers_again(tmp_path: Path) -> None:
    _, steps = recording()
    asked = [step for step in steps if not of_the_build(step)]
    for number, step in enumerate(asked):
        if step.get("do") == "gone" and asked[number - 1].get("s") != "hazard_esnap_base_delete":
            # What would have made it crash was left out.
            asked[number] = {**step, "do": "kill"}
    replay = Replay(tmp_path, skip=left_out(steps), binary=real_binary(), patience=8.0)
    await replay.run(asked)
    wrong = [outcome for outcome in replay.outcomes if outcome.problem]
    assert not wrong, "\n".join(f"{it.section}: {it.note} {it.method}: {it.problem}" for it in wrong)
