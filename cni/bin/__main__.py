"""cni-bin in Python, for machines without a C compiler: the same protocol and the same answers as cni_bin.c.

Imports only built-in modules, because every import here is paid on each pod's start.
"""

import posix
import select
import sys
import time
from _socket import AF_UNIX, SOCK_STREAM, socket

DEFAULT_SOCKET = "/run/dpu-offload/cni.sock"
MAX_HEADER, MAX_CONFIG, MAX_ANSWER = 128 * 1024, 1024 * 1024, 4 * 1024 * 1024
CALL_MS, STATUS_MS = 110_000, 4_000
BAD_ENVIRONMENT, IO_FAILURE, BAD_CONFIG, TRY_LATER, NOT_AVAILABLE = 4, 5, 7, 11, 50
VERSIONS = '{"cniVersion":"1.1.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}\n'


class Failure(Exception):
    """Ends the call with a CNI error: code, message, details."""


def version_of(config: bytearray) -> str:
    """The configuration's cniVersion without parsing it; the newest when it cannot be seen."""
    text = config.partition(b'"cniVersion"')[2].lstrip(b' \t\r\n:"')
    found, quote, _ = text.partition(b'"')
    return found.decode() if quote and found and len(found) < 24 and not found.strip(b"0123456789.") else "1.1.0"


def quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return "".join(char if char >= " " else f"\\u{ord(char):04x}" for char in escaped)


def ready(fd: int, event: int, deadline: float) -> bool:
    poll = select.poll()
    poll.register(fd, event)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


def read_config(config: bytearray, deadline: float) -> None:
    """Fills `config`, which keeps what was read when it raises."""
    while len(config) <= MAX_CONFIG:
        if not ready(0, select.POLLIN, deadline):
            raise Failure(
                IO_FAILURE,
                "the network configuration on standard input did not end in time; the runtime must close it",
                "stdin",
            )
        part = posix.read(0, MAX_CONFIG + 1 - len(config))
        if not part:
            return
        config += part
    raise Failure(
        BAD_CONFIG,
        "the network configuration on standard input is larger than 1 MiB, which no configuration is; correct the file",
        "stdin",
    )


def socket_path(environ: dict[bytes, bytes]) -> str:
    if given := environ.get(b"DPU_OFFLOAD_CNI_SOCKET"):
        return given.decode()
    return DEFAULT_SOCKET


def header_of(environ: dict[bytes, bytes], allowed_ms: int) -> bytes:
    lines = [key + b"=" + value + b"\0" for key, value in environ.items() if key.startswith(b"CNI_")]
    header = b"".join((*lines, b"DEADLINE_MS=%d\0" % allowed_ms, b"\0"))
    if len(header) > MAX_HEADER:
        raise Failure(BAD_ENVIRONMENT, "the CNI_ variables together are larger than 128 KiB", "environment")
    return header


def exchange(path: str, request: bytes, deadline: float, unavailable: int) -> tuple[int, bytes]:
    """The daemon's (exit status, output)."""

    def remaining() -> float:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left

    def receive(size: int) -> bytes:
        data = b""
        while len(data) < size:
            connection.settimeout(remaining())
            part = connection.recv(size - len(data))
            if not part:
                raise ConnectionResetError(104, "Connection reset by peer")
            data += part
        return data

    if len(path.encode()) > 107:
        raise Failure(unavailable, "the path of cni-node's socket is longer than 107 bytes; set a shorter one", path)
    connection = socket(AF_UNIX, SOCK_STREAM)
    what = "cni-node cannot be reached on its socket; see whether it runs on this node, then try again"
    try:
        connection.settimeout(remaining())
        connection.connect(path)
        what = "cni-node closed the connection while the call was being sent; try again"
        connection.settimeout(remaining())
        connection.sendall(request)
        what = "cni-node went away during the call; try again"
        prefix = receive(8)
        size = int.from_bytes(prefix[4:], "big")
        if size > MAX_ANSWER:
            raise Failure(
                unavailable, "cni-node's answer is malformed; do cni-bin and cni-node have the same version?", path
            )
        return int.from_bytes(prefix[:4], "big"), receive(size)
    except TimeoutError:
        raise Failure(
            unavailable,
            "cni-node did not answer in time; its log says what it waits for",
            f"{path}: Connection timed out",
        ) from None
    except OSError as error:
        raise Failure(unavailable, what, f"{path}: {error.strerror}") from None
    finally:
        connection.close()


def main() -> int:
    environ: dict[bytes, bytes] = posix.environ
    config = bytearray()
    try:
        command = environ.get(b"CNI_COMMAND", b"")
        status = command == b"STATUS"
        limit = environ.get(b"DPU_OFFLOAD_CNI_DEADLINE_MS", b"")
        allowed = int(limit) if limit.isdigit() and int(limit) else STATUS_MS if status else CALL_MS
        deadline = time.monotonic() + allowed / 1000
        if not command:
            raise Failure(
                BAD_ENVIRONMENT,
                "CNI_COMMAND is not set; this program is a CNI plugin and is run by a container runtime",
                "environment",
            )
        if command == b"VERSION":
            sys.stdout.write(VERSIONS)
            return 0
        read_config(config, deadline)
        header = header_of(environ, allowed)
        request = len(header).to_bytes(4, "big") + len(config).to_bytes(4, "big") + header + config
        code, answer = exchange(socket_path(environ), request, deadline, NOT_AVAILABLE if status else TRY_LATER)
    except Failure as failure:
        number, message, details = failure.args
        sys.stdout.write(
            f'{{"cniVersion":"{version_of(config)}","code":{number},"msg":"{quoted(message)}",'
            f'"details":"{quoted(details)}"}}\n'
        )
        return 1
    sys.stdout.buffer.write(answer)
    return 1 if code else 0


if __name__ == "__main__":
    sys.exit(main())
