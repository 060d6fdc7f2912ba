"""Calls to one SPDK target, with its refusals turned into this component's errors."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from csi.errors import Aborted, CsiError, DeadlineExceeded, Internal, ResourceExhausted, Unavailable
from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkClientError, SpdkError, SpdkTimeout, SpdkUnavailable

T = TypeVar("T")


def translate(error: SpdkClientError, what: str) -> CsiError:
    """`what` names the object and what was to be done with it."""
    if isinstance(error, SpdkTimeout):
        return DeadlineExceeded(f"{what}: {error}")
    if isinstance(error, SpdkUnavailable):
        return Unavailable(f"{what}: {error}; is the storage target running?")
    if isinstance(error, SpdkError):
        if error.no_space:
            return ResourceExhausted(f"{what}: the lvol store is full ({error})")
        if error.busy:
            return Aborted(f"{what}: SPDK is busy with it; retry ({error})")
    return Internal(f"{what}: {error}")


@contextmanager
def translated(what: str) -> Iterator[None]:
    try:
        yield
    except SpdkClientError as error:
        raise translate(error, what) from error


class Target:
    """One SPDK process. Pools of the same address share it, since SPDK serves 64 connections and no more."""

    def __init__(self, address: str, *, seconds: float) -> None:
        self.address = address
        self.client = SpdkClient(address)
        self._seconds = seconds

    async def ask(self, kind: type[T], method: str, params: Mapping[str, Any] | None = None) -> T:
        """Raises SpdkError as it is, for callers that know what a refusal means; no answer is one of our errors."""
        try:
            return await self.client.call_as(kind, method, params, deadline=self._seconds)
        except SpdkError:
            raise
        except SpdkClientError as error:
            raise translate(error, f"ask the storage target for {method}") from error

    async def do(self, what: str, method: str, params: Mapping[str, Any] | None = None) -> Any:
        with translated(what):
            return await self.client.call(method, params, deadline=self._seconds)

    async def together(self, calls: Sequence[tuple[str, Mapping[str, Any] | None]]) -> list[Any]:
        """All in one write; an exception stands in the place of its call's result."""
        return await self.client.batch(calls, deadline=self._seconds)
