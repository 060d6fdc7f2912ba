"""The CNI specification's cases against the installed binary, through the real cnitool where it is installed.

Without cnitool (`go install github.com/containernetworking/cni/cnitool@latest`) the same calls are made directly, as
libcni would make them. Figures go to cni_conformance.json.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from benchmarks import report
from lab.network import namespaces
from lab.network.commands import ip
from tests.node.stage import BINARY, DEFAULT, DPU, HOST, ROOT, Answer, Pod, Stage, vf_address

pytestmark = [pytest.mark.root, pytest.mark.asyncio(loop_scope="session")]

CNITOOL = shutil.which("cnitool", path=f"{os.environ.get('PATH', '')}:{ROOT}/build/bin:{Path.home()}/go/bin")
_ran: dict[str, bool] = {}


@pytest_asyncio.fixture(scope="module", loop_scope="session", autouse=True)
async def figures(stage: Stage) -> AsyncIterator[None]:
    await stage.settled()
    yield
    passed = sum(_ran.values())
    found = {"cases": len(CASES) * len(MODES_TRIED) + len(DIRECT), "ran": len(_ran), "passed": passed}
    tool = "cnitool" if CNITOOL else "direct calls"
    report.merge("cni_conformance.json", {**found, "failed": len(_ran) - passed, "tool": tool})


class Runtime:
    """A runtime with one network list and its cache of results, for one sandbox at a time."""

    def __init__(self, stage: Stage, pod: Pod, directory: Path, version: str = "1.1.0") -> None:
        self.stage = stage
        self.pod = pod
        self.version = version
        self._directory = directory
        self._cached: dict[str, Any] = {}
        plugin = {"type": "dpu-offload"} | ({"deviceID": pod.device} if pod.device else {})
        conflist = {"cniVersion": version, "name": "lan", "plugins": [plugin]}
        (directory / "10-lan.conflist").write_text(json.dumps(conflist))

    async def call(self, verb: str) -> Answer:
        return await (self._with_cnitool(verb) if CNITOOL else self._directly(verb))

    async def _with_cnitool(self, verb: str) -> Answer:
        pod = self.pod
        environment = {
            "PATH": os.environ.get("PATH", ""),
            "NETCONFPATH": str(self._directory),
            "CNI_PATH": str(BINARY.parent),
            "CNI_IFNAME": pod.ifname,
            "CNI_ARGS": f"K8S_POD_UID={pod.uid};IgnoreUnknown=1;K8S_POD_NAMESPACE={pod.namespace};"
            f"K8S_POD_NAME={pod.name}",
            "DPU_OFFLOAD_CNI_SOCKET": str(self.stage.socket(pod.node)),
        }
        process = await asyncio.create_subprocess_exec(
            *(str(CNITOOL), verb.lower(), "lan", pod.netns_path),
            env=environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(), 50)
        if process.returncode:
            return Answer(process.returncode, {"msg": (errors + output).decode()})
        return Answer(0, json.loads(output) if output.strip() else {})

    async def _directly(self, verb: str) -> Answer:
        conf = self.stage.conf(self.pod, cniVersion=self.version)
        if verb == "GC":
            conf |= {"cni.dev/valid-attachments": [], "cni.dev/attachments": []}
        elif verb in ("CHECK", "DEL") and self._cached:
            conf |= {"prevResult": self._cached}
        environment = {"CNI_CONTAINERID": None, "CNI_NETNS": None} if verb in ("GC", "STATUS") else {}
        answer = await self.stage.call(verb, self.pod, conf, environment=environment)
        if verb == "ADD" and answer.status == 0:
            self._cached = answer.output
        return answer


async def good(runtime: Runtime, verb: str) -> dict[str, Any]:
    answer = await runtime.call(verb)
    assert answer.status == 0, f"{verb}: {answer.message}"
    return answer.output


async def add_check_del(runtime: Runtime) -> None:
    result = await good(runtime, "ADD")
    assert result["cniVersion"] == "1.1.0"
    pod = runtime.pod
    last = result["interfaces"][-1]
    assert (last["name"], last["mac"], last["sandbox"]) == ("eth0", pod.mac, pod.netns_path)
    assert {entry["interface"] for entry in result["ips"]} == {len(result["interfaces"]) - 1}
    (link,) = await runtime.stage.links(pod.netns)
    assert {f"{one['local']}/{one['prefixlen']}" for one in link["addr_info"] if one["scope"] == "global"} == {
        f"{pod.ip}/16",
        f"{pod.ip6}/64",
    }
    await good(runtime, "CHECK")
    await good(runtime, "DEL")


async def check_fails_after_damage(runtime: Runtime) -> None:
    await good(runtime, "ADD")
    await ip("addr flush dev eth0 scope global", namespace=runtime.pod.netns)
    answer = await runtime.call("CHECK")
    assert (answer.status, "lacks the address" in answer.message) == (1, True)


async def repeated_add(runtime: Runtime) -> None:
    assert await good(runtime, "ADD") == await good(runtime, "ADD")


async def repeated_del(runtime: Runtime) -> None:
    await good(runtime, "DEL")
    await good(runtime, "ADD")
    await good(runtime, "DEL")
    await good(runtime, "DEL")


async def del_without_namespace(runtime: Runtime) -> None:
    if runtime.pod.device:
        # The lab's VF is a veth end, which dies with its namespace: a real one would come back.
        await good(runtime, "ADD")
        await good(runtime, "DEL")
        await namespaces.remove(runtime.pod.netns)
        await good(runtime, "DEL")
        return
    await good(runtime, "ADD")
    await namespaces.remove(runtime.pod.netns)
    await good(runtime, "DEL")


async def add_del_add(runtime: Runtime) -> None:
    first = await good(runtime, "ADD")
    await good(runtime, "DEL")
    again = await good(runtime, "ADD")
    assert [one["address"] for one in first["ips"]] == [one["address"] for one in again["ips"]]


async def gc_removes_what_is_not_valid(runtime: Runtime) -> None:
    stage, pod = runtime.stage, runtime.pod
    await good(runtime, "ADD")
    await good(runtime, "GC")
    assert await stage.links(pod.netns) == []
    await stage.clean(pod)


async def status(runtime: Runtime) -> None:
    await good(runtime, "STATUS")


CASES: dict[str, Callable[[Runtime], Awaitable[None]]] = {
    "ADD, CHECK, DEL": add_check_del,
    "CHECK after damage": check_fails_after_damage,
    "repeated ADD": repeated_add,
    "repeated DEL": repeated_del,
    "DEL without namespace": del_without_namespace,
    "ADD after DEL": add_del_add,
    "GC": gc_removes_what_is_not_valid,
    "STATUS": status,
}
MODES_TRIED = {"default": (DEFAULT, ""), "host": (HOST, vf_address(0)), "vfio": (HOST, vf_address(6)), "dpu": (DPU, "")}


@pytest.mark.parametrize("mode", sorted(MODES_TRIED))
@pytest.mark.parametrize("case", sorted(CASES))
async def test_conformance(stage: Stage, tmp_path: Path, mode: str, case: str) -> None:
    node, device = MODES_TRIED[mode]
    pod = await stage.pod(node, device=device)
    _ran[f"{mode}: {case}"] = False
    runtime = Runtime(stage, pod, tmp_path)
    try:
        if mode == "vfio" and case in ("ADD, CHECK, DEL", "CHECK after damage"):
            result = await good(runtime, "ADD")
            assert result["interfaces"][-1]["pciID"] == device
            await good(runtime, "CHECK")
        else:
            await CASES[case](runtime)
        await good(runtime, "DEL")
        await stage.clean(pod) if Path(pod.netns_path).exists() else await stage.clean()
        _ran[f"{mode}: {case}"] = True
    finally:
        await stage.forget(pod)


DIRECT: dict[str, tuple[str, dict[str, str | None], bytes | None, int]] = {
    "4: no CNI_IFNAME": ("ADD", {"CNI_IFNAME": None}, None, 4),
    "4: no CNI_CONTAINERID": ("DEL", {"CNI_CONTAINERID": None}, None, 4),
    "4: no CNI_NETNS": ("ADD", {"CNI_NETNS": None}, None, 4),
    "4: unknown verb": ("FROB", {}, None, 4),
    "1: old version": ("ADD", {}, b'{"cniVersion":"0.1.0","name":"lan"}', 1),
    "1: CHECK before 0.4.0": ("CHECK", {}, b'{"cniVersion":"0.3.1","name":"lan","prevResult":{}}', 1),
    "3: no such namespace": ("ADD", {"CNI_NETNS": "/run/netns/none"}, None, 3),
    "6: not JSON": ("ADD", {}, b"{", 6),
    "7: no name": ("ADD", {}, b'{"cniVersion":"1.1.0"}', 7),
    "11: no daemon": ("ADD", {"DPU_OFFLOAD_CNI_SOCKET": "/run/none.sock"}, None, 11),
    "50: no daemon": ("STATUS", {"DPU_OFFLOAD_CNI_SOCKET": "/run/none.sock"}, None, 50),
}


@pytest.mark.parametrize("case", sorted(DIRECT))
async def test_error_codes(stage: Stage, case: str) -> None:
    verb, environment, conf, code = DIRECT[case]
    _ran[case] = False
    pod = await stage.pod(DEFAULT)
    try:
        answer = await stage.call(verb, pod, conf, environment=environment)
        assert (answer.status, answer.code) == (1, code), answer
        assert answer.output["msg"]
        await stage.clean(pod)
        _ran[case] = True
    finally:
        await stage.forget(pod)
