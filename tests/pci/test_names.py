"""Addresses, port names and vital product data are parsed as their drivers and the PCI specification write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.pci.address import PciAddress, normalised
from foundation.pci.errors import BadAddress
from foundation.pci.nvme import disk_of, is_disk
from foundation.pci.ports import PortName, parse_port_name
from foundation.pci.vpd import parse


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("p0", PortName("uplink", 0)),
        ("p1", PortName("uplink", 1)),
        ("p0s1", PortName("uplink", 0)),
        ("pf0", PortName("pf", 0, -1, 0, False)),
        ("c1pf0", PortName("pf", 0, -1, 1, True)),
        ("pf0vf3", PortName("vf", 0, 3, 0, False)),
        ("c1pf0vf3", PortName("vf", 0, 3, 1, True)),
        ("c2pf13vf127", PortName("vf", 13, 127, 2, True)),
        ("pf0sf1", PortName("sf", 0, 1, 0, False)),
        ("1", None),
        ("", None),
        ("pf0vf", None),
        ("c1p0", None),
        ("pf0vf3x", None),
    ],
)
def test_port_names(text: str, expected: PortName | None) -> None:
    assert parse_port_name(text) == expected


@given(st.integers(0, 0xFFFF), st.integers(0, 255), st.integers(0, 31), st.integers(0, 7))
def test_addresses_survive_writing_and_reading(domain: int, bus: int, device: int, function: int) -> None:
    address = PciAddress(domain, bus, device, function)
    assert PciAddress.parse(str(address)) == address


def test_a_short_address_gets_domain_zero() -> None:
    assert normalised("3B:00.2") == "0000:3b:00.2"


@pytest.mark.parametrize(
    "text", ["", "0000:03:00", "0000:03:00.8", "0000:03:20.0", "../../etc", "0000:03:00.0/..", "eth0"]
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(BadAddress, match="is no PCI address"):
        PciAddress.parse(text)


def _keyword(name: bytes, value: bytes) -> bytes:
    return name + bytes([len(value)]) + value


def _resource(tag: int, body: bytes) -> bytes:
    return bytes([tag]) + len(body).to_bytes(2, "little") + body


VPD = (
    _resource(0x82, b"DPU NVMe function\0\0")
    + _resource(0x90, _keyword(b"PN", b"MBF3") + _keyword(b"VU", b"MT2251XZNVMES0D0F2\0") + _keyword(b"RV", b"\xff\0"))
    + b"\x78"
)


def test_the_vuid_is_found_in_vital_product_data() -> None:
    vpd = parse(VPD)
    assert (vpd.name, vpd.vuid, vpd.fields["PN"]) == ("DPU NVMe function", "MT2251XZNVMES0D0F2", "MBF3")
    assert "RV" not in vpd.fields


@given(st.integers(0, len(VPD)), st.binary(max_size=40))
def test_damaged_vital_product_data_never_raises(cut: int, noise: bytes) -> None:
    parse(VPD[:cut] + noise)


def test_a_cut_value_is_not_taken_for_a_whole_one() -> None:
    cut = VPD.index(b"XZNVMES")
    assert parse(VPD[:cut]).vuid == ""


@pytest.mark.parametrize(
    ("name", "disk"),
    [("nvme0n1", "nvme0n1"), ("nvme2c1n3", "nvme2n3"), ("nvme0n1p1", ""), ("nvme0", ""), ("hwmon3", "")],
)
def test_disk_names(name: str, disk: str) -> None:
    assert disk_of(name) == disk
    assert is_disk(name) == (name == disk)
