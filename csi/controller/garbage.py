"""Leftovers on the storage: found, reported at once, removed after a grace. Only what carries a name of ours counts."""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from typing import Any

from csi import identity
from csi.calls import Calls, lock_of
from csi.controller.cluster import Cluster
from csi.controller.config import GarbageConfig
from csi.controller.directory import Directory
from csi.errors import CsiError
from csi.framework.backend import Backend, Finding
from csi.framework.registry import Registry
from foundation.daemon import metrics

_log = logging.getLogger(__name__)
_KINDS = ("subsystem", "volume", "snapshot", "host", "unfinished")
_FOUND = metrics.gauge("csi_garbage", "Leftovers on the storage that are known now.", ("backend", "kind"))
_REMOVED = metrics.counter("csi_garbage_removed", "Leftovers that were removed.", ("backend", "kind"))


class Garbage:
    """Remembers only since when a leftover has been seen; after a restart the grace begins anew."""

    def __init__(
        self,
        *,
        registry: Registry,
        cluster: Cluster,
        directory: Directory,
        calls: Calls,
        config: GarbageConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._registry = registry
        self._cluster = cluster
        self._directory = directory
        self._calls = calls
        self._config = config
        self._clock = clock
        self._since: dict[tuple[str, Finding], float] = {}

    async def run(self) -> None:
        while True:
            await self.round()
            await asyncio.sleep(self._config.every_seconds)

    async def round(self) -> list[tuple[str, Finding]]:
        """One look at every backend; returns what is there now, after removals."""
        left: list[tuple[str, Finding]] = []
        for name, backend in self._registry.backends.items():
            try:
                found = await self._look(backend)
                judged = [(finding, await self._judge(backend, finding)) for finding in found]
                left += [(name, finding) for finding, removed in judged if not removed]
            except CsiError as error:
                _log.warning("backend %s could not be searched for leftovers: %s", name, error)
                left += [known for known in self._since if known[0] == name]
                continue
            for kind in _KINDS:
                count = sum(1 for owner, finding in left if owner == name and finding.kind == kind)
                _FOUND.labels(backend=name, kind=kind).set(count)
        self._since = {known: since for known, since in self._since.items() if known in left}
        return left

    async def _look(self, backend: Backend[Any]) -> list[Finding]:
        volumes = await backend.volumes()
        attached = self._cluster.hosts_with_attachment()
        known = self._cluster.volume_ids()
        found = list(await backend.garbage())
        for volume in volumes:
            volume_id = identity.VolumeId(backend.name, volume.key)
            if volume_id not in known:
                reason = "no PersistentVolume names it"
                found.append(Finding(kind="volume", name=str(volume_id), reason=reason, volume_key=volume.key))
            found += self._stale_hosts(volume.key, volume.hosts, attached.get(volume_id, set()))
        return found

    def _stale_hosts(self, key: str, hosts: Iterable[str], attached: set[str]) -> Iterable[Finding]:
        for nqn in hosts:
            dpu = self._directory.by_host_nqn(nqn)
            host = dpu.host if dpu is not None else identity.node_of_host_nqn(nqn)
            if (dpu is not None or identity.is_ours(nqn)) and not attached & {host, nqn}:
                yield Finding(kind="host", name=nqn, reason="no VolumeAttachment lets it in", volume_key=key)

    async def _judge(self, backend: Backend[Any], finding: Finding) -> bool:
        """Whether the leftover has been removed."""
        known = (backend.name, finding)
        now = self._clock()
        if known not in self._since:
            self._since[known] = now
            _log.warning("leftover on backend %s: %s %s: %s", backend.name, finding.kind, finding.name, finding.reason)
        allowed = self._config.remove_volumes if finding.kind == "volume" else self._config.remove
        if not allowed or now - self._since[known] < self._config.grace_seconds:
            return False
        lock = lock_of(f"{backend.name}:{finding.volume_key}") if finding.volume_key else ""
        if lock and self._calls.busy(lock):
            return False
        if finding.kind == "host":
            await backend.revoke(finding.volume_key, finding.name)
        elif finding.kind == "volume":
            await backend.delete(finding.volume_key)
        else:
            await backend.remove(finding)
        _REMOVED.labels(backend=backend.name, kind=finding.kind).inc()
        _log.warning("removed from backend %s: %s %s", backend.name, finding.kind, finding.name)
        return True
