"""Results, assignments, modes, link events, messages: the parts of cni-node that touch nothing."""

from __future__ import annotations

import struct
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cni.link.errors import BadMessage
from cni.node import link_events, links, result
from cni.node.assignment import ANNOTATION, AssignedRoute, Assignment, parse, port_name
from cni.node.attachments import Attachment, FunctionRef, Original, attachment_id
from cni.node.errors import BadConfiguration
from cni.node.link_messages import from_message, to_message
from cni.node.modes import MODES, Side
from cni.node.request import Bandwidth
from cni.node.result import Interface

PLAIN = Assignment(
    ips=("10.1.2.3/24", "fd00::3/64"), mac="0a:58:00:00:00:01", gateways=("10.1.2.1", "fd00::1"), mtu=1400
)


def test_each_mode_says_who_does_what() -> None:
    sides = {
        name: (mode.own.container, mode.own.ovs, mode.host.container, mode.host.ovs) for name, mode in MODES.items()
    }
    assert sides == {
        "default": (Side.LOCAL, Side.LOCAL, Side.ABSENT, Side.ABSENT),
        "host": (Side.LOCAL, Side.REMOTE, Side.ABSENT, Side.ABSENT),
        "dpu": (Side.LOCAL, Side.LOCAL, Side.REMOTE, Side.LOCAL),
    }
    assert [name for name, mode in MODES.items() if mode.has_switch] == ["default", "dpu"]
    assert [name for name, mode in MODES.items() if mode.needs_dpu] == ["host"]
    assert [name for name, mode in MODES.items() if mode.serves_host] == ["dpu"]


def test_gateways_become_default_routes_unless_a_route_says_so() -> None:
    assert PLAIN.all_routes() == (AssignedRoute("0.0.0.0/0", "10.1.2.1"), AssignedRoute("::/0", "fd00::1"))
    own = msgspec.structs.replace(PLAIN, routes=(AssignedRoute("0.0.0.0/0", "10.1.2.9"),))
    assert own.all_routes() == (AssignedRoute("::/0", "fd00::1"), AssignedRoute("0.0.0.0/0", "10.1.2.9"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("{}", None),
        ('{"default": {"ips": ["10.1.2.3/24"], "unknown": 1}}', Assignment(ips=("10.1.2.3/24",))),
        (
            '{"default": {"routes": [{"dest": "10.0.0.0/8", "nextHop": "10.1.2.1"}], "mtu": 1400}}',
            Assignment(routes=(AssignedRoute("10.0.0.0/8", "10.1.2.1"),), mtu=1400),
        ),
    ],
)
def test_assignments_are_read(text: str | None, expected: Assignment | None) -> None:
    assert parse({ANNOTATION: text} if text is not None else {}, "default") == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        '{"default": {"ips": ["10.1.2.300/24"]}}',
        '{"default": {"gateways": ["x"]}}',
        '{"default": {"routes": [{"dest": "10.1.2.3/24"}]}}',
        '{"default": {"mtu": "big"}}',
    ],
)
def test_malformed_assignments_are_refused(text: str) -> None:
    with pytest.raises(BadConfiguration, match="malformed"):
        parse({ANNOTATION: text}, "default")


def test_ports_are_named_by_pod_and_network() -> None:
    assert port_name(PLAIN, network="default", namespace="n", pod="p") == "n_p"
    assert port_name(PLAIN, network="a/blue", namespace="n", pod="p") == "a.blue_n_p"
    assert port_name(Assignment(port="vm-1"), network="default", namespace="n", pod="p") == "vm-1"


