"""A namespace: its labels, its wishes for logging and isolation."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from cni.controller.model.annotations import ACL_LOGGING, EGRESS_IPS, ISOLATION
from foundation.kube.models import core

SEVERITIES = ("alert", "warning", "notice", "info", "debug")


class Logging(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Severities with which refused and allowed traffic is logged; empty: not at all."""

    deny: str = ""
    allow: str = ""


NOT_LOGGED = Logging()
_ADDRESSES = msgspec.json.Decoder(tuple[str, ...])
_LOGGING = msgspec.json.Decoder(Logging)


@dataclass(frozen=True, slots=True)
class Namespace:
    """`isolated`: its pods may be reached from the same namespace only. `fault`: what is wrong with its annotations."""

    name: str
    labels: Mapping[str, str]
    logging: Logging = NOT_LOGGED
    isolated: bool = False
    fault: str = ""
    egress: tuple[str, ...] = ()
    """Addresses that its pods have outside of the cluster."""


def parse(namespace: core.Namespace) -> Namespace:
    """From the API's object."""
    annotations = namespace.metadata.annotations
    logging, fault = NOT_LOGGED, ""
    text = annotations.get(ACL_LOGGING)
    if text is not None:
        try:
            logging = _LOGGING.decode(text)
            for severity in (logging.deny, logging.allow):
                if severity and severity not in SEVERITIES:
                    raise ValueError(f"severity {severity!r} is none of {', '.join(SEVERITIES)}")
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            logging = NOT_LOGGED
            fault = f'annotation {ACL_LOGGING} is not of the form {{"deny": "alert", "allow": "notice"}}: {error}'
    egress: tuple[str, ...] = ()
    text = annotations.get(EGRESS_IPS)
    if text is not None:
        try:
            egress = tuple(str(ipaddress.ip_address(each)) for each in _ADDRESSES.decode(text))
        except (msgspec.DecodeError, ValueError, RecursionError) as error:
            fault = f'annotation {EGRESS_IPS} is not of the form ["192.0.2.200"]: {error}'
    isolation = annotations.get(ISOLATION, "false")
    if isolation not in ("true", "false"):
        fault = f'annotation {ISOLATION} is {isolation!r}, but must be "true" or "false"'
    return Namespace(
        name=namespace.metadata.name,
        labels=namespace.metadata.labels,
        logging=logging,
        isolated=isolation == "true",
        fault=fault,
        egress=egress,
    )
