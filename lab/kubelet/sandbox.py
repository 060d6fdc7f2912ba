"""A pod's network as containerd makes it: a network namespace, then the CNI plugin's ADD, and DEL before it goes.

Environment and standard input are those of a real containerd 2.x with ``cniVersion`` 1.1.0; the attempt's identity is
a fresh 64-digit sandbox id, as each RunPodSandbox has one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CNI_VERSION = "1.1.0"
RUNTIME_SECONDS = 120.0  # kubelet's runtime-request-timeout
INTERFACE = "eth0"


class CniFailed(RuntimeError):
    """The plugin answered with an error, or not at all."""

    def __init__(self, command: str, code: int, message: str) -> None:
        super().__init__(f"CNI {command} failed with code {code}: {message}")
        self.code = code


@dataclasses.dataclass(frozen=True)
class Sandbox:
    """One attempt at a pod's network. ``result`` is ADD's answer, {} until there is one."""

    pod_uid: str
    pod_namespace: str
    pod_name: str
    container_id: str
    netns: str
    device_id: str = ""
    result: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def fresh(cls, *, uid: str, namespace: str, name: str, device_id: str, netns_prefix: str = "cni-") -> Sandbox:
        container = secrets.token_hex(32)
        return cls(
            pod_uid=uid,
            pod_namespace=namespace,
            pod_name=name,
            container_id=container,
            netns=f"/run/netns/{netns_prefix}{uid[:8]}-{container[:8]}",
            device_id=device_id,
        )

    @property
    def addresses(self) -> list[str]:
        return [str(entry["address"]).partition("/")[0] for entry in self.result.get("ips", [])]


class CniPlugin:
    """The plugin's executable with a network configuration."""

    def __init__(self, binary: Path, configuration: Mapping[str, Any]) -> None:
        self._binary = binary
        self._configuration = configuration

    async def add(self, sandbox: Sandbox) -> Sandbox:
        return dataclasses.replace(sandbox, result=await self._call("ADD", sandbox))

    async def delete(self, sandbox: Sandbox) -> None:
        await self._call("DEL", sandbox)

    async def status(self) -> None:
        """Raise CniFailed with code 50 or 51 when the plugin cannot serve ADD."""
        await self._call("STATUS", None)

    async def _call(self, command: str, sandbox: Sandbox | None) -> dict[str, Any]:
        configuration: dict[str, Any] = {"cniVersion": CNI_VERSION, **self._configuration}
        environment = {"PATH": os.environ.get("PATH", ""), "CNI_COMMAND": command, "CNI_PATH": str(self._binary.parent)}
        if sandbox is not None:
            if sandbox.device_id:
                configuration["deviceID"] = sandbox.device_id
                configuration["runtimeConfig"] = {"deviceID": sandbox.device_id}
            if command == "DEL" and sandbox.result:
                configuration["prevResult"] = sandbox.result
            environment |= {
                "CNI_CONTAINERID": sandbox.container_id,
                "CNI_NETNS": sandbox.netns,
                "CNI_IFNAME": INTERFACE,
                "CNI_ARGS": ";".join(
                    (
                        f"K8S_POD_UID={sandbox.pod_uid}",
                        "IgnoreUnknown=1",
                        f"K8S_POD_NAMESPACE={sandbox.pod_namespace}",
                        f"K8S_POD_NAME={sandbox.pod_name}",
                        f"K8S_POD_INFRA_CONTAINER_ID={sandbox.container_id}",
                    )
                ),
            }
        process = await asyncio.create_subprocess_exec(
            str(self._binary),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=environment,
        )
        try:
            output, errors = await asyncio.wait_for(
                process.communicate(json.dumps(configuration).encode()), RUNTIME_SECONDS
            )
        except TimeoutError:
            process.kill()
            await process.wait()
            raise CniFailed(command, 0, f"no answer in {RUNTIME_SECONDS:g} s") from None
        if process.returncode == 0:
            return json.loads(output) if output.strip() else {}
        try:
            answer = json.loads(output)
        except ValueError:
            raise CniFailed(command, 0, f"exit {process.returncode}, {(output + errors).decode()!r}") from None
        details = f": {answer['details']}" if answer.get("details") else ""
        raise CniFailed(command, int(answer.get("code", 0)), f"{answer.get('msg', '')}{details}")
