"""Defaults and checks of network policies (pure)."""

from __future__ import annotations

import ipaddress
from typing import Any

from lab.apiserver.status import Json, field_forbidden, invalid_value, not_supported, required


def default(policy: Json) -> None:
    """Fill in what a policy does not say, in place."""
    spec = policy.setdefault("spec", {})
    for side in ("ingress", "egress"):
        for rule in spec.get(side) or []:
            for port in rule.get("ports") or []:
                port.setdefault("protocol", "TCP")
    spec.setdefault("podSelector", {})
    spec.setdefault("policyTypes", ["Ingress", "Egress"] if spec.get("egress") else ["Ingress"])


def problems(policy: Json) -> list[Json]:
    """What is wrong with a policy, as causes of a 422."""
    spec = policy["spec"]
    found = _selector(spec.get("podSelector") or {}, "spec.podSelector")
    for index, name in enumerate(spec["policyTypes"]):
        if name not in ("Ingress", "Egress"):
            found.append(not_supported(f"spec.policyTypes[{index}]", name, ["Egress", "Ingress"]))
    for side, peers in (("ingress", "from"), ("egress", "to")):
        for index, rule in enumerate(spec.get(side) or []):
            field = f"spec.{side}[{index}]"
            for at, port in enumerate(rule.get("ports") or []):
                found += _port(port, f"{field}.ports[{at}]")
            for at, peer in enumerate(rule.get(peers) or []):
                found += _peer(peer, f"{field}.{peers}[{at}]")
    return found


def _port(port: Json, field: str) -> list[Json]:
    found: list[Json] = []
    if port["protocol"] not in ("TCP", "UDP", "SCTP"):
        found.append(not_supported(f"{field}.protocol", port["protocol"], ["SCTP", "TCP", "UDP"]))
    number: Any = port.get("port")
    if isinstance(number, int) and not 0 < number < 65536:
        found.append(invalid_value(f"{field}.port", number, "must be between 1 and 65535, inclusive"))
    end = port.get("endPort")
    if end is not None:
        if number is None:
            found.append(required(f"{field}.port", "must be specified when `endPort` is specified"))
        elif isinstance(number, str):
            found.append(invalid_value(f"{field}.endPort", end, "may not be specified when `port` is non-numeric"))
        elif end < number:
            found.append(invalid_value(f"{field}.endPort", end, "must be greater than or equal to `port`"))
        elif end > 65535:
            found.append(invalid_value(f"{field}.endPort", end, "must be between 1 and 65535, inclusive"))
    return found


def _peer(peer: Json, field: str) -> list[Json]:
    found: list[Json] = []
    if not peer:
        return [required(field, "must specify a peer")]
    for name in ("podSelector", "namespaceSelector"):
        found += _selector(peer.get(name) or {}, f"{field}.{name}")
    block = peer.get("ipBlock")
    if block is None:
        return found
    if len(peer) > 1:
        found.append(field_forbidden(field, "may not specify both ipBlock and another peer"))
    try:
        network = ipaddress.ip_network(block.get("cidr", ""), strict=False)
    except ValueError:
        why = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)"
        return [*found, invalid_value(f"{field}.ipBlock.cidr", block.get("cidr", ""), why)]
    for index, text in enumerate(block.get("except") or []):
        place = f"{field}.ipBlock.except[{index}]"
        try:
            inside = ipaddress.ip_network(text, strict=False)
        except ValueError:
            found.append(invalid_value(place, text, "must be a valid CIDR value"))
            continue
        if inside.version != network.version or not inside.subnet_of(network) or inside == network:  # type: ignore[arg-type]  # same version by then
            found.append(invalid_value(place, text, "must be a strict subset of `cidr`"))
    return found


def _selector(selector: Json, field: str) -> list[Json]:
    found: list[Json] = []
    for index, requirement in enumerate(selector.get("matchExpressions") or []):
        place = f"{field}.matchExpressions[{index}]"
        operator, values = requirement.get("operator"), requirement.get("values") or []
        if operator in ("In", "NotIn"):
            if not values:
                found.append(required(f"{place}.values", "must be specified when `operator` is 'In' or 'NotIn'"))
        elif operator in ("Exists", "DoesNotExist"):
            if values:
                why = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'"
                found.append(field_forbidden(f"{place}.values", why))
        else:
            found.append(invalid_value(f"{place}.operator", operator, "not a valid selector operator"))
    return found
