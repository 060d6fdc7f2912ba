"""The cni-controller daemon."""

from __future__ import annotations

import asyncio
import gc
import os
import socket

from cni.controller.addresses import plan
from cni.controller.config import ControllerConfig
from cni.controller.control import Control
from cni.controller.errors import InvalidPlan
from cni.status_page.following import Following
from cni.status_page.server import StatusPage
from foundation.daemon.running import Daemon, StartError, run
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError
from foundation.kube.leader import LeaderElection
from foundation.ovsdb import OvsdbError

COLLECTED_AFTER = (5000, 10, 20)
"""Thresholds of the three generations. A burst makes objects by the hundred thousand, and next to no cycles."""


async def start(config: ControllerConfig, daemon: Daemon) -> None:
    """Starts the campaign (or, without election, the work) and returns."""
    try:
        plan.make(config.cluster)
    except InvalidPlan as error:
        raise StartError(str(error)) from error
    try:
        client = await KubeClient.connect(config.kubeconfig)
    except KubeError as error:
        raise StartError(str(error)) from error
    daemon.on_stop(client.close)
    if config.status_page.listen:
        page = StatusPage(Following(client))
        await page.start(config.status_page.listen)
        daemon.on_stop(page.stop)

    async def lead() -> None:
        try:
            control = Control(config, client)
        except OvsdbError as error:
            raise StartError(str(error)) from error
        daemon.health.set("northbound", False, "taking in the cluster")

        async def tell() -> None:
            await control.ready.wait()
            daemon.health.set("northbound", True)

        telling = asyncio.create_task(tell(), name="readiness")
        try:
            await control.run()
        finally:
            telling.cancel()

    election = config.leader_election
    if not election.enabled:
        daemon.spawn(lead(), name="control")
        return
    candidate = LeaderElection(
        client,
        namespace=election.namespace,
        name=election.name,
        identity=election.identity or f"{socket.gethostname()}-{os.getpid()}",
        on_started=lead,
        lease_seconds=election.lease_seconds,
        renew_seconds=election.lease_seconds * 2 / 3,
        retry_seconds=election.lease_seconds * 2 / 15,
    )
    # A replica that waits for its turn is healthy.
    daemon.health.set("northbound", True, "standing by")
    daemon.spawn(candidate.run(), name="leader election")


def main() -> None:
    """Entry point of the console script."""
    gc.freeze()  # modules stay
    gc.set_threshold(*COLLECTED_AFTER)
    run("cni-controller", ControllerConfig, start)
