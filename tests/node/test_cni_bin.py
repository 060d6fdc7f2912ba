"""cni-bin and its Python twin say the same to the daemon and to the runtime, also when there is no daemon."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest

from cni.node.wire import RawCall, answer, read_call
from hatch_build import compile_cni_bin
from tests.node.stage import BINARY, ROOT

TWINS = {"c": (str(BINARY),), "python": (sys.executable, "-I", "-S", "-E", str(ROOT / "cni/bin/__main__.py"))}
CONF = b'{"cniVersion": "1.0.0", "name": "lan", "type": "dpu-offload"}'
Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(params=["c", "python", "aarch64"])
def command(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return TWINS[request.param] if request.param in TWINS else emulated()


def emulated() -> tuple[str, ...]:
    """cni-bin as DPUs run it, on this machine; `make test-arm` installs what it needs."""
    emulator = shutil.which("qemu-aarch64-static") or shutil.which("qemu-aarch64")
    if emulator is None or shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("needs gcc-aarch64-linux-gnu, libc6-dev-arm64-cross, qemu-user-static (make test-arm)")
    compile_cni_bin(ROOT, target="aarch64-linux-gnu")
    return (emulator, str(BINARY.with_name("dpu-offload-aarch64")))


@contextlib.asynccontextmanager
async def daemon(path: Path, handler: Handler) -> AsyncIterator[None]:
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await handler(reader, writer)
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    server = await asyncio.start_unix_server(connected, path)
    try:
        yield
    finally:
        server.close()


async def run(command: tuple[str, ...], config: bytes, **environment: str) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, env=environment
    )
    output, _ = await asyncio.wait_for(process.communicate(config), 20)
    return process.returncode or 0, output.decode()


async def test_call_and_answer_pass_untouched(command: tuple[str, ...], tmp_path: Path) -> None:
    seen: list[RawCall] = []

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_call(reader))
        writer.write(answer(0, '{"cniVersion":"1.0.0","dns":{"search":["ümlaut"]}}'.encode()))
        await writer.drain()

    config = CONF + b" " * 300_000 + b"\0\xff"
    async with daemon(tmp_path / "s", handler):
        status, output = await run(
            command,
            config,
            CNI_COMMAND="ADD",
            CNI_ARGS="A=1;B=two words",
            CNI_NETNS="/run/netns/x",
            HOME="/root",
            DPU_OFFLOAD_CNI_SOCKET=str(tmp_path / "s"),
        )
    assert (status, output) == (0, '{"cniVersion":"1.0.0","dns":{"search":["ümlaut"]}}')
    (call,) = seen
    assert call.config == config
    assert call.variables == {
        "CNI_COMMAND": "ADD",
        "CNI_ARGS": "A=1;B=two words",
        "CNI_NETNS": "/run/netns/x",
        "DEADLINE_MS": "110000",
    }


async def test_the_daemons_failure_is_the_exit_status(command: tuple[str, ...], tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_call(reader)
        writer.write(answer(1, b'{"code":7}'))
        await writer.drain()

    async with daemon(tmp_path / "s", handler):
        socket = str(tmp_path / "s")
        assert await run(command, CONF, CNI_COMMAND="DEL", DPU_OFFLOAD_CNI_SOCKET=socket) == (1, '{"code":7}')


@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("DEL", 11), ("CHECK", 11), ("GC", 11), ("STATUS", 50)])
async def test_no_daemon_is_a_cni_error(command: tuple[str, ...], tmp_path: Path, verb: str, code: int) -> None:
    socket = str(tmp_path / 'no"daemon')
    status, output = await run(command, CONF, CNI_COMMAND=verb, DPU_OFFLOAD_CNI_SOCKET=socket)
    error = json.loads(output)
    assert (status, error["code"], error["cniVersion"]) == (1, code, "1.0.0")
    assert "cni-node cannot be reached" in error["msg"]
    assert socket in error["details"]


@pytest.mark.parametrize(("verb", "code"), [("ADD", 11), ("STATUS", 50)])
async def test_a_silent_daemon_meets_the_deadline(
    command: tuple[str, ...], tmp_path: Path, verb: str, code: int
) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_call(reader)
        await reader.read(1)

    async with daemon(tmp_path / "s", handler):
        status, output = await run(
            command,
            CONF,
            CNI_COMMAND=verb,
            DPU_OFFLOAD_CNI_SOCKET=str(tmp_path / "s"),
            DPU_OFFLOAD_CNI_DEADLINE_MS="200",
        )
    assert (status, json.loads(output)["code"]) == (1, code)
    assert "did not answer in time" in json.loads(output)["msg"]


async def test_a_daemon_that_dies_in_the_call_is_a_cni_error(command: tuple[str, ...], tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_call(reader)
        writer.write(answer(0, b"x" * 100)[:50])
        await writer.drain()

    async with daemon(tmp_path / "s", handler):
        status, output = await run(command, CONF, CNI_COMMAND="ADD", DPU_OFFLOAD_CNI_SOCKET=str(tmp_path / "s"))
    assert (status, json.loads(output)["code"]) == (1, 11)
    assert "went away" in json.loads(output)["msg"]


async def test_a_malformed_answer_is_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_call(reader)
        writer.write(b"HTTP/1.1 400 Bad Request\r\n")
        await writer.drain()
        await reader.read(1)

    async with daemon(tmp_path / "s", handler):
        status, output = await run(command, CONF, CNI_COMMAND="ADD", DPU_OFFLOAD_CNI_SOCKET=str(tmp_path / "s"))
    assert (status, json.loads(output)["code"]) == (1, 11)
    assert "malformed" in json.loads(output)["msg"]


async def test_version_needs_no_daemon(command: tuple[str, ...]) -> None:
    status, output = await run(command, b'{"cniVersion":"1.1.0"}', CNI_COMMAND="VERSION")
    assert status == 0
    assert json.loads(output)["supportedVersions"] == ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]


async def test_ten_megabytes_are_refused(command: tuple[str, ...], tmp_path: Path) -> None:
    # The plugin must not read it all, so the writer may meet a closed pipe.
    process = await asyncio.create_subprocess_exec(
        *command,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"CNI_COMMAND": "ADD", "DPU_OFFLOAD_CNI_SOCKET": str(tmp_path / "none")},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(BrokenPipeError, ConnectionResetError):
        process.stdin.write(CONF + b" " * 10_000_000)
        await process.stdin.drain()
    error = json.loads(await process.stdout.read())
    assert await process.wait() == 1
    assert (error["code"], error["cniVersion"]) == (7, "1.0.0")
    assert "larger than 1 MiB" in error["msg"]
    process.stdin.close()


async def test_no_command_is_an_environment_error(command: tuple[str, ...]) -> None:
    status, output = await run(command, CONF)
    assert (status, json.loads(output)["code"]) == (1, 4)


@pytest.mark.parametrize(
    ("config", "version"),
    [
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"cniVersion" :\n "0.3.1", "x": 1}', "0.3.1"),
        (b"", "1.1.0"),
        (b'{"cniVersion":"no\\"pe"}', "1.1.0"),
        (b'{"cniVersion":"', "1.1.0"),
        (b'{"cniVersion":' + b'"' * 5, "1.1.0"),
        (b'{"cniVersion":"111111111111111111111111111111111111"}', "1.1.0"),
    ],
)
async def test_errors_carry_the_configurations_version(
    command: tuple[str, ...], tmp_path: Path, config: bytes, version: str
) -> None:
    socket = str(tmp_path / "none")
    _, output = await run(command, config, CNI_COMMAND="ADD", DPU_OFFLOAD_CNI_SOCKET=socket)
    assert json.loads(output)["cniVersion"] == version


async def test_the_socket_can_stand_in_a_file_beside_the_binary(tmp_path: Path) -> None:
    copy = tmp_path / "dpu-offload"
    copy.write_bytes(BINARY.read_bytes())
    copy.chmod(0o755)
    copy.with_name("dpu-offload.socket").write_text(f"{tmp_path}/beside.sock\n")
    _, output = await run((str(copy),), CONF, CNI_COMMAND="ADD")
    assert f"{tmp_path}/beside.sock" in json.loads(output)["details"]
    copy.with_name("dpu-offload.socket").unlink()
    _, output = await run((str(copy),), CONF, CNI_COMMAND="ADD")
    assert "/run/dpu-offload/cni.sock" in json.loads(output)["details"]
