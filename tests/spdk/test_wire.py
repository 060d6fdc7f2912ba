"""SPDK's JSON-RPC, byte by byte, as it was recorded from SPDK 26.05."""

from __future__ import annotations

import asyncio
import json
import lzma
from pathlib import Path
from typing import Any

from tests.spdk.conftest import Start, eventually

RECORDING = Path(__file__).with_name("recorded.jsonl.xz")


def raw_cases() -> list[dict[str, Any]]:
    lines = (json.loads(line) for line in lzma.decompress(RECORDING.read_bytes()).splitlines())
    return [line["raw"] for line in lines if "raw" in line]


def sent(case: dict[str, Any]) -> bytes:
    text = case["sent"]
    if "fill" in case:
        return (text % ("x" * (case["fill"] - len(text)))).encode()
    if "ones" in case:
        return (text % ",".join("1" * case["ones"])).encode()
    if "bytes" in case:
        head, _, tail = text.partition("%s")
        return head.encode() + bytes.fromhex(case["bytes"]) + tail.encode()
    return str(text).encode()


async def converse(path: str, data: bytes, expected: bytes, closes: bool) -> tuple[bytes, str]:
    """What comes back, and whether the connection is open, at EOF, or reset."""
    reader, writer = await asyncio.open_unix_connection(path, limit=2**22)
    received, state = b"", "open"
    try:
        writer.write(data)
        # Silence can only be seen by waiting for a while; a reply, or an end, ends the wait.
        async with asyncio.timeout(20 if closes or expected else 0.4):
            while closes or len(received) < len(expected) or not expected:
                chunk = await reader.read(65536)
                if not chunk:
                    state = "EOF"
                    break
                received += chunk
    except TimeoutError:
        pass
    except ConnectionError:
        state = "reset"
    finally:
        writer.transport.abort()
    return received, state


async def test_every_recorded_raw_exchange(start: Start) -> None:
    spdk = await start()
    cases = raw_cases()
    assert len(cases) == 50
    expected = [case["received"].encode() for case in cases]
    if spdk.real:
        # Another build says another commit.
        version = json.dumps(await spdk.call("spdk_get_version"), separators=(",", ":"))
        recorded = '{"version":"SPDK v26.05 git sha1 d519b163cb","fields":{"major":26,"minor":5,"patch":0,"suffix":"","commit":"d519b163cb"}}'  # noqa: E501
        expected = [text.replace(recorded.encode(), version.encode()) for text in expected]
    states = ["reset" if "reset" in case["connection"] else case["connection"] for case in cases]

    answers = await asyncio.gather(
        *(
            converse(str(spdk.process.socket), sent(case), text, state != "open")
            for case, text, state in zip(cases, expected, states, strict=True)
        )
    )

    for case, text, state, (received, seen) in zip(cases, expected, states, answers, strict=True):
        assert received == text, case["case"]
        # A close with unread bytes is a reset on Linux: which of both depends on how much had been read.
        assert (seen == "open") == (state == "open"), f"{case['case']}: {seen} instead of {state}"


def request(number: int, method: str, **params: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "method": method, "id": number, **({"params": params} if params else {})})


