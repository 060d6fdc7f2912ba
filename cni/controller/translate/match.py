"""Rules of policies into OVN match expressions (ovn-sb(5), Logical_Flow match)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from cni.controller.model.policy import Block, NodePeer, Ports, Rule
from cni.controller.model.selector import PodSelector, every_pod
from cni.controller.rows import RowId
from cni.controller.selection import ADDRESSES, PORTS, Role
from cni.controller.translate import selector as groups
from cni.controller.translate import term
from cni.controller.translate.term import Term

Direction = Literal["ingress", "egress"]
Numbers = Callable[[PodSelector, str, str], Sequence[int]]
"""(selector, port name, protocol) -> the numbers the name stands for among its pods."""
NodeAddresses = Callable[[NodePeer], Sequence[str]]
"""The addresses of the nodes chosen."""


def subject(direction: Direction, group: str) -> str:
    """The side of the policy's own pods: the port group named `group`."""
    return f"outport == @{group}" if direction == "ingress" else f"inport == @{group}"


def _side(direction: Direction) -> str:
    return "src" if direction == "ingress" else "dst"


def peers(
    direction: Direction, chosen: Sequence[PodSelector | Block | NodePeer], role: Role = ADDRESSES, number: int = 0
) -> Term:
    """The other side: addresses of the selectors' pods, or of blocks (nodes must be blocks by now)."""
    terms = []
    side = _side(direction)
    selectors = [each.id for each in chosen if isinstance(each, PodSelector)]
    for family in groups.FAMILIES if selectors else ():
        names = ["$" + groups.name(groups.address_set(each, family, role, number)) for each in selectors]
        terms.append(term.address(side, family, names))
    chosen_blocks = [each for each in chosen if isinstance(each, Block)]
    terms += [term.address(side, 6 if ":" in each.cidr else 4, [each.cidr], each.excepts) for each in chosen_blocks]
    return term.any_of(terms)


def numbered(chosen: Sequence[Ports]) -> list[Term]:
    """Terms for ports given by number (or not at all): those without a name."""
    terms = []
    for protocol in dict.fromkeys(each.protocol for each in chosen if not each.name):
        word = protocol.lower()
        mine = [each for each in chosen if each.protocol == protocol and not each.name]
        if any(not each.first for each in mine):
            terms.append(term.protocol(word))
            continue
        singles = [each.first for each in mine if each.first == each.last]
        if singles:
            terms.append(term.port(word, singles))
        terms += [term.port_range(word, each.first, each.last) for each in mine if each.first != each.last]
    return terms


def _of_nodes(rule: Rule, nodes: NodeAddresses) -> Rule:
    if rule.peers is None or not any(isinstance(each, NodePeer) for each in rule.peers):
        return rule
    found: list[PodSelector | Block | NodePeer] = []
    for each in rule.peers:
        if isinstance(each, NodePeer):
            found += [Block(f"{address}/{128 if ':' in address else 32}") for address in nodes(each)]
        else:
            found.append(each)
    return Rule(tuple(found), rule.ports)


def _no_nodes(peer: NodePeer) -> Sequence[str]:
    return ()


def alternatives(
    direction: Direction,
    subject_selector: PodSelector,
    rule: Rule,
    numbers: Numbers,
    *,
    nodes: NodeAddresses = _no_nodes,
) -> list[tuple[str, RowId]]:
    """The matches of a rule, each with the port group to hang it on; traffic that fits any of them fits the rule.

    A port by name stands for a number in each destination pod by itself: of the subject for ingress, of the peer for
    egress. So each number makes a match of its own, for just the pods in which the name has that number. It hangs on
    their group, because OVN knows a group only on the switches where it has ports.
    """
    rule = _of_nodes(rule, nodes)
    if rule.peers == ():
        return []  # nodes that are not there
    parts = _parts(direction, subject_selector, rule, numbers, _by_port)
    return [(" && ".join(every.text for every in terms), group) for terms, group in parts]


def complements(
    direction: Direction,
    subject_selector: PodSelector,
    rule: Rule,
    numbers: Numbers,
    *,
    nodes: NodeAddresses = _no_nodes,
) -> list[str]:
    """The conditions of traffic that does not fit a rule; they must hold all together."""
    rule = _of_nodes(rule, nodes)
    if rule.peers == ():
        return []
    parts = _parts(direction, subject_selector, rule, numbers, _by_address)
    return [term.opposite_of_all(terms) for terms, _ in parts]


