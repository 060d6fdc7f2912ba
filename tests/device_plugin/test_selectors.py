"""Which functions selectors mean, in tables."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.device_plugin.candidates import Candidate, Physical, is_vfio
from cni.device_plugin.config import Pool, Selector
from cni.device_plugin.errors import BadSelector
from cni.device_plugin.pools import Pools
from cni.device_plugin.routes import ipv4, ipv6
from cni.device_plugin.selectors import Matcher, PfChoice
from foundation.pci import PciFunction

PF = "0000:03:00.0"


def vf(index: int = 0, **fields: Any) -> Candidate:
    function = {
        "address": f"0000:03:{(index + 2) >> 3:02x}.{(index + 2) & 7}",
        "vendor": 0x15B3,
        "device": 0x101E,
        "class_code": 0x020000,
        "driver": "mlx5_core",
        "numa_node": 1,
        "is_vf": True,
        "pf": PF,
        "vf_index": index,
    }
    return Candidate(
        PciFunction(**{**function, **fields}), Physical(PF, netdev="ens1f0np0", operstate="up", link_type="ether")
    )


def pf(*, vfs: int = 0, default_route: bool = False, carries: tuple[str, ...] = (), **fields: Any) -> Candidate:
    function = {"address": PF, "vendor": 0x15B3, "device": 0xA2DC, "class_code": 0x020000, "driver": "mlx5_core"}
    return Candidate(
        PciFunction(**{**function, "vf_count": vfs, **fields}),
        Physical(PF, netdev="ens1f0np0", operstate="up"),
        carries_default_route=default_route,
        carries=carries,
    )


@pytest.mark.parametrize(
    ("selector", "candidate", "expected"),
    [
        ({}, vf(), True),
        ({}, pf(), False),
        ({"functions": "pf"}, pf(), True),
        ({"functions": "pf"}, pf(vfs=4), False),
        ({"functions": "any"}, pf(default_route=True), False),
        ({"functions": "any"}, pf(carries=("bond0",)), False),
        ({"functions": "pf"}, vf(), False),
        ({"vendors": ("15B3",)}, vf(), True),
        ({"vendors": ("0x15b3", "8086")}, vf(), True),
        ({"vendors": ("8086",)}, vf(), False),
        ({"devices": ("101e",)}, vf(), True),
        ({"devices": ("1018",)}, vf(), False),
        ({"vendors": ("15b3",), "devices": ("1018",)}, vf(), False),
        ({}, vf(class_code=0x010802), False),
        ({"classes": ("0108",)}, vf(class_code=0x010802), True),
        ({"classes": ("03", "0x0302")}, vf(class_code=0x030200), True),
        ({"classes": ()}, vf(class_code=0x120000), True),
        ({"numa_nodes": (0,)}, vf(), False),
        ({"numa_nodes": (-1, 1)}, vf(), True),
        ({"link_types": ("ether",)}, vf(), True),
        ({"link_types": ("infiniband",)}, vf(), False),
        ({"addresses": ("03:00.2",)}, vf(), True),
        ({"addresses": ("0000:03:00.3",)}, vf(), False),
        ({"pfs": ("ens1f0np0",)}, vf(7), True),
        ({"pfs": ("ens1f1np1",)}, vf(7), False),
        ({"pfs": ("0000:03:00.0",)}, vf(7), True),
        ({"pfs": ("03:00.0#7",)}, vf(7), True),
        ({"pfs": ("ens1f0np0#0-6,8-9",)}, vf(7), False),
        ({"pfs": ("ens1f0np0#0-6,8-9", "ens1f0np0#7")}, vf(7), True),
    ],
)
def test_a_selector_matches(selector: dict[str, Any], candidate: Candidate, expected: bool) -> None:
    assert Matcher(Selector(**selector)).matches(candidate) is expected


@pytest.mark.parametrize(
    "text", ["", "#1", "ens1f0#", "ens1f0#a", "ens1f0#3-1", "ens1f0#1-", "ens1f0#1,,2", "ens1f0#-1"]
)
def test_a_bad_choice_of_pfs_is_refused(text: str) -> None:
    with pytest.raises(BadSelector, match="expected a form like"):
        Matcher(Selector(pfs=(text,)))


@pytest.mark.parametrize("text", ["0000:zz:00.0", "03:00.9", "ens1f0/1", "a" * 16, "two words", "."])
def test_a_pf_that_can_be_no_device_is_refused(text: str) -> None:
    with pytest.raises(BadSelector, match="neither a PCI address nor the name of a network device"):
        Matcher(Selector(pfs=(text,)))


def test_a_bad_address_is_refused() -> None:
    with pytest.raises(BadSelector, match="no PCI address"):
        Matcher(Selector(addresses=("eth0",)))


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 30)), min_size=1), st.integers(0, 600))
def test_ranges_are_inclusive(ranges: list[tuple[int, int]], index: int) -> None:
    text = ",".join(str(first) if not length else f"{first}-{first + length}" for first, length in ranges)
    covered = any(first <= index <= first + length for first, length in ranges)
    assert PfChoice.parse(f"ens1f0np0#{text}").matches(vf(index)) is covered


@pytest.mark.parametrize(
    ("driver", "expected"),
    [
        ("vfio-pci", True),
        ("mlx5_vfio_pci", True),
        ("vfio_pci", True),
        ("nvgrace-gpu-vfio-pci", True),
        ("mlx5_core", False),
    ],
)
def test_vfio_drivers(driver: str, expected: bool) -> None:
    assert is_vfio(driver) is expected


def divided(pools: Pools, *candidates: Candidate) -> dict[str, dict[str, str]]:
    """{resource: {address: reason}}"""
    found = pools.divide({candidate.address: candidate for candidate in candidates})
    return {resource: {device.id: device.reason for device in devices} for resource, devices in found.items()}


NET = Pool(name="net", selectors=(Selector(),))
VM = Pool(name="vm", selectors=(Selector(),), use="vfio")


def test_the_first_pool_that_fits_has_the_function() -> None:
    some = Pool(name="some", selectors=(Selector(pfs=("ens1f0np0#0",)),))
    assert divided(Pools((some, NET), domain="d"), vf(0), vf(1)) == {
        "d/some": {vf(0).address: ""},
        "d/net": {vf(1).address: ""},
    }


def test_use_decides_between_pools_that_both_select() -> None:
    bound = vf(1, driver="vfio-pci", iommu_group=7)
    assert divided(Pools((NET, VM), domain="d"), vf(0), bound) == {
        "d/net": {vf(0).address: ""},
        "d/vm": {bound.address: ""},
    }


def test_an_unbound_function_stays_in_its_pool() -> None:
    pools = Pools((NET, VM), domain="d")
    group = {"iommu_group": 7}
    divided(pools, vf(0, driver="vfio-pci", **group))
    unbound = divided(pools, vf(0, driver="", **group))
    assert unbound == {"d/net": {}, "d/vm": {vf(0).address: "no driver is bound, pool vm needs vfio-pci"}}
    assert divided(pools, vf(0, **group))["d/net"] == {vf(0).address: ""}, "now it fits another pool fully"


def test_a_named_driver_that_went_keeps_the_function() -> None:
    pools = Pools((Pool(name="vm", selectors=(Selector(drivers=("vfio-pci",)),), use="vfio"),), domain="d")
    assert divided(pools, vf(0)) == {"d/vm": {}}, "mlx5_core was not asked for"
    divided(pools, vf(0, driver="vfio-pci", iommu_group=7))
    assert divided(pools, vf(0, iommu_group=7))["d/vm"] == {vf(0).address: "bound to mlx5_core, pool vm needs vfio-pci"}


def test_a_pool_declared_twice_is_refused() -> None:
    with pytest.raises(BadSelector, match=r"declared more than once: d/net"):
        Pools((NET, Pool(name="d/net", selectors=(Selector(),))), domain="d")


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (("vf.fast", "vf_fast"), "d/vf_fast and d/vf.fast are both d/vf_fast to CDI"),
        (("100g",), "d/100g: a pool with cdi begins its domain and its name with a letter"),
        (("3com.io/vf",), "3com.io/vf: a pool with cdi begins"),
    ],
)
def test_names_that_cdi_cannot_tell_or_take_are_refused(names: tuple[str, ...], says: str) -> None:
    with pytest.raises(BadSelector, match=says):
        Pools([Pool(name=name, selectors=(Selector(),), cdi=True) for name in names], domain="d")
    assert Pools([Pool(name=name, selectors=(Selector(),)) for name in names], domain="d").resources


@pytest.mark.parametrize(
    "pool",
    [
        {"name": "a..b/vf"},
        {"name": "-a.b/vf"},
        {"name": f"{'a' * 245}/vf"},
        {"name": "vf", "nodes": ["/etc/shadow"]},
        {"name": "vf", "nodes": ["/dev/../etc/shadow"]},
        {"name": "vf", "mounts": [{"host": "hugepages", "container": "/dev/hugepages"}]},
        {"name": "vf", "mounts": [{"host": "/dev/hugepages", "container": ""}]},
    ],
)
def test_odd_pools_are_refused(pool: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError, match="matching regex"):
        msgspec.convert({"selectors": [{}], **pool}, Pool)


def test_usual_pools_are_taken() -> None:
    for name in ("vf", "nvidia.com/vf_1.x", f"{'a' * 244}/vf"):
        assert msgspec.convert({"selectors": [{}], "name": name, "nodes": ["/dev/vhost-net", "net/tun"]}, Pool).name


def test_default_routes() -> None:
    assert ipv4(
        [
            "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT",
            "ens1f0np0\t00000000\t0101A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0",
            "ens1f1np1\t0001A8C0\t00000000\t0001\t0\t0\t100\t00FFFFFF\t0\t0\t0",
        ]
    ) == {"ens1f0np0"}
    zeros = "0" * 32
    assert ipv6(
        [
            f"{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 00000003 ens1f0np0",
            f"fe800000000000000000000000000000 40 {zeros} 00 {zeros} 00000100 00000001 00000000 00000001 ens1f1np1",
            f"{zeros} 00 {zeros} 00 {zeros} ffffffff 00000001 00000000 00200200 lo",
        ]
    ) == {"ens1f0np0"}
