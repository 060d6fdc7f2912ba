"""One call to SPDK through its own HTTP proxy (scripts/rpc_http_proxy.py).

The proxy opens a unix connection a request, knows HTTP Basic authentication and no TLS of today: a way into a card in
a lab. Between machines, gRPC with mTLS is the way.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import requests

from foundation.spdk.address import HttpAddress
from foundation.spdk.errors import SpdkError, SpdkMalformedReply, SpdkTimeout, SpdkUnavailable
from foundation.spdk.messages import decode_reply, encode_request


class HttpProxy:
    """``password_file`` is read anew for each call, so a changed password needs no restart; it is never logged."""

    def __init__(self, address: HttpAddress, password_file: str) -> None:
        self._address = address
        self._password_file = password_file
        self._ids = itertools.count(1)

    async def call(self, method: str, params: Mapping[str, Any] | None, deadline: float) -> msgspec.Raw:
        """The raw result. Raises SpdkError, SpdkTimeout, SpdkUnavailable, SpdkRequestTooLarge."""
        request_id = next(self._ids)
        data = encode_request(request_id, method, params)
        try:
            async with asyncio.timeout(deadline):
                return await asyncio.to_thread(self._post, request_id, data, method, deadline)
        except TimeoutError as error:
            raise SpdkTimeout(
                f"SPDK's HTTP proxy at {self._address} did not answer {method} within {deadline:g} s"
            ) from error

    def _post(self, request_id: int, data: bytes, method: str, deadline: float) -> msgspec.Raw:
        session = requests.Session()
        # A proxy or a netrc of the environment must not see this call.
        session.trust_env = False
        try:
            with session:
                response = session.post(
                    self._address.url,
                    data=data,
                    headers={"Content-Type": "application/json"},
                    auth=(self._address.user, self._password()) if self._address.user else None,
                    timeout=deadline,
                    allow_redirects=False,
                )
        except requests.Timeout as error:
            raise SpdkTimeout(
                f"SPDK's HTTP proxy at {self._address} did not answer {method} within {deadline:g} s"
            ) from error
        except requests.RequestException as error:
            raise SpdkUnavailable(f"SPDK's HTTP proxy at {self._address} cannot be reached: {error}") from error
        if response.status_code in (401, 403):
            raise SpdkUnavailable(
                f"SPDK's HTTP proxy at {self._address} refused user {self._address.user!r} "
                f"({response.status_code}): look at the password file {self._password_file!r}"
            )
        if response.status_code != 200:
            raise SpdkUnavailable(f"SPDK's HTTP proxy at {self._address} answered {response.status_code} to {method}")
        try:
            reply = decode_reply(response.content)
        except ValueError as error:
            raise SpdkMalformedReply(f"SPDK's HTTP proxy at {self._address} sent no JSON-RPC reply: {error}") from error
        if reply.id != request_id:
            raise SpdkMalformedReply(f"SPDK's HTTP proxy at {self._address} answered another request ({reply.id})")
        if reply.error is not None:
            raise SpdkError(reply.error.code, reply.error.message, method)
        if not isinstance(reply.result, msgspec.Raw):
            raise SpdkMalformedReply(f"SPDK's HTTP proxy at {self._address} answered {method} without a result")
        return reply.result

    def _password(self) -> str:
        if not self._password_file:
            return ""
        try:
            return Path(self._password_file).read_text().strip()
        except OSError as error:
            raise SpdkUnavailable(f"the password file for SPDK's HTTP proxy cannot be read: {error}") from error