def _by_port(direction: Direction, selector: PodSelector, role: Role, number: int = 0) -> Term:
    return Term(subject(direction, groups.name(groups.port_group(selector.id, role, number))))


def _by_address(direction: Direction, selector: PodSelector, role: Role, number: int = 0) -> Term:
    """OVN cannot negate a port group, but addresses: port security makes one as good as the other."""
    own_side: Direction = "egress" if direction == "ingress" else "ingress"
    return peers(own_side, [selector], role._replace(kind=ADDRESSES.kind), number)


Part = tuple[tuple[Term, ...], RowId]
Ours = Callable[[Direction, PodSelector, Role, int], Term]


def _parts(direction: Direction, subject_selector: PodSelector, rule: Rule, numbers: Numbers, side: Ours) -> list[Part]:
    ours = side(direction, subject_selector, PORTS, 0)
    group = groups.port_group(subject_selector.id)
    from_or_to = (peers(direction, rule.peers),) if rule.peers is not None else ()
    if rule.ports is None:
        return [((ours, *(from_or_to or (Term("ip"),))), group)]
    matches: list[Part] = []
    terms = numbered(rule.ports)
    if terms:
        matches.append(((ours, *from_or_to, term.any_of(terms)), group))
    for each in rule.ports:
        if each.name:
            matches += _named(direction, subject_selector, rule, each, numbers, side)
    return matches


def _named(
    direction: Direction, subject_selector: PodSelector, rule: Rule, port: Ports, numbers: Numbers, side: Ours
) -> Iterable[Part]:
    word = port.protocol.lower()
    if direction == "ingress":
        role = Role(PORTS.kind, port.name, port.protocol)
        from_ = (peers(direction, rule.peers),) if rule.peers is not None else ()
        for number in numbers(subject_selector, port.name, port.protocol):
            terms = (side(direction, subject_selector, role, number), *from_, term.port(word, [number]))
            yield terms, groups.port_group(subject_selector.id, role, number)
        return
    role = Role(ADDRESSES.kind, port.name, port.protocol)
    ours = side(direction, subject_selector, PORTS, 0)
    blocks = [each for each in rule.peers or () if isinstance(each, Block)]
    for selector, block in _named_peers(rule, subject_selector.network):
        for number in numbers(selector, port.name, port.protocol):
            within = (peers(direction, blocks),) if block else ()
            terms = (ours, *within, peers(direction, [selector], role, number), term.port(word, [number]))
            yield terms, groups.port_group(subject_selector.id)


def _named_peers(rule: Rule, network: str) -> list[tuple[PodSelector, bool]]:
    """The peers in which a port name can have a meaning, for only pods have named ports: selectors, then with True all
    pods whose addresses are in the rule's blocks."""
    if rule.peers is None:
        return [(every_pod(network), False)]
    found = [(each, False) for each in rule.peers if isinstance(each, PodSelector)]
    if any(isinstance(each, Block) for each in rule.peers):
        found.append((every_pod(network), True))
    return found


def uses(
    directions: Iterable[tuple[Direction, Sequence[Rule]]], subject_selector: PodSelector, *, negated: bool = False
) -> dict[PodSelector, frozenset[Role]]:
    """The selectors that the rules need, each with the roles it is needed in. `negated`: `complements` too."""
    needed: dict[PodSelector, set[Role]] = {subject_selector: {PORTS}}
    for direction, rules in directions:
        for rule in rules:
            names = [each for each in rule.ports or () if each.name]
            for selector in (each for each in rule.peers or () if isinstance(each, PodSelector)):
                needed.setdefault(selector, set()).add(ADDRESSES)
            if direction == "egress" and names:
                for selector, _ in _named_peers(rule, subject_selector.network):
                    roles = needed.setdefault(selector, set())
                    roles |= {Role(ADDRESSES.kind, each.name, each.protocol) for each in names}
            if direction == "ingress":
                needed[subject_selector] |= {Role(PORTS.kind, each.name, each.protocol) for each in names}
    if negated:
        needed[subject_selector] |= {role._replace(kind=ADDRESSES.kind) for role in needed[subject_selector]}
    return {selector: frozenset(roles) for selector, roles in needed.items()}
