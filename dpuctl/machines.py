"""Inspections of all machines that can be reached: this one by itself, the cluster's through `kubectl exec`."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import time
from collections.abc import Sequence
from typing import Final, TypeVar

import msgspec

from dpuctl import programs
from dpuctl.inspection import daemons as local
from dpuctl.inspection import machine
from dpuctl.inspection.daemons import Installed
from dpuctl.inspection.dialling import Dial
from dpuctl.inspection.facts import Machine
from dpuctl.snapshot import Snapshot, host_of, link_of, storage_of
from dpuctl.suite import SuitePod

T = TypeVar("T")
SECONDS: Final = 30.0
_AT_ONCE: Final = 16


@dataclasses.dataclass(frozen=True)
class Reached:
    """What could be looked at, and why the rest could not."""

    machines: tuple[Machine, ...] = ()
    unreached: tuple[str, ...] = ()


def decoded(text: bytes, kind: type[T], *, pod: SuitePod) -> T:
    """What a container of the pod has answered. Raises Unreachable."""
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.DecodeError as error:
        raise Unreachable(
            f"{pod.metadata.key}: its dpuctl answers in another form ({error}); are the versions equal?"
        ) from error


@dataclasses.dataclass(frozen=True)
class Remote:
    """A way into the suite's containers: kubectl with the operator's own kubeconfig and rights."""

    kubeconfig: str = ""
    context: str = ""

    async def run(self, pod: SuitePod, container: str, *words: str) -> bytes:
        """Standard output of a command in a container. Raises Unreachable."""
        kubectl = shutil.which("kubectl")
        if kubectl is None:
            raise Unreachable("kubectl is not on the PATH, so the cluster's machines cannot be looked into")
        command = [kubectl]
        if self.kubeconfig:
            command += ["--kubeconfig", self.kubeconfig]
        if self.context:
            command += ["--context", self.context]
        command += ["exec", "--namespace", pod.metadata.namespace, pod.metadata.name, "--container", container, "--"]
        try:
            done = await programs.run(*command, *words, seconds=SECONDS)
        except TimeoutError:
            raise Unreachable(f"{pod.metadata.key}: no answer within {SECONDS:g} s") from None
        if done.code:
            last = done.errors.rpartition("\n")[2]
            raise Unreachable(f"{pod.metadata.key}, container {container}: {last or f'exit {done.code}'}")
        return done.out


class Unreachable(Exception):
    """A container could not be looked into; the message says which and why."""


async def here(server: str) -> list[Installed]:
    """The daemons on this machine that serve the cluster with this API server."""
    return await local.serving(server, await asyncio.to_thread(lambda: list(local.running())))


async def look(seen: Snapshot, remote: Remote, *, server: str) -> Reached:
    """This machine where daemons of the suite run, and each container of the suite's pods."""
    dials = wanted_dials(seen)
    installed = await here(server)
    machines = [await machine.inspect(installed, dials)] if installed else []
    gate = asyncio.Semaphore(_AT_ONCE)
    unreached: list[str] = []

    async def visit(pod: SuitePod, container: str) -> Machine | None:
        words = [word for one in dials if one.daemon == container for word in ("--dial", str(one))]
        async with gate:
            before = time.time()
            try:
                found = decoded(await remote.run(pod, container, "dpuctl", "inspect", *words), Machine, pod=pod)
            except Unreachable as error:
                unreached.append(str(error))
                return None
        ahead = found.clock - (before + time.time()) / 2
        # Within the time that the call took nothing is known.
        skew = ahead if abs(ahead) > time.time() - before else 0.0
        return placed(msgspec.structs.replace(found, skew=skew), pod)

    # A daemon that runs on this very machine is not asked twice.
    known = {(one.name, getattr(one.config, "node_name", "")) for one in installed}
    visits = [
        visit(pod, name)
        for pod in seen.suite_pods
        if pod.status.phase == "Running"
        for name in pod.daemons()
        if (name, pod.spec.node_name) not in known
    ]
    machines += [one for one in await asyncio.gather(*visits) if one is not None]
    return Reached(tuple(machines), tuple(sorted(set(unreached))))


def placed(found: Machine, pod: SuitePod) -> Machine:
    """A container knows its node only where its configuration says it; the pod always does."""
    node = pod.spec.node_name
    replace = msgspec.structs.replace
    return replace(
        found,
        name=node or found.name,
        daemons=tuple(replace(one, node=one.node or node) for one in found.daemons),
        dpus=tuple(replace(one, node=one.node or node) for one in found.dpus),
    )


def wanted_dials(seen: Snapshot) -> list[Dial]:
    """Who has to get through to whom: each host to its DPUs, csi-controller to every DPU."""
    found: list[Dial] = []
    for node in seen.nodes:
        host, link, storage = host_of(node), link_of(node), storage_of(node)
        if not host:
            continue
        if link is not None:
            found.append(Dial(daemon="cni-node", node=host, endpoint=link.endpoint, server_name=link.server_name))
        if storage is not None:
            found.append(
                Dial(daemon="csi-controller", node="", endpoint=storage.endpoint, server_name=storage.server_name)
            )
    return found


def daemon_pods(seen: Snapshot, *, node: str, daemon: str) -> Sequence[SuitePod]:
    """Running pods of a node that have a container of this name."""
    return [
        pod
        for pod in seen.suite_pods
        if pod.spec.node_name == node and daemon in pod.daemons() and pod.status.phase == "Running"
    ]
