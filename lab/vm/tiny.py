"""A small guest in seconds: the kernel, busybox, the modules it needs, and one shell script as all that it does.

Where `lab/vm/guest.py` is a whole machine to run our daemons in, this one is what they serve: a virtual machine with a
card and a disk. It speaks over its serial console; what its script says after `lab: ` can be waited for.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import re
import signal
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from lab.vm import archive, devices, modules
from lab.vm.devices import Device
from lab.vm.unpacked import Unpacked
from opi_bridge.cards.qmp import Qmp
from opi_bridge.errors import Unavailable

_INIT = Path(__file__).parent / "tiny_init"
_LEASE = Path(__file__).parent / "tiny_lease"
_DIRECTORIES = ("bin", "dev", "etc", "proc", "sys", "modules")
_STOP_SECONDS = 30.0
_QMP_SECONDS = 60.0
_START_SECONDS = 100.0
_SLOT = "slot1"
_SAID = re.compile(r"\blab: (.*)")


class TinyGuestFailed(RuntimeError):
    """The guest ended, or was silent for too long; the message holds the end of what it said."""


class TinyGuest:
    """An asynchronous context: powered off on exit, wherever its script is then.

    `script` is for busybox' sh; `lease NAME` in it gets an address by DHCP and says `lab: NAME ADDRESS/PREFIX`; after
    its last line comes `lab: end`. `drivers` are modules to load before it. `netns` is where QEMU opens its taps.
    `frozen` is a file of `freeze`, by a guest that was told the same: this one goes on from there, in no time.
    `accelerator` is QEMU's; within `lab/vm/guest.py`, whose emulated processor can virtualize, `kvm` is much faster.
    """

    qmp: Qmp

    def __init__(
        self,
        unpacked: Unpacked,
        kernel: Path,
        *,
        script: str,
        devices: Sequence[Device],
        drivers: Sequence[str] = ("virtio_pci", "virtio_net", "virtio_blk"),
        netns: str = "",
        memory: int = 192,
        frozen: Path | None = None,
        accelerator: str = "tcg",
    ) -> None:
        self._unpacked = unpacked
        self._kernel = kernel
        self._script = script
        self._devices = tuple(devices)
        self._drivers = tuple(drivers)
        self._netns = netns
        self._memory = memory
        self._frozen = frozen
        self._accelerator = accelerator
        self._process: asyncio.subprocess.Process | None = None
        self._told: list[str] = []
        self._console: list[str] = []
        self._more = asyncio.Event()
        self._reader: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._directory = tempfile.TemporaryDirectory(prefix="dpu-tiny-")
        image = Path(self._directory.name) / "initramfs.gz"
        image.write_bytes(await asyncio.to_thread(self._image))
        try:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(image),
                env=self._unpacked.environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            self._directory.cleanup()
            raise
        self.qmp = Qmp(Path(self._directory.name) / "qmp", deadline=_QMP_SECONDS)
        assert self._process.stdout is not None
        self._reader = asyncio.create_task(self._read(self._process.stdout), name="tiny guest's console")
        try:
            await self._running()
        except BaseException:
            await self.__aexit__()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        assert self._reader is not None
        await self.qmp.close()
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGTERM)
            try:
                await asyncio.wait_for(self._process.wait(), _STOP_SECONDS)
            except TimeoutError:
                os.killpg(self._process.pid, signal.SIGKILL)
                await self._process.wait()
        await self._reader
        self._directory.cleanup()

    async def says(self, beginning: str, *, seconds: float) -> str:
        """What follows `beginning` in the first line of the script that has it. Raises TinyGuestFailed."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    self._more.clear()
                    for line in self._told:
                        if line.startswith(beginning):
                            return line.removeprefix(beginning).strip()
                    if self._reader is None or self._reader.done():
                        raise TinyGuestFailed(f"the guest ended without {beginning!r}: {self._last_words()}")
                    await self._more.wait()
        raise TinyGuestFailed(f"the guest did not say {beginning!r} within {seconds:g} s: {self._last_words()}")

    async def plug(self, driver: str, **options: Any) -> None:
        """Put a function into the guest's free slot. Raises QmpError."""
        await self.qmp.execute("device_add", {"driver": driver, "bus": _SLOT, "id": "plugged", **options})

    async def freeze(self, file: Path, *, seconds: float) -> None:
        """Stop the guest, with all that it is but its disks' contents in `file`. Raises TinyGuestFailed."""
        await self.qmp.execute("migrate", {"uri": f"file:{file}"})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    found = await self.qmp.execute("query-migrate")
                    if found["status"] == "completed":
                        return
                    if found["status"] == "failed":
                        raise TinyGuestFailed(f"the guest cannot be frozen: {found.get('error-desc', '')}")
                    await asyncio.sleep(0.1)
        raise TinyGuestFailed(f"the guest was not frozen within {seconds:g} s")

    async def _running(self) -> None:
        """QEMU makes its socket some time after its start, and has to load a frozen guest: nothing tells of it."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_START_SECONDS):
                while True:
                    with contextlib.suppress(Unavailable):
                        if (await self.qmp.execute("query-status"))["running"]:
                            return
                    if self._reader is None or self._reader.done():
                        raise TinyGuestFailed(f"the guest ended before it ran: {self._last_words()}")
                    await asyncio.sleep(0.05)
        raise TinyGuestFailed(f"the guest did not start within {_START_SECONDS:g} s: {self._last_words()}")

    async def _read(self, console: asyncio.StreamReader) -> None:
        try:
            async for line in console:
                text = line.decode(errors="replace").strip()
                self._console.append(text)
                if said := _SAID.search(text):
                    self._told.append(said[1])
                self._more.set()
        finally:
            self._more.set()

    def _last_words(self) -> str:
        return " | ".join(self._console[-8:]) or "nothing was said"

    def _image(self) -> bytes:
        entries = [archive.directory(name) for name in _DIRECTORIES]
        entries.append(archive.program("bin/busybox", self._unpacked.busybox.read_bytes()))
        entries.append(archive.program("init", _INIT.read_bytes()))
        entries.append(archive.program("etc/lease", _LEASE.read_bytes()))
        entries.append(archive.program("etc/script", self._script.encode()))
        for number, module in enumerate(modules.needed(self._unpacked, self._drivers)):
            name = module.name.removesuffix(".xz")
            entries.append(archive.program(f"modules/{number:02}-{name}", modules.content(module)))
        return gzip.compress(archive.pack(entries), 1, mtime=0)

    def _command(self, image: Path) -> list[str]:
        return [
            *(("ip", "netns", "exec", self._netns) if self._netns else ()),
            *self._unpacked.emulator,
            *("-accel", self._accelerator, "-cpu", "qemu64", "-M", "q35", "-m", str(self._memory), "-smp", "1"),
            *("-display", "none", "-nodefaults", "-serial", "stdio", "-no-reboot"),
            *("-kernel", str(self._kernel), "-initrd", str(image)),
            *("-append", "console=ttyS0 quiet panic=-1 mitigations=off net.ifnames=0 random.trust_cpu=on"),
            *("-qmp", f"unix:{image.parent}/qmp,server=on,wait=off"),
            *("-device", f"pcie-root-port,id={_SLOT},chassis=1,slot=1"),
            *devices.arguments(self._devices),
            *(("-incoming", f"file:{self._frozen}") if self._frozen else ()),
        ]
