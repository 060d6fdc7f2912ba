"""Network namespaces with a thread of their own for work inside: never a forked child, never a thread of the pool."""

import asyncio
import fcntl
import os
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from pyroute2 import IPRoute

from cni.node.errors import InputFailed, UnknownContainer
from foundation.netns import CLONE_NEWNET, enter

T = TypeVar("T")

_NS_GET_NSTYPE = 0xB703


class NetworkNamespace:
    """An open network namespace. `inode` identifies it while it is open.

    The first work starts a thread which enters the namespace with one netlink socket; it ends with `close`.
    """

    def __init__(self, path: str, fd: int) -> None:
        self.path = path
        self.fd = fd
        self.inode = os.fstat(fd).st_ino
        self._executor: ThreadPoolExecutor | None = None
        self._netlink: IPRoute | None = None

    def warm(self) -> None:
        """Has the thread get ready while the caller does something else."""
        self._started().submit(lambda: None)

    async def run(self, work: Callable[[IPRoute], T]) -> T:
        """One piece of work after another. Waits for its end also when cancelled, so that an undo never races with it.

        Raises what `work` raises.
        """

        def body() -> T:
            assert self._netlink is not None
            return work(self._netlink)

        future = asyncio.get_running_loop().run_in_executor(self._started(), body)
        try:
            return await asyncio.shield(future)
        except BrokenExecutor as error:
            raise UnknownContainer(f"network namespace {self.path} cannot be entered", details=str(error)) from error
        except asyncio.CancelledError:
            await asyncio.wait({future})
            if not future.cancelled():
                future.exception()
            raise

    def close(self) -> None:
        """Ends the thread after the work at hand; does not wait for it."""
        executor, self._executor = self._executor, None
        if executor is not None:
            executor.submit(self._leave)
            executor.shutdown(wait=False)
        os.close(self.fd)

    def _started(self) -> ThreadPoolExecutor:
        if self._executor is None:
            self._executor = ThreadPoolExecutor(1, thread_name_prefix="netns", initializer=self._enter)
        return self._executor

    def _enter(self) -> None:
        enter(self.fd, path=self.path)
        self._netlink = IPRoute()

    def _leave(self) -> None:
        if self._netlink is not None:
            self._netlink.close()


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
    if not _is_netns(fd):
        os.close(fd)
        raise UnknownContainer(f"{path} is no network namespace (any more); the runtime must make a new sandbox")
    namespace = NetworkNamespace(path, fd)
    try:
        yield namespace
    finally:
        namespace.close()


def node_namespace(path: str) -> NetworkNamespace:
    """The node's own namespace, for the life of the daemon; "" is the daemon's own. Raises InputFailed."""
    path = path or "/proc/self/ns/net"
    try:
        return NetworkNamespace(path, os.open(path, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        raise InputFailed(
            f"the node's network namespace {path} cannot be opened: {error.strerror}; correct node_netns"
        ) from None


def _is_netns(fd: int) -> bool:
    try:
        return fcntl.ioctl(fd, _NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:
        return False
