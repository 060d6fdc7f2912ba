"""Hot-plugging emulated devices into a running QEMU guest, over its machine protocol (QMP)."""

import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

from opi_bridge.cards.model import Slot
from opi_bridge.errors import CardRefused, Unavailable

log: Final = logging.getLogger(__name__)
_LINE_LIMIT: Final = 1 << 20


class QmpError(CardRefused):
    """QEMU refused a command; `kind` is its error class, e.g. DeviceNotFound."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(f"QEMU refused: {message}")
        self.kind = kind


class Plug(Protocol):
    """What puts a function's socket before a host, and takes it away."""

    async def add(self, slot: Slot, socket: Path) -> None: ...

    async def remove(self, slot: Slot) -> None: ...


class Qmp:
    """One monitor socket; connects at the first command and again after a loss."""

    def __init__(self, path: Path, *, deadline: float = 10.0) -> None:
        self._path = path
        self._deadline = deadline
        self._ids = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._gone: dict[str, asyncio.Event] = {}
        self._writer: asyncio.StreamWriter | None = None
        self._reader: asyncio.Task[None] | None = None
        self._connecting = asyncio.Lock()

    async def execute(self, command: str, arguments: Mapping[str, Any] | None = None) -> Any:
        """Run one command. Raises QmpError as answered, Unavailable when QEMU is not there."""
        async with asyncio.timeout(self._deadline), self._connecting:
            if self._writer is None:
                await self._connect()
        return await self._send(command, arguments)

    async def delete_device(self, device: str, *, wait: float) -> None:
        """Ask the guest to let the device go and wait until it has. Raises Unavailable after `wait` seconds."""
        gone = self._gone.setdefault(device, asyncio.Event())
        try:
            await self.execute("device_del", {"id": device})
            async with asyncio.timeout(wait):
                await gone.wait()
        except QmpError as error:
            if error.kind != "DeviceNotFound":
                raise
        except TimeoutError:
            raise Unavailable(f"the guest did not let go of {device} within {wait:g} s: try again") from None
        finally:
            self._gone.pop(device, None)

    async def close(self) -> None:
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader

    async def _connect(self) -> None:
        try:
            reader, writer = await asyncio.open_unix_connection(str(self._path), limit=_LINE_LIMIT)
            await reader.readline()  # the greeting
        except OSError as error:
            raise Unavailable(f"QEMU does not answer at {self._path}: {error.strerror}") from error
        self._writer = writer
        self._reader = asyncio.create_task(self._read(reader), name=f"qmp {self._path}")
        await self._send("qmp_capabilities", None)

    async def _send(self, command: str, arguments: Mapping[str, Any] | None) -> Any:
        if self._writer is None:
            raise Unavailable(f"QEMU at {self._path} went away")
        number = next(self._ids)
        answer = self._waiting[number] = asyncio.get_running_loop().create_future()
        message: dict[str, Any] = {"execute": command, "id": number}
        if arguments:
            message["arguments"] = dict(arguments)
        self._writer.write(json.dumps(message).encode() + b"\n")
        try:
            async with asyncio.timeout(self._deadline):
                return await answer
        except TimeoutError:
            raise Unavailable(f"QEMU did not answer {command} within {self._deadline:g} s") from None
        finally:
            self._waiting.pop(number, None)

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                self._take(json.loads(line))
        except (OSError, ValueError) as error:
            log.warning("lost QEMU at %s: %s", self._path, error)
        finally:
            if self._writer is not None:
                self._writer.close()
                self._writer = None
            for answer in self._waiting.values():
                if not answer.done():
                    answer.set_exception(Unavailable(f"QEMU at {self._path} went away"))

    def _take(self, message: Mapping[str, Any]) -> None:
        if message.get("event") == "DEVICE_DELETED":
            gone = self._gone.get(message["data"].get("device", ""))
            if gone is not None:
                gone.set()
            return
        answer = self._waiting.get(message.get("id", 0))
        if answer is None or answer.done():
            return
        if "error" in message:
            answer.set_exception(QmpError(message["error"]["class"], message["error"]["desc"]))
        else:
            answer.set_result(message.get("return"))


class VfioUserPlug:
    """Plugs vfio-user sockets behind PCI root ports; `buses` names the root port of each function.

    Only a free socket may be given to QEMU: it stops the whole guest for 5 s on one that is taken.
    """

    def __init__(self, qmp: Qmp, buses: Mapping[Slot, str], *, wait: float = 10.0) -> None:
        self._qmp = qmp
        self._buses = buses
        self._wait = wait

    async def add(self, slot: Slot, socket: Path) -> None:
        if slot not in self._buses:
            return
        try:
            await self._qmp.execute(
                "device_add",
                {
                    "driver": "vfio-user-pci",
                    "socket": {"path": str(socket), "type": "unix"},
                    "id": _device(slot),
                    "bus": self._buses[slot],
                },
            )
        except QmpError as error:
            if "Duplicate" not in str(error):
                raise

    async def remove(self, slot: Slot) -> None:
        if slot in self._buses:
            await self._qmp.delete_device(_device(slot), wait=self._wait)


def _device(slot: Slot) -> str:
    return f"dpu-{slot.id}"
