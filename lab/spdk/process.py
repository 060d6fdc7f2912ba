"""An SPDK process for tests and demonstrations: the stand-in, or a real spdk_tgt where one is named."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from foundation.spdk.client import SpdkClient


class SpdkProcess:
    """One process with its socket in ``directory``; what it says goes to ``<name>.log`` there.

    ``binary``: the path of a real spdk_tgt; empty means the stand-in. ``arguments`` are for the stand-in only
    (``--attach-ms 5``). ``mode`` "target" is interrupt mode for both: no initiator, and little CPU.
    """

    def __init__(
        self,
        directory: Path,
        name: str = "spdk",
        *,
        mode: str = "dpu",
        binary: str = "",
        arguments: Sequence[str] = (),
        core_mask: str = "0x1",
    ) -> None:
        self.directory = directory
        self.name = name
        self.socket = directory / f"{name}.sock"
        self.log = directory / f"{name}.log"
        self.vhost_directory = directory / f"{name}.vhost"
        self.binary = binary
        self._mode = mode
        self._arguments = list(arguments)
        self._core_mask = core_mask
        self._process: asyncio.subprocess.Process | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    @property
    def pid(self) -> int:
        """0 when it does not run."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else 0

    async def __aenter__(self) -> SpdkProcess:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def start(self, *extra: str, deadline: float = 30.0) -> None:
        """Returns when it answers. Raises RuntimeError with the end of its log when it dies before."""
        self.vhost_directory.mkdir(parents=True, exist_ok=True)
        command = self.command(*extra)
        with self.log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *command, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log
            )
        died = asyncio.ensure_future(self._process.wait())
        client = SpdkClient(self.address)
        ready = asyncio.ensure_future(client.connect(deadline=deadline))
        try:
            await asyncio.wait({died, ready}, return_when=asyncio.FIRST_COMPLETED)
            if died.done():
                end = self.log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{command[0]} ended with {self._process.returncode}:\n{end}")
            await ready
            if "--wait-for-rpc" not in command:
                await client.call("framework_wait_init", deadline=deadline)
        finally:
            for task in (died, ready):
                task.cancel()
            await asyncio.wait({died, ready})
            await client.close()

    async def kill(self) -> None:
        """SIGKILL: the socket file stays."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM, and SIGKILL when that takes more than 10 s."""
        try:
            async with asyncio.timeout(10):
                await self._end(signal.SIGTERM)
        except TimeoutError:
            await self.kill()

    async def wait(self) -> int:
        """The exit code, when it ends by itself."""
        assert self._process is not None
        return await self._process.wait()

    async def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None or process.returncode is not None:
            return
        process.send_signal(number)
        await process.wait()

    def command(self, *extra: str) -> list[str]:
        """The program with its arguments."""
        common = ["-r", str(self.socket), "-S", str(self.vhost_directory), "-m", self._core_mask, *extra]
        if self.binary:
            # No hugepages, no devices, no claim on cores: it runs beside everything else on an ordinary machine.
            real = ["--disable-cpumask-locks", "--no-huge", "-s", "1024", "--iova-mode", "va", "--no-pci"]
            mode = ["--interrupt-mode"] if self._mode == "target" else []
            return [self.binary, *common, *real, *mode]
        return [sys.executable, "-m", "lab.spdk", *common, "--mode", self._mode, *self._arguments]


def real_binary() -> str:
    """The spdk_tgt that $SPDK_TGT names; empty where none does."""
    return os.environ.get("SPDK_TGT", "")
