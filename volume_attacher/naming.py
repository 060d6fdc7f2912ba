"""What a volume's objects are called on the bridge: functions of the volume id, and the way back where there is one."""

import hashlib
import re
from typing import Final

from volume_attacher.model import Portal

# NVMe base specification 2.0, 4.5.
_NQN: Final = re.compile(r"nqn\.\d{4}-\d{2}\.[A-Za-z0-9.-]+:\S(?:.*\S)?")
_NQN_BYTES: Final = 223
# AIP-122: bridges may refuse longer ids.
_LIMIT: Final = 63
_READABLE: Final = "dpu-"
_HASHED: Final = "dpux-"
_SHARED: Final = "dpus-"
_ESCAPED: Final = re.compile(r"(?:[a-z0-9]|-[0-9a-f]{2})+")

SUBSYSTEMS: Final = "nvmeSubsystems"
REMOTE_CONTROLLERS: Final = "nvmeRemoteControllers"


def object_id(volume_id: str) -> str:
    """The id of the volume's objects, e.g. "dpu-spdk-3aabc" for "spdk:abc"; long ids are hashed."""
    escaped = "".join(c if c.isascii() and (c.islower() or c.isdigit()) else _escape(c) for c in volume_id)
    if len(_READABLE) + len(escaped) <= _LIMIT:
        return _READABLE + escaped
    return _HASHED + hashlib.sha256(volume_id.encode()).hexdigest()[:40]


def _escape(character: str) -> str:
    return "".join(f"-{byte:02x}" for byte in character.encode())


def is_nqn(text: str) -> bool:
    return len(text.encode()) <= _NQN_BYTES and _NQN.fullmatch(text) is not None


def volume_of(identifier: str) -> str | None:
    """The volume id behind an object's id; None for a hashed one and for what is not ours."""
    body = identifier.removeprefix(_READABLE)
    if body == identifier or not _ESCAPED.fullmatch(body):
        return None
    raw = re.sub(r"-([0-9a-f]{2})", lambda match: chr(int(match[1], 16)), body)
    try:
        text = raw.encode("latin-1").decode()
    except ValueError:
        return None
    return text if object_id(text) == identifier else None


def is_ours(identifier: str) -> bool:
    """Whether an object of this id is the attacher's; nothing else may be touched."""
    return identifier.startswith((_READABLE, _HASHED, _SHARED))


def shared_id(port: int, pf: int, vf: int) -> str:
    """The id of the subsystem behind the host's shared controller on one function."""
    return f"{_SHARED}port{port}-pf{pf}-vf{vf}"


def remote_name(identifier: str) -> str:
    return f"{REMOTE_CONTROLLERS}/{identifier}"


def subsystem_name(identifier: str) -> str:
    return f"{SUBSYSTEMS}/{identifier}"


def namespace_id(nsid: int) -> str:
    return f"ns{nsid}"


def controller_id(port: int, pf: int, vf: int) -> str:
    return f"port{port}-pf{pf}-vf{vf}"


def namespace_name(subsystem: str, nsid: int) -> str:
    return f"{subsystem_name(subsystem)}/nvmeNamespaces/{namespace_id(nsid)}"


def controller_name(subsystem: str, port: int, pf: int, vf: int) -> str:
    return f"{subsystem_name(subsystem)}/nvmeControllers/{controller_id(port, pf, vf)}"


def encrypted_name(identifier: str) -> str:
    return f"encryptedVolumes/{identifier}"


def qos_name(identifier: str) -> str:
    return f"qosVolumes/{identifier}"


def path_name(remote: str, portal: Portal) -> str:
    """Of the path over `portal`, whose address is an IP address."""
    return f"{remote_name(remote)}/nvmePaths/{path_id(portal)}"


def path_id(portal: Portal) -> str:
    plain = "".join(c if c.isalnum() else "-" for c in portal.address.lower()).strip("-")
    return f"{portal.transport}-{plain}-{portal.port}"
