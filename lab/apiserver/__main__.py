"""`python -m lab.apiserver`: the stand-in as a process."""

from __future__ import annotations

import argparse
import asyncio
import signal
import ssl
import sys
from pathlib import Path

from lab.apiserver.access import Tokens
from lab.apiserver.server import ApiServer


def main(argv: list[str] | None = None) -> int:
    """Serve until SIGTERM or SIGINT. One line on stdout says where, once it listens."""
    parser = argparse.ArgumentParser(prog="python -m lab.apiserver", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:0", help="HOST:PORT to listen on (port 0: any)")
    parser.add_argument("--tls-cert", type=Path, help="certificate file; without it plain HTTP is served")
    parser.add_argument("--tls-key", type=Path, help="key of the certificate")
    parser.add_argument("--token-file", type=Path, help='bearer tokens, one `token,user,uid[,"groups"]` a line')
    parser.add_argument("--data", type=Path, help="directory that keeps the objects across restarts")
    parser.add_argument(
        "--record", type=Path, help="file for the distinct (user, verb, group, resource) of all requests"
    )
    parser.add_argument("--faults", action="store_true", help="accept POST /lab/faults")
    parser.add_argument("--kubeconfig", type=Path, help="write a kubeconfig (with the first token) here")
    parser.add_argument("--tls-ca", type=Path, help="CA that the kubeconfig shall name")
    arguments = parser.parse_args(argv)
    if (arguments.tls_cert is None) != (arguments.tls_key is None):
        parser.error("--tls-cert and --tls-key belong together")
    try:
        return asyncio.run(_serve(arguments))
    except (OSError, ssl.SSLError, ValueError) as error:
        print(f"lab.apiserver: {error}", file=sys.stderr)
        return 1


async def _serve(arguments: argparse.Namespace) -> int:
    tls = None
    if arguments.tls_cert is not None:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(arguments.tls_cert, arguments.tls_key)
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for name in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(name, stopping.set)
    tokens = Tokens.read(arguments.token_file) if arguments.token_file else None
    server = ApiServer(
        arguments.address,
        tls=tls,
        tokens=tokens,
        record=arguments.record,
        data=arguments.data,
        fault_endpoint=arguments.faults,
    )
    async with server:
        if arguments.kubeconfig is not None:
            server.kubeconfig(arguments.kubeconfig, authority=arguments.tls_ca, token=tokens.first if tokens else "")
        print(f"serving {server.url}", flush=True)
        await stopping.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
