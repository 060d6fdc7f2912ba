"""The client against servers that misbehave, each in its own way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from foundation.spdk.address import HttpAddress, TcpAddress, UnixAddress, parse_address
from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import (
    SpdkError,
    SpdkMalformedReply,
    SpdkRequestTooLarge,
    SpdkTimeout,
    SpdkUnavailable,
)
from foundation.spdk.methods import app, bdev
from tests.spdk.conftest import Start, eventually, fault

Answer = Callable[[dict[str, Any], Callable[[bytes], None]], None]


class FakeServer:
    """Answers as the test says; ``requests`` are those that came, ``connections`` how often somebody connected."""

    def __init__(self, path: Path) -> None:
        self.address = f"unix:{path}"
        self.path = path
        self.requests: list[dict[str, Any]] = []
        self.connections = 0
        self.writers: list[asyncio.StreamWriter] = []
        self.answer: Answer = lambda request, send: send(result(request))
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.writers.append(writer)
        decoder, text = json.JSONDecoder(), ""
        while data := await reader.read(65536):
            text += data.decode()
            while text:
                try:
                    request, end = decoder.raw_decode(text)
                except json.JSONDecodeError:
                    break
                text = text[end:]
                self.requests.append(request)
                self.answer(request, writer.write)
        writer.close()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for writer in self.writers:
            writer.close()


def result(request: dict[str, Any], value: Any = True) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": value}).encode() + b"\n"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[FakeServer]:
    fake = FakeServer(tmp_path / "fake.sock")
    await fake.start()
    yield fake
    await fake.stop()


@pytest.fixture
async def client(server: FakeServer) -> AsyncIterator[SpdkClient]:
    async with SpdkClient(server.address) as connected:
        yield connected


async def test_a_late_answer_reaches_nobody(server: FakeServer, client: SpdkClient) -> None:
    late: list[Callable[[], None]] = []

    def answer(request: dict[str, Any], send: Callable[[bytes], None]) -> None:
        if request["method"] == "slow":
            late.append(lambda: send(result(request, "slow's")))
        else:
            late[0]()
            send(result(request, "quick's"))

    server.answer = answer
    await client.connect()
    with pytest.raises(SpdkTimeout, match=r"did not answer slow within 0\.05 s"):
        await client.call("slow", deadline=0.05)
    assert await client.call("quick") == "quick's"
    assert server.connections == 1


async def test_answers_find_their_calls_in_any_order(server: FakeServer, client: SpdkClient) -> None:
    held: list[dict[str, Any]] = []

    def answer(request: dict[str, Any], send: Callable[[bytes], None]) -> None:
        held.append(request)
        if len(held) == 100:
            for one in reversed(held):
                send(result(one, one["params"]["n"]))

    server.answer = answer
    assert await asyncio.gather(*(client.call("m", {"n": n}) for n in range(100))) == list(range(100))


async def test_calls_of_one_turn_leave_in_one_write(server: FakeServer, client: SpdkClient) -> None:
    await client.call("first")
    seen: list[int] = []
    server.answer = lambda request, send: (seen.append(len(server.requests)), send(result(request)))[1]
    await client.batch([("m", {"n": n}) for n in range(50)])
    assert [request["params"]["n"] for request in server.requests[1:]] == list(range(50))


async def test_empty_params_are_left_out(server: FakeServer, client: SpdkClient) -> None:
    await client.call("m", {})
    await client.call("m", None)
    assert all("params" not in request for request in server.requests)


async def test_a_batch_keeps_each_outcome_in_its_place(server: FakeServer, client: SpdkClient) -> None:
    def answer(request: dict[str, Any], send: Callable[[bytes], None]) -> None:
        if request["method"] == "bad":
            error = {"code": -19, "message": "No such device"}
            send(json.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error}).encode() + b"\n")
        elif request["method"] == "good":
            send(result(request, 7))

    server.answer = answer
    good, bad, never = await client.batch([("good", None), ("bad", {"name": "x"}), ("never", None)], deadline=1.0)
    assert good == 7
    assert isinstance(bad, SpdkError)
    assert (bad.code, bad.message, bad.method, bad.missing, bad.exists) == (-19, "No such device", "bad", True, False)
    assert isinstance(never, SpdkTimeout)


@pytest.mark.parametrize(
    "reply",
    [
        b"no json at all\n",
        b'{"jsonrpc":"2.0","id":1,"result":\n}x\n',
        b"[1]\n",
        b'{"id":null,"error":{"code":-32600,"message":"Invalid request"}}\n',
    ],
)
async def test_a_reply_that_is_none_ends_the_connection_and_the_next_call_has_a_new_one(
    server: FakeServer, client: SpdkClient, reply: bytes
) -> None:
    server.answer = lambda request, send: send(reply)
    others = [asyncio.ensure_future(client.call("m", deadline=5)) for _ in range(3)]
    done, _ = await asyncio.wait(others)
    assert all(isinstance(task.exception(), SpdkMalformedReply) for task in done)
    server.answer = lambda request, send: send(result(request))
    assert await client.call("m") is True
    assert server.connections == 2


@pytest.mark.parametrize(
    ("reply", "says"),
    [({"result": "text"}, "unexpectedly"), ({"result": None}, "unexpectedly"), ({}, "neither result nor error")],
)
async def test_a_result_of_another_shape_fails_only_its_own_call(
    server: FakeServer, client: SpdkClient, reply: dict[str, Any], says: str
) -> None:
    server.answer = lambda request, send: send(
        json.dumps({"jsonrpc": "2.0", "id": request["id"], **reply}).encode() + b"\n"
    )
    with pytest.raises(SpdkMalformedReply, match=says):
        await bdev.bdev_get_bdevs(client)
    assert client.connected


async def test_text_that_is_no_utf8_fails_only_its_own_call(server: FakeServer, client: SpdkClient) -> None:
    server.answer = lambda request, send: send(b'{"id":%d,"result":["\xfe\xff"]}\n' % request["id"])
    with pytest.raises(SpdkMalformedReply):
        await client.call("rpc_get_methods")
    assert client.connected


async def test_a_connection_that_ends_fails_its_calls_and_tells(server: FakeServer, client: SpdkClient) -> None:
    lost: list[SpdkUnavailable] = []
    client.on_disconnect(lost.append)
    server.answer = lambda request, send: server.writers[-1].close()
    with pytest.raises(SpdkUnavailable, match=r"closed by SPDK.*unanswered: one, two"):
        await asyncio.gather(client.call("one"), client.call("two"))
    await eventually(lambda: _is(len(lost) == 1))
    server.answer = lambda request, send: send(result(request))
    assert await client.call("again") is True


async def test_too_large_a_request_is_refused_before_it_is_sent(server: FakeServer, client: SpdkClient) -> None:
    await client.call("first")
    with pytest.raises(SpdkRequestTooLarge, match="262144"):
        await client.call("m", {"name": "x" * 262_100})
    assert await client.call("m", {"name": "x" * 260_000}) is True
    assert len(server.requests) == 2


async def test_nobody_there(tmp_path: Path) -> None:
    async with SpdkClient(f"unix:{tmp_path}/none.sock") as client:
        with pytest.raises(SpdkUnavailable, match=r"cannot be reached.*is it running"):
            await client.call("m")
        with pytest.raises(SpdkUnavailable, match="cannot be reached"):
            await client.connect(deadline=0.1)


async def test_connect_waits_for_a_server_that_is_late(tmp_path: Path) -> None:
    fake = FakeServer(tmp_path / "late.sock")
    async with SpdkClient(fake.address) as client:
        connecting = asyncio.ensure_future(client.connect(deadline=10))
        await asyncio.sleep(0.1)
        await fake.start()
        await connecting
        assert client.connected
    await fake.stop()


async def test_a_lost_connection_is_made_anew_for_those_who_want_to_know(
    server: FakeServer, client: SpdkClient
) -> None:
    events: list[str] = []
    client.on_connect(lambda: events.append("up"))
    client.on_disconnect(lambda reason: events.append("down"))
    await client.connect()
    await eventually(lambda: _is(bool(server.writers)))
    server.writers[-1].close()
    await eventually(lambda: _is(events == ["up", "down", "up"]))
    assert client.connected


async def test_a_closed_client_stays_closed(server: FakeServer) -> None:
    client = SpdkClient(server.address)
    server.answer = lambda request, send: None
    waiting = asyncio.ensure_future(client.call("m"))
    await eventually(lambda: _is(bool(server.requests)))
    await client.close()
    with pytest.raises(SpdkUnavailable, match="closed by us"):
        await waiting
    with pytest.raises(SpdkUnavailable, match="is closed"):
        await client.call("m")


async def test_a_cancelled_call_leaves_the_others_alone(server: FakeServer, client: SpdkClient) -> None:
    server.answer = lambda request, send: None if request["method"] == "never" else send(result(request))
    never = asyncio.ensure_future(client.call("never"))
    await eventually(lambda: _is(bool(server.requests)))
    never.cancel()
    await asyncio.wait([never])
    assert await client.call("m") is True


async def test_tcp(unused_tcp: Callable[[FakeServer], Awaitable[int]], tmp_path: Path) -> None:
    fake = FakeServer(tmp_path / "unused")
    port = await unused_tcp(fake)
    async with SpdkClient(f"tcp:127.0.0.1:{port}") as client:
        assert await client.call("m") is True


@pytest.fixture
async def unused_tcp() -> AsyncIterator[Callable[[FakeServer], Awaitable[int]]]:
    servers: list[tuple[asyncio.Server, FakeServer]] = []

    async def listen(fake: FakeServer) -> int:
        server = await asyncio.start_server(fake._serve, "127.0.0.1", 0)
        servers.append((server, fake))
        return int(server.sockets[0].getsockname()[1])

    yield listen
    for server, fake in servers:
        server.close()
        for writer in fake.writers:
            writer.close()


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("unix:/run/spdk.sock", UnixAddress("/run/spdk.sock")),
        ("/run/spdk.sock", UnixAddress("/run/spdk.sock")),
        ("tcp:127.0.0.1:5260", TcpAddress("127.0.0.1", 5260)),
        ("tcp:[::1]:5260", TcpAddress("::1", 5260)),
        ("tcp://dpu:5260/", TcpAddress("dpu", 5260)),
        ("http://spdk@10.0.0.1:9009/", HttpAddress("http://10.0.0.1:9009/", "spdk")),
        ("http://10.0.0.1:9009", HttpAddress("http://10.0.0.1:9009/", "")),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text", ["", "unix:", "unix:relative", "tcp:host", "tcp:host:0", "tcp::1:x", "ftp://a/", "http:///x"]
)
def test_addresses_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="no SPDK address"):
        parse_address(text)


def test_a_password_in_an_address_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="put it into a file") as caught:
        parse_address("http://spdk:hunter2@host:1/")
    assert "hunter2" not in str(caught.value)


async def test_spdk_late_malformed_gone_and_silent(stand_in: Start, tmp_path: Path) -> None:
    control = tmp_path / "faults.sock"
    spdk = await stand_in("spdk", "--faults", str(control))
    client = spdk.client

    await fault(control, do="delay", method="spdk_get_version", seconds=0.3)
    with pytest.raises(SpdkTimeout):
        await app.spdk_get_version(client, deadline=0.1)
    assert await client.call("bdev_get_bdevs") == []
    await asyncio.sleep(0.3)
    assert (await app.spdk_get_version(client)).fields.major == 26

    await fault(control, do="garble", method="bdev_get_bdevs")
    with pytest.raises(SpdkUnavailable):
        await client.call("bdev_get_bdevs", deadline=0.5)
    assert await client.call("bdev_get_bdevs", deadline=5) == []

    await fault(control, do="drop", method="bdev_malloc_create")
    with pytest.raises(SpdkUnavailable, match="unanswered: bdev_malloc_create"):
        await bdev.bdev_malloc_create(client, name="m", num_blocks=8, block_size=512)
    # The deed was done: whoever repeats it must look first.
    assert (await bdev.only(client, "m")) is not None

    await fault(control, do="silence", method="*")
    with pytest.raises(SpdkTimeout):
        await client.call("bdev_get_bdevs", deadline=0.1)

    await spdk.process.kill()
    with pytest.raises(SpdkUnavailable):
        await client.call("bdev_get_bdevs")
    await spdk.process.start()
    assert await client.call("bdev_get_bdevs") == []


async def _is(value: bool) -> bool:
    return value
