"""Playing a recorded conversation with SPDK again, and holding the answers against those that were recorded.

A recording is a list of steps in order: exchanges ({"i" instance, "q" request, "r" reply, "wait" for answers that come
about by themselves}) with the deeds between them ({"do": start, stop, kill, truncate, write, ...}). What differs from
run to run is compared by its place: uuids, controller ids and host ids must map one to one; counters and clocks are
not compared; paths under /run/spdk and ports are replaced by this run's own.
"""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkError, SpdkMalformedReply, SpdkTimeout, SpdkUnavailable
from lab.ports import free_port
from lab.spdk.process import SpdkProcess

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_NGUID = re.compile(r"[0-9A-F]{32}")
_CLOCKS = {"ticks", "tick_rate", "pid", "completed_nvme_io", "io_qpairs", "admin_qpairs", "current_admin_qpairs"}
_COUNTERS = re.compile(r"(bytes|num)_\w+|(max_|min_)?\w+_latency_ticks")
_RUN = "/run/spdk"


@dataclass
class Outcome:
    """One exchange: ``problem`` is empty when it was reproduced."""

    section: str
    method: str
    note: str
    problem: str = ""


class Mismatch(Exception):
    """Where two answers part."""


class Likeness:
    """Compares answers; remembers which recorded uuid or id stands for which of this run."""

    def __init__(self, path: Callable[[str], str]) -> None:
        self._path = path
        self._there: dict[tuple[str, str], str] = {}
        self._back: dict[tuple[str, str], str] = {}
        self._tentative: list[tuple[str, str, str]] = []
        self.section = ""

    def compare(self, recorded: Any, seen: Any) -> None:
        """Raises Mismatch; what was learnt in a failed comparison is forgotten."""
        self._tentative = []
        try:
            self._value(recorded, seen, "")
        except Mismatch:
            for kind, old, new in self._tentative:
                del self._there[kind, old]
                del self._back[kind, new]
            raise

    def known(self, text: str) -> str:
        """A recorded text with this run's uuids in it."""
        return _UUID.sub(lambda match: self._there.get(("uuid", match.group()), match.group()), text)

    def _same(self, kind: str, old: str, new: str, place: str) -> None:
        if self._there.get((kind, old), new) != new or self._back.get((kind, new), old) != old:
            raise Mismatch(f"{place}: {kind} {new} stands for another than {old}")
        if (kind, old) not in self._there:
            self._there[kind, old], self._back[kind, new] = new, old
            self._tentative.append((kind, old, new))

    def _value(self, recorded: Any, seen: Any, place: str) -> None:
        key = place.rpartition(".")[2]
        if isinstance(recorded, dict) and isinstance(seen, dict):
            if recorded.keys() != seen.keys():
                only = sorted(recorded.keys() ^ seen.keys())
                raise Mismatch(f"{place}: members differ: {only}")
            for name, value in recorded.items():
                self._value(value, seen[name], f"{place}.{name}")
        elif isinstance(recorded, list) and isinstance(seen, list):
            if len(recorded) != len(seen):
                raise Mismatch(f"{place}: {len(seen)} entries instead of {len(recorded)}")
            for number, pair in enumerate(zip(recorded, seen, strict=True)):
                self._value(*pair, f"{place}[{number}]")
        elif key in _CLOCKS or _COUNTERS.fullmatch(key):
            if type(recorded) is not type(seen):
                raise Mismatch(f"{place}: {seen!r} instead of {recorded!r}")
        elif key == "cntlid" and isinstance(recorded, int) and isinstance(seen, int):
            # Refused connections use numbers up: how many is the fabric's business.
            self._same(f"cntlid in {self.section}", str(recorded), str(seen), place)
        elif isinstance(recorded, str) and isinstance(seen, str):
            self._text(recorded, seen, place, key)
        elif recorded != seen or type(recorded) is not type(seen):
            raise Mismatch(f"{place}: {seen!r} instead of {recorded!r}")

    def _text(self, recorded: str, seen: str, place: str, key: str) -> None:
        if key == "trsvcid":
            return
        if key == "nguid" and _NGUID.fullmatch(recorded) and _NGUID.fullmatch(seen):
            self._same("uuid", _dashed(recorded), _dashed(seen), place)
            return
        old, new = _UUID.findall(recorded), _UUID.findall(seen)
        for pair in zip(old, new, strict=False):
            self._same("uuid", *pair, place)
        if self._path(_UUID.sub("*", recorded)) != _UUID.sub("*", seen):
            raise Mismatch(f"{place}: {seen!r} instead of {recorded!r}")


