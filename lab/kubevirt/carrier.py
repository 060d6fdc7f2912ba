"""The hypervisor of a guest that is a network namespace: `python -m lab.kubevirt.carrier NAMESPACE MAC`.

It carries frames between the tap that is the guest's card and the one in the pod that runs the guest. A process of its
own, as QEMU is one: a guest must not stand still because whoever drives it works. A line of standard input is a
command, each answered by a line "done": `plug POD`, `unplug POD`, `pause`, `run POD`, `announce POD` (to run, and tell
everybody by RARP). It ends with its standard input.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
import sys

from lab.kubevirt.taps import CARD, TAP, opened

_FRAME = 65536
# QEMU's own rhythm: five times, each pause 100 ms longer than the one before (migration parameters announce-*).
ANNOUNCE_SECONDS = (0.0, 0.05, 0.15, 0.25, 0.35)


def rarp(mac: str) -> bytes:
    """The frame with which QEMU announces a card: a reverse ARP request about itself, to everybody."""
    address = bytes.fromhex(mac.replace(":", ""))
    body = struct.pack("!HHBBH", 1, 0x0800, 6, 4, 3) + address + bytes(4) + address + bytes(4)
    return b"\xff" * 6 + address + b"\x80\x35" + body + bytes(60 - 14 - len(body))


class Carrier:
    """One guest."""

    def __init__(self, mac: str, card: int) -> None:
        self._mac = mac
        self._card = card
        self._taps: dict[str, int] = {}
        self._at = ""
        self._announcing: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(card, self._outward)

    async def do(self, word: str, pod: str) -> None:
        """One command."""
        if word == "plug":
            self._taps[pod] = await opened(pod, TAP)
            self._loop.add_reader(self._taps[pod], self._inward, pod)
        elif word == "unplug":
            self._unplug(pod)
        elif word == "pause":
            self._run("")
        elif word in ("run", "announce"):
            self._run(pod)
            if word == "announce":
                self._announcing = asyncio.create_task(self._announce(pod))
        else:
            raise ValueError(f"no command {word}")

    def _run(self, pod: str) -> None:
        self._at = pod
        if self._announcing is not None:
            self._announcing.cancel()
            self._announcing = None

    def _unplug(self, pod: str) -> None:
        descriptor = self._taps.pop(pod, -1)
        if descriptor >= 0:
            self._loop.remove_reader(descriptor)
            os.close(descriptor)

    async def _announce(self, pod: str) -> None:
        for seconds in ANNOUNCE_SECONDS:
            await asyncio.sleep(seconds)
            with contextlib.suppress(OSError, KeyError):
                os.write(self._taps[pod], rarp(self._mac))

    def _outward(self) -> None:
        frame = os.read(self._card, _FRAME)
        if self._at:
            with contextlib.suppress(OSError, KeyError):
                os.write(self._taps[self._at], frame)

    def _inward(self, pod: str) -> None:
        try:
            frame = os.read(self._taps[pod], _FRAME)
        except OSError:
            # The pod's namespace is gone.
            self._unplug(pod)
            return
        if pod == self._at:
            with contextlib.suppress(OSError):
                os.write(self._card, frame)


async def main(namespace: str, mac: str) -> None:
    carrier = Carrier(mac, await opened(namespace, CARD))
    lines = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    print("done", flush=True)
    while line := await lines.readline():
        word, _, pod = line.decode().strip().partition(" ")
        await carrier.do(word, pod)
        print("done", flush=True)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2]))
