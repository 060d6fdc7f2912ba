"""The offload report: flows as OVS prints them, the reason for each that is not in hardware, vswitchd's socket."""

import asyncio
import json
from pathlib import Path

import pytest

from cni.node.datapath import Flow, parse
from cni.node.errors import TryLater
from cni.node.offload import Count, Settings, reason, report
from cni.node.vswitchd import Vswitchd

ON = Settings(enabled=True)
SWITCHES = {"rep0": "02d9", "rep1": "02d9", "other": "03aa"}

# Three lines of `dpctl/dump-flows -m` of OVS 3.1 on the kernel datapath.
DUMP = (
    "ufid:e1f084bd-09f0-4426-bd38-033402db7de8, skb_priority(0/0),ct_state(0/0),recirc_id(0),dp_hash(0/0),"
    "in_port(rep0),packet_type(ns=0/0,id=0/0),eth(src=0a:58:0a:4d:00:0b,dst=0a:58:0a:4d:00:0c),eth_type(0x0800),"
    "ipv4(src=0.0.0.0/0.0.0.0,dst=0.0.0.0/0.0.0.0,proto=0/0,tos=0/0,ttl=0/0,frag=no), packets:4, bytes:336, "
    "used:0.153s, offloaded:yes, dp:tc, actions:rep1\n"
    "ufid:1edd5773-da75-482c-af74-c219f98feaf7, recirc_id(0),in_port(rep0),eth(src=0a:58:0a:4d:00:0b,"
    "dst=0a:58:0a:4d:00:0d),eth_type(0x0800), packets:9, bytes:500, used:0.160s, dp:tc, actions:veth9\n"
    "ufid:5ac36a44-e394-45ed-b72e-392bb796f553, recirc_id(0),in_port(veth9),eth_type(0x0806),arp(sip=10.77.0.13), "
    "packets:0, bytes:0, used:never, dp:ovs, actions:userspace(pid=4294967295,slow_path(action))\n"
    "\n"
)


def test_flows_are_read_as_printed() -> None:
    first, second, third = parse(DUMP)
    assert (first.in_port, first.outputs, first.packets, first.bytes) == ("rep0", ("rep1",), 4, 336)
    assert (first.layer, first.hardware) == ("tc", True)
    assert first.match.startswith("in_port(rep0),eth(src=0a:58:0a:4d:00:0b,dst=0a:58:0a:4d:00:0c),eth_type(0x0800)")
    assert (second.layer, second.hardware, second.outputs) == ("tc", False, ("veth9",))
    assert (third.layer, third.outputs) == ("ovs", ())


def test_actions_with_arguments_are_no_ports() -> None:
    line = (
        "recirc_id(0x3),in_port(rep0),ct_state(0x22/0x23), packets:1, bytes:1, used:never, dp:tc, "
        "actions:set(tunnel(tun_id=0x2,dst=192.0.2.2)),ct(zone=3,nat),pop_vlan,genev_sys_6081,recirc(0x4)"
    )
    (flow,) = parse(line)
    assert flow.outputs == ("genev_sys_6081",)
    assert flow.actions[:2] == ("set(tunnel(tun_id=0x2,dst=192.0.2.2))", "ct(zone=3,nat)")
    assert flow.match == "recirc_id(0x3),in_port(rep0),ct_state(0x22/0x23)"


def _flow(
    *actions: str, in_port: str = "rep0", layer: str = "tc", match: str = "in_port(rep0)", hardware: bool = False
) -> Flow:
    outputs = tuple(action for action in actions if "(" not in action and action != "drop")
    return Flow(match, in_port, actions, outputs, 1, 1, layer, hardware)


@pytest.mark.parametrize(
    ("flow", "settings", "words"),
    [
        (_flow("rep1", hardware=True), ON, ""),
        (_flow("rep1"), Settings(enabled=False), "hw-offload=true"),
        (_flow("rep1"), Settings(enabled=True, policy="skip_hw"), "skip_hw"),
        (_flow("userspace(pid=1,controller(reason=1))", layer="ovs"), ON, "ovs-vswitchd handles"),
        (_flow("rep0", in_port="veth9"), ON, "comes from veth9"),
        (_flow("rep1", "veth9"), ON, "goes to veth9"),
        (_flow("other"), ON, "goes to other"),
        (_flow("ct(zone=1)", "recirc(0x1)"), ON, "tracks connections"),
        (_flow("rep1", match="ct_state(0x22/0x22),in_port(rep0)"), ON, "tracks connections"),
        (_flow("rep1"), ON, "table is full"),
        (_flow("rep1", layer="ovs"), ON, "tc cannot express"),
        (_flow("genev_sys_6081"), ON, "driver refused"),
        (_flow("rep0", in_port="genev_sys_6081"), ON, "driver refused"),
        (_flow("drop"), ON, "driver refused"),
    ],
)
def test_reason(flow: Flow, settings: Settings, words: str) -> None:
    found = reason(flow, settings, lambda name: SWITCHES.get(name, ""))
    assert words in found
    assert bool(found) == bool(words)


def test_report_counts_what_enters_and_leaves_a_port() -> None:
    found = report("rep1", parse(DUMP), settings=ON, switch_of=lambda name: SWITCHES.get(name, ""))
    assert found.in_hardware
    assert (found.hardware, found.software) == (Count(1, 4, 336), Count())
    mixed = report("rep0", parse(DUMP), settings=ON, switch_of=lambda name: SWITCHES.get(name, ""))
    assert not mixed.in_hardware
    assert [one.flow.packets for one in mixed.flows] == [9, 4]
    assert mixed.software == Count(1, 9, 500)
    assert "veth9" in mixed.flows[0].reason
    assert not report("rep7", parse(DUMP), settings=ON, switch_of=lambda _: "").in_hardware


async def test_vswitchd_is_asked_over_its_control_socket(tmp_path: Path) -> None:
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = json.loads(await reader.readuntil(b"}"))
        asked.append((request["method"], request["params"]))
        error = None if request["method"] == "dpctl/dump-flows" else "unknown command"
        text = json.dumps({"id": 0, "result": DUMP if error is None else None, "error": error}).encode()
        writer.write(text[:100])
        await writer.drain()
        writer.write(text[100:])
        writer.close()

    with pytest.raises(TryLater, match="no control socket"):
        await Vswitchd(tmp_path).flows()
    (tmp_path / "ovs-vswitchd.1.ctl").touch()  # of a process that was killed
    (tmp_path / "ovs-vswitchd.pid").write_text("22\n")
    server = await asyncio.start_unix_server(answer, tmp_path / "ovs-vswitchd.22.ctl")
    async with server:
        assert len(await Vswitchd(tmp_path).flows()) == 3
        assert asked == [("dpctl/dump-flows", ["-m"])]
        with pytest.raises(TryLater, match="unknown command"):
            await Vswitchd(tmp_path).command("nonsense")
    (tmp_path / "ovs-vswitchd.pid").unlink()
    (tmp_path / "ovs-vswitchd.22.ctl").unlink(missing_ok=True)
    with pytest.raises(TryLater, match="does not answer"):
        await Vswitchd(tmp_path).flows()
