"""The authorities where they are kept: keys in a Secret, what everybody trusts in a ConfigMap."""

from __future__ import annotations

import base64
import logging
from collections.abc import Sequence

from certificates.contract import CA_FILE
from certificates.errors import AuthorityUnusable
from certificates.signer.authorities import Authority
from foundation.daemon import logs
from foundation.kube.client import KubeClient
from foundation.kube.errors import AlreadyExists, NotFound
from foundation.kube.resources import CONFIG_MAPS, SECRETS

_log = logging.getLogger(__name__)


class Keeping:
    """`name` in `namespace`: a Secret with `<serial>.crt` and `<serial>.key` for each authority, and a ConfigMap."""

    def __init__(self, client: KubeClient, *, namespace: str, name: str) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name

    async def read(self) -> tuple[Authority, ...]:
        """What is stored; nothing when there is no Secret yet. Raises KubeError, AuthorityUnusable."""
        try:
            secret = await self._client.get(SECRETS, self._name, self._namespace)
        except NotFound:
            return ()
        data = secret.data or {}
        found = []
        for file in sorted(data):
            if not file.endswith(".crt"):
                continue
            key = data.get(f"{file.removesuffix('.crt')}.key", b"")
            logs.secret(key.decode("ascii", "replace"))
            try:
                found.append(Authority.read(data[file], key))
            except AuthorityUnusable as error:
                raise AuthorityUnusable(
                    f"Secret {self._namespace}/{self._name}, {file}: {error}; restore it from a backup, or delete the "
                    "Secret to begin with a new authority (every pod of the suite then needs a restart)"
                ) from None
        return tuple(found)

    async def write(self, authorities: Sequence[Authority], *, before: Sequence[Authority]) -> None:
        """Keys first: an authority is trusted only once it cannot get lost. Raises KubeError."""
        kept = {self._file(one): one for one in authorities}
        data: dict[str, str | None] = {}
        for one in before:
            if self._file(one) not in kept:
                data |= {f"{self._file(one)}.crt": None, f"{self._file(one)}.key": None}
        for file, one in kept.items():
            data[f"{file}.crt"] = base64.b64encode(one.pem()).decode()
            data[f"{file}.key"] = base64.b64encode(one.key_pem()).decode()
        try:
            await self._client.merge_patch(SECRETS, self._name, self._namespace, {"data": data})
        except NotFound:
            stored = {key: value for key, value in data.items() if value is not None}
            metadata = {"name": self._name, "namespace": self._namespace}
            await self._client.create(SECRETS, {"metadata": metadata, "type": "Opaque", "data": stored})

    async def publish(self, trusted: Sequence[Authority]) -> None:
        """Tell everybody whom to trust. Raises KubeError."""
        text = b"".join(one.pem() for one in trusted).decode()
        try:
            there = await self._client.get(CONFIG_MAPS, self._name, self._namespace)
        except NotFound:
            metadata = {"name": self._name, "namespace": self._namespace}
            try:
                await self._client.create(CONFIG_MAPS, {"metadata": metadata, "data": {CA_FILE: text}})
                return
            except AlreadyExists:
                there = await self._client.get(CONFIG_MAPS, self._name, self._namespace)
        if (there.data or {}).get(CA_FILE) != text:
            await self._client.merge_patch(CONFIG_MAPS, self._name, self._namespace, {"data": {CA_FILE: text}})
            _log.info("%d authorities are trusted from now on", len(trusted))

    @staticmethod
    def _file(authority: Authority) -> str:
        return f"{authority.certificate.serial_number:x}"
