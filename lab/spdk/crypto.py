"""Encryption: keys, with the bdevs that use them. The bytes are passed through as they are; the guest is told so."""

from __future__ import annotations

import errno
import uuid as uuids
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lab.spdk.bdevs import Backing, Bdev, claim, release
from lab.spdk.dispatch import ACCEL, NVMF, method
from lab.spdk.failures import INTERNAL_ERROR, INVALID_PARAMS, PARSE_ERROR, RpcFailure, no_device, refused

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

_NAMESPACE = uuids.UUID("3b2a8f5e-6f0b-5d9c-9f6e-6d0f3b1c2a77")
# Stands for freed memory in a reply: bytes that are no UTF-8.
_FREED = "\udcfe\udcff"


@dataclass(eq=False)
class CryptoKey:
    name: str
    cipher: str
    key: str
    key2: str
    tweak_mode: str
    destroyed: bool = False


@dataclass(eq=False)
class CryptoBdev(Bdev):
    base: Bdev = field(kw_only=True)
    key: CryptoKey = field(kw_only=True)

    product = "crypto"
    takes = frozenset(("read", "write", "unmap", "flush", "reset", "write_zeroes"))

    @property
    def io_types(self) -> frozenset[str]:
        return self.takes & self.base.io_types

    def numa(self) -> int | None:
        return self.base.numa()

    def backing(self) -> Backing | None:
        below = self.base.backing()
        return None if below is None else Backing(below.file, below.offset, encrypted=True)

    def driver_specific(self) -> dict[str, Any]:
        key = _FREED if self.key.destroyed else self.key.name
        return {"crypto": {"base_bdev_name": self.base.name, "name": self.name, "key_name": key}}


class Crypto:
    """``wanted``: crypto bdevs by name, whether their base is there or not."""

    def __init__(self, instance: Instance) -> None:
        self._instance = instance
        self.keys: dict[str, CryptoKey] = {}
        self.wanted: dict[str, tuple[str, CryptoKey]] = {}
        instance.bdevs.on_added.append(self._base_appeared)

    def create(self, name: str, base_name: str, key: CryptoKey) -> None:
        if name in self.wanted:
            raise refused(errno.EEXIST)
        base = self._instance.bdevs.find(base_name)
        if base is not None and base.claims:
            raise refused(errno.EPERM)
        if base is not None and self._instance.bdevs.find(name):
            raise refused(errno.EEXIST)
        self.wanted[name] = (base_name, key)
        if base is not None:
            self._make(name, base, key)

    def delete(self, name: str) -> None:
        bdev = self._instance.bdevs.find(name)
        if not isinstance(bdev, CryptoBdev):
            raise no_device()
        self.wanted.pop(bdev.name, None)
        release(bdev.base, bdev)
        self._instance.bdevs.remove(bdev)

    def _base_appeared(self, base: Bdev) -> None:
        for name, (base_name, key) in list(self.wanted.items()):
            if base_name not in (base.name, base.uuid, *base.aliases) or self._instance.bdevs.find(name):
                continue
            # Of two that want the same base, the first has it.
            if not base.claims:
                if key.destroyed:
                    self._instance.crash("a crypto bdev comes back whose key was destroyed")
                self._make(name, base, key)

    def _make(self, name: str, base: Bdev, key: CryptoKey) -> None:
        bdev = CryptoBdev(
            name, str(uuids.uuid5(_NAMESPACE, base.uuid)), base.block_size, base.num_blocks, base=base, key=key
        )
        bdevs = self._instance.bdevs
        claim(base, bdev, "exclusive_write")

        def gone() -> None:
            release(base, bdev)
            bdevs.remove(bdev)

        def resized() -> None:
            bdevs.resize(bdev, base.num_blocks)

        base.on_removed.append(gone)
        base.on_resized.append(resized)

        def let_go() -> None:
            base.on_removed = [hook for hook in base.on_removed if hook is not gone]
            base.on_resized = [hook for hook in base.on_resized if hook is not resized]

        bdev.on_removed.append(let_go)
        bdevs.add(bdev)


def _dek(code: int) -> RpcFailure:
    return RpcFailure(INVALID_PARAMS, f"failed to create DEK, rc -{code}")


@method("accel_crypto_key_create", refusal=ACCEL)
def key_create(instance: Instance, params: dict[str, Any]) -> bool:
    name, key, key2 = params["name"], params["key"], params.get("key2", "")
    try:
        lengths = {len(bytes.fromhex(key)), len(bytes.fromhex(key2))}
    except ValueError as error:
        raise _dek(errno.EINVAL) from error
    if params["cipher"] != "AES_XTS" or lengths not in ({16}, {32}) or key.lower() == key2.lower():
        raise _dek(errno.EINVAL)
    if name in instance.crypto.keys:
        raise _dek(errno.EEXIST)
    instance.crypto.keys[name] = CryptoKey(name, params["cipher"], key, key2, params.get("tweak_mode", "SIMPLE_LBA"))
    return True


@method("accel_crypto_key_destroy", refusal=ACCEL)
def key_destroy(instance: Instance, params: dict[str, Any]) -> bool:
    key = instance.crypto.keys.pop(params["key_name"], None)
    if key is None:
        raise RpcFailure(INVALID_PARAMS, "No key object found")
    key.destroyed = True
    return True


@method("accel_crypto_keys_get", refusal=ACCEL, optional=True)
def keys_get(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    keys = instance.crypto.keys
    name = params.get("key_name")
    if name is not None and name not in keys:
        raise RpcFailure(INVALID_PARAMS, "key was not found")
    return [
        {"name": key.name, "cipher": key.cipher, "key": key.key, "key2": key.key2, "tweak_mode": key.tweak_mode}
        for key in keys.values()
        if name in (None, key.name)
    ]


@method("bdev_crypto_create", refusal=(PARSE_ERROR, "Failed to decode crypto disk create parameters."))
def crypto_create(instance: Instance, params: dict[str, Any]) -> str:
    if "key_name" not in params:
        raise RpcFailure(INTERNAL_ERROR, "No key was found")
    key = instance.crypto.keys.get(params["key_name"])
    if key is None:
        raise RpcFailure(INVALID_PARAMS, "Key was not found")
    instance.crypto.create(params["name"], params["base_bdev_name"], key)
    return str(params["name"])


@method("bdev_crypto_delete", refusal=NVMF)
def crypto_delete(instance: Instance, params: dict[str, Any]) -> bool:
    instance.crypto.delete(params["name"])
    return True
