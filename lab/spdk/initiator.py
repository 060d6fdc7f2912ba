"""The host's end of NVMe/TCP between two stand-ins (see fabric.py): one path to one subsystem."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lab.spdk.fabric import tls_challenge
from lab.spdk.keyring import Key

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

_log = logging.getLogger(__name__)


class ConnectFailed(Exception):
    """The target cannot be reached, or it refused. SPDK tells its caller nothing more than -5."""


@dataclass(frozen=True)
class TransportId:
    trtype: str
    adrfam: str
    traddr: str
    trsvcid: str
    subnqn: str

    def describe(self) -> dict[str, str]:
        return {
            "trtype": self.trtype,
            "adrfam": self.adrfam,
            "traddr": self.traddr,
            "trsvcid": self.trsvcid,
            "subnqn": self.subnqn,
        }


@dataclass(eq=False)
class Credentials:
    hostnqn: str
    dhchap_key: Key | None = None
    dhchap_ctrlr_key: Key | None = None
    psk: Key | None = None


class Connection(asyncio.Protocol):
    """``on_event`` gets what the target tells after it has admitted the host; ``on_lost`` the end."""

    def __init__(self) -> None:
        self._received = bytearray()
        self._waiting: asyncio.Future[dict[str, Any]] | None = None
        self._queue: list[dict[str, Any]] = []
        self._transport: asyncio.Transport | None = None
        self.on_event: Callable[[dict[str, Any]], None] | None = None
        self.on_lost: Callable[[], None] | None = None
        self.lost = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._received += data
        while (end := self._received.find(b"\n")) >= 0:
            line = bytes(self._received[:end])
            del self._received[: end + 1]
            event = json.loads(line)
            if self.on_event is not None:
                self.on_event(event)
            elif self._waiting is not None and not self._waiting.done():
                self._waiting.set_result(event)
            else:
                self._queue.append(event)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(ConnectFailed("the target closed the connection"))
        if self.on_lost is not None:
            self.on_lost()

    def send(self, message: dict[str, Any]) -> None:
        assert self._transport is not None
        self._transport.write(json.dumps(message).encode() + b"\n")

    async def receive(self) -> dict[str, Any]:
        if self._queue:
            return self._queue.pop(0)
        if self.lost:
            raise ConnectFailed("the target closed the connection")
        self._waiting = asyncio.get_running_loop().create_future()
        return await self._waiting

    def follow(self, on_event: Callable[[dict[str, Any]], None], on_lost: Callable[[], None]) -> None:
        self.on_event, self.on_lost = on_event, on_lost
        queue, self._queue = self._queue, []
        for event in queue:
            on_event(event)
        if self.lost:
            on_lost()

    def close(self) -> None:
        self.on_event = self.on_lost = None
        if self._transport is not None:
            self._transport.close()


async def connect(
    instance: Instance, trid: TransportId, credentials: Credentials, *, probe: bool = False
) -> tuple[Connection, dict[str, Any]]:
    """The connection, admitted, with the target's greeting; namespaces follow as events. Raises ConnectFailed.

    ``probe``: prove the keys and be no controller.
    """
    if trid.trtype != "TCP" or not trid.adrfam or not trid.trsvcid or not trid.subnqn:
        raise ConnectFailed("the address is incomplete")
    # Time limits below need a task: the server runs a method's first steps in none.
    await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(5):
            _, connection = await loop.create_connection(Connection, trid.traddr, int(trid.trsvcid))
    except (OSError, ValueError) as error:
        raise ConnectFailed(str(error)) from error
    try:
        async with asyncio.timeout(10):
            return connection, await _introduce(instance, connection, trid, credentials, probe)
    except TimeoutError as error:
        connection.close()
        raise ConnectFailed("the target says nothing") from error
    except BaseException:
        connection.close()
        raise


async def _introduce(
    instance: Instance, connection: Connection, trid: TransportId, credentials: Credentials, probe: bool
) -> dict[str, Any]:
    key, own = credentials.dhchap_key, credentials.dhchap_ctrlr_key
    nonce = secrets.token_hex(16) if own else ""
    psk = credentials.psk
    connection.send(
        {
            "op": "connect",
            "subnqn": trid.subnqn,
            "hostnqn": credentials.hostnqn,
            "hostid": instance.host_uuid,
            "tls": psk.proof(tls_challenge(trid.subnqn, credentials.hostnqn)) if psk else "",
            "dhchap": key is not None,
            "nonce": nonce,
            "probe": probe,
        }
    )
    event = await connection.receive()
    if event["event"] == "challenge":
        if key is None:
            raise ConnectFailed("the target wants a key")
        digest, group = instance.controllers.dhchap
        if group not in ("null", "ffdhe2048"):
            # What the large groups cost.
            await asyncio.sleep(instance.settings.dhchap)
        connection.send({"op": "proof", "proof": key.proof(event["nonce"]), "digest": digest, "dhgroup": group})
        event = await connection.receive()
        if own is not None and event.get("proof") != own.proof(nonce):
            raise ConnectFailed("the target's own proof is wrong")
    return event
