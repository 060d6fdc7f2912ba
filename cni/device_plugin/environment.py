"""The environment variables by which a container, Multus or KubeVirt learns its devices."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence

# PCIDEVICE is what SR-IOV device plugins have always set; PCI_RESOURCE is what KubeVirt reads for host devices.
_DEVICE, _KUBEVIRT = "PCIDEVICE", "PCI_RESOURCE"


def variables(
    resource: str, devices: Sequence[str], *, nodes: Mapping[str, Sequence[str]], vfio: bool
) -> dict[str, str]:
    """`PCIDEVICE_<RESOURCE>=addresses` with its `_INFO` in JSON; for VMs `PCI_RESOURCE_<RESOURCE>` too.

    `nodes`: device node paths in the container by PCI address. A resource name with characters that a shell cannot
    spell gets its variables twice: as other plug-ins spell them, and with an underscore for each such character.
    """
    value = ",".join(devices)
    info = json.dumps(
        {device: {"generic": {"deviceID": device}, "nodes": list(nodes.get(device, ()))} for device in devices}
    )
    found = {}
    for spelling in _spellings(resource):
        found[f"{_DEVICE}_{spelling}"] = value
        found[f"{_DEVICE}_{spelling}_INFO"] = info
        if vfio:
            found[f"{_KUBEVIRT}_{spelling}"] = value
    return found


def _spellings(resource: str) -> set[str]:
    upper = resource.upper()
    return {re.sub(r"[./]", "_", upper), re.sub(r"[^A-Z0-9]", "_", upper)}
