"""SPDK's HTTP proxy as the client meets it: Basic authentication, one request a connection."""

from __future__ import annotations

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkError, SpdkMalformedReply, SpdkTimeout, SpdkUnavailable
from foundation.spdk.methods import app
from tests.spdk.test_client import FakeServer


class Proxy(ThreadingHTTPServer):
    """A stand-in for scripts/rpc_http_proxy.py in front of a unix socket."""

    daemon_threads = True

    def __init__(self, target: str, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.target = target
        self.loop = loop
        self.hold = threading.Event()
        self.hold.set()
        self.body: bytes | None = None

    async def forward(self, data: bytes) -> bytes:
        reader, writer = await asyncio.open_unix_connection(self.target)
        writer.write(data)
        reply = await reader.readline()
        writer.close()
        return reply


class Handler(BaseHTTPRequestHandler):
    server: Proxy

    def do_POST(self) -> None:
        expected = "Basic " + base64.b64encode(b"spdk:open sesame").decode()
        if self.headers["Authorization"] != expected:
            self.send_response(401)
            self.end_headers()
            return
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.hold.wait(5)
        reply = self.server.body
        if reply is None:
            reply = asyncio.run_coroutine_threadsafe(self.server.forward(data), self.server.loop).result(5)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(reply)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


def answer(request: dict[str, Any], send: Callable[[bytes], None]) -> None:
    if request["method"] == "spdk_get_version":
        reply = {"result": {"version": "SPDK v26.05", "fields": {"major": 26, "minor": 5}}}
    else:
        reply = {"error": {"code": -19, "message": "No such device"}}
    send(json.dumps({"jsonrpc": "2.0", "id": request["id"], **reply}).encode() + b"\n")


@pytest.fixture
async def spdk(tmp_path: Path) -> AsyncIterator[FakeServer]:
    fake = FakeServer(tmp_path / "spdk.sock")
    fake.answer = answer
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
def proxy(spdk: FakeServer) -> Iterator[Proxy]:
    with Proxy(str(spdk.path), asyncio.get_event_loop_policy().get_event_loop()) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.hold.set()
        server.shutdown()
        thread.join()


def client_of(proxy: Proxy, password: Path) -> SpdkClient:
    return SpdkClient(f"http://spdk@127.0.0.1:{proxy.server_port}/", password_file=str(password))


async def test_calls_go_through(proxy: Proxy, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("open sesame\n")
    async with client_of(proxy, password) as client:
        assert (await app.spdk_get_version(client)).fields.major == 26
        with pytest.raises(SpdkError) as caught:
            await client.call("bdev_get_bdevs", {"name": "nope"})
        assert caught.value.missing
        versions = await client.batch([("spdk_get_version", None)] * 5)
        assert len(versions) == 5


async def test_a_wrong_password_is_told_but_not_shown(proxy: Proxy, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("swordfish")
    async with client_of(proxy, password) as client:
        with pytest.raises(SpdkUnavailable, match="refused user 'spdk'") as caught:
            await client.call("spdk_get_version")
        assert "swordfish" not in str(caught.value)


async def test_a_missing_password_file_is_named(proxy: Proxy, tmp_path: Path) -> None:
    async with client_of(proxy, tmp_path / "none") as client:
        with pytest.raises(SpdkUnavailable, match=r"password file .*none"):
            await client.call("spdk_get_version")


async def test_a_slow_proxy_meets_the_deadline(proxy: Proxy, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("open sesame")
    proxy.hold.clear()
    async with client_of(proxy, password) as client:
        with pytest.raises(SpdkTimeout):
            await client.call("spdk_get_version", deadline=0.1)
    proxy.hold.set()


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id":999,"result":1}', b'{"jsonrpc":"2.0","id":1}'])
async def test_replies_that_are_none(proxy: Proxy, tmp_path: Path, body: bytes) -> None:
    password = tmp_path / "password"
    password.write_text("open sesame")
    proxy.body = body
    async with client_of(proxy, password) as client:
        with pytest.raises(SpdkMalformedReply):
            await client.call("spdk_get_version")


async def test_nobody_there(tmp_path: Path) -> None:
    async with SpdkClient("http://spdk@127.0.0.1:1/") as client:
        with pytest.raises(SpdkUnavailable, match="cannot be reached"):
            await client.call("spdk_get_version")
