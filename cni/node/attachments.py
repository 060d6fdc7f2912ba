"""Attachments on disk: written before anything is done, so that a killed cni-node knows what it was doing.

One file an attachment: the SHA-256 of the rest, a line feed, then JSON. A file replaces its predecessor at once (write,
rename): from then on the end of this process costs nothing. `flush` guards against the end of the machine (fsync of
file and directory); it runs beside the work, because links do not survive that end anyway, and is awaited before ADD
answers. A damaged file is set aside and counts as absent: what it described is then found by its marks in OVS and on
links, and removed as an orphan.
"""

import asyncio
import contextlib
import hashlib
import itertools
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec

from cni.node.assignment import Assignment
from cni.node.errors import InputFailed
from cni.node.request import Bandwidth

_log = logging.getLogger(__name__)

Kind = Literal["veth", "vf", "vfio", "sf"]
Phase = Literal["adding", "ready", "deleting"]


class Original(msgspec.Struct, frozen=True):
    """How a function's netdev looked before the pod got it; one on vfio-pci has none. `admin_mac` is what the PF had
    set for the VF."""

    name: str = ""
    mac: str = ""
    mtu: int = 0
    altnames: tuple[str, ...] = ()
    admin_mac: str = ""


class FunctionRef(msgspec.Struct, frozen=True, kw_only=True):
    """A function as the card numbers it; `address`: its PCI address, or a scalable function's name, at the pod."""

    address: str
    pf: int
    vf: int
    controller: int = 0
    switch_id: str = ""
    card: str = ""
    pf_address: str = ""
    scalable: bool = False


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One interface of one sandbox. `host` is the node whose pod it is when that is not this machine's.

    `netns_inode` tells a namespace from a later one at the same path. `link` is the node's end of a veth pair, or the
    representor. `result` is ADD's answer.
    """

    id: str
    generation: int
    phase: Phase
    kind: Kind
    container_id: str
    ifname: str
    network: str
    network_name: str = ""
    pod_namespace: str
    pod_name: str
    pod_uid: str
    port: str
    assignment: Assignment
    fingerprint: str = ""
    netns: str = ""
    netns_inode: int = 0
    function: FunctionRef | None = None
    original: Original | None = None
    link: str = ""
    bandwidth: Bandwidth = Bandwidth()
    device_info_file: str = ""
    host: str = ""
    result: dict[str, Any] | None = None

    @property
    def pod(self) -> str:
        return f"{self.pod_namespace}/{self.pod_name}"

    def describe(self) -> str:
        where = f" of host {self.host}" if self.host else ""
        return f"interface {self.ifname} of pod {self.pod}{where}"


def attachment_id(container_id: str, ifname: str) -> str:
    """16 hexadecimal digits; a sandbox has one interface of a name, so nothing else is needed."""
    return hashlib.sha256(f"{container_id}/{ifname}".encode()).hexdigest()[:16]


class AttachmentStore:
    """All attachments of this cni-node in memory, each one also in `directory`."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._found: dict[str, Attachment] = {}
        self._numbers = itertools.count(1)
        self._unflushed: set[str] = set()
        self._flushing = asyncio.Lock()
        self._round: asyncio.Task[None] | None = None
        self.epoch = 0

    async def open(self) -> None:
        """Reads what an earlier process left. Raises InputFailed when the directory cannot be used."""
        try:
            self._found = await asyncio.to_thread(self._load)
        except OSError as error:
            raise InputFailed(
                f"cannot keep attachments in {self._directory}: {error.strerror}; set state_dir to a writable directory"
            ) from error
        # Generations of a new process are above those of every earlier one.
        self._numbers = itertools.count(self.epoch << 32)

    def generation(self) -> int:
        return next(self._numbers)

    def get(self, identity: str) -> Attachment | None:
        return self._found.get(identity)

    def __iter__(self) -> Iterator[Attachment]:
        return iter(tuple(self._found.values()))

    def __len__(self) -> int:
        return len(self._found)

    def using(self, address: str, *, host: str = "") -> Attachment | None:
        """The attachment that holds a function, whatever its phase."""
        return next(
            (one for one in self if one.function is not None and one.function.address == address and one.host == host),
            None,
        )

    def put(self, attachment: Attachment) -> None:
        """Safe from the end of this process when it returns; some tens of microseconds.

        Raises InputFailed; then nothing is known that was not known before.
        """
        try:
            self._write(attachment)
        except OSError as error:
            if attachment.id not in self._found:
                self._path(attachment.id).unlink(missing_ok=True)
            raise InputFailed(
                f"cannot write attachment {attachment.id} below {self._directory}: {error.strerror}; "
                "see whether the file system is full or read-only"
            ) from error
        self._found[attachment.id] = attachment

    async def flush(self, identity: str) -> None:
        """Returns when what was put is on the disk. Raises InputFailed.

        Many at once go together: each for itself would keep the file system's journal busy with one after the other.
        """
        self._unflushed.add(identity)
        if self._round is None:
            self._round = asyncio.create_task(self._flush_all(), name="flush attachments")
            # Whether or not somebody still waits for it.
            self._round.add_done_callback(lambda done: done.cancelled() or done.exception())
        await asyncio.shield(self._round)

    async def _flush_all(self) -> None:
        async with self._flushing:
            together, self._unflushed, self._round = self._unflushed, set(), None
            try:
                await asyncio.to_thread(self._sync_all, sorted(together))
            except OSError as error:
                raise InputFailed(
                    f"attachments do not reach the disk below {self._directory}: {error.strerror}"
                ) from error

    def _sync_all(self, identities: list[str]) -> None:
        for identity in identities:
            # One that was removed meanwhile needs nothing.
            with contextlib.suppress(FileNotFoundError):
                _sync(self._path(identity))
        _sync(self._directory)

    def remove(self, identity: str) -> None:
        """Succeeds when there is none. Raises InputFailed."""
        try:
            self._path(identity).unlink(missing_ok=True)
        except OSError as error:
            raise InputFailed(
                f"cannot remove attachment {identity} from {self._directory}: {error.strerror}"
            ) from error
        self._found.pop(identity, None)

    def _path(self, identity: str) -> Path:
        return self._directory / f"{identity}.json"

    def _write(self, attachment: Attachment) -> None:
        body = msgspec.json.encode(attachment)
        _replace(self._path(attachment.id), hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    def _load(self) -> dict[str, Attachment]:
        self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
        found: dict[str, Attachment] = {}
        for path in sorted(self._directory.iterdir()):
            if path.suffix == ".new":
                path.unlink()
            elif path.suffix == ".json":
                attachment = _read(path)
                if attachment is None:
                    path.replace(path.with_suffix(".damaged"))
                else:
                    found[attachment.id] = attachment
        counter = self._directory / "epoch"
        text = counter.read_text() if counter.exists() else ""
        newest = max((one.generation >> 32 for one in found.values()), default=0)
        self.epoch = max(int(text) if text.isdigit() else 0, newest) + 1
        _replace(counter, str(self.epoch).encode())
        for path in (counter, self._directory):
            _sync(path)
        return found


def _replace(path: Path, text: bytes) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(text)
    os.replace(fresh, path)


def _sync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _read(path: Path) -> Attachment | None:
    digest, _, body = path.read_bytes().partition(b"\n")
    if hashlib.sha256(body).hexdigest().encode() != digest:
        _log.error("attachment file %s is damaged; what it described will be removed as an orphan", path)
        return None
    try:
        return msgspec.json.decode(body, type=Attachment)
    except msgspec.MsgspecError as error:
        _log.error("attachment file %s is not of this version: %s", path, error)
        return None
