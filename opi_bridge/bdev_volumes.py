"""NullVolume, AioVolume and MallocVolume resources: disks of SPDK's own, named by their ids."""

import uuid as uuids
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from foundation.spdk.errors import SpdkError
from opi_bridge.errors import AlreadyExists, CardRefused, Exhausted, FailedPrecondition, InvalidArgument
from opi_bridge.names import Name, is_id
from opi_bridge.resources import immutable
from opi_bridge.session import Session
from opi_bridge.volumes import find, stats


@dataclass(frozen=True)
class Sort:
    """One sort of disk: `params` makes the creating call's parameters, `put` writes what SPDK says into a message."""

    collection: str
    product: str
    message: Callable[..., Any]
    create: str
    delete: str
    params: Callable[[Any], dict[str, Any]]
    put: Callable[[Mapping[str, Any], Any], None]
    check: Callable[[Any], None]
    mutable: Sequence[str] = ()
    grow: Callable[[str, Any], tuple[str, dict[str, Any]]] | None = None


class BdevStore:
    """All volumes of one sort."""

    def __init__(self, session: Session, sort: Sort) -> None:
        self._session = session
        self._sort = sort

    def check(self, message: Any) -> None:
        if message.uuid:
            _uuid(message.uuid)
        self._sort.check(message)

    def normalise(self, message: Any) -> Any:
        result = type(message)()
        result.CopyFrom(message)
        if message.uuid:
            result.uuid = _uuid(message.uuid)
        return result

    async def listing(self, parent: Name) -> Sequence[Any]:
        return [
            self._message(bdev)
            for bdev in await self._session.call("bdev_get_bdevs")
            if bdev.get("product_name") == self._sort.product and is_id(str(bdev["name"]))
        ]

    async def get(self, name: Name) -> Any | None:
        bdev = await self._find(name)
        return self._message(bdev) if bdev is not None else None

    async def _find(self, name: Name) -> Mapping[str, Any] | None:
        bdev = await find(self._session, name.id)
        if bdev is None or bdev.get("product_name") != self._sort.product or bdev["name"] != name.id:
            return None
        return bdev

    async def create(self, name: Name, message: Any) -> Any:
        params = {"name": name.id, **self._sort.params(message)}
        if message.uuid:
            params["uuid"] = message.uuid
        try:
            await self._session.call(self._sort.create, params)
        except SpdkError as error:
            if error.exists:
                raise AlreadyExists(f"a volume with the name {name.id}, or its uuid, exists already") from error
            if error.no_space:
                raise Exhausted(f"no memory for {name}: {error.message}") from error
            if error.missing:
                raise FailedPrecondition(f"{name}: {error.message}: {message}") from error
            raise InvalidArgument(f"{name}: the card refuses this size or file: {error.message}") from error
        made = await self.get(name)
        if made is None:
            raise CardRefused(f"{name} was made but cannot be read back")
        return made

    async def update(self, name: Name, current: Any, wanted: Any) -> Any:
        immutable(current, wanted, self._sort.mutable)
        if self._sort.grow is None:
            return current
        method, params = self._sort.grow(name.id, wanted)
        try:
            await self._session.call(method, params)
        except SpdkError as error:
            raise FailedPrecondition(f"{name} cannot be resized: {error.message}; it can only grow") from error
        return await self.get(name)

    async def delete(self, name: Name) -> bool:
        bdev = await self._find(name)
        if bdev is None:
            return False
        if bdev.get("claimed"):
            raise FailedPrecondition(f"{name} is in use ({bdev.get('claim_type', 'claimed')}): delete its users first")
        try:
            await self._session.call(self._sort.delete, {"name": name.id})
        except SpdkError as error:
            if not error.missing:
                raise CardRefused(f"{name} cannot be deleted: {error.message}") from error
            return False
        return True

    async def stats(self, name: Name) -> Any | None:
        if await self._find(name) is None:
            return None
        return await stats(self._session, [name.id])

    def _message(self, bdev: Mapping[str, Any]) -> Any:
        result = self._sort.message(
            name=f"{self._sort.collection}/{bdev['name']}",
            block_size=bdev["block_size"],
            blocks_count=bdev["num_blocks"],
            uuid=str(bdev["uuid"]).lower(),
        )
        self._sort.put(bdev, result)
        return result


def _uuid(text: str) -> str:
    try:
        return str(uuids.UUID(text))
    except ValueError:
        raise InvalidArgument(f"uuid {text[:60]!r} is not a UUID") from None
