"""Cutting streams: whatever the chunks, the values come out whole and in order."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.spdk.framing import Framer, FramingError

texts = st.text(st.characters(exclude_categories=["Cs"]))
scalars = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | texts
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=12)
messages = st.dictionaries(texts, values, max_size=4) | st.lists(values, max_size=4)
separators = st.sampled_from([b"\n", b"", b" ", b"\r\n", b"\n\n", b"\t"])
indents = st.sampled_from([None, 0, 2])


def encoded(message: Any, indent: int | None) -> bytes:
    return json.dumps(message, indent=indent, ensure_ascii=False).encode()


@given(st.lists(st.tuples(messages, indents, separators), max_size=6), st.data())
def test_any_chunks_give_the_same_values(parts: list[tuple[Any, int | None, bytes]], data: st.DataObject) -> None:
    stream = b"".join(encoded(message, indent) + separator for message, indent, separator in parts)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    framer = Framer(json.loads)
    seen: list[Any] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        seen += framer.feed(stream[start:end])
    assert seen == [message for message, _, _ in parts]
    assert not framer.pending


@given(st.lists(messages, min_size=1, max_size=4))
def test_byte_by_byte_each_value_comes_with_its_last_byte(parts: list[Any]) -> None:
    framer = Framer(json.loads)
    for message in parts:
        data = encoded(message, None)
        for position in range(len(data) - 1):
            assert framer.feed(data[position : position + 1]) == []
        assert framer.feed(data[-1:]) == [message]
        assert framer.feed(b"\n") == []


@pytest.mark.parametrize(
    "junk", [b"hello\n", b"5\n", b"}\n", b'"text"\n', b"null", b"\x00", b"\xff\n", b'{"a":1}x\n', b"{bad}\n"]
)
def test_what_is_no_object_loses_the_stream(junk: bytes) -> None:
    with pytest.raises(FramingError):
        Framer(msgspec.json.decode).feed(junk)


def test_an_unfinished_value_waits() -> None:
    framer = Framer(msgspec.json.decode)
    assert framer.feed(b'{"id":1,"result":["}",') == []
    assert framer.pending == 22
    assert framer.feed(b'"\\"]"]}') == [{"id": 1, "result": ["}", '"]']}]


def test_a_large_reply_is_not_read_again_with_each_chunk() -> None:
    decoded = 0

    def decode(data: bytes) -> Any:
        nonlocal decoded
        decoded += len(data)
        return msgspec.json.decode(data)

    reply = json.dumps({"result": [{"name": f"bdev{n}"} for n in range(20_000)]}).encode() + b"\n"
    framer, seen = Framer(decode), []
    for start in range(0, len(reply), 4096):
        seen += framer.feed(reply[start : start + 4096])
    assert len(seen[0]["result"]) == 20_000
    assert decoded < 2 * len(reply)
