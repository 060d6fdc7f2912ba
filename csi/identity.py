"""Names as functions of ids: from a volume id follow its NQN, its namespace's UUID and its NGUID, with no look-up.

A volume id is `<backend>:<key>`. `backend` is a name out of the controller's configuration; `key` is the backend's
own id, a short function of the CSI name, so that creating twice makes one volume. Everything here is pure.
"""

import base64
import hashlib
import re
import uuid
from typing import Final

import msgspec

DRIVER_NAME: Final = "csi.dpu-offload.io"
NQN_PREFIX: Final = "nqn.2026-11.io.dpu-offload:"
VOLUME_NQN_PREFIX: Final = NQN_PREFIX + "volume."
HOST_NQN_PREFIX: Final = NQN_PREFIX + "host."
MODEL_NUMBER: Final = "DPU Offload volume"
REMOTE_NSID: Final = 1

# A fixed point for uuid5: made once, never to be changed, since every namespace's UUID hangs on it.
_UUID_SPACE: Final = uuid.UUID("6a1d3f0e-52c1-5f7b-9d0a-c4b0f2e7d911")
_BACKEND = re.compile(r"[a-z][a-z0-9-]{0,30}")
_KEY = re.compile(r"[a-z0-9][a-z0-9._-]{0,94}")
# NVMe Base Specification 2.0, 4.5: an NQN is at most 223 bytes; DNS-like names are lower case.
_NODE = re.compile(r"[a-z0-9]([a-z0-9.-]{0,180})")
_HASH_LENGTH: Final = 20


class MalformedId(ValueError):
    """The text is not an id which this driver could have given out."""


class VolumeId(msgspec.Struct, frozen=True, order=True):
    """A volume, snapshot or group id as Kubernetes knows it: `<backend>:<key>`, at most 128 bytes."""

    backend: str
    key: str

    def __str__(self) -> str:
        return f"{self.backend}:{self.key}"


def parse_volume_id(text: str) -> VolumeId:
    """`<backend>:<key>` taken apart. Raises MalformedId for every text which could not be ours."""
    backend, separator, key = text.partition(":")
    if not separator or not _BACKEND.fullmatch(backend) or not _KEY.fullmatch(key):
        raise MalformedId(f"{text[:140]!r} is not an id of {DRIVER_NAME}: expected <backend>:<key>")
    return VolumeId(backend=backend, key=key)


def valid_backend_name(name: str) -> bool:
    return _BACKEND.fullmatch(name) is not None


def hashed(name: str) -> str:
    """100 bits of a CSI name as 20 characters of [a-z2-7]: any Unicode text, however long, gives one length."""
    digest = hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()
    return base64.b32encode(digest).decode("ascii").lower()[:_HASH_LENGTH]


def subsystem_nqn(volume: VolumeId | str) -> str:
    """The NQN of the volume's own remote subsystem. Invertible: see `volume_of_nqn`."""
    parsed = parse_volume_id(volume) if isinstance(volume, str) else volume
    return f"{VOLUME_NQN_PREFIX}{parsed.backend}.{parsed.key}"


def volume_of_nqn(nqn: str) -> VolumeId | None:
    """The volume whose subsystem has this NQN; None when the subsystem is not ours."""
    if not nqn.startswith(VOLUME_NQN_PREFIX):
        return None
    backend, _, key = nqn.removeprefix(VOLUME_NQN_PREFIX).partition(".")
    if not _BACKEND.fullmatch(backend) or not _KEY.fullmatch(key):
        return None
    return VolumeId(backend=backend, key=key)


def is_ours(nqn: str) -> bool:
    """Whether this suite made the subsystem or host of that NQN; nothing else may be touched."""
    return nqn.startswith(NQN_PREFIX)


def namespace_uuid(volume: VolumeId | str) -> str:
    """RFC 9562 version 5 UUID of the volume's namespace, lower case with dashes."""
    return str(uuid.uuid5(_UUID_SPACE, f"namespace:{volume}"))


def nguid(volume: VolumeId | str) -> str:
    """The namespace's NGUID: the UUID's 128 bits, as SPDK prints them (32 upper-case hex digits)."""
    return namespace_uuid(volume).replace("-", "").upper()


def serial_number(volume: VolumeId | str) -> str:
    """20 printable characters, the longest that an NVMe controller can show."""
    return hashed(str(volume)).upper()


def is_node_name(text: str) -> bool:
    """Whether a Kubernetes node may have this name."""
    return _NODE.fullmatch(text) is not None


def host_nqn(node: str) -> str:
    """The one NQN by which a DPU (or a plain host) names itself to targets, for as long as its node name lives."""
    if not _NODE.fullmatch(node):
        raise MalformedId(f"{node[:200]!r} is not a Kubernetes node name")
    return f"{HOST_NQN_PREFIX}{node}"


def host_id(node: str) -> str:
    """The host identifier (UUID) that goes with `host_nqn`: NVMe wants the pair to stay together."""
    return str(uuid.uuid5(_UUID_SPACE, f"host:{node}"))


def node_of_host_nqn(nqn: str) -> str | None:
    """The node which `host_nqn` was made from; None for another's host."""
    node = nqn.removeprefix(HOST_NQN_PREFIX)
    return node if nqn.startswith(HOST_NQN_PREFIX) and _NODE.fullmatch(node) else None
