"""The HTTP endpoint: metrics, liveness, readiness, and clients that misbehave."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import pytest

from foundation.daemon import logs, metrics
from foundation.daemon.endpoint import Endpoint
from foundation.daemon.health import Health
from foundation.daemon.sockets import SocketTaken


@pytest.fixture
async def health() -> Health:
    return Health()


@pytest.fixture
async def endpoint(health: Health) -> AsyncIterator[Endpoint]:
    endpoint = Endpoint(health)
    await endpoint.start("127.0.0.1:0")
    yield endpoint
    await endpoint.stop()


async def exchange(endpoint: Endpoint, request: bytes) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers and body of the answer."""
    if endpoint.address.startswith("unix:"):
        reader, writer = await asyncio.open_unix_connection(endpoint.address.removeprefix("unix:"))
    else:
        host, _, port = endpoint.address.rpartition(":")
        reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(request)
    answer = await asyncio.wait_for(reader.read(), 30)
    writer.close()
    await writer.wait_closed()
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *lines = head.decode().split("\r\n")
    return status, dict(line.split(": ", 1) for line in lines if line), body


async def dropped(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The other side has closed, with or without a reset for what it left unread."""
    with contextlib.suppress(ConnectionError):
        assert await asyncio.wait_for(reader.read(), 20) == b""
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


async def get(endpoint: Endpoint, path: str) -> tuple[str, dict[str, str], bytes]:
    return await exchange(endpoint, f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())


async def test_ready_only_when_every_check_holds(endpoint: Endpoint, health: Health) -> None:
    seen = []
    for change in (
        None, ("ovs", False, "not connected to unix:/run/db.sock"), ("api", True, ""), ("ovs", True, ""),
        ("api", False, "no answer for 10 s"), "drop",
    ):  # fmt: skip
        if change == "drop":
            health.drop("api")
        elif change:
            health.set(*change)  # type: ignore[misc]  # the table holds one word beside the tuples
        status, headers, body = await get(endpoint, "/readyz")
        assert headers["Content-Type"] == "application/json"
        assert int(headers["Content-Length"]) == len(body)
        seen.append((status, json.loads(body)))
    assert [status for status, _ in seen] == [
        "HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable", "HTTP/1.1 503 Service Unavailable",
        "HTTP/1.1 200 OK", "HTTP/1.1 503 Service Unavailable", "HTTP/1.1 200 OK",
    ]  # fmt: skip
    assert seen[2][1] == {
        "ready": False,
        "checks": {
            "api": {"ok": True, "reason": ""},
            "ovs": {"ok": False, "reason": "not connected to unix:/run/db.sock"},
        },
    }
    assert seen[5][1] == {"ready": True, "checks": {"ovs": {"ok": True, "reason": ""}}}


async def test_secret_in_a_reason_is_not_told(endpoint: Endpoint, health: Health) -> None:
    logs.secret("canary-31337")
    health.set("spdk", False, "refused canary-31337")
    _, _, body = await get(endpoint, "/readyz")
    assert b"canary" not in body
    assert b"refused" in body


async def test_live_while_the_loop_turns_and_not_while_it_hangs(endpoint: Endpoint, health: Health) -> None:
    health.set("anything", False, "readiness is another matter")
    assert (await get(endpoint, "/healthz"))[0] == "HTTP/1.1 200 OK"
    host, _, port = endpoint.address.rpartition(":")
    # A probe from outside, while this very thread keeps the loop from turning.
    with socket.create_connection((host, int(port)), timeout=1) as probe:
        probe.settimeout(0.3)
        probe.sendall(b"GET /healthz HTTP/1.1\r\n\r\n")
        with pytest.raises(TimeoutError):
            probe.recv(1)


async def test_metrics_are_prometheus_text_under_our_name(endpoint: Endpoint) -> None:
    metrics.counter("endpoint_test_things", "Things.", ("kind",)).labels(kind="odd").inc(2)
    status, headers, body = await get(endpoint, "/metrics")
    assert status == "HTTP/1.1 200 OK"
    assert headers["Content-Type"].startswith("text/plain; version=")
    assert b'dpu_offload_endpoint_test_things_total{kind="odd"} 2.0\n' in body
    assert b"dpu_offload_process_resident_memory_bytes" in body
    names = {line.split(b" ")[2] for line in body.splitlines() if line.startswith(b"# TYPE ")}
    assert all(name.startswith(b"dpu_offload_") for name in names), names
    assert b"_created" not in body


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        ("GET /readyz?verbose HTTP/1.1", "200 OK"),
        ("GET / HTTP/1.1", "404 Not Found"),
        ("GET /metricsx HTTP/1.1", "404 Not Found"),
        ("POST /metrics HTTP/1.1", "405 Method Not Allowed"),
        ("nonsense", "404 Not Found"),
        ("", "404 Not Found"),
    ],
)
async def test_odd_requests_get_a_plain_answer(endpoint: Endpoint, request_line: str, status: str) -> None:
    assert (await exchange(endpoint, f"{request_line}\r\n\r\n".encode()))[0] == f"HTTP/1.1 {status}"


async def test_a_daemons_own_page_gets_the_query_and_answers_json(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    async def page(parameters: Mapping[str, str]) -> tuple[int, object]:
        if "fail" in parameters:
            raise LookupError(parameters["fail"])
        return (200 if parameters else 404), parameters

    endpoint.serve("/pods", page)
    status, headers, body = await get(endpoint, "/pods?pod=a%2Fb&empty=")
    assert (status, headers["Content-Type"], json.loads(body)) == (
        "HTTP/1.1 200 OK",
        "application/json",
        {"pod": "a/b", "empty": ""},
    )
    assert (await get(endpoint, "/pods"))[0] == "HTTP/1.1 404 Not Found"
    assert (await exchange(endpoint, b"POST /pods HTTP/1.1\r\n\r\n"))[0] == "HTTP/1.1 405 Method Not Allowed"
    assert b"/pods" in (await get(endpoint, "/elsewhere"))[2]
    status, _, body = await get(endpoint, "/pods?fail=hidden-cause")
    assert (status, b"hidden-cause" in body) == ("HTTP/1.1 500 Internal Server Error", False)
    assert "answering /pods failed" in caplog.text


async def test_head_has_the_length_but_not_the_body(endpoint: Endpoint) -> None:
    status, headers, body = await exchange(endpoint, b"HEAD /metrics HTTP/1.1\r\n\r\n")
    assert (status, body) == ("HTTP/1.1 200 OK", b"")
    assert int(headers["Content-Length"]) > 100


async def test_clients_that_break_off_or_flood_harm_nobody(
    endpoint: Endpoint, caplog: pytest.LogCaptureFixture
) -> None:
    host, _, port = endpoint.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /met")
    writer.close()
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"x" * 100_000)
    await dropped(reader, writer)
    assert (await get(endpoint, "/healthz"))[0] == "HTTP/1.1 200 OK"
    assert caplog.records == []


async def test_stop_drops_a_client_that_never_finishes_its_request(
    health: Health, caplog: pytest.LogCaptureFixture
) -> None:
    endpoint = Endpoint(health)
    await endpoint.start("127.0.0.1:0")
    host, _, port = endpoint.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /met")
    while not endpoint._serving:
        await asyncio.sleep(0.01)
    await asyncio.wait_for(endpoint.stop(), 4)
    await dropped(reader, writer)
    with pytest.raises(ConnectionRefusedError):
        await asyncio.open_connection(host, int(port))
    assert caplog.records == []


async def test_a_client_that_reads_nothing_costs_no_memory(endpoint: Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("foundation.daemon.endpoint._ANSWER_SECONDS", 0.2)

    asked = asyncio.Event()

    async def large(_: Mapping[str, str]) -> tuple[int, object]:
        asked.set()
        return 200, "x" * (16 << 20)

    endpoint.serve("/large", large)
    host, _, port = endpoint.address.rpartition(":")
    with socket.create_connection((host, int(port))) as client:
        client.sendall(b"GET /large HTTP/1.1\r\n\r\n")
        async with asyncio.timeout(30):
            await asked.wait()
            while endpoint._serving:
                await asyncio.sleep(0.01)
        client.settimeout(30)

        def rest() -> int:
            read = 0
            with contextlib.suppress(ConnectionError):
                while part := client.recv(1 << 20):
                    read += len(part)
            return read

        assert await asyncio.to_thread(rest) < 16 << 20


async def test_over_a_unix_socket(health: Health, tmp_path: Path) -> None:
    path = tmp_path / "run" / "http.sock"
    endpoint = Endpoint(health)
    await endpoint.start(f"unix:{path}")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (await get(endpoint, "/healthz"))[0] == "HTTP/1.1 200 OK"
    with pytest.raises(SocketTaken):
        await Endpoint(health).start(f"unix:{path}")
    await endpoint.stop()
    assert not path.exists()


@pytest.mark.skipif(not Path("/proc/net/if_inet6").exists(), reason="this machine has no IPv6")
async def test_over_ipv6(health: Health) -> None:
    endpoint = Endpoint(health)
    await endpoint.start("[::1]:0")
    assert endpoint.address.startswith("[::1]:")
    assert (await get(endpoint, "/healthz"))[0] == "HTTP/1.1 200 OK"
    await endpoint.stop()


@pytest.mark.parametrize("listen", ["localhost", "9100", ":x", "1.2.3.4:"])
async def test_what_is_no_address_is_told(health: Health, listen: str) -> None:
    with pytest.raises(ValueError, match="http: expected host:port or unix:/path, got"):
        await Endpoint(health).start(listen)


async def test_port_that_is_taken_is_told(endpoint: Endpoint, health: Health) -> None:
    with pytest.raises(OSError, match=f"http: cannot listen on {endpoint.address}: Address already in use"):
        await Endpoint(health).start(endpoint.address)


@pytest.mark.parametrize(
    ("listen", "why"),
    [("no.such.host.invalid:1", "not known|resolution"), ("127.0.0.1:70000", "a port is a number up to 65535")],
)
async def test_what_cannot_be_listened_on_is_told_why(health: Health, listen: str, why: str) -> None:
    with pytest.raises(OSError, match=rf"^http: cannot listen on {listen}: .*({why})"):
        await Endpoint(health).start(listen)
