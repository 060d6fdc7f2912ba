"""EncryptedVolume resources on a card that encrypts by itself: keys belong to a volume, no disk stands between.

Whoever refers to the encrypted volume gets the volume itself, whose keys the card has. The ledger names the two.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from dpu_offload_stubs.opi.storage import middleend_encryption_pb2 as pb
from foundation.spdk.errors import SpdkError
from opi_bridge import names
from opi_bridge.encrypted_volumes import CIPHERS, COLLECTION, EncryptedStore
from opi_bridge.errors import CardRefused, Different, FailedPrecondition, InvalidArgument, NotFound
from opi_bridge.ledger import Ledger
from opi_bridge.names import Name
from opi_bridge.session import Session
from opi_bridge.volumes import find, stats


@runtime_checkable
class KeyHolder(Protocol):
    """The part of a card that has keys; `key` and `tweak_key` are hexadecimal. Both raise SpdkError."""

    async def set_keys(self, uuid: str, *, key: str, tweak_key: str) -> None: ...

    async def clear_keys(self, uuid: str) -> None: ...


class InCardEncryptedStore(EncryptedStore):
    def __init__(self, session: Session, ledger: Ledger, card: KeyHolder) -> None:
        super().__init__(session)
        self._ledger = ledger
        self._card = card

    async def listing(self, parent: Name) -> Sequence[pb.EncryptedVolume]:
        return [_message(name, entry) for name, entry in self._ledger.under(names.ROOT, COLLECTION)]

    async def get(self, name: Name) -> pb.EncryptedVolume | None:
        entry = self._ledger.get(name)
        return _message(name, entry) if entry is not None else None

    async def create(self, name: Name, message: pb.EncryptedVolume) -> pb.EncryptedVolume:
        if not message.key:
            raise InvalidArgument("key is required")
        half = len(message.key) // 2
        bdev = await find(self._session, message.volume_name_ref)
        if bdev is None:
            raise NotFound(f"there is no volume {message.volume_name_ref}")
        wanted = {
            "bdev": str(bdev["name"]),
            "uuid": str(bdev["uuid"]),
            "cipher": f"xts{len(message.key) * 4}",
            "key": hashlib.blake2s(message.key, digest_size=8).hexdigest(),
        }
        there = self._ledger.get(name)
        if there is not None:
            if there != wanted:
                raise Different(f"{name} exists with another key or volume: delete it first")
            return _message(name, there)
        for other, entry in self._ledger.under(names.ROOT, COLLECTION):
            if entry["bdev"] == wanted["bdev"]:
                raise FailedPrecondition(f"volume {wanted['bdev']} has keys already: {other}")
        if bdev.get("claimed"):
            raise FailedPrecondition(f"volume {wanted['bdev']} is in use: {bdev.get('claim_type', 'claimed')}")
        await self._ledger.put(name, wanted)
        try:
            await self._card.set_keys(wanted["uuid"], key=message.key[:half].hex(), tweak_key=message.key[half:].hex())
        except SpdkError:
            await self._ledger.drop(name)
            raise CardRefused("the card does not take this key") from None
        return _message(name, wanted)

    async def delete(self, name: Name) -> bool:
        entry = self._ledger.get(name)
        if entry is None:
            return False
        bdev = await find(self._session, entry["bdev"])
        if bdev is not None and bdev.get("claimed"):
            raise FailedPrecondition(f"{name} is in use ({bdev.get('claim_type', 'claimed')}): delete its users first")
        try:
            await self._card.clear_keys(entry["uuid"])
        except SpdkError as error:
            if not error.missing:
                raise CardRefused(f"the keys of {name} cannot be cleared: {error.message}") from error
        await self._ledger.drop(name)
        return True

    async def stats(self, name: Name) -> Any | None:
        entry = self._ledger.get(name)
        return await stats(self._session, [entry["bdev"]]) if entry is not None else None


def _message(name: Name, entry: Mapping[str, str]) -> pb.EncryptedVolume:
    return pb.EncryptedVolume(name=str(name), volume_name_ref=entry["bdev"], cipher=CIPHERS[entry["cipher"]])
