"""Questions about pods that only a node can answer: this machine, or a container on that node."""

from __future__ import annotations

import msgspec

from cni.node.config import CniNodeConfig
from dpuctl.inspection import machine, tracing
from dpuctl.inspection.offload import OffloadFacts
from dpuctl.inspection.tracing import Untraceable
from dpuctl.machines import Remote, Unreachable, daemon_pods, decoded, here
from dpuctl.path_trace import End, Protocol, Question, Verdict
from dpuctl.rows import port_name
from dpuctl.snapshot import Snapshot, networks_of, read
from foundation.kube.client import KubeClient
from foundation.kube.models.core import Pod


class Unanswerable(Exception):
    """The message says what is missing."""


def pod_key(text: str, namespace: str) -> str:
    """`namespace/name` of what a user wrote."""
    return text if "/" in text else f"{namespace}/{text}"


async def trace(
    client: KubeClient, remote: Remote, *, source: str, destination: str, protocol: Protocol, port: int
) -> Verdict:
    """Raises Unanswerable."""
    seen = await read(client)
    pod = _pod(seen, source)
    question = Question(source=_end(pod), destination=_end(_pod(seen, destination)), protocol=protocol, port=port)
    installed = await here(client.settings.server)
    try:
        return await tracing.trace(installed, question)
    except Untraceable as error:
        reason = str(error)
    text = msgspec.json.encode(question).decode()
    for node in _switch_nodes(seen, pod.spec.node_name):
        for found in daemon_pods(seen, node=node, daemon="cni-node"):
            try:
                verdict = decoded(
                    await remote.run(found, "cni-node", "dpuctl", "inspect", "trace", text), Verdict, pod=found
                )
            except Unreachable as error:
                reason = str(error)
                continue
            return await _with_rule(seen, remote, verdict)
    raise Unanswerable(f"OVN cannot be asked: {reason}")


async def _with_rule(seen: Snapshot, remote: Remote, verdict: Verdict) -> Verdict:
    """The northbound database, which knows whose rule it is, is cni-controller's to read."""
    kind, _, hint = verdict.rule.partition(" ")
    for pod in seen.suite_pods:
        if kind == "ACL" and "cni-controller" in pod.daemons() and pod.status.phase == "Running":
            try:
                owner = decoded(
                    await remote.run(pod, "cni-controller", "dpuctl", "inspect", "rule", hint), str, pod=pod
                )
            except Unreachable:
                continue
            return msgspec.structs.replace(verdict, rule=owner or verdict.rule)
    return verdict


async def offload(client: KubeClient, remote: Remote, key: str) -> list[OffloadFacts]:
    """One verdict a network of the pod. Raises Unanswerable."""
    seen = await read(client)
    pod = _pod(seen, key)
    ports = {port_name(pod, network, given) for network, given in networks_of(pod).items()}
    nodes = _switch_nodes(seen, pod.spec.node_name)
    installed = await here(client.settings.server)
    configs = [one.config for one in installed if isinstance(one.config, CniNodeConfig)]
    reason = f"no cni-node was found on {' or '.join(nodes)}"
    for node in nodes:
        config = next((one for one in configs if one.node_name == node), None)
        if config is not None:
            found = await machine.offload(config, ports)
            if found:
                return found
            reason = f"the switch of {node} has no port of pod {key}"
            continue
        for at in daemon_pods(seen, node=node, daemon="cni-node"):
            try:
                text = await remote.run(at, "cni-node", "dpuctl", "inspect", "offload", *sorted(ports))
                found = decoded(text, list[OffloadFacts], pod=at)
            except Unreachable as error:
                reason = str(error)
                continue
            if found:
                return found
            reason = f"the switch of {node} has no port of pod {key}"
    raise Unanswerable(reason)


def _switch_nodes(seen: Snapshot, node: str) -> list[str]:
    """Where the switch of a node's pods is: on its DPUs, or on itself."""
    return [dpu.metadata.name for dpu in seen.dpus_of(node)] or [node]


def _pod(seen: Snapshot, key: str) -> Pod:
    found = next((pod for pod in seen.pods if pod.metadata.key == key), None)
    if found is None:
        raise Unanswerable(f"there is no pod {key}")
    if not networks_of(found):
        raise Unanswerable(f"pod {key} has no address from cni-controller (host network, or not scheduled yet?)")
    return found


def _end(pod: Pod) -> End:
    given = networks_of(pod).get("default")
    if given is None:
        raise Unanswerable(f"pod {pod.metadata.key} is not in the default network")
    return End(
        pod=pod.metadata.key,
        port=port_name(pod, "default", given),
        mac=given.mac,
        ips=given.ips,
    )
