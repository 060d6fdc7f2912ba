"""Locks by name, so that verbs on one volume run one after another while others go on."""

import asyncio


class Locks:
    """One lock a name, forgotten when nobody holds it: verbs on one volume run one after another."""

    def __init__(self) -> None:
        self._locks: dict[str, tuple[asyncio.Lock, int]] = {}

    def hold(self, name: str) -> "_Held":
        return _Held(self._locks, name)


class _Held:
    def __init__(self, locks: dict[str, tuple[asyncio.Lock, int]], name: str) -> None:
        self._locks = locks
        self._name = name

    async def __aenter__(self) -> None:
        lock, users = self._locks.get(self._name, (asyncio.Lock(), 0))
        self._locks[self._name] = (lock, users + 1)
        try:
            await lock.acquire()
        except asyncio.CancelledError:
            self._forget()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._locks[self._name][0].release()
        self._forget()

    def _forget(self) -> None:
        lock, users = self._locks[self._name]
        if users == 1:
            del self._locks[self._name]
        else:
            self._locks[self._name] = (lock, users - 1)
