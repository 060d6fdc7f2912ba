"""The places where kubelet wants volumes: made before something is mounted there, taken away afterwards."""

import errno
import os
import stat

from csi.errors import CsiError, FailedPrecondition, Internal

_OCCUPIED = frozenset({errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.ELOOP})


def make(path: str, *, file: bool) -> None:
    """A directory, or a file for a device node to be bound to. Raises FailedPrecondition where something else is."""
    try:
        os.makedirs(os.path.dirname(path), mode=0o750, exist_ok=True)
        found = _look(path)
        if found is None and file:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        elif found is None:
            os.mkdir(path, 0o750)
    except OSError as error:
        raise _failed(path, error) from error
    fits = found is None or (stat.S_ISREG(found.st_mode) if file else stat.S_ISDIR(found.st_mode))
    if not fits:
        raise FailedPrecondition(f"{path} is no {'plain file' if file else 'directory'}; it is left as it is")


def remove(path: str) -> None:
    """Only an empty directory or an empty file of our making: never anything with content."""
    found = _look(path)
    if found is None:
        return
    if stat.S_ISDIR(found.st_mode):
        try:
            os.rmdir(path)
        except OSError as error:
            raise FailedPrecondition(f"{path} is not mounted and not empty; it is left as it is: {error}") from error
    elif stat.S_ISREG(found.st_mode) and found.st_size == 0:
        os.unlink(path)
    else:
        raise FailedPrecondition(f"{path} is neither an empty directory nor an empty file; it is left as it is")


def _look(path: str) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _failed(path: str, error: OSError) -> CsiError:
    kind = FailedPrecondition if error.errno in _OCCUPIED else Internal
    return kind(f"{path} cannot be made: {error.filename or path}: {error.strerror}")
