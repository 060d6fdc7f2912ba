"""Asks the real OVN what it would do with a packet: northd's flows by `ovn-trace`, kept running beside a central."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foundation.ovsdb import OvsdbSession
from foundation.ovsdb import operations as op
from lab import processes
from lab.network import Central

FIRST_PACKETS = 20000
"""How often ovn-trace shall take a packet for the first of its connection: it counts over all traces of its life."""


@dataclass(frozen=True)
class Endpoint:
    """One side of a packet: a switch port with its addresses, and the MAC of its router."""

    port: str
    switch: str
    mac: str
    ip: str
    gateway_mac: str


class Tracer:
    """Northbound and southbound databases, northd, ovn-trace; all in a directory of their own."""

    def __init__(self) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tr", dir="/tmp"))
        self.central = Central(self.directory / "c")
        self._records: list[processes.ProcessRecord] = []
        self._sequence = 1
        self._log = self.directory / "trace.log"
        self._socket = str(self.directory / "trace.ctl")
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter | None = None
        self._decoder = json.JSONDecoder()
        self._buffer = ""

    async def __aenter__(self) -> Tracer:
        await self.central.start(self._records.append)
        self.nb = OvsdbSession(self.central.nb, "OVN_Northbound")
        self.sb = OvsdbSession(self.central.sb, "OVN_Southbound")
        self.sb.monitor({"SB_Global": ["nb_cfg"], "Port_Binding": ["logical_port", "datapath"]})
        await self.nb.start()
        await self.sb.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._end_trace()
        await self.nb.stop()
        await self.sb.stop()
        await processes.stop(self._records)
        shutil.rmtree(self.directory)

    @property
    def northd(self) -> int:
        """The process id of ovn-northd."""
        return next(record.pid for record in self._records if record.name == "ovn-northd")

    async def synchronise(self) -> None:
        """Returns when what is in the northbound database has become flows, and a fresh ovn-trace has read them."""
        self._sequence += 1
        wanted = self._sequence
        await self.nb.transact(op.update("NB_Global", (), {"nb_cfg": wanted}))
        await self.sb.until("SB_Global", lambda row: bool(row["nb_cfg"] >= wanted), deadline=50)
        await self._end_trace()
        # ovn-trace reads the database once; --detach returns when it serves.
        options = ["--detach", "--no-chdir", f"--unixctl={self._socket}", f"--pidfile={self.directory}/trace.pid"]
        await asyncio.to_thread(
            subprocess.run,
            [
                "ovn-trace",
                f"--db={self.central.sb}",
                *options,
                "-vconsole:off",
                f"--log-file={self._log}",
                *("--ct=new",) * FIRST_PACKETS,
            ],
            check=True,
        )
        self._reader, self._writer = await asyncio.open_unix_connection(self._socket, limit=1 << 24)

    async def learn(self, port: str, ip: str, mac: str) -> None:
        """Enters a router's neighbour as if by ARP; ovn-trace looks at no Static_MAC_Binding, only at learned ones."""
        binding = await self.sb.until("Port_Binding", lambda row: row["logical_port"] == port, deadline=50)
        row = {"logical_port": port, "ip": ip, "mac": mac, "datapath": binding["datapath"]}
        await self.sb.transact(op.insert("MAC_Binding", row))

    async def _end_trace(self) -> None:
        if self._writer is None:
            return
        self._send("exit")
        with contextlib.suppress(OSError):
            await asyncio.wait_for(self._reader.read(), 5)
        self._writer.close()
        self._writer = None
        self._buffer = ""
        log = self._log.read_text()
        assert "parsing expression failed" not in log, f"OVN cannot read a match: {log[-3000:]}"

    def _send(self, method: str, *params: str) -> None:
        message: dict[str, Any] = {"id": 0, "method": method, "params": list(params)}
        assert self._writer is not None, "synchronise() first"
        self._writer.write(json.dumps(message).encode())

    async def _answer(self) -> str:
        while True:
            try:
                answer, end = self._decoder.raw_decode(self._buffer)
            except ValueError:
                chunk = await asyncio.wait_for(self._reader.read(1 << 20), 50)
                assert chunk, "ovn-trace has gone"
                self._buffer += chunk.decode()
                continue
            self._buffer = self._buffer[end:].lstrip()
            assert answer["error"] is None, answer["error"]
            return str(answer["result"])

    async def traces(self, flows: list[str], *, detail: str = "--minimal") -> list[str]:
        """The trace of each microflow, as for the first packet of a connection; `detail` as ovn-trace's option."""
        results = []
        for start in range(0, len(flows), 50):
            part = flows[start : start + 50]
            for flow in part:
                self._send("trace", detail, flow)
            results += [await self._answer() for _ in part]
        assert not any("use --ct to customize" in each for each in results), "more lookups than FIRST_PACKETS"
        return results

    async def reaches(self, pairs: list[tuple[Endpoint, Endpoint, str, int]]) -> list[bool]:
        """For each (source, destination, protocol, port): whether the packet is put out at the destination's port."""
        traces = await self.traces([microflow(*pair) for pair in pairs])
        return [f'output("{pair[1].port}")' in trace for pair, trace in zip(pairs, traces, strict=True)]


def microflow(source: Endpoint, destination: Endpoint, protocol: str, port: int) -> str:
    """The packet as it leaves the source."""
    family = 6 if ":" in source.ip else 4
    to = destination.mac if source.switch == destination.switch else source.gateway_mac
    word = protocol.lower()
    return (
        f'inport == "{source.port}" && eth.src == {source.mac} && eth.dst == {to} && '
        f"ip{family}.src == {source.ip} && ip{family}.dst == {destination.ip} && ip.ttl == 64 && "
        f"{word} && {word}.src == 33333 && {word}.dst == {port}"
    )
