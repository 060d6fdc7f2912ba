"""What a guest learns from OVN by DHCP, asked by dhclient in the guest's namespace."""

from __future__ import annotations

import asyncio
import re
import tempfile
from pathlib import Path

SECONDS = 30.0
# In place of the script that would change this machine's own resolver.
_SCRIPT = "#!/bin/sh\nexit 0\n"
_ASKED = {
    4: "subnet-mask, routers, domain-name-servers, domain-name, domain-search, host-name, interface-mtu, "
    "rfc3442-classless-static-routes",
    6: "dhcp6.name-servers, dhcp6.domain-search",
}
# RFC 3442; dhclient has no name for it by itself.
_DECLARED = "option rfc3442-classless-static-routes code 121 = array of unsigned integer 8;\n"
_OPTION = re.compile(r"^\s*option ([\w.-]+) (.*);$", re.MULTILINE)
_ADDRESS = re.compile(r"^\s*(?:fixed-address|iaaddr) ([^; ]+)", re.MULTILINE)


class NoLease(RuntimeError):
    """Nobody answered; the message holds what dhclient said."""


async def lease(namespace: str, interface: str, *, family: int = 4) -> dict[str, str]:
    """The options by dhclient's names, as it writes them, with the address as `address`. Raises NoLease."""
    with tempfile.TemporaryDirectory(prefix="dpu-dhcp-") as directory:
        run = Path(directory)
        (run / "script").write_text(_SCRIPT)
        (run / "script").chmod(0o755)
        (run / "conf").write_text(f"{_DECLARED}request {_ASKED[family]};\ntimeout {int(SECONDS)};\n")
        process = await asyncio.create_subprocess_exec(
            *("ip", "netns", "exec", namespace, "dhclient", f"-{family}", "-1", "-v", "-d"),
            *("-sf", run / "script", "-cf", run / "conf", "-lf", run / "lease", "-pf", run / "pid", interface),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = b""
        try:
            async with asyncio.timeout(SECONDS):
                assert process.stdout is not None
                async for line in process.stdout:
                    said += line
                    if line.startswith((b"bound to", b"PRC: Bound")):
                        break
        except TimeoutError:
            pass
        finally:
            if process.returncode is None:
                process.kill()
            await process.wait()
        text = (run / "lease").read_text() if (run / "lease").exists() else ""
        address = _ADDRESS.search(text)
        if address is None:
            raise NoLease(said.decode(errors="replace")[-2000:])
        return {"address": address[1], **dict(_OPTION.findall(text))}
