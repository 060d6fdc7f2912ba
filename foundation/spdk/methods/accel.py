"""Encryption: keys of the acceleration framework, with the crypto bdevs that use them.

Order matters to SPDK 26.05: destroying a key that a crypto bdev uses succeeds, and crashes the process later.
"""

from __future__ import annotations

import msgspec

from foundation.spdk.client import Caller
from foundation.spdk.methods.parameters import given


class CryptoKey(msgspec.Struct, frozen=True):
    """The key material that SPDK returns beside these is left where it is."""

    name: str
    cipher: str
    tweak_mode: str = ""


async def accel_crypto_key_create(
    caller: Caller,
    *,
    name: str,
    cipher: str,
    key: str,
    key2: str | None = None,
    tweak_mode: str | None = None,
    deadline: float = 10.0,
) -> None:
    """``cipher`` AES_XTS: key and key2 in hexadecimal, 128 or 256 bits each, not equal. ``exists`` for a duplicate."""
    await caller.call_as(
        bool,
        "accel_crypto_key_create",
        given(name=name, cipher=cipher, key=key, key2=key2, tweak_mode=tweak_mode),
        deadline=deadline,
    )


async def accel_crypto_key_destroy(caller: Caller, key_name: str, *, deadline: float = 10.0) -> None:
    """Only after every crypto bdev that uses it is deleted."""
    await caller.call_as(bool, "accel_crypto_key_destroy", {"key_name": key_name}, deadline=deadline)


async def accel_crypto_keys_get(
    caller: Caller, *, key_name: str | None = None, deadline: float = 10.0
) -> list[CryptoKey]:
    return await caller.call_as(list[CryptoKey], "accel_crypto_keys_get", given(key_name=key_name), deadline=deadline)


async def bdev_crypto_create(
    caller: Caller, *, base_bdev_name: str, name: str, key_name: str, deadline: float = 10.0
) -> str:
    """The name, also when the base is missing: the bdev then appears together with it. -1 when the base is claimed."""
    return await caller.call_as(
        str,
        "bdev_crypto_create",
        {"base_bdev_name": base_bdev_name, "name": name, "key_name": key_name},
        deadline=deadline,
    )


async def bdev_crypto_delete(caller: Caller, name: str, *, deadline: float = 10.0) -> None:
    """-19 also while the base is absent."""
    await caller.call_as(bool, "bdev_crypto_delete", {"name": name}, deadline=deadline)
