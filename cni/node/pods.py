"""Pods of one node as Kubernetes shows them, with what cni-controller assigned to them."""

import asyncio
from collections.abc import Callable

from cni.node.assignment import Assignment, parse
from cni.node.errors import TryLater
from cni.node.request import DEFAULT_NETWORK
from cni.selection import NETWORKS, selected
from foundation.kube.client import KubeClient
from foundation.kube.models.core import Pod
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import PODS

# Kubelet's annotation of a static pod's mirror (k8s.io/kubernetes/pkg/kubelet/types, ConfigMirrorAnnotationKey).
_MIRROR = "kubernetes.io/config.mirror"


class Pods:
    """Follows the pods scheduled to `node`."""

    def __init__(self, client: KubeClient, node: str) -> None:
        self.node = node
        self._reflector = Reflector(client, PODS, field_selector=f"spec.nodeName={node}")
        self._waiting: dict[str, set[asyncio.Event]] = {}
        self._reflector.subscribe(self._note)

    async def run(self) -> None:
        await self._reflector.run()

    async def synced(self) -> None:
        await self._reflector.synced()

    def problem(self) -> str:
        if self._reflector.has_synced:
            return ""
        return f"the pods of node {self.node} are not known yet: {self._reflector.last_error or 'first list under way'}"

    def get(self, namespace: str, name: str) -> Pod | None:
        return self._reflector.store.get(f"{namespace}/{name}")

    async def assignment(
        self, *, namespace: str, name: str, uid: str, network: str, ifname: str, deadline: float
    ) -> tuple[Pod, str, Assignment]:
        """What the controller gave the pod's interface in a network, now or within `deadline` seconds, and under which
        key of the annotation.

        Raises TryLater with what is missing; BadConfiguration for an annotation that cannot be used.
        """

        def given(pod: Pod | None) -> tuple[Pod, str, Assignment] | None:
            if pod is None or not is_pod(pod, uid):
                return None
            key = key_of(pod, network, ifname)
            assignment = parse(pod.metadata.annotations, key)
            return (pod, key, assignment) if assignment is not None else None

        pod = await self.until(namespace, name, lambda pod: given(pod) is not None, deadline=deadline)
        found = given(pod)
        if found is None:
            raise TryLater(self._missing(namespace, name, uid, network, deadline))
        return found

    async def until(
        self, namespace: str, name: str, predicate: Callable[[Pod | None], bool], *, deadline: float
    ) -> Pod | None:
        """The pod once it fits; None when it does not within `deadline` seconds."""
        key = f"{namespace}/{name}"
        if predicate(pod := self.get(namespace, name)):
            return pod
        changed = asyncio.Event()
        self._waiting.setdefault(key, set()).add(changed)
        try:
            async with asyncio.timeout(deadline):
                while not predicate(pod := self.get(namespace, name)):
                    changed.clear()
                    await changed.wait()
                return pod
        except TimeoutError:
            return None
        finally:
            waiting = self._waiting[key]
            waiting.discard(changed)
            if not waiting:
                del self._waiting[key]

    def _missing(self, namespace: str, name: str, uid: str, network: str, deadline: float) -> str:
        pod = self.get(namespace, name)
        if problem := self.problem():
            reason = problem
        elif pod is None:
            reason = f"Kubernetes shows no such pod on node {self.node}"
        elif not is_pod(pod, uid):
            reason = f"Kubernetes shows another pod of that name (uid {pod.metadata.uid}, not {uid})"
        else:
            reason = f"cni-controller has not assigned it addresses in network {network}; see the pod's events"
        return f"pod {namespace}/{name} cannot be attached: {reason} (waited {deadline:.1f} s)"

    def _note(self, change: Change[Pod]) -> None:
        for event in self._waiting.get(change.key, ()):
            event.set()


def key_of(pod: Pod, network: str, ifname: str) -> str:
    """Under which key of annotation pod-networks a pod's interface in a network stands. One that the pod does not
    select, or selects in a way that cannot be read, means the first."""
    if network == DEFAULT_NETWORK:
        return network
    try:
        chosen = selected(pod.metadata.annotations.get(NETWORKS, ""), pod.metadata.namespace)
    except ValueError:
        return network
    return next((each.key for each in chosen if (each.network, each.interface) == (network, ifname)), network)


def is_pod(pod: Pod, uid: str) -> bool:
    """Whether a runtime means this pod, as far as it says ("" for nothing).

    A static pod has one uid at kubelet and another in the API server, where its mirror names the former.
    """
    return uid in ("", pod.metadata.uid, (pod.metadata.annotations or {}).get(_MIRROR))
