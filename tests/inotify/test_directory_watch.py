"""A directory's changes as events: entries by name, the directory's own end and beginning as ""."""

import asyncio
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from foundation.inotify import DirectoryWatch

SECONDS = 30.0


class Heard:
    """What a watch has told, to be waited for."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._more = asyncio.Event()

    def __call__(self, name: str) -> None:
        self.names.append(name)
        self._more.set()

    async def until(self, told: Callable[[list[str]], bool]) -> None:
        async with asyncio.timeout(SECONDS):
            while not told(self.names):
                self._more.clear()
                await self._more.wait()


async def test_entries_that_come_move_and_go(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    heard = Heard()
    with DirectoryWatch(tmp_path / "d", heard):
        (tmp_path / "d/a").touch()
        (tmp_path / "d/a").rename(tmp_path / "d/b")
        (tmp_path / "outside").touch()
        (tmp_path / "outside").replace(tmp_path / "d/c")
        (tmp_path / "d/b").unlink()
        await heard.until(lambda names: len(names) >= 5)
    assert heard.names == ["a", "a", "b", "c", "b"], "neighbours of the directory are nobody's concern"


async def test_a_directory_that_goes_and_comes_again(tmp_path: Path) -> None:
    directory = tmp_path / "d"
    directory.mkdir()
    heard = Heard()
    with DirectoryWatch(directory, heard):
        directory.rmdir()
        await heard.until(lambda names: "" in names)
        heard.names.clear()
        directory.mkdir()
        await heard.until(lambda names: "" in names)


async def test_the_end_of_a_directory_whose_socket_somebody_still_holds(tmp_path: Path) -> None:
    """A kubelet whose directory is removed while it listens there: the directory's own watch would stay silent."""
    directory = tmp_path / "d"
    directory.mkdir()
    heard = Heard()
    with DirectoryWatch(directory, heard), socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(directory / "s.sock"))
        listener.listen()
        (directory / "s.sock").unlink()
        directory.rename(tmp_path / "old")
        await heard.until(lambda names: names[-1:] == [""])


async def test_lost_events_are_told_as_anything(tmp_path: Path) -> None:
    limit = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    heard = Heard()
    (tmp_path / "d").mkdir()
    with DirectoryWatch(tmp_path / "d", heard):
        for _ in range(limit // 2 + 1):  # nothing is read meanwhile: this does not give way to the event loop
            (tmp_path / "d/f").touch()
            (tmp_path / "d/f").unlink()
        await heard.until(lambda names: "" in names)


async def test_what_is_not_there_cannot_be_watched(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="cannot watch"), DirectoryWatch(tmp_path / "d", print):
        pytest.fail("there is no such directory")
