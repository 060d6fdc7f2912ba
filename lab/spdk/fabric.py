"""The target's end of NVMe/TCP, as two stand-ins speak it: one JSON object a line.

host:   {"op":"connect","subnqn","hostnqn","hostid","tls":proof or "","dhchap":bool,"nonce","probe":bool}
target: {"event":"challenge","nonce"} when the host has a key, host: {"op":"proof","proof"}
target: {"event":"controller",...,"proof"} and a namespace_add for each namespace, or it closes without a word;
        {"event":"proven","proof"} to a probe, which only proves keys anew.
Then, as they happen: namespace_add, namespace_remove, namespace_resize, ana.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import socket
from typing import TYPE_CHECKING, Any

from lab.spdk.subsystems import Host, Listener, Subsystem

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

_log = logging.getLogger(__name__)


def tls_challenge(subnqn: str, hostnqn: str) -> str:
    return f"tls {subnqn} {hostnqn}"


class TcpPortal:
    """One address and port, shared by the subsystems that listen there."""

    def __init__(self, instance: Instance, traddr: str, trsvcid: str) -> None:
        self.instance = instance
        self.key = (traddr, trsvcid)
        self.subsystems: set[Subsystem] = set()
        family = socket.AF_INET6 if ":" in traddr else socket.AF_INET
        self._socket = socket.socket(family, socket.SOCK_STREAM)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((traddr, int(trsvcid)))
            self._socket.listen(512)
            self._socket.setblocking(False)
        except (OSError, OverflowError, ValueError):
            self._socket.close()
            raise
        asyncio.get_running_loop().add_reader(self._socket, self._accept)
        instance.on_exit.append(self.close)

    def _accept(self) -> None:
        try:
            accepted, _ = self._socket.accept()
        except (BlockingIOError, InterruptedError):
            return
        accepted.setblocking(False)
        loop = asyncio.get_running_loop()
        task = loop.create_task(loop.connect_accepted_socket(lambda: TcpSession(self), accepted))
        self.instance.background.add(task)
        task.add_done_callback(self.instance.background.discard)

    def forget(self, subsystem: Subsystem) -> None:
        self.subsystems.discard(subsystem)
        if not self.subsystems:
            self.instance.portals.pop(self.key, None)
            self.close()

    def close(self) -> None:
        if self._socket.fileno() >= 0:
            asyncio.get_running_loop().remove_reader(self._socket)
            self._socket.close()


class TcpSession(asyncio.Protocol):
    def __init__(self, portal: TcpPortal) -> None:
        self._portal = portal
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._subsystem: Subsystem | None = None
        self._host: Host | None = None
        self._greeting: dict[str, Any] = {}
        self._nonce = ""
        self.hostnqn = ""
        self.hostid = ""
        self.cntlid = 0
        self.authenticated = False
        self.dhgroup = self.digest = ""
        self.listener: Listener

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            try:
                message = json.loads(line)
            except ValueError:
                self._refuse("a message that is no JSON")
                return
            if message.get("op") == "connect" and self._subsystem is None:
                self._connect(message)
            elif message.get("op") == "proof" and self._nonce:
                self._prove(message)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._subsystem is not None and self in self._subsystem.sessions:
            self._subsystem.sessions.remove(self)

    def push(self, event: dict[str, Any]) -> None:
        if self._transport is not None:
            self._transport.write(json.dumps(event).encode() + b"\n")

    def disconnect(self) -> None:
        if self._subsystem is not None and self in self._subsystem.sessions:
            self._subsystem.sessions.remove(self)
        if self._transport is not None:
            self._transport.close()

    def qpair(self) -> dict[str, Any]:
        assert self._transport is not None
        host, port = self._transport.get_extra_info("peername")[:2]
        peer = {**self.listener.address, "traddr": host, "trsvcid": str(port)}
        result: dict[str, Any] = {
            "cntlid": self.cntlid,
            "qid": 0,
            "state": "enabled",
            "thread": "nvmf_tgt_poll_group_000",
            "hostnqn": self.hostnqn,
            "listen_address": self.listener.address,
            "peer_address": peer,
        }
        if self.authenticated:
            result["auth"] = {"state": "completed", "digest": self.digest, "dhgroup": self.dhgroup}
        return result

    def _refuse(self, why: str) -> None:
        _log.info("host %s refused: %s", self.hostnqn, why)
        if self._transport is not None:
            self._transport.close()

    def _connect(self, message: dict[str, Any]) -> None:
        subsystem = self._portal.instance.subsystems.find(message["subnqn"])
        self.hostnqn, self.hostid = message["hostnqn"], message["hostid"]
        if subsystem is None or subsystem not in self._portal.subsystems:
            return self._refuse(f"no subsystem {message['subnqn']} here")
        if not subsystem.admits(self.hostnqn):
            return self._refuse(f"subsystem {subsystem.nqn} does not allow it")
        self.listener = next(it for it in subsystem.listeners if it.portal is self._portal)
        host = subsystem.host(self.hostnqn)
        if self.listener.secure or message["tls"]:
            psk = host.psk if host else None
            proof = psk.proof(tls_challenge(subsystem.nqn, self.hostnqn)) if psk else ""
            if not (self.listener.secure and proof and message["tls"] == proof):
                return self._refuse("TLS")
        self._subsystem, self._host, self._greeting = subsystem, host, message
        if host is not None and host.dhchap_key is not None:
            if not message["dhchap"]:
                # The controller was there already when the authentication failed.
                subsystem.new_cntlid()
                return self._refuse("it has no key")
            self._nonce = secrets.token_hex(16)
            self.push({"event": "challenge", "nonce": self._nonce})
            return None
        return self._admit("")

    def _prove(self, message: dict[str, Any]) -> None:
        assert self._host is not None
        assert self._host.dhchap_key is not None
        expected = self._host.dhchap_key.proof(self._nonce)
        if not expected or message["proof"] != expected:
            if self._subsystem is not None:
                self._subsystem.new_cntlid()
            return self._refuse("the proof is wrong")
        self.authenticated = True
        self.digest, self.dhgroup = message["digest"], message["dhgroup"]
        own = self._host.dhchap_ctrlr_key
        return self._admit(own.proof(self._greeting["nonce"]) if own and self._greeting["nonce"] else "")

    def _admit(self, proof: str) -> None:
        assert self._subsystem is not None
        subsystem = self._subsystem
        if self._greeting["probe"]:
            self.push({"event": "proven", "proof": proof})
            return
        self.cntlid = subsystem.new_cntlid()
        subsystem.sessions.append(self)
        self.push({**subsystem.greeting(self.cntlid), "proof": proof, "namespaces": len(subsystem.namespaces)})
        self.push({"event": "ana", "states": self.listener.ana})
        for nsid in sorted(subsystem.namespaces):
            self.push(subsystem.namespaces[nsid].event("namespace_add"))
        self.push({"event": "ready"})
