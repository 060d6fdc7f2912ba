"""Work inside network namespaces: each time in a thread which ends afterwards, never in a forked child."""

import asyncio
import ctypes
import fcntl
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

from pyroute2 import IPRoute

from cni.node.errors import InputFailed, UnknownContainer

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000
_NS_GET_NSTYPE = 0xB703
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class NetworkNamespace:
    """An open network namespace. `inode` identifies it while it is open."""

    path: str
    fd: int
    inode: int


@contextmanager
def opened(path: str) -> Iterator[NetworkNamespace]:
    """Raises UnknownContainer when there is no network namespace at `path`."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UnknownContainer(
            f"network namespace {path} cannot be opened: {error.strerror}; the sandbox is gone, "
            "the runtime must make a new one"
        ) from None
    try:
        if not _is_netns(fd):
            raise UnknownContainer(f"{path} is no network namespace (any more); the runtime must make a new sandbox")
        yield NetworkNamespace(path, fd, os.fstat(fd).st_ino)
    finally:
        os.close(fd)


def _is_netns(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == _CLONE_NEWNET
    except OSError:
        return False


def enter(fd: int) -> None:
    """Moves the calling thread, for good. Raises OSError."""
    if _libc.setns(fd, _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


async def inside(namespace: NetworkNamespace, work: Callable[[IPRoute], T]) -> T:
    """Runs `work` in a namespace. Waits for its end also when cancelled, so that an undo never races with it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def report(result: T | None, error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(result)  # type: ignore[arg-type]  # None only together with an error

    def body() -> None:
        result, error = None, None
        try:
            enter(namespace.fd)
            with IPRoute() as netlink:
                result = work(netlink)
        except BaseException as caught:
            error = caught
        loop.call_soon_threadsafe(report, result, error)

    threading.Thread(target=body, name="netns", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        await asyncio.wait({done})
        if not done.cancelled():
            done.exception()
        raise


class NodeNamespace:
    """The node's own network namespace: one thread stays in it with one netlink socket.

    `path` "" is the daemon's own namespace.
    """

    def __init__(self, path: str) -> None:
        self._path = path or "/proc/self/ns/net"
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="node-netlink", initializer=self._enter)
        self._netlink: IPRoute | None = None
        try:
            self.fd = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise InputFailed(
                f"the node's network namespace {self._path} cannot be opened: {error.strerror}; correct node_netns"
            ) from None

    @property
    def namespace(self) -> NetworkNamespace:
        return NetworkNamespace(self._path, self.fd, os.fstat(self.fd).st_ino)

    def _enter(self) -> None:
        enter(self.fd)
        self._netlink = IPRoute()

    async def run(self, work: Callable[[IPRoute], T]) -> T:
        """One piece of work after another; none is abandoned half-way when the caller is cancelled."""

        def body() -> T:
            assert self._netlink is not None
            return work(self._netlink)

        future = asyncio.get_running_loop().run_in_executor(self._executor, body)
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()
            raise

    async def close(self) -> None:
        netlink = self._netlink
        if netlink is not None:
            await asyncio.get_running_loop().run_in_executor(self._executor, netlink.close)
        await asyncio.to_thread(self._executor.shutdown)
        os.close(self.fd)
