"""The replay's own judgement: it must see every difference that matters."""

from __future__ import annotations

import copy
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lab.spdk.replay import Likeness, Mismatch

RECORDING = Path(__file__).with_name("recorded.jsonl.xz")
REPLIES = [
    line["r"]
    for line in map(json.loads, lzma.decompress(RECORDING.read_bytes()).splitlines())
    if "result" in line.get("r", {}) and not isinstance(line["r"]["result"], bool)
]
A = "11111111-1111-4111-8111-111111111111"
B = "22222222-2222-4222-8222-222222222222"
FREE = ("ticks", "tick_rate", "pid", "completed", "qpairs", "latency", "bytes_", "num_read", "num_write", "trsvcid")


def likeness() -> Likeness:
    return Likeness(lambda path: path)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    if isinstance(value, dict):
        return [place for name, member in value.items() for place in places(member, (*path, name))]
    if isinstance(value, list):
        return [place for number, member in enumerate(value) for place in places(member, (*path, number))]
    return [path]


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_one_changed_value_is_seen(data: st.DataObject) -> None:
    recorded = data.draw(st.sampled_from(REPLIES))
    free = [
        place for place in places(recorded) if not any(word in str(place[-1]) for word in (*FREE, "num_", "cntlid"))
    ]
    if not free:
        return
    place = data.draw(st.sampled_from(free))
    changed = copy.deepcopy(recorded)
    holder = changed
    for step in place[:-1]:
        holder = holder[step]
    old = holder[place[-1]]
    if isinstance(old, bool):
        holder[place[-1]] = not old
    elif isinstance(old, int):
        holder[place[-1]] = old + 1
    else:
        holder[place[-1]] = f"{old}!"
    likeness().compare(recorded, recorded)
    with pytest.raises(Mismatch):
        likeness().compare(recorded, changed)


def test_uuids_map_one_to_one() -> None:
    judge = likeness()
    judge.compare({"uuid": A}, {"uuid": B})
    judge.compare({"name": f"x {A} y"}, {"name": f"x {B} y"})
    for recorded, seen in ((A, A), (B, B)):
        with pytest.raises(Mismatch):
            judge.compare({"uuid": recorded}, {"uuid": seen})
    judge.compare({"nguid": A.replace("-", "").upper()}, {"nguid": B.replace("-", "").upper()})
    assert judge.known(f"lvs/{A}") == f"lvs/{B}"


def test_a_failed_comparison_teaches_nothing() -> None:
    judge = likeness()
    with pytest.raises(Mismatch):
        judge.compare({"uuid": A, "size": 1}, {"uuid": B, "size": 2})
    judge.compare({"uuid": A}, {"uuid": A})


@pytest.mark.parametrize(
    ("recorded", "seen"),
    [
        ({"result": True}, {"error": {"code": -19, "message": "No such device"}}),
        ({"a": 1}, {"a": 1, "b": 2}),
        ([1, 2], [1]),
        ([1, 2], [2, 1]),
        ({"a": True}, {"a": 1}),
        ({"a": "1"}, {"a": 1}),
        ({"a": None}, {}),
        ({"gone": "timeout"}, {"result": True}),
    ],
)
def test_differences(recorded: Any, seen: Any) -> None:
    with pytest.raises(Mismatch):
        likeness().compare(recorded, seen)
