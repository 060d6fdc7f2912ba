"""Taking the path of a unix socket: never another instance's, never a file that is no socket."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

# sun_path is 108 bytes with its closing zero (unix(7)).
LONGEST_PATH = 107


class SocketTaken(OSError):
    """Another process serves on this path."""


def bind_unix(path: Path, *, mode: int) -> socket.socket:
    """A socket bound to `path` with this file mode, for `asyncio.start_unix_server(sock=...)`.

    It raises what `claim_unix_path` raises.
    """
    claim_unix_path(path, mode=mode)
    bound = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with narrow_umask(mode):
            bound.bind(str(path))
        path.chmod(mode)
    except OSError:
        bound.close()
        raise
    return bound


@contextlib.contextmanager
def narrow_umask(mode: int) -> Iterator[None]:
    """Files made in the block have at most `mode` from their first moment, before a chmod could reach them."""
    before = os.umask(0o777 & ~mode)
    try:
        yield
    finally:
        os.umask(before)


def claim_unix_path(path: Path, *, mode: int) -> None:
    """Make way for a listener at `path`: missing directories are made, a socket nobody answers on is removed.

    A new directory lets in whom the socket's `mode` lets in. Directories that exist are left as they are.

    :raises ValueError: the path is relative or longer than 107 bytes.
    :raises SocketTaken: somebody serves there.
    :raises OSError: something there is no socket, or the directory cannot be made.
    """
    if not path.is_absolute():
        raise ValueError(f"socket path {path} is not absolute")
    length = len(os.fsencode(path))
    if length > LONGEST_PATH:
        raise ValueError(
            f"socket path {path} has {length} bytes; the kernel takes at most {LONGEST_PATH}; choose a shorter one"
        )
    directory_mode = 0o700 | (0o050 if mode & 0o060 else 0) | (0o005 if mode & 0o006 else 0)
    for directory in reversed([path.parent, *path.parent.parents]):
        with contextlib.suppress(FileExistsError):
            directory.mkdir(mode=directory_mode)
            directory.chmod(directory_mode)  # mkdir's mode is cut by the umask
    try:
        kind = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(kind):
        raise OSError(
            errno.EEXIST, "a file that is no socket is in the way; move it or configure another path", str(path)
        )
    if _answered(path):
        raise SocketTaken(errno.EADDRINUSE, "another instance serves on this socket; stop it first", str(path))
    with contextlib.suppress(FileNotFoundError):
        path.unlink()


def _answered(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # Only these tell of a socket file whose process is gone. Others are signs of life: a listener whose backlog is
        # full (EAGAIN), one of another kind (EPROTOTYPE), one that we may not call (EACCES).
        return probe.connect_ex(str(path)) not in (errno.ECONNREFUSED, errno.ENOENT)
