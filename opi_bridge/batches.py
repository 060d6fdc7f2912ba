"""Many resources made, or many removed, in one call: what a caller would ask for one by one, in the order it gives."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Final, TypeVar

from dpu_offload_stubs.card.v1 import card_pb2 as pb
from foundation.spdk.errors import SpdkClientError
from opi_bridge.errors import InvalidArgument, OpiError
from opi_bridge.resources import Creation, Removal

T = TypeVar("T")
_WAIT_SECONDS: Final = 10.0


class Batches:
    """`set_options` and `wait` are the card service's own parts of an attachment."""

    def __init__(
        self,
        creation: Creation,
        removal: Removal,
        *,
        set_options: Callable[[pb.SetRemoteControllerOptionsRequest], Awaitable[None]],
        wait: Callable[[pb.WaitRemoteNamespaceRequest, float], Awaitable[pb.RemoteNamespace]],
    ) -> None:
        self._creation = creation
        self._removal = removal
        self._set_options = set_options
        self._wait = wait

    async def create(self, request: pb.CreateAllRequest) -> list[pb.Created]:
        """Raises the first refusal, after all that was begun has ended."""
        made = await _side_by_side(self._create_chain(chain) for chain in request.first)
        made.append(await self._create_chain(request.then))
        return list(itertools.chain.from_iterable(made))

    async def _create_chain(self, chain: pb.CreationChain) -> list[pb.Created]:
        result: list[pb.Created] = []
        for any_of, group in itertools.groupby(chain.creations, key=lambda creation: creation.any_of):
            if any_of:
                result += await self._create_any(group)
            else:
                result += [await self._create(creation) for creation in group]
        return result

    async def _create_any(self, group: Iterable[pb.Creation]) -> list[pb.Created]:
        result, refusals = [], []
        for creation in group:
            try:
                result.append(await self._create(creation))
            except (OpiError, SpdkClientError) as error:
                refusals.append(error)
                result.append(pb.Created(refused=str(error)))
        if len(refusals) == len(result):
            raise refusals[0]
        return result

    async def _create(self, creation: pb.Creation) -> pb.Created:
        started = time.monotonic()
        result = pb.Created()
        match creation.WhichOneof("what"):
            case "create":
                await self._creation.create(creation.create)
            case "options":
                await self._set_options(creation.options)
            case "wait":
                result.namespace.CopyFrom(await self._wait(creation.wait, _WAIT_SECONDS))
            case _:
                raise InvalidArgument("an element of the request asks for nothing")
        result.seconds = time.monotonic() - started
        return result

    async def delete(self, request: pb.DeleteAllRequest) -> None:
        """Raises the first refusal, after all that was begun has ended."""
        await self._delete_chain(request.first)
        await _side_by_side(self._delete_chain(chain) for chain in request.rest)

    async def _delete_chain(self, chain: pb.Chain) -> None:
        for name in chain.names:
            await self._removal.delete(name)


async def _side_by_side(work: Iterable[Awaitable[T]]) -> list[T]:
    results = await asyncio.gather(*work, return_exceptions=True)
    done = []
    for result in results:
        if isinstance(result, BaseException):
            raise result
        done.append(result)
    return done
