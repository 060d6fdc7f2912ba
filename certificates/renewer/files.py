"""A certificate with its key and its authorities as three files that change together. Blocking.

As kubelet does with a mounted Secret: the files are links through one link to a directory, and that link is replaced by
a rename. Whoever reads meanwhile has the old three or the new three.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from certificates.contract import CA_FILE, CERTIFICATE_FILE, KEY_FILE
from certificates.errors import NothingTrusted

_CURRENT = "..data"
# The group is the pod's fsGroup, by which daemons without root read their key.
_MODES = {CA_FILE: 0o644, CERTIFICATE_FILE: 0o644, KEY_FILE: 0o640}


@dataclass(frozen=True)
class Held:
    """The contents of the three files, PEM."""

    authority: bytes
    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Held(…)"


def read(directory: Path) -> Held | None:
    """What is there; None when a file is missing."""
    try:
        return Held(*((directory / name).read_bytes() for name in (CA_FILE, CERTIFICATE_FILE, KEY_FILE)))
    except OSError:
        return None


def read_authority(path: Path) -> bytes:
    """What is trusted, in PEM. Raises OSError, NothingTrusted for a file that would make daemons trust nobody."""
    content = path.read_bytes()
    try:
        x509.load_pem_x509_certificates(content)
    except ValueError:
        raise NothingTrusted(
            f"{path} holds no usable certificate, so {CA_FILE} stays as it is; see the ConfigMap that is mounted there"
        ) from None
    return content


def write(directory: Path, held: Held) -> None:
    """Put the three in place at once. Raises OSError."""
    fresh = Path(tempfile.mkdtemp(prefix="..", dir=directory))
    os.chmod(fresh, 0o750)
    contents = {CA_FILE: held.authority, CERTIFICATE_FILE: held.certificate, KEY_FILE: held.key}
    for name, content in contents.items():
        path = fresh / name
        path.touch(mode=0o600)
        path.write_bytes(content)
        os.chmod(path, _MODES[name])
    before = directory / _CURRENT
    old = before.resolve() if before.is_symlink() else None
    _link(fresh.name, before)
    for name in contents:
        if not (directory / name).is_symlink():
            _link(f"{_CURRENT}/{name}", directory / name)
    for path in directory.glob("..*"):
        # What a crash left, and the old ones.
        if path.is_dir() and not path.is_symlink() and path != fresh:
            shutil.rmtree(path, ignore_errors=True)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _link(target: str, path: Path) -> None:
    temporary = path.with_name(f"{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    temporary.symlink_to(target)
    temporary.replace(path)
