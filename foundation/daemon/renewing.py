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


class _Generation:
    """A channel and how many calls it carries.

    Once replaced it is closed with its last call and not before: to the reader of a stream, cancelling it would look
    like a cancellation of the reader's own task.
    """

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self.channel = channel
        self.calls = 0
        self.closing: asyncio.Task[None] | None = None

    def track(self, call: Any, ended: Callable[[_Generation], None]) -> None:
        self.calls += 1

        def done(_: Any) -> None:
            self.calls -= 1
            ended(self)

        call.add_done_callback(done)


class RenewingChannel(grpc.aio.Channel):
    """Stands for the newest channel that `make` has built from the files; a call stays on the channel it began on."""

    def __init__(self, watched: WatchedFiles, make: Callable[[Material], grpc.aio.Channel]) -> None:
        self._watched = watched
        self._make = make
        self._newest = _Generation(make(watched.material))
        self._replaced: set[_Generation] = set()
        self._looked = float("-inf")
        self._closed = False

    def current(self) -> _Generation:
        """The channel for a new call."""
        now = asyncio.get_running_loop().time()
        if not self._closed and now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            if self._watched.refresh():
                before, self._newest = self._newest, _Generation(self._make(self._watched.material))
                self._replaced.add(before)
                self.ended(before)
        return self._newest

    def ended(self, generation: _Generation) -> None:
        """A call of `generation` has ended, or there is a newer one."""
        if generation in self._replaced and generation.calls == 0 and generation.closing is None:
            generation.closing = asyncio.get_running_loop().create_task(generation.channel.close())
            generation.closing.add_done_callback(lambda _: self._replaced.discard(generation))

    async def close(self, grace: float | None = None) -> None:
        """Close it, and the channels it has replaced; calls still running after `grace` seconds are cancelled."""
        self._closed = True
        await asyncio.gather(*(each.channel.close(grace) for each in (self._newest, *self._replaced)))

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self.current().channel.get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self.current().channel.wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self.current().channel.channel_ready()

    def unary_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "unary_unary", arguments, options)

    def unary_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "unary_stream", arguments, options)

    def stream_unary(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "stream_unary", arguments, options)

    def stream_stream(self, *arguments: Any, **options: Any) -> Any:
        return _Method(self, "stream_stream", arguments, options)

    async def __aenter__(self) -> RenewingChannel:
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc_val: BaseException | None, exc_tb: TracebackType | None
    ) -> None:
        await self.close()


class _Method:
    """One method of a stub, made anew when the channel is."""

    def __init__(self, owner: RenewingChannel, kind: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._owner = owner
        self._kind = kind
        self._arguments = arguments
        self._options = options
        self._generation: _Generation | None = None
        self._callable: Any = None

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        generation = self._owner.current()
        if generation is not self._generation:
            self._callable = getattr(generation.channel, self._kind)(*self._arguments, **self._options)
            self._generation = generation
        call = self._callable(*arguments, **options)
        generation.track(call, self._owner.ended)
        return call
