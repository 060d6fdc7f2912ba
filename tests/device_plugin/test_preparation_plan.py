"""The steps that a preparation plans, in tables."""

from typing import Any

import pytest

from cni.device_plugin.config import PhysicalFunction
from cni.device_plugin.errors import PreparationError
from cni.device_plugin.preparation.plan import plan_card, plan_functions, vf_mac
from cni.device_plugin.preparation.state import (
    Bind,
    PfState,
    SetAutoprobe,
    SetEswitch,
    SetMac,
    SetMtu,
    SetVfs,
    Step,
    Unbind,
    VfState,
)

OFF, ON = SetAutoprobe(False), SetAutoprobe(True)
SWITCHDEV, LEGACY = SetEswitch("switchdev"), SetEswitch("legacy")


def vfs(count: int, *, driver: str = "mlx5_core", user: str = "") -> tuple[VfState, ...]:
    return tuple(
        VfState(f"0000:03:00.{index + 2}", index, driver=driver, mac=f"02:00:00:01:00:{index:02x}", user=user)
        for index in range(count)
    )


def pf(**fields: Any) -> PfState:
    found = {"driver": "mlx5_core", "total_vfs": 8, "netdev": "p0", "mtu": 1500, "eswitch": "legacy", **fields}
    return PfState("0000:03:00.0", **found)


def wanted(**fields: Any) -> PhysicalFunction:
    return PhysicalFunction(pf="0000:03:00.0", **fields)


@pytest.mark.parametrize(
    ("state", "declared", "expected"),
    [
        (pf(), wanted(), []),
        (pf(), wanted(vfs=0, eswitch="legacy", mtu=1500), []),
        (pf(vfs=vfs(4), eswitch="switchdev"), wanted(vfs=4, eswitch="switchdev", mtu=1500), []),
        (pf(), wanted(vfs=4), [OFF, SetVfs(4), ON]),
        (pf(vfs=vfs(2)), wanted(vfs=4), [OFF, SetVfs(0), SetVfs(4), ON]),
        (pf(vfs=vfs(2)), wanted(vfs=0), [SetVfs(0)]),
        (pf(autoprobe=False), wanted(vfs=4), [SetVfs(4), ON]),
        (pf(), wanted(vfs=4, autoprobe=False), [OFF, SetVfs(4)]),
        (pf(), wanted(autoprobe=False), [OFF]),
        (pf(autoprobe=False), wanted(), []),
        (pf(autoprobe=False), wanted(mtu=9000), [SetMtu(9000)]),
        (pf(autoprobe=False, vfs=vfs(4)), wanted(vfs=4), [ON]),  # killed before its last step
        (pf(autoprobe=False), wanted(autoprobe=True), [ON]),
        (pf(), wanted(mtu=9000), [SetMtu(9000)]),
        # mlx5: VFs first, and those that exist without a driver while the mode changes
        (pf(), wanted(vfs=4, eswitch="switchdev"), [OFF, SetVfs(4), SWITCHDEV, ON]),
        (pf(vfs=vfs(2)), wanted(vfs=4, eswitch="switchdev"), [OFF, SetVfs(0), SetVfs(4), SWITCHDEV, ON]),
        (pf(vfs=vfs(2)), wanted(eswitch="switchdev"), [OFF, Unbind(0), Unbind(1), SWITCHDEV, ON]),
        (pf(vfs=vfs(2, driver="")), wanted(vfs=2, eswitch="switchdev"), [OFF, SWITCHDEV, ON]),
        (pf(eswitch="switchdev", vfs=vfs(1)), wanted(vfs=1, eswitch="legacy"), [OFF, Unbind(0), LEGACY, ON]),
        # ice: the mode changes only while no VF exists
        (pf(driver="ice"), wanted(vfs=4, eswitch="switchdev"), [OFF, SWITCHDEV, SetVfs(4), ON]),
        (pf(driver="ice", vfs=vfs(4)), wanted(vfs=4, eswitch="switchdev"), [OFF, SetVfs(0), SWITCHDEV, SetVfs(4), ON]),
        (pf(driver="ice", vfs=vfs(4)), wanted(eswitch="switchdev"), [OFF, SetVfs(0), SWITCHDEV, SetVfs(4), ON]),
        (pf(), wanted(vfs=4, eswitch="switchdev", vfs_first=False), [OFF, SWITCHDEV, SetVfs(4), ON]),
        (pf(driver="ice"), wanted(vfs=4, eswitch="switchdev", vfs_first=True), [OFF, SetVfs(4), SWITCHDEV, ON]),
        (pf(), wanted(eswitch="switchdev"), [SWITCHDEV]),
        # the device is made anew by the change of mode, so its MTU is set though it looked right
        (pf(mtu=9000), wanted(eswitch="switchdev", mtu=9000), [SWITCHDEV, SetMtu(9000)]),
        # no eswitch at all counts as legacy
        (pf(driver="igb", eswitch=None), wanted(vfs=2, eswitch="legacy"), [OFF, SetVfs(2), ON]),
        # VFs in use suffer from nothing that is planned
        (pf(vfs=vfs(2, user="pod a/b")), wanted(vfs=2, mtu=9000), [SetMtu(9000)]),
    ],
)
def test_card_steps(state: PfState, declared: PhysicalFunction, expected: list[Step]) -> None:
    assert list(plan_card(state, declared)) == expected


