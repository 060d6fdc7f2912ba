"""Flows of OVS' datapath as `ovs-appctl dpctl/dump-flows -m` prints them, as plain data."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_IN_PORT = re.compile(r"(?<![a-z_])in_port\(([^)]+)\)")
_COUNT = re.compile(r"\b(packets|bytes):(\d+)")
_LAYER = re.compile(r"\bdp:(\w+)")
_OFFLOADED = re.compile(r"\boffloaded:(\w+)")
_UFID = re.compile(r"ufid:[0-9a-f-]+,\s*")
# Actions without an argument; every other bare word is a port.
_BARE = frozenset({"drop", "pop_vlan", "pop_eth", "ct_clear", "pop_nsh", "dec_ttl", "tnl_pop", "decap"})
_STATISTICS = re.compile(r",\s*packets:.*")


@dataclass(frozen=True)
class Flow:
    """`layer` is "tc" when the kernel's traffic control has the flow, "ovs" when the datapath itself does.

    `hardware` is what the driver told tc: the card has the rule. `outputs` are names of ports.
    """

    match: str
    in_port: str
    actions: tuple[str, ...]
    outputs: tuple[str, ...]
    packets: int = 0
    bytes: int = 0
    layer: str = ""
    hardware: bool = False


def parse(text: str) -> Iterator[Flow]:
    """One flow a line; lines that are none are passed over."""
    for line in text.splitlines():
        head, separator, tail = line.partition("actions:")
        port = _IN_PORT.search(head)
        if not separator or port is None:
            continue
        counts = {name: int(value) for name, value in _COUNT.findall(head)}
        layer, offloaded = _LAYER.search(head), _OFFLOADED.search(head)
        actions = tuple(terms(tail.strip()))
        yield Flow(
            match=_significant(_STATISTICS.sub("", _UFID.sub("", head))),
            in_port=port[1],
            actions=actions,
            outputs=tuple(action for action in actions if _is_port(action)),
            packets=counts.get("packets", 0),
            bytes=counts.get("bytes", 0),
            layer=layer[1] if layer else "",
            hardware=offloaded is not None and offloaded[1] == "yes",
        )


def terms(text: str) -> Iterator[str]:
    """Parts of a list at its commas, except those within parentheses."""
    depth, begin = 0, 0
    for at, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            yield text[begin:at].strip()
            begin = at + 1
    if text[begin:].strip():
        yield text[begin:].strip()


def _is_port(action: str) -> bool:
    return "(" not in action and ":" not in action and action not in _BARE


def _significant(match: str) -> str:
    """Without what matches anything: `skb_mark(0/0)`, `ipv4(src=0.0.0.0/0.0.0.0,...)`."""
    return ",".join(term for term in terms(match) if not _matches_anything(term))


def _matches_anything(term: str) -> bool:
    name, _, inner = term.partition("(")
    if name == "recirc_id":
        return inner == "0)"
    fields = list(terms(inner.removesuffix(")")))
    return bool(fields) and all(_is_zero_mask(field) for field in fields)


def _is_zero_mask(field: str) -> bool:
    _, slash, mask = field.rpartition("/")
    return bool(slash) and not mask.strip("0:.x")
