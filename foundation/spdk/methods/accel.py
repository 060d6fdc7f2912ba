"""Encryption: keys of the acceleration framework, with the crypto bdevs that use them.

Order matters to SPDK 26.05: destroying a key that a crypto bdev uses succeeds, and crashes the process later.
"""

from __future__ import annotations

from foundation.spdk.client import Caller
from foundation.spdk.methods.parameters import given


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