@pytest.mark.parametrize(
    ("state", "declared", "says"),
    [
        (pf(), wanted(vfs=9), "9 VFs are declared, the card has at most 8"),
        (pf(eswitch=None), wanted(eswitch="switchdev"), "driver mlx5_core offers no eswitch"),
        (pf(netdev=""), wanted(mtu=9000), "no network device here"),
        (
            pf(vfs=vfs(1, user="pod ns/web")),
            wanted(vfs=4),
            "VFs 1 -> 4 is declared: in use are VF 0 (0000:03:00.2) by pod ns/web; drain the node first",
        ),
        (
            pf(vfs=vfs(1, user="a VM, which has VFIO group 12 open")),
            wanted(eswitch="switchdev"),
            "eswitch legacy -> switchdev is declared",
        ),
    ],
)
def test_refused(state: PfState, declared: PhysicalFunction, says: str) -> None:
    with pytest.raises(PreparationError) as caught:
        plan_card(state, declared)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("found", "declared", "expected"),
    [
        (vfs(2), wanted(), []),
        (vfs(2, driver=""), wanted(), [Bind(0, ""), Bind(1, "")]),
        (vfs(2, driver=""), wanted(autoprobe=False), []),
        (vfs(1, driver=""), wanted(autoprobe=False, vf_driver="vfio-pci"), [Bind(0, "vfio-pci")]),
        (vfs(2), wanted(vf_driver="vfio-pci"), [Bind(0, "vfio-pci"), Bind(1, "vfio-pci")]),
        (vfs(2, driver="vfio-pci"), wanted(vf_driver="vfio-pci"), []),
        (vfs(1, driver="vfio-pci"), wanted(), []),
        (vfs(2), wanted(mac_prefix="02:00:00:01"), []),
        (vfs(1), wanted(mac_prefix="02:BB:00:01"), [Unbind(0), SetMac(0, "02:bb:00:01:00:00"), Bind(0, "mlx5_core")]),
        (vfs(1, driver=""), wanted(mac_prefix="02:bb:00:01"), [SetMac(0, "02:bb:00:01:00:00"), Bind(0, "")]),
        (
            vfs(1, driver=""),
            wanted(mac_prefix="02:bb:00:01", autoprobe=False),
            [SetMac(0, "02:bb:00:01:00:00")],
        ),
        (
            vfs(1),
            wanted(mac_prefix="02:bb:00:01", vf_driver="vfio-pci"),
            [Unbind(0), SetMac(0, "02:bb:00:01:00:00"), Bind(0, "vfio-pci")],
        ),
        (vfs(1, user="pod a/b"), wanted(mac_prefix="02:00:00:01"), []),
    ],
)
def test_function_steps(found: tuple[VfState, ...], declared: PhysicalFunction, expected: list[Step]) -> None:
    assert list(plan_functions(pf(vfs=found), declared)) == expected


@pytest.mark.parametrize("declared", [wanted(vf_driver="vfio-pci"), wanted(mac_prefix="02:bb:00:01")])
def test_a_used_function_keeps_driver_and_mac(declared: PhysicalFunction) -> None:
    with pytest.raises(PreparationError, match=r"VF 0 \(0000:03:00.2\) is in use by pod ns/web"):
        plan_functions(pf(vfs=vfs(1, user="pod ns/web")), declared)


def test_macs_count_by_index() -> None:
    assert vf_mac("02:AA:bb:00", 258) == "02:aa:bb:00:01:02"
    assert vf_mac("", 3) == ""
