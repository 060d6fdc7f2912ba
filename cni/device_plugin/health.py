"""Whether a function can be given to a pod, with the reason when it cannot."""

from __future__ import annotations

from collections.abc import Container

from cni.device_plugin.candidates import Candidate, is_vfio
from cni.device_plugin.config import Pool

_DOWN = ("down", "lowerlayerdown", "notpresent")


def verdict(candidate: Candidate, pool: Pool, *, advertised: Container[str]) -> str:
    """Why the function is unhealthy in this pool; "" when it is well. `advertised`: addresses in pools for VMs."""
    return (
        _driver(candidate, pool)
        or _node(candidate)
        or _link(candidate, pool)
        or _representor(candidate, pool)
        or _group(candidate, pool, advertised)
        or _nvme(candidate, pool)
    )


def suits(driver: str, use: str) -> bool:
    """Whether a function bound to this driver is what the use needs."""
    if use == "any":
        return True
    if use == "vfio":
        return is_vfio(driver)
    if use == "nvme":
        return driver == "nvme"
    return bool(driver) and not is_vfio(driver) and driver not in ("nvme", "pci-stub", "uio_pci_generic", "igb_uio")


def _driver(candidate: Candidate, pool: Pool) -> str:
    driver = candidate.function.driver
    if suits(driver, pool.use):
        return ""
    needed = {"vfio": "vfio-pci", "nvme": "nvme", "netdev": "a network driver"}[pool.use]
    if not driver:
        return f"no driver is bound, pool {pool.name} needs {needed}"
    return f"bound to {driver}, pool {pool.name} needs {needed}"


def _node(candidate: Candidate) -> str:
    """A VF may be the node's own way out, as on many a cloud machine."""
    name = ", ".join(candidate.function.netdevs)
    if candidate.carries_default_route:
        return f"its network device {name} has the node's default route"
    if candidate.carries:
        return f"its network device {name} carries the node's {', '.join(candidate.carries)}"
    return ""


def _link(candidate: Candidate, pool: Pool) -> str:
    physical = candidate.physical
    if pool.link and physical.operstate in _DOWN:
        return f"physical function {physical.netdev} ({physical.address}) is {physical.operstate}"
    return ""


def _representor(candidate: Candidate, pool: Pool) -> str:
    physical, function = candidate.physical, candidate.function
    if not pool.representor or not function.is_vf or not physical.switch_id or candidate.representor:
        return ""
    port = f"pf{physical.number}vf{function.vf_index}"
    return f"representor {port} is missing, though {physical.netdev} is in switchdev mode"


def _group(candidate: Candidate, pool: Pool, advertised: Container[str]) -> str:
    """A group goes to a VM as a whole: nobody else may use any member of it."""
    if pool.use != "vfio":
        return ""
    number = candidate.function.iommu_group
    if number < 0:
        return "in no IOMMU group: the IOMMU is off (intel_iommu=on or iommu.passthrough on the kernel's command line)"
    for member in candidate.group:
        if member.is_bridge:
            continue
        if member.address in advertised:
            return f"shares IOMMU group {number} with {member.address}, which is advertised too"
        if member.driver and not is_vfio(member.driver):
            return f"shares IOMMU group {number} with {member.address}, which {member.driver} uses"
    return ""


def _nvme(candidate: Candidate, pool: Pool) -> str:
    if pool.use == "nvme" and candidate.nvme_state not in ("", "live"):
        return f"its NVMe controller is {candidate.nvme_state}"
    return ""
