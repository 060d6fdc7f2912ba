"""Conditions of an OVN match expression, each with its opposite.

OVN negates no port group and no protocol, and takes `!(tcp.dst == 80)` for "TCP, to another port". So the opposite of a
condition is written out, for a packet that is IP.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

_PROTOCOLS = {"tcp": 6, "udp": 17, "sctp": 132}
# ICMP, IGMP, tunnels (IPIP, IPv6, GRE, ESP, AH, L2TP, MPLS), routing (EIGRP, OSPF, PIM, VRRP), UDP-Lite: the protocols
# that a cluster may see besides, since OVN takes only equality here and no range.
_OTHERS = (1, 2, 4, 41, 47, 50, 51, 58, 88, 89, 103, 112, 115, 136, 137)


class Term(NamedTuple):
    """`text` holds for the packets meant, `opposite` for all other IP packets ("" where it cannot be written)."""

    text: str
    opposite: str = ""


def any_of(terms: Iterable[Term]) -> Term:
    """Holds where one of them holds."""
    found = list(dict.fromkeys(terms))
    if len(found) == 1:
        return found[0]
    return Term(f"({' || '.join(each.text for each in found)})", " && ".join(f"({each.opposite})" for each in found))


def opposite_of_all(terms: Iterable[Term]) -> str:
    """Holds where not all of them hold."""
    return f"({' || '.join(f'({each.opposite})' for each in terms)})"


def one_of(values: Sequence[str]) -> str:
    """A constant, or a set of them."""
    return values[0] if len(values) == 1 else f"{{{', '.join(values)}}}"


def address(side: str, family: int, values: Sequence[str], excepts: Sequence[str] = ()) -> Term:
    """`side` is "src" or "dst"; values are addresses, prefixes or `$sets`, without those of `excepts`."""
    field, other_family = f"ip{family}.{side}", f"ip{10 - family}"
    text = f"{field} == {one_of(values)}"
    opposite = f"{other_family} || {field} != {one_of(values)}"
    if excepts:
        return Term(f"({text} && {field} != {one_of(excepts)})", f"{opposite} || {field} == {one_of(excepts)}")
    return Term(text, opposite)


def protocol(word: str) -> Term:
    """All of a protocol: "tcp", "udp" or "sctp"."""
    others = [number for name, number in _PROTOCOLS.items() if name != word]
    return Term(word, f"ip.proto == {one_of([str(number) for number in (*others, *_OTHERS)])}")


def port(word: str, values: Sequence[int]) -> Term:
    """To one of some ports of a protocol."""
    texts = one_of([str(each) for each in values])
    return Term(f"{word}.dst == {texts}", f"{protocol(word).opposite} || {word}.dst != {texts}")


def port_range(word: str, first: int, last: int) -> Term:
    """To ports `first` to `last` of a protocol."""
    outside = f"{word}.dst < {first} || {word}.dst > {last}"
    return Term(f"{first} <= {word}.dst <= {last}", f"{protocol(word).opposite} || {outside}")
