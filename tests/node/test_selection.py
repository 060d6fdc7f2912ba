"""Which attachment an interface is: as Multus counts a pod's networks, and as cni-controller keys what it assigns."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.controller.model.network import wishes
from cni.controller.translate.network import port_name as controllers_name
from cni.node.assignment import Assignment, port_name
from cni.node.selection import attachment_key

LONG = json.dumps(
    [
        {"name": "lan"},
        {"name": "lan", "namespace": "ns", "interface": "blue"},
        {"name": "lan", "namespace": "other"},
        {"name": "lan"},
    ]
)


@pytest.mark.parametrize(
    ("text", "network", "ifname", "expected"),
    [
        ("", "ns/lan", "net1", "ns/lan"),
        ("lan", "ns/lan", "net1", "ns/lan"),
        ("lan, lan", "ns/lan", "net2", "ns/lan/1"),
        ("lan@a,ns/lan@b,ns/lan", "ns/lan", "b", "ns/lan/1"),
        ("lan@a,ns/lan@b,ns/lan", "ns/lan", "net3", "ns/lan/2"),
        (LONG, "ns/lan", "net1", "ns/lan"),
        (LONG, "ns/lan", "blue", "ns/lan/1"),
        (LONG, "ns/lan", "net4", "ns/lan/2"),
        (LONG, "other/lan", "net3", "other/lan"),
        (LONG, "ns/lan", "eth7", "ns/lan"),
        ("[" * 100_000, "ns/lan", "net1", "ns/lan"),
        ('[{"name": 1}]', "ns/lan", "net1", "ns/lan"),
        ("default,default", "default", "eth0", "default"),
    ],
)
def test_the_key_of_an_interface(text: str, network: str, ifname: str, expected: str) -> None:
    assert attachment_key(text, namespace="ns", network=network, ifname=ifname) == expected


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["", "ns", "other"])), max_size=6))
def test_it_is_the_key_that_the_controller_gives(selected: list[tuple[str, str]]) -> None:
    text = json.dumps([{"name": name, "namespace": namespace} for name, namespace in selected])
    for place, wish in enumerate(wishes(text, "ns"), start=1):
        key = attachment_key(text, namespace="ns", network=wish.network, ifname=f"net{place}")
        assert key == wish.key
        ours = port_name(Assignment(), network=key, namespace="ns", pod="p")
        assert ours == controllers_name("ns", "p", wish.network, wish.index)
