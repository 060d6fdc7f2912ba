"""A running guest, from its preparation to its end."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from lab.vm import devices, initramfs, modules, vmlinux
from lab.vm.agent import PORT
from lab.vm.channel import Channel, Done, GuestGone
from lab.vm.devices import Device
from lab.vm.unpacked import DIRECTORY, REPOSITORY, Unpacked
from opi_bridge.cards.qmp import Qmp

BOOT_SECONDS = 80.0
_STOP_SECONDS = 30.0
_ATTEMPTS = 3
_START_SECONDS = 60.0
_PYTHON = REPOSITORY / ".venv/bin/python"
_AGENT = Path(__file__).parent / "agent.py"


class GuestFailed(RuntimeError):
    """The guest did not start, or a program in it failed; the message holds the end of what it said."""


class NotBooted(GuestFailed):
    """QEMU ended or stood still before the guest had started."""


@dataclass(frozen=True)
class Parts:
    """What a guest is started from."""

    unpacked: Unpacked
    kernel: Path
    initramfs: Path
    module: Path

    @classmethod
    async def prepare(cls, directory: Path = DIRECTORY) -> Parts:
        """Makes what is missing. Raises NotPrepared, ToolFailed."""
        unpacked = Unpacked.find(directory)
        kernel, image = directory / f"vmlinux-{unpacked.release}", directory / "initramfs.gz"
        await modules.index(unpacked)
        if not kernel.exists():
            fresh = kernel.with_suffix(".new")
            await vmlinux.extract(unpacked, fresh)
            fresh.replace(kernel)
        fresh_image = image.with_suffix(f".{os.getpid()}")
        fresh_image.write_bytes(await asyncio.to_thread(initramfs.build, unpacked))
        fresh_image.replace(image)
        return cls(unpacked, kernel, image, await modules.build(unpacked, directory))


class Guest:
    """An asynchronous context: started on entry, powered off on exit. `qmp` is QEMU's monitor."""

    qmp: Qmp

    def __init__(
        self, parts: Parts, *, name: str, devices: Sequence[Device] = (), memory: int = 1536, kernel: str = ""
    ) -> None:
        self._parts = parts
        self._devices = tuple(devices)
        self._memory = memory
        self._kernel = kernel
        self.directory = DIRECTORY / name
        self._process: asyncio.subprocess.Process | None = None
        self._channel: Channel | None = None
        self._warm = False

    @property
    def module(self) -> Path:
        """Our kernel module's file, at the same path in the guest."""
        return self._parts.module

    @property
    def console(self) -> Path:
        """All that the guest's kernel has said."""
        return self.directory / "console.log"

    async def __aenter__(self) -> Self:
        shutil.rmtree(self.directory, ignore_errors=True)
        self.directory.mkdir(parents=True)
        # A socket's path has room for 107 bytes only.
        for attempt in range(1, _ATTEMPTS + 1):
            self._sockets = Path(tempfile.mkdtemp(prefix="dpu-vm-"))
            try:
                await self._start()
            except BaseException as error:
                await self._stop()
                # QEMU's emulation of several processors sometimes trips over a memory map that changes
                # (`iotlb_to_section`), as it does while a kernel finds its PCI functions, or stands still.
                if isinstance(error, NotBooted) and attempt < _ATTEMPTS:
                    continue
                raise
            break
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def run(
        self,
        *argv: str | Path,
        seconds: float = 60.0,
        check: bool = True,
        stdin: str = "",
        environment: Mapping[str, str] | None = None,
        warm: bool = False,
    ) -> Done:
        """Run a program in the guest, in the repository's directory. Raises GuestFailed unless `check` is off."""
        words = [str(word) for word in argv]
        try:
            done = await self._agent().run(
                words, seconds=seconds, stdin=stdin, cwd=str(REPOSITORY), environment=environment, warm=warm
            )
        except GuestGone as error:
            raise GuestFailed(f"{' '.join(words)}: {error}; {self._last_words()}") from error
        if check and done.code:
            said = (done.errors.strip() or done.output.strip())[-4000:]
            raise GuestFailed(f"in the guest, {' '.join(words)} ended with {done.code}: {said}")
        return done

    async def warm_up(self, *scripts: Path, seconds: float = 120.0) -> None:
        """Load once what these scripts import: until a reboot, every script starts from there. Raises GuestFailed."""
        await self.run(_PYTHON, "-m", "lab.vm.warm", *map(_module, scripts), seconds=seconds)
        self._warm = True

    async def script(self, path: Path, *arguments: str, seconds: float = 60.0) -> Any:
        """Run a Python file of the repository in the guest; what its last line of output says in JSON.

        Raises GuestFailed, also when it ends with an error.
        """
        cold = () if self._warm else (_PYTHON, "-m")
        done = await self.run(*cold, _module(path), *arguments, seconds=seconds, warm=self._warm)
        return json.loads(done.output.splitlines()[-1])

    async def reboot(self) -> None:
        """As by the reset button; nothing that was written in the guest is left. Raises GuestFailed."""
        agent = self._agent()
        agent.expect_boot()
        self._warm = False
        await self.qmp.execute("system_reset")
        await self._wait_for_boot()

    # --- the process -----------------------------------------------------------------------------------------------

    def _agent(self) -> Channel:
        if self._channel is None:
            raise GuestFailed("the guest is not running")
        return self._channel

    def _command(self) -> list[str]:
        unpacked = self._parts.unpacked
        words = {"repository": REPOSITORY, "unpacked": unpacked.root, "python": _PYTHON, "agent": _AGENT}
        append = [
            "console=ttyS0 loglevel=5 panic=-1 mitigations=off intel_iommu=on iommu=pt net.ifnames=0",
            *(f"lab.{key}={value}" for key, value in words.items()),
            self._kernel,
        ]
        return [
            *unpacked.emulator,
            *("-accel", "tcg,thread=multi", "-cpu", "max", "-M", "q35", "-m", str(self._memory), "-smp", "2"),
            *("-display", "none", "-nodefaults", "-serial", f"file:{self.console}"),
            *("-qmp", f"unix:{self._sockets}/qmp,server=on,wait=off"),
            *("-kernel", str(self._parts.kernel), "-initrd", str(self._parts.initramfs), "-append", " ".join(append)),
            *("-fsdev", "local,id=machine,path=/,security_model=none,readonly=on,multidevs=remap"),
            *("-device", "virtio-9p-pci,fsdev=machine,mount_tag=machine"),
            *(
                "-device",
                "virtio-serial-pci",
                "-chardev",
                f"socket,id=agent,path={self._sockets}/agent,server=on,wait=off",
            ),
            *("-device", f"virtserialport,chardev=agent,name={PORT}"),
            *devices.arguments(self._devices),
        ]

    async def _start(self) -> None:
        with open(self.directory / "qemu.log", "wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command(),
                env=self._parts.unpacked.environment(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[descriptor for device in self._devices for descriptor in device.descriptors],
            )
        async with asyncio.timeout(_START_SECONDS):
            self._channel = await self._connected()
        self.qmp = Qmp(self._sockets / "qmp", deadline=_START_SECONDS)
        await self._wait_for_boot()

    async def _connected(self) -> Channel:
        """QEMU makes its sockets some milliseconds after its start, which nothing announces."""
        while True:
            assert self._process is not None
            if self._process.returncode is not None:
                raise NotBooted(f"QEMU ended with {self._process.returncode}: {self._last_words()}")
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return await Channel.connect(self._sockets / "agent")
            await asyncio.sleep(0.02)

    async def _wait_for_boot(self) -> None:
        agent = self._agent()
        waits = {asyncio.create_task(agent.ready()), asyncio.create_task(agent.ended.wait())}
        done, pending = await asyncio.wait(waits, timeout=BOOT_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        if agent.ended.is_set():
            raise NotBooted(f"QEMU ended before the guest had started: {self._last_words()}")
        if not done:
            raise NotBooted(f"the guest did not start within {BOOT_SECONDS:g} s: {self._last_words()}")

    async def _stop(self) -> None:
        process = self._process
        if "qmp" in self.__dict__:
            await self.qmp.close()
        if self._channel is not None:
            await self._channel.close()
        if process is not None and process.returncode is None:
            try:
                async with asyncio.timeout(_STOP_SECONDS):
                    process.terminate()
                    await process.wait()
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                await process.wait()
        shutil.rmtree(self._sockets, ignore_errors=True)

    def _last_words(self) -> str:
        said = []
        for name in ("qemu.log", "console.log"):
            with contextlib.suppress(FileNotFoundError):
                said += (self.directory / name).read_text(errors="replace").splitlines()[-5:]
        return " | ".join(said) or "nothing was said"


def _module(path: Path) -> str:
    """`tests/vm/inside/look.py` -> `tests.vm.inside.look`"""
    return ".".join(path.resolve().relative_to(REPOSITORY).with_suffix("").parts)
