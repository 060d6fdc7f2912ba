"""Taking a socket's path: what is removed, what is refused, with which modes."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from foundation.daemon.sockets import LONGEST_PATH, SocketTaken, bind_unix, claim_unix_path


@pytest.fixture
def loose_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def listening(path: Path, backlog: int = 1) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(backlog)
    return listener


@pytest.mark.usefixtures("loose_umask")
@pytest.mark.parametrize(
    ("socket_mode", "directory_mode"), [(0o600, 0o700), (0o660, 0o750), (0o620, 0o750), (0o666, 0o755)]
)
def test_new_directories_let_in_whom_the_socket_lets_in(tmp_path: Path, socket_mode: int, directory_mode: int) -> None:
    path = tmp_path / "a" / "b" / "s.sock"
    tmp_path.chmod(0o701)
    claim_unix_path(path, mode=socket_mode)
    assert mode(tmp_path / "a") == directory_mode
    assert mode(tmp_path / "a" / "b") == directory_mode
    assert mode(tmp_path) == 0o701


def test_narrow_umask_does_not_narrow_a_directory_below_what_was_asked(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        claim_unix_path(tmp_path / "a" / "s.sock", mode=0o660)
    finally:
        os.umask(before)
    assert mode(tmp_path / "a") == 0o750


@pytest.mark.usefixtures("loose_umask")
@pytest.mark.parametrize("socket_mode", [0o600, 0o660, 0o666])
def test_bound_socket_has_its_mode_and_answers(tmp_path: Path, socket_mode: int) -> None:
    path = tmp_path / "s.sock"
    with bind_unix(path, mode=socket_mode) as bound, socket.socket(socket.AF_UNIX) as client:
        assert mode(path) == socket_mode
        bound.listen(1)
        client.connect(str(path))
    assert os.umask(0) == 0, "the umask of the process is put back"


def test_dead_socket_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    listening(path).close()
    assert path.exists()
    claim_unix_path(path, mode=0o600)
    assert not path.exists()


def test_socket_that_somebody_serves_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    with listening(path) as listener:
        with pytest.raises(SocketTaken, match="another instance serves on this socket; stop it first"):
            claim_unix_path(path, mode=0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
            listener.accept()[0].close()


def test_socket_whose_server_is_too_busy_to_accept_is_still_taken(tmp_path: Path) -> None:
    path = tmp_path / "s.sock"
    clients = []
    with listening(path, backlog=0):
        for _ in range(10):
            client = socket.socket(socket.AF_UNIX)
            client.setblocking(False)
            clients.append(client)
            if client.connect_ex(str(path)):
                break
        else:
            pytest.fail("the backlog never filled")
        with pytest.raises(SocketTaken):
            claim_unix_path(path, mode=0o600)
        for client in clients:
            client.close()


@pytest.mark.parametrize("kind", ["file", "directory", "link"])
def test_what_is_no_socket_is_never_removed(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "s.sock"
    if kind == "file":
        path.write_text("precious")
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError, match="a file that is no socket is in the way"):
        claim_unix_path(path, mode=0o600)
    assert path.lstat()


def test_longest_path_is_taken_and_one_byte_more_is_refused(tmp_path: Path) -> None:
    room = LONGEST_PATH - len(os.fsencode(tmp_path)) - 1
    longest = tmp_path / ("x" * room)
    with bind_unix(longest, mode=0o600):
        assert longest.exists()
    with pytest.raises(ValueError, match=r"has 108 bytes; the kernel takes at most 107; choose a shorter one"):
        claim_unix_path(tmp_path / ("x" * (room + 1)), mode=0o600)
    with pytest.raises(ValueError, match="the kernel takes at most 107"):
        claim_unix_path(tmp_path / ("ß" * (room // 2 + 1)), mode=0o600)


def test_relative_path_is_refused() -> None:
    with pytest.raises(ValueError, match="is not absolute"):
        claim_unix_path(Path("s.sock"), mode=0o600)


@pytest.mark.parametrize("kind", [socket.SOCK_SEQPACKET, socket.SOCK_DGRAM])
def test_a_living_socket_of_another_kind_is_not_taken_for_dead(tmp_path: Path, kind: socket.SocketKind) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX, kind) as other:
        other.bind(str(path))
        if kind is socket.SOCK_SEQPACKET:
            other.listen()
        with pytest.raises(SocketTaken):
            claim_unix_path(path, mode=0o600)
        assert path.exists()
    claim_unix_path(path, mode=0o600)
    assert not path.exists()
