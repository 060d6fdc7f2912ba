"""Keeps the targets as Kubernetes wants them: after a restart of a target, of this daemon, and on a slow beat.

A target that was restarted has its volumes, but neither exports nor access lists nor limits. What brings them back is
the list of VolumeAttachments, not a memory of what was done.
"""

import asyncio
import contextlib
import logging
from collections.abc import Iterator, Mapping

from csi.controller import secrets
from csi.controller.cluster import Access, Cluster
from csi.controller.fences import Fences
from csi.errors import CsiError
from csi.framework.backend import HostKeys, Qos
from csi.framework.registry import Registry
from csi.identity import VolumeId
from foundation.daemon import metrics
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError
from foundation.kube.resources import SECRETS

_FIRST_PAUSE = 0.25
_log = logging.getLogger(__name__)
_SECONDS = metrics.histogram("csi_converge_seconds", "Time in which a backend was compared and repaired.", ("backend",))


class Wanted(Mapping[str, Mapping[str, HostKeys]]):
    """Hosts with their keys by the volumes of one backend, as a look at Kubernetes found them.

    Live: a host that has been cut off since is not in it any more.
    """

    def __init__(self, backend: str, fences: Fences) -> None:
        self._backend = backend
        self._fences = fences
        self._found: dict[str, dict[str, HostKeys]] = {}

    def add(self, access: Access, keys: HostKeys) -> None:
        self._found.setdefault(access.volume.key, {})[access.host_nqn] = keys

    def __getitem__(self, key: str) -> Mapping[str, HostKeys]:
        volume = VolumeId(self._backend, key)
        hosts = self._found[key].items()
        return {host: keys for host, keys in hosts if not self._fences.stands(volume, host)}

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)


class Converger:
    """One loop; `soon` asks for a round, any number of times."""

    def __init__(
        self, *, registry: Registry, cluster: Cluster, fences: Fences, kube: KubeClient, every_seconds: float
    ) -> None:
        self._registry = registry
        self._cluster = cluster
        self._fences = fences
        self._kube = kube
        self._every = every_seconds
        self._wanted = asyncio.Event()

    async def soon(self) -> None:
        self._wanted.set()

    async def run(self) -> None:
        """For ever; the first round at once. What a backend refuses is tried again on the next beat.

        A target that has just come back may still be finding its disks, and tells nobody when it has: so the rounds
        after `soon` follow one another with growing pauses, until they are as far apart as the beat.
        """
        pause = _FIRST_PAUSE
        while True:
            if self._wanted.is_set():
                self._wanted.clear()
                pause = _FIRST_PAUSE
            await self.round()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wanted.wait(), min(pause, self._every))
            pause = min(2 * pause, self._every)

    async def round(self) -> None:
        accesses = [access for access in self._cluster.accesses() if access.settled]
        limits = self._cluster.limits()
        for name, backend in self._registry.backends.items():
            wanted = Wanted(name, self._fences)
            for access in accesses:
                if access.volume.backend == name:
                    keys = await self._keys(access)
                    if keys is not None:
                        wanted.add(access, keys)
            qos: dict[str, Qos] = {volume.key: each for volume, each in limits.items() if volume.backend == name}
            try:
                with _SECONDS.labels(backend=name).time():
                    await backend.converge(wanted, qos)
            except CsiError as error:
                _log.warning("backend %s could not be compared with Kubernetes: %s", name, error)

    async def _keys(self, access: Access) -> HostKeys | None:
        """None when the volume needs secrets that cannot be had now."""
        context = access.context
        if not context.authentication and not context.encryption_in_transit:
            return HostKeys()
        reference = access.secret
        if reference is None:
            _log.warning("volume %s needs secrets, but its PersistentVolume names none", access.volume)
            return None
        try:
            secret = await self._kube.get(SECRETS, reference.name, reference.namespace)
            given = {name: value.decode() for name, value in (secret.data or {}).items()}
            secrets.hide(given)
            return secrets.host_keys(
                given, authentication=context.authentication, encryption_in_transit=context.encryption_in_transit
            )
        except (KubeError, CsiError, UnicodeDecodeError) as error:
            _log.warning("volume %s: its secrets cannot be had: %s", access.volume, error)
            return None
