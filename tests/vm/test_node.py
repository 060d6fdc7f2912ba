"""cni-node with a SmartNIC of its own: VFs go to pods and come back, and their flows run in the card."""

from __future__ import annotations

from typing import Any

import pytest
import pytest_asyncio

from tests.vm.machine import NODE, SMARTNIC, Machine

pytestmark = [pytest.mark.vm, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(300)]
FIRST, SECOND = "0000:01:10.0", "0000:01:10.2"


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def seen(machine: Machine) -> dict[str, Any]:
    await machine.prepare(pf=SMARTNIC, vfs=4, eswitch="switchdev", mac_prefix="02:d9:0a:01")
    # What comes back must be what was there, so it is not what drivers begin with.
    await machine.sh("ip link set labvf0 mtu 1700; ip link set labvf1 mtu 1600")
    found: dict[str, Any] = await machine.guest.script(NODE, FIRST, SECOND, seconds=280)
    return found


async def test_functions_go_to_pods_and_come_back_as_they_were(seen: dict[str, Any]) -> None:
    assert [link["name"] for link in seen["before"]] == ["labvf0", "labvf1"]
    assert [link["mac"] for link in seen["before"]] == ["02:d9:0a:01:00:00", "02:d9:0a:01:00:01"]
    assert [link["mtu"] for link in seen["before"]] == [1700, 1600]
    assert seen["during"] == [{}, {}]
    for link, mac in zip(seen["in pod"], seen["macs"], strict=False):
        assert (link["mac"], link["mtu"], link["up"]) == (mac, 1400, True)
    assert seen["results"][0]["interfaces"][-1]["pciID"] == FIRST
    assert seen["ping"]
    # The second pod's sandbox was gone before its DEL.
    assert seen["after"] == seen["before"]
    assert "rep" not in seen["ports after"]


async def test_flows_between_functions_are_in_hardware(seen: dict[str, Any]) -> None:
    first, second = seen["macs"][:2]
    for source, target in ((first, second), (second, first)):
        assert f"eth(src={source},dst={target}),eth_type(0x0800)" in seen["offloaded"]
        (flow,) = _unicast(seen["report"], source, target)
        assert flow["reason"] == ""
    assert seen["rules"] >= 2
    # cni-node itself has switched it on, in a running OVS.
    assert seen["offload"] == "ok"


async def test_a_flow_to_a_port_outside_the_card_says_so(seen: dict[str, Any]) -> None:
    first, _, plain = seen["macs"]
    assert seen["ping plain"]
    (out,) = _unicast(seen["report"], first, plain)
    assert f"goes to {out['to']}, which is no port of the switch" in out["reason"]
    (back,) = _unicast(seen["report"], plain, first)
    assert "which is no port of a card's switch" in back["reason"]
    assert plain not in seen["offloaded"]


async def test_a_full_card_is_named(seen: dict[str, Any]) -> None:
    first, second = seen["macs"][:2]
    assert seen["ping full"]
    (flow,) = _unicast(seen["report full"], first, second)
    assert "the card's driver refused the rule: its table is full" in flow["reason"]


def _unicast(report: list[dict[str, str]], source: str, target: str) -> list[dict[str, str]]:
    return [one for one in report if f"src={source},dst={target}" in one["match"] and "0x0800" in one["match"]]
