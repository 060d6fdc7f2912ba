"""The controller at work: watches feed the core, annotations and Events go back; lives while this replica leads."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from typing import Any

from cni.controller.config import ControllerConfig
from cni.controller.core import Core
from cni.controller.rows import Owner
from cni.controller.watch.annotator import Annotator
from cni.controller.watch.gauges import Gauges
from cni.controller.watch.northd import NorthdLag
from cni.controller.watch.reporter import Reporter
from cni.controller.watch.vm_annotator import VmAnnotator
from foundation.daemon.backoff import Backoff, Pauses
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError, NotFound
from foundation.kube.events import EventRecorder
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import Resource
from foundation.ovsdb import OvsdbSession, OvsdbTls, TransactionFailed

_log = logging.getLogger(__name__)


GAUGE_SECONDS = 2.0
BUILT_IN = ("discovery.k8s.io", "networking.k8s.io")
MISSING = Backoff(1.0, 5.0)
"""Pauses between two looks for a resource that the API server has not."""
LOCK = "dpu_offload_cni_controller"
"""Held by the replica that leads: a former leader that wakes up late is refused by the database itself."""


def session(config: ControllerConfig) -> OvsdbSession:
    """A session with the northbound database, of the leader in a cluster."""
    northbound = config.northbound
    tls = None
    if northbound.ca or northbound.certificate or northbound.key:
        tls = OvsdbTls(ca=northbound.ca, certificate=northbound.certificate, key=northbound.key)
    return OvsdbSession(northbound.remotes, "OVN_Northbound", tls=tls, leader_only=True, lock=LOCK)


class Control:
    """One term of leadership. `run` serves until cancelled; `ready` is set after the first compare is written."""

    def __init__(self, config: ControllerConfig, client: KubeClient) -> None:
        self.session = session(config)
        self.core = Core(
            self.session,
            config.cluster,
            annotate=lambda key, uid, text: self.annotator.want(key, uid, text),
            annotate_node=lambda name, texts: self.annotator.want_node(name, texts),
            keep=lambda key, ips: self.annotator.want_claim(key, ips),
            keep_machine=lambda key, text: self.machines.want(key, text),
            on_problem=lambda owner, refused: self._reporter.problem(owner, refused),
            on_refused=self._refused,
        )
        self._client = client
        self.gauges = Gauges(self.core)
        self.northd = NorthdLag(self.session)
        self.core.committer.on_committed = self.gauges.committed
        self.annotator = Annotator(client, self.core.world)
        self.machines = VmAnnotator(client, self.core.world.machines)
        self._recorder = EventRecorder(client, "cni-controller")
        self._reflectors: dict[str, Reflector[Any]] = {
            kind: Reflector(client, resource, backoff=Backoff(0.05, 30.0)) for kind, resource, _ in self.core.SOURCES
        }
        self._reporter = Reporter(
            self._recorder, self._reflectors, pods_of=lambda key: tuple(self.core.world.machines.pods_of(key))
        )
        self.ready = asyncio.Event()

    def _refused(self, owner: Owner, error: TransactionFailed) -> None:
        self._reporter.warn(owner, "NorthboundRefused", str(error))

    async def run(self) -> None:
        """Takes in the cluster, compares it with the northbound database, then follows both."""
        started = time.monotonic()
        try:
            async with asyncio.TaskGroup() as group:
                await asyncio.gather(
                    self.session.start(deadline=3600.0),
                    *(self._first_list(kind, each, group) for kind, each in self._reflectors.items()),
                )
                for kind, reflector in self._reflectors.items():
                    self._follow(kind, reflector)
                self.core.first_pass()
                group.create_task(self.core.run(), name="core")
                group.create_task(self._count(), name="gauges")
                group.create_task(self.northd.run(), name="northd")
                group.create_task(self.annotator.queue.run(), name="annotator")
                group.create_task(self.annotator.nodes.run(), name="node annotator")
                group.create_task(self.annotator.claims.run(), name="claim annotator")
                group.create_task(self.machines.queue.run(), name="machine annotator")
                await self.core.idle()
                self.ready.set()
                # What is here stays. The collector need not walk through all of it again and again: that would halt
                # everything for tens of milliseconds.
                gc.freeze()
                _log.info(
                    "in charge: %s taken in and compared in %.2f s, %d rows written",
                    self.core.world.snapshot(),
                    time.monotonic() - started,
                    sum(self.core.committer.statistics.rows.values()),
                )
        finally:
            self.ready.clear()
            await self._recorder.close(deadline=1.0)
            await self.session.stop()

    async def _count(self) -> None:
        while True:
            self.gauges.refresh()
            self.northd.refresh()
            await asyncio.sleep(GAUGE_SECONDS)

    async def _first_list(self, kind: str, reflector: Reflector[Any], group: asyncio.TaskGroup) -> None:
        """Returns with the first list, or at once if the API has no such resource: a cluster need not have every
        optional one. One that is installed later is followed all the same."""
        if await self._missing(reflector.resource):
            _log.info("the API server has no %s.%s (yet)", reflector.resource.plural, reflector.resource.group)
            group.create_task(self._watch_later(reflector), name=f"watch {kind}")
            return
        group.create_task(reflector.run(), name=f"watch {kind}")
        await reflector.synced()

    async def _watch_later(self, reflector: Reflector[Any]) -> None:
        pauses = Pauses(MISSING)
        while await self._missing(reflector.resource):
            await pauses.wait()
        _log.info("the API server has %s.%s now", reflector.resource.plural, reflector.resource.group)
        await reflector.run()

    async def _missing(self, resource: Resource[Any]) -> bool:
        if "." not in resource.group or resource.group in BUILT_IN:
            return False
        try:
            await self._client.page(resource, limit=1)
        except NotFound:
            return True
        except KubeError:
            return False  # the reflector's own back-off deals with it
        return False

    def _follow(self, kind: str, reflector: Reflector[Any]) -> None:
        def changed(change: Change[Any]) -> None:
            self.gauges.seen(Owner(kind, change.key))
            self.core.take(kind, change.key, change.new)

        reflector.subscribe(changed)
