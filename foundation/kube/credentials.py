"""Where the Authorization header of a request comes from."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Protocol

from foundation.kube.errors import ConfigurationInvalid

TOKEN_FRESH_SECONDS = 60.0
"""How long a token read from a file is used before the file is looked at again (the kubelet rotates it hourly)."""


class Credentials(Protocol):
    """Gives the header's value, "" for none; `renew` asks for a new one because the server refused the last."""

    async def header(self, *, renew: bool = False) -> str: ...


class FixedCredentials:
    """A header that never changes: a token, a user with a password, or none."""

    def __init__(self, header: str = "") -> None:
        self._header = header

    @classmethod
    def token(cls, token: str) -> FixedCredentials:
        """A bearer token."""
        return cls(f"Bearer {token.strip()}")

    @classmethod
    def basic(cls, username: str, password: str) -> FixedCredentials:
        """A user name and password (HTTP Basic)."""
        return cls("Basic " + base64.b64encode(f"{username}:{password}".encode()).decode())

    async def header(self, *, renew: bool = False) -> str:
        return self._header


class TokenFile:
    """A bearer token in a file that somebody else rotates."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._header = ""
        self._read_at = 0.0

    async def header(self, *, renew: bool = False) -> str:
        """Raises ConfigurationInvalid if there is no token to be had."""
        if renew or not self._header or self._clock() - self._read_at > TOKEN_FRESH_SECONDS:
            try:
                text = (await asyncio.to_thread(self._path.read_text)).strip()
            except OSError as error:
                if self._header and not renew:
                    return self._header  # in the middle of a rotation the old one is still good
                raise ConfigurationInvalid(f"cannot read the API token: {error}") from error
            if not text:
                raise ConfigurationInvalid(f"the API token file {self._path} is empty")
            self._header = f"Bearer {text}"
            self._read_at = self._clock()
        return self._header


class RenewedCredentials:
    """A header that a plugin makes (kubeconfig's exec and auth-provider entries), one call at a time."""

    def __init__(self, make: Callable[[], Awaitable[str]], first: str) -> None:
        self._make = make
        self._header = first
        self._lock = asyncio.Lock()

    async def header(self, *, renew: bool = False) -> str:
        if not renew:
            return self._header
        refused = self._header
        async with self._lock:
            if self._header == refused:
                self._header = await self._make()
        return self._header
