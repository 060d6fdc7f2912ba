"""Keys by name, in files that are read when the key is used."""

from __future__ import annotations

import base64
import errno
import hashlib
import hmac
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lab.spdk.dispatch import VHOST, method
from lab.spdk.failures import refused

if TYPE_CHECKING:
    from lab.spdk.instance import Instance


@dataclass(eq=False)
class Key:
    """``users``: references beside the ring's own. A removed key stays with its users, and is no good to them."""

    name: str
    path: str
    removed: bool = False
    users: int = 0

    def proof(self, challenge: str) -> str:
        """What shows that one knows the key; empty when the key can't be used. Not the real protocol's mathematics."""
        if self.removed:
            return ""
        try:
            text = Path(self.path).read_text().strip()
        except OSError:
            return ""
        if not _well_formed(text):
            return ""
        return hmac.new(text.encode(), challenge.encode(), hashlib.sha256).hexdigest()


def _well_formed(text: str) -> bool:
    """NVMe's interchange format: ``DHHC-1:<hash>:<secret and its CRC-32, base64>:`` or ``NVMeTLSkey-1:...``."""
    parts = text.split(":")
    if len(parts) < 3 or parts[0] not in ("DHHC-1", "NVMeTLSkey-1"):
        return False
    try:
        data = base64.b64decode(parts[2], validate=True)
    except ValueError:
        return False
    return len(data) in (36, 52, 68) and zlib.crc32(data[:-4]).to_bytes(4, "little") == data[-4:]


def is_psk(key: Key) -> bool:
    """Whether the file holds a TLS key: unlike a DH-CHAP key, it is looked at when a host is given it."""
    return key.proof("").strip() != "" and Path(key.path).read_text().startswith("NVMeTLSkey-1:")


class Keyring:
    def __init__(self) -> None:
        self._keys: dict[str, Key] = {}
        self._removed: list[Key] = []

    def get(self, name: str) -> Key:
        """Raises -126."""
        key = self._keys.get(name)
        if key is None:
            raise refused(errno.ENOKEY)
        return key

    def find(self, name: str) -> Key | None:
        return self._keys.get(name)

    def hold(self, key: Key | None) -> Key | None:
        if key is not None:
            key.users += 1
        return key

    def let_go(self, key: Key | None) -> None:
        if key is not None:
            key.users -= 1
            self._removed = [key for key in self._removed if key.users]

    def add(self, name: str, path: str) -> None:
        if name in self._keys:
            raise refused(errno.EEXIST)
        if not os.path.isabs(path):
            raise refused(errno.EPERM)
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            raise refused(error.errno or errno.EIO) from error
        if mode & 0o177:
            raise refused(errno.EPERM)
        self._keys[name] = Key(name, path)

    def remove(self, name: str) -> None:
        key = self.get(name)
        del self._keys[name]
        key.removed = True
        if key.users:
            self._removed.append(key)

    def list(self) -> list[dict[str, Any]]:
        return [
            {
                "name": key.name,
                "module": "keyring_file",
                "removed": key.removed,
                "probed": False,
                "refcnt": key.users if key.removed else 1 + key.users,
                **({} if key.removed else {"path": key.path}),
            }
            for key in [*self._keys.values(), *self._removed]
        ]


@method("keyring_file_add_key", refusal=VHOST)
def add_key(instance: Instance, params: dict[str, Any]) -> bool:
    instance.keyring.add(params["name"], params["path"])
    return True


@method("keyring_file_remove_key", refusal=VHOST)
def remove_key(instance: Instance, params: dict[str, Any]) -> bool:
    instance.keyring.remove(params["name"])
    return True


@method("keyring_get_keys", refusal=None)
def get_keys(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    return instance.keyring.list()
