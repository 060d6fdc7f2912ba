"""Secrets for DH-HMAC-CHAP and TLS, handed to the card's process through its keyring and never by value.

A key's name is its label with a digest of the secret, so a new secret is a new key (SPDK does not give a changed key to
those who use the old one of the same name). Files are 0600 in a directory that should be on a tmpfs.
"""

import asyncio
import hashlib
import os
from pathlib import Path

from foundation.daemon import logs
from foundation.spdk.errors import SpdkError
from opi_bridge.errors import FailedPrecondition
from opi_bridge.session import Session


class Keys:
    def __init__(self, session: Session, directory: Path | None) -> None:
        self._session = session
        self._directory = directory
        self._names: set[str] = set()

    async def load(self) -> None:
        """Learn which keys the process has; costs nothing where keys are not used."""
        if self._directory is not None:
            self._names = {key["name"] for key in await self._session.raw("keyring_get_keys")}

    async def put(self, label: str, secret: bytes) -> str:
        """Make the secret known to the keyring and return its key's name."""
        if self._directory is None:
            raise FailedPrecondition("this bridge has no directory for keys (setting `keys`): secrets cannot be used")
        logs.secret(secret.decode(errors="replace"))
        name = f"{label}-{hashlib.blake2s(secret, digest_size=4).hexdigest()}"
        path = self._directory / name
        await asyncio.to_thread(_write, path, secret)
        if name not in self._names:
            try:
                await self._session.call("keyring_file_add_key", {"name": name, "path": str(path)})
            except SpdkError as error:
                if not error.exists:
                    raise
            self._names.add(name)
        return name

    async def drop(self, label: str, *, keep: str = "") -> None:
        """Forget all keys of a label but `keep`."""
        for name in [n for n in self._names if n.rpartition("-")[0] == label and n != keep]:
            try:
                await self._session.call("keyring_file_remove_key", {"name": name})
            except SpdkError as error:
                if not error.missing:
                    raise
            self._names.discard(name)
            if self._directory is not None:
                await asyncio.to_thread((self._directory / name).unlink, missing_ok=True)


def _write(path: Path, secret: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.new")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(secret)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
