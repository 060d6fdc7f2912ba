"""A pod's bandwidth annotations (`kubernetes.io/ingress-bandwidth`, `egress-bandwidth`)."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cni.controller.errors import InvalidBandwidth

ANNOTATIONS = {"ingress": "kubernetes.io/ingress-bandwidth", "egress": "kubernetes.io/egress-bandwidth"}
_QUANTITY = re.compile(r"(\d+(?:\.\d+)?)([kKMGT]i?)?")
_FACTORS = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12} | {
    "Ki": 2**10,
    "Mi": 2**20,
    "Gi": 2**30,
    "Ti": 2**40,
    "ki": 2**10,
}


def parse(annotations: Mapping[str, str]) -> dict[str, int]:
    """kbit/s by direction ("ingress": to the pod), as far as asked for. Raises InvalidBandwidth."""
    found = {}
    for direction, name in ANNOTATIONS.items():
        text = annotations.get(name)
        if text is None:
            continue
        match = _QUANTITY.fullmatch(text.strip())
        rate = int(float(match[1]) * _FACTORS[match[2] or ""] / 1000) if match is not None else 0
        if not 1 <= rate <= 4294967295:
            raise InvalidBandwidth(f'annotation {name}: {text!r} is no bandwidth such as "10M" (bits a second)')
        found[direction] = rate
    return found