def test_a_chained_result_keeps_what_came_before() -> None:
    previous = {
        "interfaces": [{"name": "lo"}],
        "ips": [{"address": "127.0.0.1/8", "interface": 0}],
        "routes": [{"dst": "1.0.0.0/8"}],
        "dns": {"search": ["x"]},
    }
    interfaces = (Interface(name="dpo1"), Interface(name="eth0", mac="m", sandbox="/s"))
    built = result.build(version="1.0.0", interfaces=interfaces, assignment=PLAIN, previous=previous)
    assert [one["name"] for one in built["interfaces"]] == ["lo", "dpo1", "eth0"]
    assert [(one["address"], one["interface"]) for one in built["ips"]] == [
        ("127.0.0.1/8", 0),
        ("10.1.2.3/24", 2),
        ("fd00::3/64", 2),
    ]
    assert [one["dst"] for one in built["routes"]] == ["1.0.0.0/8", "0.0.0.0/0", "::/0"]
    assert built["dns"] == {"search": ["x"]}


def _attachment(**more: Any) -> Attachment:
    return Attachment(
        **{
            "id": attachment_id("c", "eth0"),
            "generation": 7,
            "phase": "ready",
            "kind": "vf",
            "container_id": "c",
            "ifname": "eth0",
            "network": "default",
            "pod_namespace": "n",
            "pod_name": "p",
            "pod_uid": "u",
            "port": "n_p",
            "assignment": Assignment(ips=("10.1.2.3/24",), mac="0a:58:00:00:00:01", mtu=1400),
            "function": FunctionRef(address="0000:03:00.2", pf=1, vf=3, card="SN1"),
            "bandwidth": Bandwidth(ingress_rate=5),
        }
        | more
    )


def test_attachments_survive_the_link() -> None:
    sent = _attachment()
    got = from_message(to_message(sent), host="node-host")
    assert got == msgspec.structs.replace(sent, host="node-host", phase="adding", ifname="")


@pytest.mark.parametrize("field", ["id", "pod_namespace", "pod_name", "port", "sandbox", "network", "function"])
def test_incomplete_messages_are_refused(field: str) -> None:
    message = to_message(_attachment())
    message.ClearField(field)  # type: ignore[arg-type]  # one of a closed set of names
    with pytest.raises(BadMessage):
        from_message(message, host="node-host")


def test_marks_say_whose_a_link_is_and_how_it_was() -> None:
    original = Original("ens1f0v3", "02:00:00:00:00:01", 1500)
    assert links.marked(links.mark("0123", original)) == ("0123", original)
    assert links.marked(links.mark("0123")) == ("0123", None)
    assert links.marked("") is None
    assert links.marked("somebody's alias") is None


@given(st.text(max_size=60))
def test_foreign_aliases_never_count_as_ours(alias: str) -> None:
    found = links.marked(alias)
    assert found is None or alias.startswith("dpu-offload:")


def _message(kind: int, index: int, *, flags: int = 0, **attributes: bytes) -> bytes:
    numbers = {"name": 3, "mtu": 4, "alias": 20, "switch": 36, "port": 38}
    body = struct.pack("=BxHiII", 0, 1, index, flags, 0)
    for key, value in attributes.items():
        raw = struct.pack("=HH", 4 + len(value), numbers[key]) + value
        body += raw + b"\0" * (-len(raw) % 4)
    return struct.pack("=IHHII", 16 + len(body), kind, 0, 0, 0) + body


def test_link_events_are_read_from_netlink() -> None:
    data = _message(16, 5, name=b"pf0vf3\0", switch=b"\xe2\xa1", port=b"c1pf0vf3\0") + _message(17, 6, name=b"x\0")
    data += _message(16, 7, flags=0x1003, name=b"y\0", mtu=struct.pack("=I", 9000))
    assert list(link_events.parse(data)) == [
        link_events.LinkEvent(index=5, name="pf0vf3", gone=False, switch_id="e2a1", port_name="c1pf0vf3"),
        link_events.LinkEvent(index=6, name="x", gone=True),
        link_events.LinkEvent(index=7, name="y", gone=False, up=True, mtu=9000),
    ]


@given(st.binary(max_size=120), st.integers(0, 80))
def test_damaged_netlink_messages_never_raise(noise: bytes, cut: int) -> None:
    list(link_events.parse(_message(16, 5, name=b"pf0vf3\0")[:cut] + noise))
