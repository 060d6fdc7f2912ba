"""When a function is unhealthy, with the sentence that says why."""

from dataclasses import replace
from typing import Any

import pytest

from cni.device_plugin.candidates import Candidate, GroupMember, Physical
from cni.device_plugin.config import Pool, Selector, Use
from cni.device_plugin.health import verdict
from foundation.pci import PciFunction


def candidate(
    *,
    driver: str = "mlx5_core",
    group: int = -1,
    members: tuple[GroupMember, ...] = (),
    operstate: str = "up",
    switch: str = "",
    representor: str = "",
    nvme: str = "",
) -> Candidate:
    function = PciFunction(
        address="0000:03:00.4", driver=driver, iommu_group=group, is_vf=True, pf="0000:03:00.0", vf_index=2
    )
    physical = Physical("0000:03:00.0", netdev="p0", operstate=operstate, switch_id=switch, number=0)
    return Candidate(function, physical, representor=representor, group=members, nvme_state=nvme)


def member(address: str, driver: str, class_code: int = 0x020000) -> GroupMember:
    return GroupMember(address, driver, class_code)


VFIO: dict[str, Any] = {"driver": "vfio-pci", "group": 12}


@pytest.mark.parametrize(
    ("use", "facts", "reason"),
    [
        ("netdev", {}, ""),
        ("netdev", {"driver": ""}, "no driver is bound"),
        ("netdev", {"driver": "vfio-pci"}, "bound to vfio-pci, pool p needs a network driver"),
        ("netdev", {"driver": "nvme"}, "needs a network driver"),
        ("netdev", {"operstate": "down"}, "physical function p0 (0000:03:00.0) is down"),
        ("netdev", {"operstate": "lowerlayerdown"}, "is lowerlayerdown"),
        ("netdev", {"operstate": "unknown"}, ""),
        ("netdev", {"operstate": ""}, ""),
        ("netdev", {"switch": "aa"}, "representor pf0vf2 is missing, though p0 is in switchdev mode"),
        ("netdev", {"switch": "aa", "representor": "pf0vf2"}, ""),
        ("netdev", {"group": 12, "members": (member("0000:03:00.5", "ixgbe"),)}, ""),
        ("vfio", VFIO, ""),
        ("vfio", {**VFIO, "driver": "mlx5_vfio_pci"}, ""),
        ("vfio", {"group": 12}, "bound to mlx5_core, pool p needs vfio-pci"),
        ("vfio", {"driver": "vfio-pci"}, "in no IOMMU group"),
        (
            "vfio",
            {**VFIO, "members": (member("0000:03:00.5", "ixgbe"),)},
            "shares IOMMU group 12 with 0000:03:00.5, which ixgbe uses",
        ),
        ("vfio", {**VFIO, "members": (member("0000:00:01.0", "pcieport", 0x060400),)}, ""),
        ("vfio", {**VFIO, "members": (member("0000:03:00.5", ""),)}, ""),
        ("vfio", {**VFIO, "members": (member("0000:03:00.5", "vfio-pci"),)}, ""),
        (
            "vfio",
            {**VFIO, "members": (member("0000:03:00.6", "vfio-pci"),)},
            "shares IOMMU group 12 with 0000:03:00.6, which is advertised too",
        ),
        ("vfio", {**VFIO, "switch": "aa"}, "representor pf0vf2 is missing"),
        ("nvme", {"driver": "nvme", "nvme": "live"}, ""),
        ("nvme", {"driver": "nvme", "nvme": "dead"}, "its NVMe controller is dead"),
        ("nvme", {"driver": "vfio-pci"}, "needs nvme"),
        ("any", {"driver": ""}, ""),
    ],
)
def test_verdict(use: Use, facts: dict[str, Any], reason: str) -> None:
    pool = Pool(name="p", selectors=(Selector(),), use=use)
    found = verdict(candidate(**facts), pool, advertised={"0000:03:00.6", "0000:03:00.4"})
    assert (reason in found) if reason else not found, found


def test_a_pool_may_do_without_link_and_representor() -> None:
    pool = Pool(name="p", selectors=(Selector(),), link=False, representor=False)
    assert verdict(candidate(operstate="down", switch="aa"), pool, advertised=()) == ""


def test_a_function_by_which_the_node_itself_is_reached_is_nobodys() -> None:
    function = PciFunction(address="0000:03:00.4", driver="mlx5_core", is_vf=True, netdevs=("ens1v2",))
    own, pool = Candidate(function, Physical("0000:03:00.0")), Pool(name="p", selectors=(Selector(),))
    assert verdict(own, pool, advertised=()) == ""
    for facts, reason in (
        ({"carries_default_route": True}, "its network device ens1v2 has the node's default route"),
        ({"carries": ("bond0",)}, "its network device ens1v2 carries the node's bond0"),
    ):
        assert verdict(replace(own, **facts), pool, advertised=()) == reason
