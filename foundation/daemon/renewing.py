"""A channel that follows its certificate files.

gRPC fixes the credentials of a channel for its life, so it is replaced by a new one when the files change.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Any

import grpc
import grpc.aio

from foundation.daemon.tls import Material, WatchedFiles

# Looking at three files costs microseconds, but a burst of calls need not look each time.
_LOOK_SECONDS = 1.0
# A replaced channel stays for the calls it carries: to the reader of a stream, cancelling it here would look like a
# cancellation of the reader's own task.
_RETIRED_SECONDS = 365 * 86_400.0


class RenewingChannel(grpc.aio.Channel):
    """Stands for the newest channel that `make` has built from the files; a call stays on the channel it began on."""

    def __init__(self, watched: WatchedFiles, make: Callable[[Material], grpc.aio.Channel]) -> None:
        self._watched = watched
        self._make = make
        self._channel = make(watched.material)
        self._generation = 0
        self._looked = 0.0
        self._retired: dict[grpc.aio.Channel, asyncio.Task[None]] = {}
        self._closed = False

    def current(self) -> tuple[int, grpc.aio.Channel]:
        """The channel for a new call, and its number."""
        now = asyncio.get_running_loop().time()
        if not self._closed and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            if self._watched.refresh():
                self._retire(self._channel)
                self._channel = self._make(self._watched.material)
                self._generation += 1
        return self._generation, self._channel

    def _retire(self, channel: grpc.aio.Channel) -> None:
        task = asyncio.get_running_loop().create_task(channel.close(_RETIRED_SECONDS), name="retired channel")
        self._retired[channel] = task
        task.add_done_callback(lambda _: self._retired.pop(channel, None))

    async def close(self, grace: float | None = None) -> None:
        """Close it, and the channels it has replaced; calls still running after `grace` seconds are cancelled."""
        self._closed = True
        for channel, task in list(self._retired.items()):
            task.cancel()
            await asyncio.wait({task})
            await channel.close(grace)
        await self._channel.close(grace)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current()[1].get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current()[1].wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current()[1].channel_ready()

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Call(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Call(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Call(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Call(self, "stream_stream", arguments, options)

    async def __aenter__(self) -> RenewingChannel:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()


class _Call:
    """One method of a stub, made anew when the channel is."""

    def __init__(self, owner: RenewingChannel, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._owner = owner
        self._kind = kind
        self._arguments = arguments
        self._options = options
        self._generation = -1
        self._callable: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        generation, channel = self._owner.current()
        if generation != self._generation:
            self._callable = getattr(channel, self._kind)(*self._arguments, **self._options)
            self._generation = generation
        return self._callable(*arguments, **options)