async def ids(path: str, *requests: str) -> list[dict[str, Any]]:
    """Replies to requests that were sent in one write, in the order in which they came."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write("".join(requests).encode())
    async with asyncio.timeout(20):
        replies = [json.loads(await reader.readline()) for _ in requests]
    writer.close()
    return replies


async def test_replies_come_as_calls_finish(start: Start) -> None:
    spdk = await start()
    await with_lvstore(spdk)
    replies = await ids(
        str(spdk.process.socket),
        request(1, "bdev_get_bdevs", name="nope", timeout=300),
        request(2, "spdk_get_version"),
        request(3, "bdev_lvol_create", lvs_name="lvs", lvol_name="o1", size_in_mib=1),
        request(4, "spdk_get_version"),
        request(5, "spdk_get_version"),
    )
    assert [reply["id"] for reply in replies] == [2, 4, 5, 3, 1]


async def test_one_of_four_equal_creations_wins(start: Start) -> None:
    spdk = await start()
    await with_lvstore(spdk)
    calls = [request(n, "bdev_lvol_create", lvs_name="lvs", lvol_name="same", size_in_mib=1) for n in range(4)]
    replies = await ids(str(spdk.process.socket), *calls)
    assert [reply.get("error", {}).get("code") for reply in replies] == [-17, -17, -17, None]
    assert replies[-1]["id"] == 0


async def test_a_second_deletion_is_told_busy(start: Start) -> None:
    spdk = await start()
    await with_lvstore(spdk)
    await spdk.call("bdev_lvol_create", lvs_name="lvs", lvol_name="v", size_in_mib=1)
    replies = await ids(
        str(spdk.process.socket),
        request(1, "bdev_lvol_delete", name="lvs/v"),
        request(2, "bdev_lvol_delete", name="lvs/v"),
        request(3, "bdev_get_bdevs", name="lvs/v"),
    )
    assert replies == [
        {"jsonrpc": "2.0", "id": 2, "error": {"code": -32603, "message": "Device or resource busy"}},
        {"jsonrpc": "2.0", "id": 3, "error": {"code": -19, "message": "No such device"}},
        {"jsonrpc": "2.0", "id": 1, "result": True},
    ]


async def test_a_deletion_does_not_see_a_creation_that_has_only_begun(start: Start) -> None:
    spdk = await start()
    await with_lvstore(spdk)
    replies = await ids(
        str(spdk.process.socket),
        request(1, "bdev_lvol_create", lvs_name="lvs", lvol_name="race", size_in_mib=1),
        request(2, "bdev_lvol_delete", name="lvs/race"),
    )
    assert [(reply["id"], reply.get("error", {}).get("code")) for reply in replies] == [(2, -19), (1, None)]
    assert await spdk.call("bdev_get_bdevs", name="lvs/race")


async def test_a_subsystem_takes_what_is_sent_right_behind_its_creation(start: Start) -> None:
    spdk = await start()
    await spdk.call("bdev_malloc_create", name="m", num_blocks=2048, block_size=512)
    nqn = "nqn.2026-05.io.test:c0"
    replies = await ids(
        str(spdk.process.socket),
        request(1, "nvmf_create_subsystem", nqn=nqn),
        request(2, "nvmf_create_subsystem", nqn=nqn),
        request(3, "nvmf_subsystem_add_ns", nqn=nqn, namespace={"bdev_name": "m"}),
        request(4, "nvmf_subsystem_add_host", nqn=nqn, host="nqn.2026-05.io.test:h"),
    )
    by_id = {reply["id"]: reply for reply in replies}
    assert by_id[2]["error"]["code"] == -32603
    assert [by_id[number]["result"] for number in (1, 3, 4)] == [True, 1, True]


async def test_a_request_is_carried_out_although_its_sender_has_gone(start: Start) -> None:
    spdk = await start()
    _, writer = await asyncio.open_unix_connection(str(spdk.process.socket))
    writer.write(request(1, "bdev_malloc_create", name="orphan", num_blocks=2048, block_size=512).encode())
    await writer.drain()
    writer.close()
    assert await spdk.call("bdev_get_bdevs", name="orphan", timeout=5000)


async def test_after_a_half_close_only_what_is_ready_comes(start: Start) -> None:
    spdk = await start()
    reader, writer = await asyncio.open_unix_connection(str(spdk.process.socket))
    writer.write((request(1, "spdk_get_version") + request(2, "bdev_get_bdevs", name="no", timeout=300) + "{").encode())
    writer.write_eof()
    async with asyncio.timeout(20):
        replies = await reader.read()
    writer.close()
    assert [json.loads(line)["id"] for line in replies.splitlines()] == [1]


async def test_sixty_four_connections_are_served_and_the_next_one_waits(start: Start) -> None:
    spdk = await start()
    path = str(spdk.process.socket)
    streams = [await asyncio.open_unix_connection(path) for _ in range(66)]
    for _, writer in streams:
        writer.write(request(1, "spdk_get_version").encode())
    reads = [asyncio.ensure_future(reader.readline()) for reader, _ in streams]

    async def served_all_but_two() -> bool:
        return sum(read.done() for read in reads) == 64

    # The process that started SPDK has closed its own connection by now.
    await eventually(served_all_but_two, within=20)
    done, waiting = await asyncio.wait(reads, timeout=0.2)
    assert (len(done), len(waiting)) == (64, 2)
    first = streams[reads.index(next(iter(done)))]
    first[1].close()
    served, _ = await asyncio.wait(waiting, timeout=20.0, return_when=asyncio.FIRST_COMPLETED)
    assert len(served) == 1
    for _, writer in streams:
        writer.transport.abort()
    await asyncio.wait(reads)


async def with_lvstore(spdk: Any) -> None:
    await spdk.call("bdev_aio_create", name="aio", filename=spdk.file("aio.img", 64), block_size=4096)
    await spdk.call(
        "bdev_lvol_create_lvstore", bdev_name="aio", lvs_name="lvs", cluster_sz=1048576, clear_method="none"
    )