def _dashed(nguid: str) -> str:
    low = nguid.lower()
    return f"{low[:8]}-{low[8:12]}-{low[12:16]}-{low[16:20]}-{low[20:]}"


@dataclass
class Replay:
    """``arguments`` go to each stand-in; ``binary`` is a real spdk_tgt, or empty. ``skip``: methods not to call."""

    directory: Path
    arguments: Sequence[str] = ()
    binary: str = ""
    skip: frozenset[str] = frozenset()
    patience: float = 10.0
    outcomes: list[Outcome] = field(default_factory=list)
    unsupported: dict[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._processes: dict[str, SpdkProcess] = {}
        self._clients: dict[str, SpdkClient] = {}
        self._ports: dict[str, str] = {}
        self._likeness = Likeness(self._path)
        self._guests: list[socket.socket] = []
        self._saved: dict[str, list[tuple[str, Any]]] = {}

    async def run(self, steps: Sequence[dict[str, Any]]) -> None:
        try:
            for step in steps:
                if "do" in step:
                    await self._do(step)
                elif (method := step.get("needs", step["q"]["method"])) in self.skip:
                    self.unsupported[method] = self.unsupported.get(method, 0) + 1
                else:
                    self.outcomes.append(await self._exchange(step))
        finally:
            for client in self._clients.values():
                await client.close()
            for process in self._processes.values():
                await process.kill()
            for guest in self._guests:
                guest.close()

    # Deeds.

    async def _do(self, step: dict[str, Any]) -> None:
        await getattr(self, f"_do_{step['do']}")(step)

    async def _do_start(self, step: dict[str, Any]) -> None:
        name = step["i"]
        process = self._processes.get(name)
        arguments = [*self.arguments]
        if process is None or step.get("mode"):
            process = SpdkProcess(
                self.directory,
                f"{name.lower()}",
                mode=step.get("mode", "dpu"),
                binary=self.binary,
                arguments=arguments,
                core_mask=step.get("mask", "0x1"),
            )
            process.vhost_directory = self.directory / f"{name.lower()}.sock.vhost"
            self._processes[name] = process
        extra = list(step.get("arguments", ()))
        if "config" in step:
            extra += ["-c", str(self.directory / step["config"])]
        await process.start(*extra)
        if name not in self._clients:
            self._clients[name] = SpdkClient(process.address)

    async def _do_stop(self, step: dict[str, Any]) -> None:
        await self._processes[step["i"]].stop()

    async def _do_kill(self, step: dict[str, Any]) -> None:
        await self._processes[step["i"]].kill()

    async def _do_gone(self, step: dict[str, Any]) -> None:
        await self._processes[step["i"]].wait()

    async def _do_truncate(self, step: dict[str, Any]) -> None:
        with (self.directory / step["file"]).open("ab") as file:
            file.truncate(step["size"])

    async def _do_write(self, step: dict[str, Any]) -> None:
        path = self.directory / step["file"]
        path.write_text(step["text"])
        path.chmod(step["mode"])

    async def _do_mkdir(self, step: dict[str, Any]) -> None:
        (self.directory / step["file"]).mkdir(parents=True, exist_ok=True)

    async def _do_call(self, step: dict[str, Any]) -> None:
        query = self._ours(step["q"])
        await self._clients[step["i"]].call(query["method"], query.get("params"))

    async def _do_fire(self, step: dict[str, Any]) -> None:
        """Requests in one write on a connection that is closed without waiting: they are carried out all the same."""
        _, writer = await asyncio.open_unix_connection(str(self._processes[step["i"]].socket))
        requests = [{"jsonrpc": "2.0", "id": number, **self._ours(it)} for number, it in enumerate(step["requests"])]
        writer.write("".join(json.dumps(request) for request in requests).encode())
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async def _do_save(self, step: dict[str, Any]) -> None:
        client = self._clients[step["i"]]
        names = [it["subsystem"] for it in await client.call("framework_get_subsystems")]
        subsystems = [
            {"subsystem": name, "config": await client.call("framework_get_config", {"name": name})} for name in names
        ]
        (self.directory / step["file"]).write_text(json.dumps({"subsystems": subsystems}))

    async def _do_load(self, step: dict[str, Any]) -> None:
        """As SPDK's own load_config: what may be set before the start, the start, the rest."""
        client = self._clients[step["i"]]
        subsystems = json.loads((self.directory / step["file"]).read_text())["subsystems"]
        calls = [entry for subsystem in subsystems for entry in subsystem["config"] or []]
        early = set(await client.call("rpc_get_methods", {"current": True}))
        await self._make([entry for entry in calls if entry["method"] in early], client)
        await client.call("framework_start_init")
        late = set(await client.call("rpc_get_methods", {"current": True}))
        await self._make([it for it in calls if it["method"] in late and it["method"] not in early], client)

    async def _make(self, calls: Sequence[dict[str, Any]], client: SpdkClient) -> None:
        for entry in calls:
            await client.call(entry["method"], entry.get("params"))

    async def _do_guest(self, step: dict[str, Any]) -> None:
        guest = socket.socket(socket.AF_UNIX)
        guest.connect(str(self._processes[step["i"]].vhost_directory / step["socket"]))
        self._guests.append(guest)

    async def _do_guest_leaves(self, step: dict[str, Any]) -> None:
        asyncio.get_running_loop().call_later(step["after"], self._guests.pop().close)

    # Exchanges.

    async def _exchange(self, step: dict[str, Any]) -> Outcome:
        query, recorded = self._ours(step["q"]), step["r"]
        outcome = Outcome(step["s"], query["method"], step.get("n", ""))
        self._likeness.section = step["s"]
        loop = asyncio.get_running_loop()
        end = loop.time() + self.patience
        while True:
            seen = await self._ask(step["i"], query, recorded)
            try:
                if query["method"] == "rpc_get_methods" and "result" in recorded and "result" in seen:
                    self._subset(recorded["result"], seen["result"])
                else:
                    self._likeness.compare(recorded, seen)
            except Mismatch as problem:
                if step.get("wait") and loop.time() < end:
                    await asyncio.sleep(0.02)
                    continue
                outcome.problem = f"{problem} (answer: {json.dumps(seen)[:300]})"
            return outcome

    async def _ask(self, instance: str, query: dict[str, Any], recorded: dict[str, Any]) -> dict[str, Any]:
        deadline = 1.0 if recorded.get("gone") == "timeout" else 20.0
        try:
            result = await self._clients[instance].call(query["method"], query.get("params"), deadline=deadline)
        except SpdkError as error:
            return {"error": {"code": error.code, "message": error.message}}
        except SpdkTimeout:
            return {"gone": "timeout"}
        except SpdkMalformedReply:
            return {"gone": "malformed"}
        except SpdkUnavailable as error:
            return {"gone": "refused" if "reached" in str(error) else "closed"}
        return {"result": result}

    @staticmethod
    def _subset(recorded: list[str], seen: list[str]) -> None:
        """What is left out is told as unsupported; what is there must be the real one's."""
        invented = set(seen) - set(recorded)
        if invented:
            raise Mismatch(f"methods that the real one does not have: {sorted(invented)}")

    def _path(self, text: str) -> str:
        return text.replace(_RUN, str(self.directory))

    def _ours(self, value: Any, key: str = "") -> Any:
        """A recorded request in this run's words."""
        if isinstance(value, dict):
            return {name: self._ours(member, name) for name, member in value.items()}
        if isinstance(value, list):
            return [self._ours(member, key) for member in value]
        if isinstance(value, str):
            if key == "trsvcid" and value.isdigit() and 1024 < int(value) < 65536:
                if value not in self._ports:
                    self._ports[value] = str(free_port())
                return self._ports[value]
            return self._path(self._likeness.known(value))
        return value
