"""What surrounds every changing call: one piece of work an object, joined by retries, with its id in every log line."""

import hashlib
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import grpc.aio
from google.protobuf.message import Message

from csi import identity
from foundation.daemon import logs
from foundation.daemon.work import Joining

R = TypeVar("R")
Context = grpc.aio.ServicerContext[Any, Any]

# Answer this long before the caller's deadline: its own clock would otherwise turn ABORTED into DEADLINE_EXCEEDED.
_MARGIN_SECONDS: Final = 0.5
_WITHOUT_DEADLINE_SECONDS: Final = 60.0


class Calls:
    """Runs work so that it outlives the call which began it.

    A retry with the same request joins the work; another request for the same object waits for its turn, and is ABORTED
    when its time is up before. No final code is answered while work is in flight (the side-cars would take it for
    "certainly not in progress").
    """

    def __init__(self) -> None:
        self._joining: Joining[str, Any] = Joining(name="csi")

    def busy(self, lock: str) -> bool:
        return self._joining.running(lock)

    async def joined(
        self, context: Context, request: Message, lock: str, work: Callable[[], Awaitable[R]], **log: str
    ) -> R:
        """`lock` names the object. Raises StillRunning (ABORTED), and what the work raises."""
        remaining: Any = context.time_remaining()
        seconds = _WITHOUT_DEADLINE_SECONDS if remaining is None else max(0.0, remaining - _MARGIN_SECONDS)
        with logs.bound(**log):
            # `background`: to be refused at once would cost the caller a retry's pause, for work of milliseconds.
            result: R = await self._joining.run(lock, fingerprint(request), work, deadline=seconds, background=True)
        return result

    async def stop(self) -> None:
        await self._joining.stop()


def fingerprint(request: Message) -> bytes:
    """Equal for equal requests. A digest, so that no secret of the request is kept."""
    text = request.DESCRIPTOR.full_name.encode() + b"\0" + request.SerializeToString(deterministic=True)
    return hashlib.sha256(text).digest()


def lock_of(volume_id: str) -> str:
    """One name an object, whichever RPC is about it: creation knows only the hashed CSI name, the others the id."""
    try:
        key = identity.parse_volume_id(volume_id).key
    except identity.MalformedId:
        return volume_id
    return key.rpartition(".")[2]
