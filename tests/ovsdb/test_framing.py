"""The framer against streams cut at every place."""

from __future__ import annotations

import json
from itertools import pairwise

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.ovsdb.errors import ProtocolViolation
from foundation.ovsdb.framing import Framer

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.text(alphabet='a"\\{}[] \u00e9', max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text('k{}"', max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    values=st.lists(JSON, min_size=1, max_size=5),
    separator=st.sampled_from(["", "\n", " "]),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_any_cutting_gives_the_same_messages(values: list[object], separator: str, cuts: list[int]) -> None:
    stream = separator.join(
        json.dumps({"id": i, "result": value, "error": None}, ensure_ascii=False, separators=(",", ":"))
        for i, value in enumerate(values)
    ).encode()
    borders = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    framer = Framer()
    messages = [message for start, end in pairwise(borders) for message in framer.feed(stream[start:end])]
    assert [message.id for message in messages] == list(range(len(values)))
    assert [msgspec.json.decode(message.result) for message in messages] == values


def test_a_message_is_given_as_soon_as_its_last_byte_is_here() -> None:
    framer = Framer()
    assert framer.feed(b'{"id":1,"result":{"a":"}{') == []
    assert framer.feed(b'"},"error":null') == []
    (message,) = framer.feed(b"}")
    assert message.id == 1
    assert msgspec.json.decode(message.result) == {"a": "}{"}


@pytest.mark.parametrize(
    "stream",
    [b"HTTP/1.1 400 Bad Request\r\n", b'{"method":7}', b"[1,2]"],
    ids=["http", "wrong type", "an array"],
)
def test_other_protocols_are_refused(stream: bytes) -> None:
    with pytest.raises(ProtocolViolation):
        Framer().feed(stream)


def test_an_endless_message_is_refused() -> None:
    with pytest.raises(ProtocolViolation, match="more than 100 bytes"):
        Framer(limit=100).feed(b'{"id":1,"result":"' + b"x" * 200)
