"""Which attachment an interface is: as Multus counts a pod's networks, and as cni-controller keys what it assigns."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.controller.model.network import wishes
from cni.node.assignment import Assignment, port_name
from cni.node.pods import key_of
from cni.selection import NETWORKS, selected
from foundation.kube.models.core import Pod
from foundation.kube.models.meta import ObjectMeta

LONG = json.dumps(
    [
        {"name": "lan"},
        {"name": "lan", "namespace": "ns", "interface": "blue"},
        {"name": "lan", "namespace": "other"},
        {"name": "lan"},
    ]
)


def asking(text: str) -> Pod:
    return Pod(metadata=ObjectMeta(name="p", namespace="ns", annotations={NETWORKS: text}))


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
    assert key_of(asking(text), network, ifname) == expected


@given(st.lists(st.tuples(st.sampled_from(["a", "b"]), st.sampled_from(["", "ns", "other"])), max_size=6))
def test_it_is_the_key_that_the_controller_gives(chosen: list[tuple[str, str]]) -> None:
    text = json.dumps([{"name": name, "namespace": namespace} for name, namespace in chosen])
    found = wishes(text, "ns")
    for place, wish in enumerate(found, start=1):
        assert key_of(asking(text), wish.network, f"net{place}") == wish.key
    ports = {port_name(Assignment(), network=wish.key, namespace="ns", pod="p") for wish in found}
    assert len(ports) == len(found) == len(selected(text, "ns"))


@pytest.mark.parametrize(
    ("key", "expected"), [("default", "ns_p"), ("ns/lan", "ns.lan_ns_p"), ("ns/lan/2", "ns.lan_ns_p_2")]
)
def test_port_names(key: str, expected: str) -> None:
    assert port_name(Assignment(), network=key, namespace="ns", pod="p") == expected
