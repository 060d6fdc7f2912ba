"""An SPDK storage target for tests: the lab's stand-in as a process, over a sparse file with one lvol store."""

import asyncio
import contextlib
import signal
import subprocess
from pathlib import Path

from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkError
from lab.ports import free_port
from lab.spdk.process import SpdkProcess

LVSTORE = "lvs0"
PORT, SECURE_PORT = free_port(), free_port()


class Target:
    """`binary`: the path of a real spdk_tgt in place of the stand-in."""

    def __init__(self, directory: Path, *, size: int = 4 << 30, binary: str = "") -> None:
        self.faults = directory / "target.faults"
        arguments = ["--beat-ms", "0.5", "--faults", str(self.faults)]
        self._program = SpdkProcess(directory, "target", mode="target", binary=binary, arguments=arguments)
        self.binary = binary
        self.socket = self._program.socket
        self.file = directory / "disk.img"
        self._size = size
        self._log = directory / "target.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"unix:{self.socket}"

    async def start(self) -> None:
        """Returns when the lvol store is there, as after the storage node's own set-up."""
        self._spawn()
        fresh = not self.file.exists()
        if fresh:
            with self.file.open("wb") as file:
                file.truncate(self._size)
        async with SpdkClient(self.address) as client:
            await client.connect(deadline=60)
            await client.call("bdev_aio_create", {"name": "aio0", "filename": str(self.file), "block_size": 4096})
            if fresh:
                await client.call(
                    "bdev_lvol_create_lvstore",
                    {"bdev_name": "aio0", "lvs_name": LVSTORE, "cluster_sz": 1 << 20, "clear_method": "none"},
                )

    def _spawn(self) -> None:
        self._program.vhost_directory.mkdir(exist_ok=True)
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(self._program.command(), stdout=log, stderr=log)

    async def stop(self, number: int = signal.SIGTERM) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(number)
        await asyncio.to_thread(process.wait, 10)

    async def restart(self) -> None:
        """As after a crash: data stays, everything else is lost."""
        await self.stop(signal.SIGKILL)
        await self.start()

    async def empty(self) -> None:
        """Back to a bare lvol store, so that one process serves many tests."""
        async with SpdkClient(self.address) as client:
            for subsystem in await client.call("nvmf_get_subsystems"):
                if subsystem["subtype"] != "Discovery":
                    await client.call("nvmf_delete_subsystem", {"nqn": subsystem["nqn"]})
            for _ in range(8):
                lvols = await client.call("bdev_lvol_get_lvols")
                if not lvols:
                    return
                for lvol in reversed(lvols):
                    with contextlib.suppress(SpdkError):
                        await client.call("bdev_lvol_delete", {"name": lvol["uuid"]})
        raise AssertionError(f"the target keeps {lvols}")


def section(target: Target, **more: object) -> dict[str, object]:
    """A backend section over it. With a `key_directory` also volumes that are encrypted in transit."""
    portals, secure = ([{"transport": "tcp", "address": "127.0.0.1", "port": port}] for port in (PORT, SECURE_PORT))
    pool: dict[str, object] = {"address": target.address, "lvstore": LVSTORE, "portals": portals, **more}
    if "key_directory" in more:
        pool["secure_portals"] = secure
    return {"kind": "spdk", "pools": {"p0": pool}}
