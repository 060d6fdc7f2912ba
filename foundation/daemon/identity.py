"""Who calls, by the certificate of the connection."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import grpc

DOMAIN = "dpu-offload.io"
_LABEL = r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?"
# A node's name may itself hold dots, a component's may not.
_NAME = re.compile(rf"(?P<node>{_LABEL}(?:\.{_LABEL})*)\.(?P<component>{_LABEL})\.{re.escape(DOMAIN)}")


@dataclass(frozen=True)
class Identity:
    """A component on a node, proven by a certificate."""

    node: str
    component: str

    @property
    def server_name(self) -> str:
        """Its DNS name in certificates: `<node>.<component>.dpu-offload.io`."""
        return f"{self.node}.{self.component}.{DOMAIN}"

    def __str__(self) -> str:
        return f"{self.component} on {self.node}"


def parse_identity(name: str) -> Identity | None:
    """The identity that a certificate name stands for, or None when it is no name of ours."""
    match = _NAME.fullmatch(name.lower())
    return Identity(match["node"], match["component"]) if match else None


def identity_of(names: Iterable[str]) -> Identity | None:
    """The one identity among a certificate's names; None when there is none, or more than one."""
    found = {identity for name in names if (identity := parse_identity(name)) is not None}
    return found.pop() if len(found) == 1 else None


def peer_identity(context: grpc.aio.ServicerContext[Any, Any]) -> Identity | None:
    """The caller's identity; None over a unix socket, or when its certificate names none of ours.

    Only verified certificates get here: `listen_tls` refuses the others in the handshake.
    """
    if not context.peer_identity_key():
        return None
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return identity_of(name.decode("utf-8", "replace") for name in names)
