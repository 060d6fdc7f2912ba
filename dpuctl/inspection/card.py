"""The card as a node's sysfs shows it: physical functions with their VFs, the embedded switch, representors."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from cni.node.attachments import Attachment
from cni.node.config import CniNodeConfig
from cni.node.modes import MODES
from cni.node.representors import Representors
from dpuctl.inspection.facts import CardFacts, MissingRepresentor
from dpuctl.inspection.kept import Kept
from foundation.pci import Sysfs
from foundation.pci.functions import PciFunction

_NETWORK: Final = 0x02


def inspect(config: CniNodeConfig, kept: Kept) -> CardFacts:
    """On a host with a DPU the representors are the DPU's, so only functions are looked at there."""
    sysfs = Sysfs(Path(config.sysfs_root))
    physical = [one for one in sysfs.functions(class_prefix=_NETWORK) if not one.is_vf and one.vf_total]
    mode = MODES[config.mode]
    representors = Representors(sysfs, host_controller=config.link.host_controller)
    representors.scan()
    return CardFacts(
        node=config.node_name,
        serves_host=mode.serves_host,
        functions=sum(one.vf_count for one in physical),
        representors=len(sysfs.representors()),
        legacy=tuple(one.address for one in physical if mode.has_switch and one.vf_count and not _switched(sysfs, one)),
        without_vfs=tuple(one.address for one in physical if not one.vf_count),
        missing=tuple(_missing(kept.attachments.values(), representors)) if mode.has_switch else (),
    )


def _switched(sysfs: Sysfs, function: PciFunction) -> bool:
    return any(sysfs.switch_port(name)[0] for name in function.netdevs)


def _missing(attachments: Iterable[Attachment], representors: Representors) -> Iterable[MissingRepresentor]:
    for one in attachments:
        if one.function is None or one.phase != "ready":
            continue
        if not representors.find(one.function, of_host=bool(one.host)):
            kind = "sf" if one.function.scalable else "vf"
            name = f"pf{one.function.pf}{kind}{one.function.vf}"
            yield MissingRepresentor(attachment=one.id, pod=one.pod, function=name)
