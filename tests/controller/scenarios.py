"""NetworkPolicy situations, each a row of moments that follow one another.

The world is the one of the upstream conformance tests: namespaces x, y, z, each with pods a, b, c that serve ports 80
and 81 by TCP, UDP, SCTP. A moment says which policies exist, and which labels differ from the usual ones.
"""

from __future__ import annotations

import ipaddress
import random
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

NAMESPACES = ("x", "y", "z")
PODS = ("a", "b", "c")
PORTS = (80, 81)
PROTOCOLS = ("TCP", "UDP", "SCTP")
Json = dict[str, Any]


@dataclass
class Moment:
    """`pod_labels`: key -> labels besides `pod`; `namespace_labels`: name -> labels besides `ns`."""

    policies: list[Json] = field(default_factory=list)
    pod_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    namespace_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    admin: list[Json] = field(default_factory=list)
    baseline: Json | None = None


def policy(name: str, spec: Json, namespace: str = "x") -> Json:
    return {"metadata": {"name": name, "namespace": namespace}, "spec": {"podSelector": {}, **spec}}


def labels(**wanted: str) -> Json:
    return {"matchLabels": wanted}


def expression(key: str, operator: str, *values: str) -> Json:
    return {"matchExpressions": [{"key": key, "operator": operator, **({"values": list(values)} if values else {})}]}


def ingress(*rules: Json, subject: Json | None = None) -> Json:
    return {"podSelector": subject or {}, "policyTypes": ["Ingress"], "ingress": list(rules)}


def egress(*rules: Json, subject: Json | None = None) -> Json:
    return {"podSelector": subject or {}, "policyTypes": ["Egress"], "egress": list(rules)}


def pods(selector: Json) -> Json:
    return {"podSelector": selector}


def namespaces(selector: Json) -> Json:
    return {"namespaceSelector": selector}


def both(namespace: Json, pod: Json) -> Json:
    return {"namespaceSelector": namespace, "podSelector": pod}


def port(number: int | str | None = None, protocol: str = "", end: int = 0) -> Json:
    entry: Json = {}
    if number is not None:
        entry["port"] = number
    if protocol:
        entry["protocol"] = protocol
    if end:
        entry["endPort"] = end
    return entry


def from_(*peers: Json, ports: list[Json] | None = None) -> Json:
    return {**({"from": list(peers)} if peers else {}), **({"ports": ports} if ports else {})}


def to(*peers: Json, ports: list[Json] | None = None) -> Json:
    return {**({"to": list(peers)} if peers else {}), **({"ports": ports} if ports else {})}


