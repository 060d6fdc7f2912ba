"""Backends by entry point and section: one clear sentence for each mistake in the configuration."""

from typing import Any

import pytest

from csi.framework.backends.spdk import BACKEND, SpdkBackend
from csi.framework.registry import BadSection, Registry, discover

POOL = {
    "address": "unix:/run/x.sock",
    "lvstore": "l",
    "portals": [{"transport": "tcp", "address": "::1", "port": 4420}],
}
GOOD = {"pools": {"a": POOL}}
KINDS = {"spdk": BACKEND}


def test_built_in_backends_are_found_by_entry_point() -> None:
    assert discover()["spdk"] is BACKEND


def test_a_section_names_its_kind_or_is_named_after_it() -> None:
    registry = Registry.open({"fast": {"kind": "spdk", **GOOD}, "spdk": GOOD}, kinds=KINDS)
    assert registry.default == "fast"
    assert isinstance(registry.backends["fast"], SpdkBackend)
    assert registry.backends["fast"].name == "fast"
    assert registry.kinds["spdk"] is BACKEND


@pytest.mark.parametrize(
    ("sections", "default", "words"),
    [
        ({}, "", "at least one storage backend"),
        ({"spkd": GOOD}, "", "did you mean 'spdk'?"),
        ({"Fast!": {"kind": "spdk", **GOOD}}, "", "a letter first"),
        ({"spdk": {"pool": {}}}, "", "did you mean 'pools'?"),
        ({"spdk": {}}, "", "pools"),
        ({"spdk": GOOD}, "other", "default_backend"),
        ({"spdk": {"pools": {"a": {**POOL, "portals": [{"transport": "fc", "address": "x", "port": 1}]}}}}, "", "fc"),
        ({"spdk": {"pools": {"A": POOL}}}, "", "pools.A"),
        ({"spdk": {"pools": {"a": {**POOL, "address": "nonsense"}}}}, "", "nonsense"),
        ({"spdk": {"pools": {"a": {**POOL, "portals": []}}}}, "", "portals"),
        ({"spdk": {"pools": {}}}, "", "pool"),
    ],
)
def test_refused(sections: dict[str, dict[str, Any]], default: str, words: str) -> None:
    with pytest.raises(BadSection) as caught:
        Registry.open(sections, default=default, kinds=KINDS)
    assert words in str(caught.value)
