"""One connection to the card's JSON-RPC process, with what is owed to it after each start."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final, Protocol, TypeVar

import msgspec

from foundation.daemon.work import Backoff
from foundation.spdk.errors import SpdkClientError, SpdkError, SpdkUnavailable
from opi_bridge.errors import OpiError, Unavailable

T = TypeVar("T")
log: Final = logging.getLogger(__name__)


class Client(Protocol):
    """The part of foundation.spdk.client.SpdkClient that is used here."""

    async def connect(self, *, deadline: float = 10.0) -> None: ...

    async def call(self, method: str, params: Mapping[str, Any] | None = None, *, deadline: float = 10.0) -> Any: ...

    async def call_as(
        self, kind: type[T], method: str, params: Mapping[str, Any] | None = None, *, deadline: float = 10.0
    ) -> T: ...

    def on_disconnect(self, callback: Callable[[SpdkUnavailable], None]) -> None: ...


class Session:
    """Connects, prepares, and says when the process went away or came back.

    `prepare` runs after each connection, before anything else is let through; it uses `raw`.
    """

    def __init__(self, client: Client, *, address: str, deadline: float = 10.0) -> None:
        self._client = client
        self._address = address
        self._deadline = deadline
        self._prepare: list[Callable[[], Awaitable[None]]] = []
        self._listeners: list[Callable[[bool], None]] = []
        self._ready = asyncio.Event()
        self._lost = asyncio.Event()
        self._why = "not connected yet"
        self._generation = 0
        self.version = ""
        """Of the card's process, as it calls itself."""
        client.on_disconnect(self._gone)

    @property
    def ready(self) -> bool:
        return self._ready.is_set()

    @property
    def generation(self) -> int:
        """Counts connections; another number means that the process may be another one."""
        return self._generation

    @property
    def why(self) -> str:
        """Why it is not ready, for a human."""
        return "" if self.ready else self._why

    def prepare_with(self, step: Callable[[], Awaitable[None]]) -> None:
        self._prepare.append(step)

    def subscribe(self, listener: Callable[[bool], None]) -> None:
        """`listener(True)` after each preparation, `listener(False)` when the connection is lost."""
        self._listeners.append(listener)

    def require(self) -> None:
        """Raise Unavailable while the process is away or not prepared."""
        if not self._ready.is_set():
            raise Unavailable(f"the card's process at {self._address} does not answer ({self._why}): try again")

    async def call(self, method: str, params: Mapping[str, Any] | None = None, *, deadline: float = 0.0) -> Any:
        """One JSON-RPC. Raises SpdkError as answered; Unavailable while the process is away."""
        self.require()
        return await self.raw(method, params, deadline=deadline)

    async def raw(self, method: str, params: Mapping[str, Any] | None = None, *, deadline: float = 0.0) -> Any:
        """As `call`, also before the preparation is done."""
        return await self._client.call(method, params, deadline=deadline or self._deadline)

    async def text(self, method: str, params: Mapping[str, Any] | None = None) -> bytes:
        """One JSON-RPC's result as it came, for those who only want to know whether it is still the same."""
        self.require()
        return bytes(await self._client.call_as(msgspec.Raw, method, params, deadline=self._deadline))

    async def until_ready(self) -> None:
        await self._ready.wait()

    async def run(self) -> None:
        """Keep the session ready until cancelled."""
        pauses = Backoff(initial=0.05, maximum=1.0)
        failures = 0
        while True:
            self._lost.clear()
            try:
                await self._client.connect()
                self.version = await self._ask_version()
                for step in self._prepare:
                    await step()
            except (SpdkClientError, OpiError) as error:
                if self._why != str(error):
                    log.warning("the card's process at %s is not usable: %s", self._address, error)
                self._why = str(error)
                failures += 1
                await asyncio.sleep(pauses.delay(failures))
                continue
            if self._lost.is_set():
                continue
            failures = 0
            self._generation += 1
            self._ready.set()
            log.info("connected to the card's process at %s", self._address)
            self._tell(True)
            await self._lost.wait()
            self._ready.clear()
            self._why = "the connection broke"
            log.warning("lost the card's process at %s", self._address)
            self._tell(False)

    async def _ask_version(self) -> str:
        try:
            answer = await self.raw("spdk_get_version")
        except SpdkError as error:
            if error.method_not_found:
                return ""
            raise
        return str(answer.get("version", ""))

    def _gone(self, _reason: SpdkUnavailable) -> None:
        self._lost.set()
        self._ready.clear()

    def _tell(self, ready: bool) -> None:
        for listener in self._listeners:
            listener(ready)
