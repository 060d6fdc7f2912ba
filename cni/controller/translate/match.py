"""Rules of policies into OVN match expressions (ovn-sb(5), Logical_Flow match)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from cni.controller.model.policy import Block, Ports, Rule
from cni.controller.model.selector import EVERY_POD, PodSelector
from cni.controller.selection import ADDRESSES, PORTS, Role
from cni.controller.translate import selector as groups

Direction = Literal["ingress", "egress"]
Numbers = Callable[[PodSelector, str, str], Sequence[int]]
"""(selector, port name, protocol) -> the numbers the name stands for among its pods."""


def subject(direction: Direction, group: str) -> str:
    """The side of the policy's own pods: the port group named `group`."""
    return f"outport == @{group}" if direction == "ingress" else f"inport == @{group}"


def _field(direction: Direction, family: int) -> str:
    return f"ip{family}.{'src' if direction == 'ingress' else 'dst'}"


def _any(terms: Iterable[str]) -> str:
    found = list(dict.fromkeys(terms))
    return found[0] if len(found) == 1 else f"({' || '.join(found)})"


def _one_of(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"{{{', '.join(values)}}}"


def blocks(direction: Direction, chosen: Iterable[Block]) -> list[str]:
    """A term a block."""
    terms = []
    for each in chosen:
        field = _field(direction, 6 if ":" in each.cidr else 4)
        term = f"{field} == {each.cidr}"
        if each.excepts:
            term = f"({term} && {field} != {_one_of(each.excepts)})"
        terms.append(term)
    return terms


def peers(direction: Direction, chosen: Sequence[PodSelector | Block], role: Role = ADDRESSES, number: int = 0) -> str:
    """The other side: addresses of the selectors' pods, or of blocks."""
    terms = []
    selectors = [each.id for each in chosen if isinstance(each, PodSelector)]
    for family in groups.FAMILIES if selectors else ():
        names = ["$" + groups.name(groups.address_set(each, family, role, number)) for each in selectors]
        terms.append(f"{_field(direction, family)} == {_one_of(names)}")
    terms += blocks(direction, (each for each in chosen if isinstance(each, Block)))
    return _any(terms)


def numbered(chosen: Sequence[Ports]) -> list[str]:
    """Terms for ports given by number (or not at all): those without a name."""
    terms = []
    for protocol in dict.fromkeys(each.protocol for each in chosen if not each.name):
        word = protocol.lower()
        mine = [each for each in chosen if each.protocol == protocol and not each.name]
        if any(not each.first for each in mine):
            terms.append(word)
            continue
        singles = [str(each.first) for each in mine if each.first == each.last]
        if singles:
            terms.append(f"{word}.dst == {_one_of(singles)}")
        terms += [f"{each.first} <= {word}.dst <= {each.last}" for each in mine if each.first != each.last]
    return terms


def alternatives(direction: Direction, subject_selector: PodSelector, rule: Rule, numbers: Numbers) -> list[str]:
    """The matches of a rule; traffic that fits any of them fits the rule.

    A port by name stands for a number in each destination pod by itself: of the subject for ingress, of the peer for
    egress. So each number makes a match of its own, for just the pods in which the name has that number.
    """
    ours = subject(direction, groups.name(groups.port_group(subject_selector.id)))
    from_or_to = [peers(direction, rule.peers)] if rule.peers is not None else []
    if rule.ports is None:
        return [" && ".join((ours, *(from_or_to or ["ip"])))]
    matches = []
    terms = numbered(rule.ports)
    if terms:
        matches.append(" && ".join((ours, *from_or_to, _any(terms))))
    for each in rule.ports:
        if each.name:
            matches += _named(direction, subject_selector, rule, each, numbers)
    return matches


def _named(
    direction: Direction, subject_selector: PodSelector, rule: Rule, port: Ports, numbers: Numbers
) -> Iterable[str]:
    word = port.protocol.lower()
    if direction == "ingress":
        role = Role(PORTS.kind, port.name, port.protocol)
        from_ = [peers(direction, rule.peers)] if rule.peers is not None else []
        for number in numbers(subject_selector, port.name, port.protocol):
            group = groups.name(groups.port_group(subject_selector.id, role, number))
            yield " && ".join((subject(direction, group), *from_, f"{word}.dst == {number}"))
        return
    role = Role(ADDRESSES.kind, port.name, port.protocol)
    ours = subject(direction, groups.name(groups.port_group(subject_selector.id)))
    for selector in _selectors(rule):
        for number in numbers(selector, port.name, port.protocol):
            yield f"{ours} && {peers(direction, [selector], role, number)} && {word}.dst == {number}"


def _selectors(rule: Rule) -> list[PodSelector]:
    """The peers in which a port name can have a meaning: only pods have named ports."""
    if rule.peers is None:
        return [EVERY_POD]
    return [each for each in rule.peers if isinstance(each, PodSelector)]


def uses(
    directions: Iterable[tuple[Direction, Sequence[Rule]]], subject_selector: PodSelector
) -> dict[PodSelector, frozenset[Role]]:
    """The selectors that the rules need, each with the roles it is needed in."""
    needed: dict[PodSelector, set[Role]] = {subject_selector: {PORTS}}
    for direction, rules in directions:
        for rule in rules:
            names = [each for each in rule.ports or () if each.name]
            for selector in (each for each in rule.peers or () if isinstance(each, PodSelector)):
                needed.setdefault(selector, set()).add(ADDRESSES)
            if direction == "egress" and names:
                for selector in _selectors(rule):
                    roles = needed.setdefault(selector, set())
                    roles |= {Role(ADDRESSES.kind, each.name, each.protocol) for each in names}
            if direction == "ingress":
                needed[subject_selector] |= {Role(PORTS.kind, each.name, each.protocol) for each in names}
    return {selector: frozenset(roles) for selector, roles in needed.items()}
