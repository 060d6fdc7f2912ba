"""One TCP transfer and its digest back: ``python -m lab.demo.tcp serve ADDRESS`` and ``... send ADDRESS PORT``.

Run in two network namespaces. The server prints its port, takes one connection, reads to the end, answers with the
SHA-256 of what came, and ends. The client sends a megabyte and compares.
"""

from __future__ import annotations

import hashlib
import os
import socket
import sys

BYTES = 1 << 20
SECONDS = 10.0


def serve(address: str) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, 0), family=family) as server:
        server.settimeout(SECONDS)
        print(server.getsockname()[1], flush=True)
        connection, _ = server.accept()
        with connection:
            connection.settimeout(SECONDS)
            digest = hashlib.sha256()
            while chunk := connection.recv(65536):
                digest.update(chunk)
            connection.sendall(digest.digest())


def send(address: str, port: int) -> None:
    """Exit 1 with a sentence when the other side did not get what was sent."""
    data = os.urandom(BYTES)
    with socket.create_connection((address, port), timeout=SECONDS) as connection:
        connection.sendall(data)
        connection.shutdown(socket.SHUT_WR)
        answer = b""
        while chunk := connection.recv(64):
            answer += chunk
    if answer != hashlib.sha256(data).digest():
        sys.exit(f"{address} port {port} received something else than was sent")


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        send(sys.argv[2], int(sys.argv[3]))
