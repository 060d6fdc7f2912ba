"""Volumes as files of one directory; snapshots and clones share blocks by reflink, where the file system can.

Blocking. A file appears under its final name only when it is whole and its directory entry is on disk.
"""

import contextlib
import errno
import fcntl
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from csi.errors import Internal, NotFound, ResourceExhausted
from csi.framework.sizes import MIB

_NOTE = "o"
_FICLONE = 0x40049409  # linux/fs.h: _IOW(0x94, 9, int)


class Files:
    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def path(self, name: str) -> Path:
        return self._directory / f"{name}.img"

    def sizes(self) -> dict[str, int]:
        """By name. The small notes beside the volumes are not named."""
        found = {path.stem: self.size(path.stem) for path in self._directory.glob("*.img")}
        return {name: size for name, size in found.items() if size is not None and not name.startswith(_NOTE)}

    def size(self, name: str) -> int | None:
        try:
            return self.path(name).stat().st_size
        except FileNotFoundError:
            return None

    def free(self) -> tuple[int, int]:
        """Bytes free, bytes in all."""
        found = os.statvfs(self._directory)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def can_clone(self) -> bool:
        """Tried on two small files."""
        with tempfile.TemporaryFile(dir=self._directory) as source, tempfile.TemporaryFile(dir=self._directory) as copy:
            source.write(bytes(4096))
            source.flush()
            try:
                fcntl.ioctl(copy, _FICLONE, source.fileno())
            except OSError:
                return False
        return True

    def unit(self) -> int:
        return MIB

    def can_reserve(self) -> bool:
        return True

    def create(self, name: str, size: int, *, thick: bool) -> None:
        # A note of an earlier volume of this name, whose deletion was broken off, would be believed.
        self.path(_note(name)).unlink(missing_ok=True)
        self._appear(name, lambda descriptor: _extend(descriptor, size, thick=thick))

    def source(self, name: str) -> str:
        """What a volume was cloned from; "" for one that was made empty."""
        path = self.path(_note(name))
        return path.read_text() if path.exists() else ""

    def clone(self, source: str, name: str, size: int) -> None:
        """At least `size` bytes, never less than the source. Raises NotFound."""
        # The note comes first: a volume without one is taken for one that was made empty.
        self._appear(_note(name), lambda descriptor: _write(descriptor, source.encode()))
        self._share(source, name, size)

    def snapshot(self, source: str, name: str) -> None:
        """Raises NotFound."""
        self._share(source, name, 0)

    def _share(self, source: str, name: str, size: int) -> None:

        def copy(descriptor: int) -> None:
            try:
                origin = os.open(self.path(source), os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError as error:
                raise NotFound(f"{source} does not exist") from error
            try:
                # What the target still has in its page cache belongs to the clone.
                os.fsync(origin)
                fcntl.ioctl(descriptor, _FICLONE, origin)
                _extend(descriptor, max(size, os.fstat(origin).st_size), thick=False)
            finally:
                os.close(origin)

        self._appear(name, copy)

    def grow(self, name: str, size: int) -> None:
        descriptor = os.open(self.path(name), os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_size < size:
                os.ftruncate(descriptor, size)
                os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def delete(self, name: str) -> None:
        self.path(name).unlink(missing_ok=True)
        self.path(_note(name)).unlink(missing_ok=True)
        self._sync()

    def unfinished(self) -> dict[str, str]:
        """What broken-off work has left, with the reason."""
        found = {path.name: "its creation was broken off" for path in self._directory.glob("*.img.new")}
        for path in self._directory.glob(f"{_NOTE}*.img"):
            if not self.path(f"v{path.stem.removeprefix(_NOTE)}").exists():
                found[path.name] = "the volume that it is a note about is gone"
        return found

    def delete_unfinished(self, name: str) -> None:
        (self._directory / name).unlink(missing_ok=True)

    def _appear(self, name: str, fill: Callable[[int], None]) -> None:
        temporary = self.path(name).with_suffix(".img.new")
        descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            fill(descriptor)
            os.fsync(descriptor)
        except OSError as error:
            with contextlib.suppress(OSError):
                temporary.unlink()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceExhausted(f"{self._directory} is full: {name} cannot be made") from error
            raise Internal(f"make {temporary}: {error}") from error
        except NotFound:
            temporary.unlink()
            raise
        finally:
            os.close(descriptor)
        os.replace(temporary, self.path(name))
        self._sync()

    def _sync(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _note(name: str) -> str:
    """The small file beside a volume that says what it was made from."""
    return f"{_NOTE}{name[1:]}"


def _write(descriptor: int, content: bytes) -> None:
    os.write(descriptor, content)


def _extend(descriptor: int, size: int, *, thick: bool) -> None:
    if thick:
        os.posix_fallocate(descriptor, 0, size)
    else:
        os.ftruncate(descriptor, size)
