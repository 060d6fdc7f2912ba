"""The host NQN and host id of this DPU: made once, used for every connection, the same after every restart."""

import logging
import os
import uuid
from pathlib import Path
from typing import Final

import msgspec

from volume_attacher.naming import is_nqn

log: Final = logging.getLogger(__name__)
# NVMe base specification 2.0, 4.5: the form of an NQN made of a UUID.
_NQN_OF_UUID: Final = "nqn.2014-08.org.nvmexpress:uuid:"


class HostIdentity(msgspec.Struct, frozen=True):
    """What a target's access list names."""

    nqn: str
    id: str


class HostIdentityError(Exception):
    """The file cannot be used; another identity would lock this DPU out of its volumes."""


def load_or_make(path: Path, *, nqn: str = "") -> HostIdentity:
    """Read the identity at `path`, or make one and write it there, safe from a loss of power.

    `nqn` is the configured host NQN, if any: it then wins over the file's, whose host id is kept.
    Raises HostIdentityError for a damaged file or an NQN that is none.
    """
    if nqn and not is_nqn(nqn):
        raise HostIdentityError(f"host_nqn {nqn!r} is not an NQN")
    try:
        found = msgspec.json.decode(path.read_bytes(), type=HostIdentity)
    except FileNotFoundError:
        fresh = str(uuid.uuid4())
        found = HostIdentity(nqn=nqn or _NQN_OF_UUID + fresh, id=fresh)
        _write(path, found)
        log.info("this DPU is now known to targets as %s", found.nqn)
    except msgspec.DecodeError as error:
        raise HostIdentityError(f"{path} does not hold a host identity ({error}): restore it, or delete it") from error
    if nqn and nqn != found.nqn:
        found = HostIdentity(nqn=nqn, id=found.id)
        _write(path, found)
    if not is_nqn(found.nqn):
        raise HostIdentityError(f"{path}: {found.nqn!r} is not an NQN: restore the file, or delete it")
    return found


def _write(path: Path, identity: HostIdentity) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = path.with_name(path.name + ".new")
    with draft.open("wb") as file:
        file.write(msgspec.json.encode(identity))
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
