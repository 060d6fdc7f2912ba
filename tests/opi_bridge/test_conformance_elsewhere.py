"""The conformance suite as somebody else runs it: `pytest --pyargs`, in a directory of its own, over the network."""

import asyncio
import sys
from pathlib import Path

import pytest

from lab.certificates import Authority
from lab.ports import free_port
from opi_bridge.config import TlsConfig
from tests.dpu_rig.rig import DpuRig, Pair

# A few of each file: the whole suite runs on this bridge in test_conformance*.py.
SOME = "(lives and NullVolume) or controller_first"


@pytest.mark.parametrize("secure", [False, True], ids=["socket", "mutual TLS"])
async def test_it_runs_from_anywhere(tmp_path: Path, pair: Pair, secure: bool) -> None:
    authority = Authority(tmp_path / "pki")
    own = authority.issue(node="dpu-1", component="opi-bridge")
    port = free_port()
    tls = TlsConfig(ca=str(own.ca), certificate=str(own.certificate), key=str(own.key))
    options = {"listen": f"127.0.0.1:{port}", "tls": tls} if secure else {}
    rig = DpuRig(tmp_path, pair, with_attacher=False, bridge_options=options)
    await rig.start()
    try:
        client = authority.issue(node="master", component="tester")
        words = ["--target", f"unix:{rig.bridge_socket}"]
        if secure:
            words = ["--target", f"127.0.0.1:{port}", "--target-ca", str(client.ca), "--target-key", str(client.key)]
            words += ["--target-certificate", str(client.certificate)]
            words += ["--target-name", "dpu-1.opi-bridge.dpu-offload.io"]
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        command = [sys.executable, "-m", "pytest", "--pyargs", "opi_bridge.conformance", *words, "-q", "-k", SOME]
        # Plug-ins that this interpreter has by chance have no part in it.
        command += ["--function", "0.1", "-p", "no:cacheprovider", "-p", "no:xdist", "-p", "no:hypothesispytest"]
        run = await asyncio.create_subprocess_exec(
            *command, cwd=elsewhere, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
        )
        output, _ = await run.communicate()
        assert run.returncode == 0, output.decode()
        assert "2 passed" in output.decode()
        assert await rig.leftovers() == {}
    finally:
        await rig.stop()