DENY_IN = ingress()
DENY_OUT = egress()
DENY_ALL: Json = {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
A = labels(pod="a")
B = labels(pod="b")
C = labels(pod="c")


def one(*specs: Json) -> list[Moment]:
    """A single moment with one policy in x for each spec."""
    return [Moment([policy(f"p{index}", spec) for index, spec in enumerate(specs)])]


def simple() -> Iterator[tuple[str, list[Moment]]]:
    yield "no policy", [Moment()]
    yield "default deny ingress", one(DENY_IN)
    yield "default deny egress", one(DENY_OUT)
    yield "default deny both", one(DENY_ALL)
    yield "allow all ingress", one(ingress(from_()))
    yield "allow all egress", one(egress(to()))
    yield "allow all beside deny all", one(DENY_ALL, ingress(from_()), egress(to()))
    yield "deny for one pod only", one(ingress(subject=A))
    yield "deny all of every namespace", [Moment([policy("p", DENY_ALL, n) for n in NAMESPACES])]
    yield "types left out, with egress rules", one({"egress": [to(pods(B))]})
    yield "types left out, without egress rules", one({"ingress": [from_(pods(B))]})
    yield "subject selects nobody", one(ingress(subject=labels(pod="none")))
    yield "subject by expression", one(ingress(subject=expression("pod", "NotIn", "a", "b")))
    yield "subject by existence", one(ingress(subject=expression("pod", "Exists")))


def peers() -> Iterator[tuple[str, list[Moment]]]:
    yield "from pods of the same namespace", one(ingress(from_(pods(B)), subject=A))
    yield "from everybody of the same namespace", one(ingress(from_(pods({}))))
    yield "from a namespace", one(ingress(from_(namespaces(labels(ns="y"))), subject=A))
    yield "from all namespaces", one(ingress(from_(namespaces({}))))
    yield "from pods by expression", one(ingress(from_(pods(expression("pod", "In", "b", "c"))), subject=A))
    yield "from namespaces by expression", one(ingress(from_(namespaces(expression("ns", "In", "y", "z"))), subject=A))
    yield "from namespaces but one", one(ingress(from_(namespaces(expression("ns", "NotIn", "x")))))
    yield "from pod or namespace", one(ingress(from_(pods(B), namespaces(labels(ns="y"))), subject=A))
    yield "from pod and namespace", one(ingress(from_(both(labels(ns="y"), B)), subject=A))
    yield "from pod and any namespace", one(ingress(from_(both({}, B)), subject=A))
    yield (
        "from several pods and namespaces",
        one(ingress(from_(both(expression("ns", "NotIn", "x"), expression("pod", "In", "b", "c"))), subject=A)),
    )
    yield "two rules with different peers", one(ingress(from_(pods(B)), from_(namespaces(labels(ns="z"))), subject=A))
    yield "to pods of the same namespace", one(egress(to(pods(B)), subject=A))
    yield "to a namespace", one(egress(to(namespaces(labels(ns="y"))), subject=A))
    yield "to pod and namespace", one(egress(to(both(labels(ns="y"), A)), subject=A))
    yield "selectors that select nobody", one(ingress(from_(pods(labels(pod="none"))), subject=A))
    yield "an absent label", one(ingress(from_(pods(expression("absent", "DoesNotExist"))), subject=A))
    yield (
        "both directions on their own",
        one(ingress(from_(pods(B)), subject=A), egress(to(namespaces(labels(ns="y"))), subject=A)),
    )
    yield (
        "two sides that must both agree",
        [
            Moment(
                [policy("in", ingress(from_(pods(B))), "x"), policy("out", egress(to(namespaces(labels(ns="y")))), "x")]
            )
        ],
    )


def numbers() -> Iterator[tuple[str, list[Moment]]]:
    yield "one port", one(ingress(from_(ports=[port(81)]), subject=A))
    yield "one port from a namespace", one(ingress(from_(namespaces(labels(ns="y")), ports=[port(81)]), subject=A))
    yield (
        "two stacked policies with a port each",
        one(
            ingress(from_(namespaces(labels(ns="y")), ports=[port(80)]), subject=A),
            ingress(from_(namespaces(labels(ns="y")), ports=[port(81)]), subject=A),
        ),
    )
    yield "several ports and protocols", one(ingress(from_(ports=[port(80, "TCP"), port(81, "UDP"), port(80, "SCTP")])))
    yield "a whole protocol", one(ingress(from_(ports=[port(protocol="UDP")])))
    yield "SCTP is not TCP", one(ingress(from_(ports=[port(80, "SCTP")]), subject=A))
    yield "UDP is not TCP", one(ingress(from_(ports=[port(81, "UDP")]), subject=A))
    yield "a range", one(ingress(from_(ports=[port(79, end=80)])))
    yield "a range that holds all", one(egress(to(ports=[port(1, end=65535), port(1, "UDP", end=65535)])))
    yield "a port nobody serves", one(ingress(from_(ports=[port(9999)])))
    yield "a named port", one(ingress(from_(ports=[port("serve-80-tcp")]), subject=A))
    yield "a named port with another protocol", one(ingress(from_(ports=[port("serve-80-tcp", "UDP")]), subject=A))
    yield "an unknown named port", one(ingress(from_(ports=[port("nobody")]), subject=A))
    yield "a name with two meanings", one(ingress(from_(ports=[port("mixed")])))
    yield "named ports out, to everybody", one(egress(to(ports=[port("serve-80-tcp")]), subject=A))
    yield "named ports out, to some", one(egress(to(namespaces(labels(ns="y")), ports=[port("mixed")]), subject=A))
    yield (
        "named and numbered",
        one(ingress(from_(namespaces(labels(ns="y")), ports=[port("serve-80-tcp"), port(81, "UDP")]), subject=A)),
    )
    yield (
        "named ports out, to blocks and pods",
        one(egress(to({"ipBlock": {"cidr": "10.2.0.0/16"}}, pods(B), ports=[port("mixed")]), subject=A)),
    )
    yield (
        "named both ways",
        one(
            ingress(from_(ports=[port("serve-80-tcp")]), subject=A), egress(to(ports=[port("serve-81-udp")]), subject=A)
        ),
    )


def blocks(address: Mapping[str, str]) -> Iterator[tuple[str, list[Moment]]]:
    """`address`: the pods' addresses."""

    def block(cidr: str, *excepts: str) -> Json:
        return {"ipBlock": {"cidr": cidr, **({"except": list(excepts)} if excepts else {})}}

    every = "0.0.0.0/0" if ":" not in address["y/b"] else "::/0"
    length = 32 if ":" not in address["y/b"] else 128
    single = f"{address['y/b']}/{length}"
    yield "to a block", one(egress(to(block(single)), subject=A))
    yield "to a block with an exception", one(egress(to(block(every, single)), subject=A))
    yield (
        "an exception that another rule allows",
        one(egress(to(block(every, single)), to(block(single), ports=[port(80)]), subject=A)),
    )
    yield (
        "an exception that another policy allows",
        one(egress(to(block(every, single)), subject=A), egress(to(block(single)), subject=A)),
    )
    yield "from a block", one(ingress(from_(block(single)), subject=A))
    yield "from blocks and pods", one(ingress(from_(block(single), pods(C)), subject=A))
    yield "from everywhere but two", one(ingress(from_(block(every, single, f"{address['z/c']}/{length}")), subject=A))


def changes() -> Iterator[tuple[str, list[Moment]]]:
    allow = policy("p", ingress(from_()))
    deny = policy("p", DENY_IN)
    yield "a policy is tightened, then deleted", [Moment([allow]), Moment([deny]), Moment()]
    labelled = policy("p", ingress(from_(namespaces(labels(team="new"))), subject=A))
    yield (
        "a namespace gets a label and loses it",
        [
            Moment([labelled]),
            Moment([labelled], namespace_labels={"y": {"team": "new"}}),
            Moment([labelled]),
        ],
    )
    by_pod = policy("p", ingress(from_(pods(labels(role="client"))), subject=A))
    yield (
        "a pod gets a label and loses it",
        [
            Moment([by_pod]),
            Moment([by_pod], pod_labels={"x/b": {"role": "client"}, "y/b": {"role": "client"}}),
            Moment([by_pod]),
        ],
    )
    becomes = policy("p", ingress(subject=labels(role="server")))
    yield "a pod becomes a subject", [Moment([becomes]), Moment([becomes], pod_labels={"x/c": {"role": "server"}})]
    across = policy("p", egress(to(both(labels(team="new"), labels(role="db")))))
    yield (
        "namespace and pod labels come one after the other",
        [
            Moment([across], namespace_labels={"z": {"team": "new"}}),
            Moment([across], namespace_labels={"z": {"team": "new"}}, pod_labels={"z/a": {"role": "db"}}),
            Moment([across], pod_labels={"z/a": {"role": "db"}}),
        ],
    )


def drawn(
    source: random.Random, addresses: Iterable[Mapping[str, str]], count: int
) -> Iterator[tuple[str, list[Moment]]]:
    """Moments with policies thrown together at random, in all namespaces. `addresses`: the pods, by family."""
    every_address = [ip for each in addresses for ip in each.values()]
    selectors = [{}, A, B, labels(pod="none"), expression("pod", "In", "a", "c"), expression("pod", "NotIn", "b")]
    selectors += [expression("role", "Exists"), expression("role", "DoesNotExist"), labels(role="db")]
    chosen = [{}, labels(ns="y"), expression("ns", "NotIn", "x"), labels(team="new"), expression("team", "Exists")]

    def block() -> Json:
        ip = source.choice(every_address)
        # A few bits cut off: the other pods of the same node are inside or not.
        network = ipaddress.ip_network(
            f"{ip}/{source.choice((32, 28, 25) if ':' not in ip else (128, 120, 96))}", False
        )
        inner = {"except": [ip]} if source.random() < 0.5 and network.num_addresses > 1 else {}
        return {"ipBlock": {"cidr": str(network), **inner}}

    def peer() -> Json:
        kind = source.randrange(4)
        if kind == 0:
            return pods(source.choice(selectors))
        if kind == 1:
            return namespaces(source.choice(chosen))
        return both(source.choice(chosen), source.choice(selectors)) if kind == 2 else block()

    def numbered() -> Json:
        protocol = source.choice(("", *PROTOCOLS))
        kind = source.randrange(5)
        if kind == 0:
            return port(protocol=protocol)
        if kind == 1:
            return port(source.choice(("serve-80-tcp", "serve-81-udp", "serve-80-sctp", "mixed", "nobody")), protocol)
        if kind == 2:
            return port(source.choice((1, 80, 81)), protocol, end=source.choice((81, 90, 65535)))
        return port(source.choice(PORTS), protocol)

    def rule(make: Callable[..., Json]) -> Json:
        peers = [peer() for _ in range(source.randrange(4))]
        return make(*peers, ports=[numbered() for _ in range(source.randrange(3))])

    for number in range(count):
        policies = []
        for index in range(source.randint(1, 5)):
            spec: Json = {"podSelector": source.choice(selectors)}
            types = source.choice((["Ingress"], ["Egress"], ["Ingress", "Egress"], None))
            if types is not None:
                spec["policyTypes"] = types
            if types is None or "Ingress" in types:
                spec["ingress"] = [rule(from_) for _ in range(source.randrange(3))]
            if types is not None and "Egress" in types:
                spec["egress"] = [rule(to) for _ in range(source.randrange(3))]
            policies.append(policy(f"p{index}", spec, source.choice(NAMESPACES)))
        roles = {
            f"{n}/{p}": {"role": source.choice(("db", "web"))}
            for n in NAMESPACES
            for p in PODS
            if source.random() < 0.4
        }
        teams = {n: {"team": "new"} for n in NAMESPACES if source.random() < 0.4}
        admin: list[Json] = []
        baseline = None
        if source.random() < 0.5:
            admin = [
                _drawn_admin(source, f"a{index}", source.choice((1, 5, 5)), chosen, selectors, block)
                for index in range(source.randint(1, 3))
            ]
            if source.random() < 0.5:
                baseline = _drawn_admin(source, "default", None, chosen, selectors, block)
        yield f"drawn {number}", [Moment(policies, roles, teams, admin, baseline)]


def _drawn_admin(
    source: random.Random,
    name: str,
    priority: int | None,
    chosen: list[Json],
    selectors: list[Json],
    block: Callable[[], Json],
) -> Json:
    def subject() -> Json:
        if source.random() < 0.5:
            return {"namespaces": source.choice(chosen)}
        return {"pods": both(source.choice(chosen), source.choice(selectors))}

    def numbered() -> Json:
        kind, protocol = source.randrange(3), source.choice(PROTOCOLS)
        if kind == 0:
            return {"portNumber": {"protocol": protocol, "port": source.choice(PORTS)}}
        if kind == 1:
            return {"portRange": {"protocol": protocol, "start": source.choice((1, 80, 81)), "end": 90}}
        return {"namedPort": source.choice(("mixed", "serve-80-tcp", "nobody"))}

    def rules(side: str) -> list[Json]:
        found = []
        for _ in range(source.randrange(4)):
            actions = ("Allow", "Deny") if priority is None else ("Allow", "Deny", "Pass")
            peers = [subject() for _ in range(source.randint(1, 2))]
            if side == "to" and source.random() < 0.3:
                peers.append({"networks": [block()["ipBlock"]["cidr"]]})
            ports = [numbered() for _ in range(source.randrange(3))]
            found.append({"action": source.choice(actions), side: peers, **({"ports": ports} if ports else {})})
        return found

    return admin_policy(name, priority, subject(), ingress=rules("from"), egress=rules("to"))


def admin_policy(name: str, priority: int | None, subject: Json, **rules: list[Json]) -> Json:
    spec: Json = {"subject": subject, **rules}
    if priority is not None:
        spec["priority"] = priority
    return {"metadata": {"name": name}, "spec": spec}


def administration() -> Iterator[tuple[str, list[Moment]]]:
    """Situations with AdminNetworkPolicies and a baseline."""
    x = {"namespaces": labels(ns="x")}
    every = {"namespaces": {}}
    from_y = {"namespaces": labels(ns="y")}
    a_of_y = {"pods": both(labels(ns="y"), A)}
    number = {"portNumber": {"protocol": "TCP", "port": 80}}
    span = {"portRange": {"protocol": "UDP", "start": 80, "end": 81}}

    def rule(action: str, *peers: Json, side: str = "from", ports: list[Json] | None = None) -> Json:
        return {"action": action, side: list(peers), **({"ports": ports} if ports else {})}

    deny_y = admin_policy("deny-y", 10, x, ingress=[rule("Deny", from_y)])
    yield "admin denies a namespace", [Moment(admin=[deny_y])]
    yield (
        "admin allows over a network policy",
        [Moment([policy("deny", DENY_IN)], admin=[admin_policy("ok", 10, x, ingress=[rule("Allow", from_y)])])],
    )
    yield (
        "the first rule decides",
        [
            Moment(
                admin=[admin_policy("p", 5, x, ingress=[rule("Allow", a_of_y, ports=[number]), rule("Deny", from_y)])]
            )
        ],
    )
    yield (
        "the lower number decides",
        [Moment(admin=[deny_y, admin_policy("earlier", 3, x, ingress=[rule("Allow", from_y, ports=[number, span])])])],
    )
    yield (
        "pass goes on to a network policy",
        [
            Moment(
                [policy("only-b", ingress(from_(namespaces(labels(ns="y")), ports=[port(81)])))],
                admin=[
                    admin_policy("pass", 1, x, ingress=[rule("Pass", a_of_y), rule("Deny", every)]),
                    admin_policy("later", 2, x, ingress=[rule("Allow", every)]),
                ],
            )
        ],
    )
    yield (
        "pass by port and protocol",
        [
            Moment(
                admin=[
                    admin_policy("p", 1, x, ingress=[rule("Pass", from_y, ports=[number, span]), rule("Deny", every)])
                ]
            )
        ],
    )
    yield (
        "pass, then nothing else",
        [Moment(admin=[admin_policy("p", 1, x, ingress=[rule("Pass", from_y), rule("Deny", every)])])],
    )
    yield (
        "egress",
        [
            Moment(
                admin=[
                    admin_policy(
                        "out", 1, x, egress=[rule("Allow", a_of_y, side="to"), rule("Deny", from_y, every, side="to")]
                    )
                ]
            )
        ],
    )
    yield (
        "egress to networks, by named port",
        [
            Moment(
                admin=[
                    admin_policy(
                        "n", 1, x, egress=[rule("Deny", {"networks": ["10.1.0.0/25", "10.2.0.0/25"]}, side="to")]
                    ),
                    admin_policy("m", 2, x, ingress=[rule("Deny", every, ports=[{"namedPort": "mixed"}])]),
                ]
            )
        ],
    )
    baseline = admin_policy("default", None, every, ingress=[rule("Allow", x), rule("Deny", every)])
    yield "a baseline", [Moment(baseline=baseline), Moment([policy("own", ingress(from_(pods(B))))], baseline=baseline)]
    yield (
        "everything together",
        [
            Moment(
                [policy("np", ingress(from_(namespaces(labels(ns="z")))))],
                admin=[
                    admin_policy("pass-z", 7, every, ingress=[rule("Pass", {"namespaces": labels(ns="z")})]),
                    deny_y,
                ],
                baseline=baseline,
            )
        ],
    )
