"""cni-node's attachments as it keeps them in its state directory, read without disturbing a living cni-node."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import msgspec

from cni.node.attachments import Attachment


@dataclass(frozen=True)
class Kept:
    """Attachments by id; `problem` says why the directory could not be read."""

    attachments: Mapping[str, Attachment]
    problem: str = ""


def read(directory: Path) -> Kept:
    """Files that are damaged, or of another version, are left out: cni-node does the same."""
    try:
        return Kept({one.id: one for one in _read(directory)})
    except OSError as error:
        return Kept({}, problem=f"{directory}: {error.strerror}")


def _read(directory: Path) -> Iterator[Attachment]:
    for path in sorted(directory.glob("*.json")):
        digest, _, body = path.read_bytes().partition(b"\n")
        if hashlib.sha256(body).hexdigest().encode() != digest:
            continue
        try:
            yield msgspec.json.decode(body, type=Attachment)
        except msgspec.DecodeError:
            continue
