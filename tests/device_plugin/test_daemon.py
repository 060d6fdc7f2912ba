"""The program itself: its configuration file, its readiness, its end."""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

CONFIGURATION = """
pools:
  - name: vf
    selectors:
      - vendors: ["15b3"]
        pfs: ["ens1f0np0#0-7"]
physical_functions:
  - pf: "0000:77:00.0"
    vfs: 8
device_info_directory: ""
"""


async def launched(machine: Any, directory: Path, text: str) -> asyncio.subprocess.Process:
    configuration = machine.root / "configuration.yaml"
    configuration.write_text(text)
    settings = {
        "plugins_directory": directory,
        "sysfs": machine.sysfs_root,
        "procfs": machine.procfs,
        "http": f"unix:{machine.root}/http.sock",
    }
    arguments = [argument for name, value in settings.items() for argument in ("--set", f"{name}={value}")]
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "cni.device_plugin.app",
        "--config",
        str(configuration),
        *arguments,
        stderr=asyncio.subprocess.PIPE,
    )


async def readiness(machine: Any) -> tuple[int, str]:
    connector = aiohttp.UnixConnector(str(machine.root / "http.sock"))
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://x/readyz") as answer:
        return answer.status, await answer.text()


@pytest.mark.root
async def test_from_configuration_to_the_end(machine: Any, kubelet: Any) -> None:
    machine.pf("0000:03:00.0", vfs=["0000:03:00.2"])
    machine.netdev("ens1f0np0", "0000:03:00.0")
    daemon = await launched(machine, kubelet.directory, CONFIGURATION)
    try:
        await kubelet.until("dpu-offload.io/vf", {"0000:03:00.2": "Healthy"}, seconds=40)
        status, text = await readiness(machine)
        assert status == 503
        assert "0000:77:00.0" in text, "a card that could not be prepared must show"
        daemon.send_signal(signal.SIGTERM)
        assert await asyncio.wait_for(daemon.wait(), 40) == 0
        assert kubelet.lists["dpu-offload.io/vf"] == [1, 0]
    finally:
        if daemon.returncode is None:
            daemon.kill()
        await daemon.communicate()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("pools: [{name: vf, selectors: [{pfs: ['ens1#7-3']}]}]", "'7-3' is no range of VF indexes"),
        ("pools: [{name: vf, selectors: [{vendor: ['15b3']}]}]", "unknown key pools.0.selectors.0.vendor"),
        ("pools: [{name: vf, selectors: []}]", "selectors"),
        ("resource_domain: Example_Com", "resource_domain"),
        ("pools: [{name: kubernetes.io/vf, selectors: [{}]}]", "kubelet takes no resource below kubernetes.io"),
        ("pools: [{name: vf, selectors: [{}]}, {name: vf, selectors: [{}]}]", "declared more than once"),
        ("physical_functions: [{pf: p0, mac_prefix: '01:00:00:00'}]", "mac_prefix"),
    ],
)
async def test_a_mistake_is_one_sentence(machine: Any, tmp_path: Path, text: str, says: str) -> None:
    daemon = await launched(machine, tmp_path, text)
    _, errors = await asyncio.wait_for(daemon.communicate(), 40)
    assert daemon.returncode == 1
    assert says in errors.decode()
    assert "Traceback" not in errors.decode()
