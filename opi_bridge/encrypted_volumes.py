"""EncryptedVolume resources: AES-XTS between a volume and its users.

The key is known to the card's process alone: it is never read back, logged, or part of an answer. That a repeated
create brings the same key is seen by a digest of it in the key's name.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from dpu_offload_stubs.opi.storage import middleend_encryption_pb2 as pb
from dpu_offload_stubs.opi.storage import opicommon_pb2
from foundation.daemon import logs
from foundation.spdk.errors import SpdkError
from opi_bridge.errors import (
    AlreadyExists,
    CardRefused,
    Different,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unimplemented,
)
from opi_bridge.names import Name, is_id
from opi_bridge.resources import immutable
from opi_bridge.session import Session
from opi_bridge.volumes import bdev_of, find, stats

COLLECTION: Final = "encryptedVolumes"
_PRODUCT: Final = "crypto"
_XTS: Final = {
    opicommon_pb2.ENCRYPTION_TYPE_AES_XTS_128: 32,
    opicommon_pb2.ENCRYPTION_TYPE_AES_XTS_256: 64,
}
CIPHERS: Final = {
    "xts128": opicommon_pb2.ENCRYPTION_TYPE_AES_XTS_128,
    "xts256": opicommon_pb2.ENCRYPTION_TYPE_AES_XTS_256,
}
_OTHERS: Final = {
    opicommon_pb2.ENCRYPTION_TYPE_AES_CBC_128: 16,
    opicommon_pb2.ENCRYPTION_TYPE_AES_CBC_192: 24,
    opicommon_pb2.ENCRYPTION_TYPE_AES_CBC_256: 32,
    opicommon_pb2.ENCRYPTION_TYPE_AES_XTS_192: 48,
}


class EncryptedStore:
    """`key` is both AES-XTS keys in one: 32 bytes for XTS_128, 64 for XTS_256."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def check(self, message: pb.EncryptedVolume) -> None:
        bdev_of(message.volume_name_ref)
        length = _XTS.get(message.cipher) or _OTHERS.get(message.cipher)
        if length is None:
            raise InvalidArgument("cipher is required: ENCRYPTION_TYPE_AES_XTS_128 or _256")
        if not message.key and message.name:
            # An update, which leaves the key alone; a create looks again.
            return
        if not message.key:
            raise InvalidArgument("key is required")
        logs.secret(message.key.hex())
        if len(message.key) != length:
            raise InvalidArgument(f"key has {len(message.key)} bytes; this cipher takes {length}")
        if message.cipher in _OTHERS:
            raise Unimplemented("this card encrypts with AES-XTS of 128 or 256 bits only")
        half = length // 2
        if message.key[:half] == message.key[half:]:
            raise InvalidArgument("key: the two halves of an AES-XTS key must differ")

    def normalise(self, message: pb.EncryptedVolume) -> pb.EncryptedVolume:
        result = pb.EncryptedVolume()
        result.CopyFrom(message)
        result.volume_name_ref = bdev_of(message.volume_name_ref)
        return result

    async def listing(self, parent: Name) -> Sequence[pb.EncryptedVolume]:
        return [
            self._message(bdev)
            for bdev in await self._session.call("bdev_get_bdevs")
            if bdev.get("product_name") == _PRODUCT and is_id(str(bdev["name"]))
        ]

    async def get(self, name: Name) -> pb.EncryptedVolume | None:
        bdev = await self._find(name)
        return self._message(bdev) if bdev is not None else None

    async def _find(self, name: Name) -> Mapping[str, Any] | None:
        bdev = await find(self._session, name.id)
        if bdev is None or bdev.get("product_name") != _PRODUCT or bdev["name"] != name.id:
            return None
        return bdev

    async def create(self, name: Name, message: pb.EncryptedVolume) -> pb.EncryptedVolume:
        if not message.key:
            raise InvalidArgument("key is required")
        key = f"{name.id}-xts{len(message.key) * 4}-{hashlib.blake2s(message.key, digest_size=8).hexdigest()}"
        there = await self._find(name)
        if there is not None:
            made = self._message(there)
            if _key_of(there) != key or made.volume_name_ref != message.volume_name_ref:
                raise Different(f"{name} exists with another key or volume: delete it first")
            return made
        # SPDK would accept a volume that is not there and wait for it.
        base = await find(self._session, message.volume_name_ref)
        if base is None:
            raise NotFound(f"there is no volume {message.volume_name_ref}")
        if base.get("claimed"):
            raise FailedPrecondition(f"volume {message.volume_name_ref} is in use: {base.get('claim_type', 'claimed')}")
        await self._make_key(key, message)
        try:
            await self._session.call(
                "bdev_crypto_create",
                {"base_bdev_name": message.volume_name_ref, "name": name.id, "key_name": key},
            )
        except SpdkError as error:
            await self._drop_key(key)
            if error.exists:
                raise AlreadyExists(f"a volume with the name {name.id} exists already") from error
            raise FailedPrecondition(f"{name}: volume {message.volume_name_ref}: {error.message}") from error
        return pb.EncryptedVolume(name=str(name), volume_name_ref=message.volume_name_ref, cipher=message.cipher)

    async def _make_key(self, key: str, message: pb.EncryptedVolume) -> None:
        half = len(message.key) // 2
        try:
            await self._session.call(
                "accel_crypto_key_create",
                {
                    "cipher": "AES_XTS",
                    "key": message.key[:half].hex(),
                    "key2": message.key[half:].hex(),
                    "name": key,
                },
            )
        except SpdkError as error:
            if not error.exists:
                raise CardRefused("the card does not take this key") from None

    async def _drop_key(self, key: str) -> None:
        try:
            await self._session.call("accel_crypto_key_destroy", {"key_name": key})
        except SpdkError as error:
            if not error.missing:
                raise

    async def update(self, name: Name, current: pb.EncryptedVolume, wanted: pb.EncryptedVolume) -> Any:
        if wanted.key:
            raise FailedPrecondition("key cannot be changed: the data would have to be written anew")
        immutable(current, wanted)
        return current

    async def delete(self, name: Name) -> bool:
        bdev = await self._find(name)
        if bdev is None:
            return False
        if bdev.get("claimed"):
            raise FailedPrecondition(f"{name} is in use ({bdev.get('claim_type', 'claimed')}): delete its users first")
        await self._session.call("bdev_crypto_delete", {"name": name.id})
        # Strictly after: SPDK crashes over a key that went before its volume.
        await self._drop_key(_key_of(bdev))
        return True

    async def stats(self, name: Name) -> Any | None:
        return await stats(self._session, [name.id]) if await self._find(name) is not None else None

    def _message(self, bdev: Mapping[str, Any]) -> pb.EncryptedVolume:
        own = bdev.get("driver_specific", {}).get("crypto", {})
        return pb.EncryptedVolume(
            name=f"{COLLECTION}/{bdev['name']}",
            volume_name_ref=own.get("base_bdev_name", ""),
            cipher=CIPHERS.get(_key_of(bdev).split("-")[-2:][0], opicommon_pb2.ENCRYPTION_TYPE_UNSPECIFIED),
        )


def _key_of(bdev: Mapping[str, Any]) -> str:
    return str(bdev.get("driver_specific", {}).get("crypto", {}).get("key_name", ""))
