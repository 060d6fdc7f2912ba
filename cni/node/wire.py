"""The frames between cni-bin and cni-node on the unix socket.

Request: u32 header length, u32 configuration length, header (`KEY=value\\0`... `\\0`), configuration.
Answer: u32 exit status, u32 length, text for standard output. Numbers are big endian.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from cni.node.errors import BadEnvironment

MAX_HEADER = 128 * 1024
MAX_CONFIG = 1024 * 1024


@dataclass(frozen=True)
class RawCall:
    """What the runtime gave: CNI_ variables with DEADLINE_MS, and standard input untouched."""

    variables: Mapping[str, str]
    config: bytes


async def read_call(reader: asyncio.StreamReader) -> RawCall:
    """Raises BadEnvironment for sizes that no cni-bin sends; asyncio.IncompleteReadError when the caller went away."""
    prefix = await reader.readexactly(8)
    header_size, config_size = int.from_bytes(prefix[:4], "big"), int.from_bytes(prefix[4:], "big")
    if header_size > MAX_HEADER or config_size > MAX_CONFIG:
        raise BadEnvironment(
            f"the call has {header_size} bytes of variables and {config_size} of configuration, more than a CNI "
            "call can have; do cni-bin and cni-node have the same version?"
        )
    header = await reader.readexactly(header_size)
    config = await reader.readexactly(config_size)
    pairs = (entry.partition(b"=") for entry in header.split(b"\0") if entry)
    variables = {key.decode("utf-8", "replace"): value.decode("utf-8", "replace") for key, _, value in pairs}
    return RawCall(variables, config)


def answer(status: int, output: bytes) -> bytes:
    return status.to_bytes(4, "big") + len(output).to_bytes(4, "big") + output
