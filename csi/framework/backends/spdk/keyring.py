"""Secrets of hosts on an SPDK target: one 0600 file a key, named in SPDK's keyring, never sent over JSON-RPC.

SPDK reads a key file when it uses it, and refuses one that others may read. A rotated key gets a new name, since
re-adding the old one does not reach those who use it (SPDK 26.05).
"""

import asyncio
import os
from collections.abc import Iterable
from pathlib import Path

import msgspec

from csi import identity
from csi.framework.backend import HostKeys
from csi.framework.backends.spdk.calls import Target, translate, translated
from foundation.spdk.errors import SpdkError


class _Key(msgspec.Struct, frozen=True):
    name: str
    removed: bool = False
    path: str = ""


class Keyring:
    """`directory` as this process writes it, `seen_as` as the target reads it."""

    def __init__(self, target: Target, directory: Path, seen_as: Path) -> None:
        self._target = target
        self._directory = directory
        self._seen_as = seen_as

    async def put(self, nqn: str, host: str, keys: HostKeys) -> dict[str, str]:
        """Key names by parameter of nvmf_subsystem_add_host: dhchap_key, dhchap_ctrlr_key, psk."""
        given = {
            "dhchap_key": keys.dhchap_key,
            "dhchap_ctrlr_key": keys.dhchap_ctrlr_key,
            "psk": keys.tls_psk,
        }
        named: dict[str, str] = {}
        for kind, secret in given.items():
            if not secret:
                continue
            name = self.name(nqn, host, kind, secret)
            await asyncio.to_thread(_write, self._directory / name, secret)
            try:
                await self._target.ask(bool, "keyring_file_add_key", {"name": name, "path": str(self._seen_as / name)})
            except SpdkError as error:
                if not error.exists:
                    raise translate(error, f"add key {name} to the target's keyring") from error
            named[kind] = name
        return named

    def name(self, nqn: str, host: str, kind: str, secret: str) -> str:
        """Another one for another secret."""
        return f"{_stem(nqn, host)}-{kind}-{identity.hashed(secret)[:8]}"

    async def psks(self, nqn: str, host: str) -> set[str]:
        """Names of the TLS keys that the target has for this host."""
        return {key.name for key in await self._present() if key.name.startswith(f"{_stem(nqn, host)}-psk-")}

    async def drop_stale(self, nqn: str, host: str, *, keep: Iterable[str]) -> None:
        """Removes this host's keys but those to keep, from the keyring and from the directory."""
        kept = set(keep)
        stem = _stem(nqn, host)
        for key in await self._present():
            if key.name.startswith(stem) and key.name not in kept:
                try:
                    await self._target.ask(bool, "keyring_file_remove_key", {"name": key.name})
                except SpdkError as error:
                    # -126: gone in the meantime.
                    if error.code != -126:
                        raise translate(error, f"remove key {key.name}") from error
        await asyncio.to_thread(_unlink, self._directory, stem, kept)

    async def _present(self) -> list[_Key]:
        with translated("list the target's keys"):
            keys = await self._target.ask(list[_Key], "keyring_get_keys")
        return [key for key in keys if not key.removed]


def _stem(nqn: str, host: str) -> str:
    return f"dpu-offload-{identity.hashed(f'{nqn} {host}')}"


def _write(path: Path, secret: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    temporary = path.with_name(f".{path.name}.new")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        os.write(descriptor, secret.encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(temporary, path)


def _unlink(directory: Path, stem: str, kept: set[str]) -> None:
    for path in directory.glob(f"{stem}-*"):
        if path.name not in kept:
            path.unlink(missing_ok=True)
