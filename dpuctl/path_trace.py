"""The text of `ovn-trace` as a verdict: which way a packet goes, and what stops it. Pure."""

from __future__ import annotations

import dataclasses
import ipaddress
import re
from collections.abc import Iterator
from typing import Literal

import msgspec

Protocol = Literal["tcp", "udp", "icmp"]

_PIPELINE = re.compile(r'^(ingress|egress)\(dp="([^"]*)", inport="([^"]*)"(?:, outport="([^"]*)")?\)')
_STEP = re.compile(r"^\s*\d+\. (\w+) \([^)]*\): (.*), priority (\d+), uuid ([0-9a-f]{8})")
_OUTPUT = re.compile(r'/\* output to "([^"]*)"')
_ARP_SOURCE_PORT = 40000


class End(msgspec.Struct, frozen=True, kw_only=True):
    """A pod as OVN knows it: its logical port and switch, MAC, addresses."""

    pod: str
    port: str
    mac: str
    ips: tuple[str, ...]


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """May `source` open a connection to `destination`?"""

    source: End
    destination: End
    protocol: Protocol = "tcp"
    port: int = 80


class Hop(msgspec.Struct, frozen=True):
    """A logical switch or router that the packet passes."""

    datapath: str
    inport: str
    outport: str = ""


class Verdict(msgspec.Struct, frozen=True, kw_only=True):
    """`stage`, `match` and `flow` (first eight digits) are those of the last logical flow, which dropped the packet.

    `rule`: whose rule that was, such as "NetworkPolicy shop/db-only-5432, ingress.deny"; "" where none is known.
    """

    question: Question
    delivered: bool
    family: int
    hops: tuple[Hop, ...] = ()
    stage: str = ""
    match: str = ""
    flow: str = ""
    rule: str = ""
    problem: str = ""


@dataclasses.dataclass(frozen=True)
class Read:
    """What a trace says."""

    delivered: bool
    hops: tuple[Hop, ...]
    stage: str
    match: str
    flow: str


def addresses(question: Question) -> tuple[str, str]:
    """Source and destination of one family, IPv4 first. Raises ValueError when they have none in common."""
    for version in (4, 6):
        pair = [_of(version, end.ips) for end in (question.source, question.destination)]
        if pair[0] and pair[1]:
            return pair[0], pair[1]
    raise ValueError(f"{question.source.pod} and {question.destination.pod} have no address family in common")


def _of(version: int, texts: tuple[str, ...]) -> str:
    found = (ipaddress.ip_interface(text).ip for text in texts)
    return next((str(one) for one in found if one.version == version), "")


def microflow(question: Question, *, gateway_mac: str, same_switch: bool) -> str:
    """The packet as ovn-trace takes it: the first of a connection, to the gateway unless both are on one switch."""
    source, destination = addresses(question)
    family = "ip6" if ":" in source else "ip4"
    terms = [
        f'inport == "{question.source.port}"',
        f"eth.src == {question.source.mac}",
        f"eth.dst == {question.destination.mac if same_switch else gateway_mac}",
        f"{family}.src == {source}",
        f"{family}.dst == {destination}",
        "ip.ttl == 64",
    ]
    if question.protocol == "icmp":
        terms += ["icmp6", "icmp6.type == 128"] if family == "ip6" else ["icmp4", "icmp4.type == 8"]
    else:
        name = question.protocol
        terms += [name, f"{name}.src == {_ARP_SOURCE_PORT}", f"{name}.dst == {question.port}"]
    return " && ".join(terms)


def read(text: str, *, destination: str) -> Read:
    """Delivered if the packet was output to the logical port `destination`."""
    hops: list[Hop] = []
    step = ("", "", "")
    outputs: list[str] = []
    for line in text.splitlines():
        if pipeline := _PIPELINE.match(line):
            _enter(hops, pipeline)
        elif found := _STEP.match(line):
            step = (found[1], found[2], found[4])
        elif output := _OUTPUT.search(line):
            outputs.append(output[1])
    delivered = destination in outputs
    stage, match, flow = ("", "", "") if delivered else step
    return Read(delivered, tuple(hops), stage, match, flow)


def _enter(hops: list[Hop], found: re.Match[str]) -> None:
    if found[1] == "ingress":
        hops.append(Hop(found[2], found[3]))
    elif hops and hops[-1].datapath == found[2]:
        hops[-1] = Hop(found[2], hops[-1].inport, found[4] or "")


def words(verdict: Verdict) -> Iterator[str]:
    """The verdict as sentences."""
    asked = verdict.question
    what = asked.protocol.upper() + ("" if asked.protocol == "icmp" else f" port {asked.port}")
    yield f"{asked.source.pod} -> {asked.destination.pod}, {what}: {'allowed' if verdict.delivered else 'refused'}"
    if verdict.problem:
        yield f"  {verdict.problem}"
        return
    way = [f"{hop.datapath} (to {hop.outport or 'nowhere'})" for hop in verdict.hops]
    yield f"  way: {' -> '.join(way) or 'none'}"
    if verdict.delivered:
        yield f"  OVN hands the packet to port {asked.destination.port}"
        return
    where = verdict.hops[-1].datapath if verdict.hops else "the source's switch"
    yield f"  it ends on {where}, {_stage(verdict.stage)}"
    if verdict.rule:
        yield f"  by {verdict.rule}"
    yield f"  logical flow {verdict.flow}: {verdict.match}"


_STAGES = {
    "port_sec": "port security: the packet does not carry the addresses that the port was given",
    "acl": "a policy's rule refuses it",
    "ip_routing": "no route leads to the destination",
    "arp_resolve": "the router does not know the destination's MAC",
    "l2_lkup": "no port of the switch has the destination's MAC",
    "lookup_neighbor": "the router does not know its neighbour",
}


def _stage(stage: str) -> str:
    told = next((text for part, text in _STAGES.items() if part in stage), "the packet is dropped")
    return f"{told} (stage {stage or 'none'})"
