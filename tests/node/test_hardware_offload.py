"""hw-offload and tc-policy as configured: set in OVS' database, kept, and whether the running ovs-vswitchd follows."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from cni.node.attachments import AttachmentStore
from cni.node.hardware_offload import HardwareOffload, Wanted
from cni.node.netns import node_namespace
from cni.node.ovn_controller import OvnController
from cni.node.ovs_side import LocalOvsSide
from cni.node.representors import Representors
from cni.node.switch import Switch
from cni.node.switch_flows import SwitchFlows
from cni.node.vswitchd import Vswitchd
from foundation.ovsdb import fresh_name
from foundation.ovsdb import operations as op
from foundation.pci import Sysfs
from lab.network.commands import run

SCHEMA = "/usr/share/openvswitch/vswitch.ovsschema"


async def until(check: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not check():
            await asyncio.sleep(0.01)


@contextlib.asynccontextmanager
async def ovs(directory: Path, *, datapath: str) -> AsyncIterator[Switch]:
    """OVS' database with an integration bridge; ovs-vswitchd is only the file that its control socket would be."""
    await run("ovsdb-tool", "create", directory / "conf.db", SCHEMA)
    server = await asyncio.create_subprocess_exec(
        "ovsdb-server",
        str(directory / "conf.db"),
        f"--remote=punix:{directory}/db.sock",
        f"--unixctl={directory}/ovsdb.ctl",
        f"--log-file={directory}/ovsdb.log",
        "-vconsole:off",
    )
    switch = Switch(f"unix:{directory}/db.sock")
    try:
        await switch.start(deadline=30)
        bridge = fresh_name()
        await switch.session.transact(
            op.insert("Bridge", {"name": "br-int", "datapath_type": datapath}, uuid_name=bridge),
            op.insert("Open_vSwitch", {"bridges": bridge, "other_config": {"max-idle": "9000"}}),
        )
        (directory / "ovs-vswitchd.7.ctl").touch()
        yield switch
    finally:
        await switch.stop()
        server.terminate()
        await server.wait()


@contextlib.asynccontextmanager
async def keeping(
    switch: Switch, directory: Path, *, hardware: Wanted, policy: str = ""
) -> AsyncIterator[tuple[HardwareOffload, list[str]]]:
    told: list[str] = []
    node = node_namespace("")
    vswitchd, sysfs = Vswitchd(directory), Sysfs(directory)
    flows = SwitchFlows(switch, vswitchd, lambda _: "")
    side = LocalOvsSide(
        switch,
        Representors(sysfs),
        node,
        representor_seconds=1.0,
        vswitchd=vswitchd,
        flows=flows,
        controller=OvnController(directory),
    )
    kept = HardwareOffload(
        switch,
        vswitchd,
        node,
        store=AttachmentStore(directory / "attachments"),
        ovs=side,
        hardware=hardware,
        tc_policy=policy,
        changed=told.append,
    )
    task = asyncio.create_task(kept.run())
    try:
        yield kept, told
    finally:
        task.cancel()
        await asyncio.wait({task})
        node.close()


async def set_by_hand(switch: Switch, value: str) -> None:
    await switch.change_settings({"hw-offload": value}, {})


async def test_settings_are_set_and_kept(tmp_path: Path) -> None:
    async with (
        ovs(tmp_path, datapath="system") as switch,
        keeping(switch, tmp_path, hardware="on", policy="skip_sw") as (
            kept,
            told,
        ),
    ):
        await until(lambda: switch.setting("hw-offload") == "true")
        assert switch.setting("tc-policy") == "skip_sw"
        assert switch.setting("max-idle") == "9000"
        assert SwitchFlows(switch, Vswitchd(tmp_path), lambda _: "").settings().policy == "skip_sw"
        await until(lambda: told == [""])
        assert kept.problem() == ""
        await set_by_hand(switch, "false")
        await until(lambda: switch.setting("hw-offload") == "true")


async def test_a_change_that_needs_a_restart_says_so_until_it_came(tmp_path: Path) -> None:
    async with ovs(tmp_path, datapath="system") as switch:
        await set_by_hand(switch, "true")
        async with keeping(switch, tmp_path, hardware="on", policy="skip_hw") as (kept, told):
            await until(lambda: "restart it so that hw-offload=true, tc-policy=skip_hw" in kept.problem())
        # A cni-node started later knows it too.
        async with keeping(switch, tmp_path, hardware="on", policy="skip_hw") as (kept, told):
            await until(lambda: bool(told))
            (tmp_path / "ovs-vswitchd.7.ctl").unlink()
            (tmp_path / "ovs-vswitchd.8.ctl").touch()
            # What a starting ovs-vswitchd does first.
            await switch.session.transact(op.update("Open_vSwitch", [], {"ovs_version": "3.1.0"}))
            await until(lambda: told[-1] == "")


async def test_a_datapath_that_no_card_takes_is_told(tmp_path: Path) -> None:
    async with ovs(tmp_path, datapath="netdev") as switch, keeping(switch, tmp_path, hardware="on") as (kept, told):
        await until(lambda: bool(told))
        assert "OVS' own datapath" in kept.problem()
        assert told == [kept.problem()]


async def test_nothing_configured_changes_nothing(tmp_path: Path) -> None:
    async with ovs(tmp_path, datapath="netdev") as switch, keeping(switch, tmp_path, hardware="") as (kept, told):
        await asyncio.sleep(0.1)
        assert (switch.setting("hw-offload"), kept.problem(), told) == ("", "", [])
