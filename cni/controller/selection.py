"""Which pods each selector in use has chosen: kept up to date pod by pod, never by looking at all of them.

A selector is in use while a policy refers to it in some role. Its choice becomes rows of its own (port group, address
sets), shared by all that use it; the pods put themselves in as members.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from cni.controller.model.pod import Pod
from cni.controller.model.selector import PodSelector
from cni.controller.rows import Owner
from cni.controller.translate.names import pod_owner, selector_owner


class Role(NamedTuple):
    """What a selector is used for: its pods' "ports" (policy subjects) or "addresses" (peers).

    With a container port's name and protocol: those pods by the number that the name stands for in each.
    """

    kind: str
    port_name: str = ""
    protocol: str = ""


PORTS = Role("ports")
ADDRESSES = Role("addresses")


@dataclass(eq=False, slots=True)
class Selection:
    """One selector in use, with the keys of the pods it has chosen."""

    selector: PodSelector
    users: dict[Owner, frozenset[Role]] = field(default_factory=dict)
    chosen: set[str] = field(default_factory=set)
    numbers: dict[tuple[str, str], Counter[int]] = field(default_factory=dict)

    def roles(self) -> set[Role]:
        """All roles it is used in."""
        return set().union(*self.users.values())

    def numbers_of(self, port_name: str, protocol: str) -> list[int]:
        """The numbers that a port name stands for among the chosen pods."""
        return sorted(self.numbers.get((port_name, protocol), ()))


class Selections:
    """All selectors in use. Every change returns the owners whose rows may now be others."""

    def __init__(self) -> None:
        self._labels: dict[str, Mapping[str, str]] = {}
        self._pods_of: dict[str, set[str]] = {}
        self._all: dict[str, Selection] = {}
        self._uses: dict[Owner, dict[PodSelector, frozenset[Role]]] = {}
        self._of_namespace: dict[str, dict[str, Selection]] = {}
        self._across: dict[str, Selection] = {}
        self._of_pod: dict[str, dict[str, Selection]] = {}
        self._counted: dict[str, Pod] = {}

    def get(self, selector: PodSelector) -> Selection | None:
        """The selection of a selector in use."""
        return self._all.get(selector.id)

    def by_id(self, selector_id: str) -> Selection | None:
        """The selection of a selector's id."""
        return self._all.get(selector_id)

    def of_pod(self, key: str) -> Iterable[Selection]:
        """The selections that have chosen a pod."""
        return self._of_pod.get(key, {}).values()

    def pods_of(self, namespace: str) -> Iterable[str]:
        """The keys of a namespace's pods that have ports."""
        return self._pods_of.get(namespace, ())

    # Uses

    def use(self, user: Owner, uses: Mapping[PodSelector, frozenset[Role]]) -> dict[Owner, None]:
        """`user` needs just these selectors in these roles from now on."""
        touched: dict[Owner, None] = {}
        old = self._uses.get(user, {})
        for selector, roles in old.items():
            if uses.get(selector) != roles:
                self._change(user, selector, uses.get(selector), touched)
        for selector, roles in uses.items():
            if selector not in old:
                self._change(user, selector, roles, touched)
        if uses:
            self._uses[user] = dict(uses)
        else:
            self._uses.pop(user, None)
        return touched

    def _change(
        self, user: Owner, selector: PodSelector, roles: frozenset[Role] | None, touched: dict[Owner, None]
    ) -> None:
        selection = self._all.get(selector.id)
        if selection is None:
            selection = self._add(selector)
        before = selection.roles()
        if roles:
            selection.users[user] = roles
        else:
            selection.users.pop(user, None)
        if selection.roles() != before:
            touched[selector_owner(selector.id)] = None
            touched.update((pod_owner(key), None) for key in selection.chosen)
        if not selection.users:
            self._drop(selection)

    def _add(self, selector: PodSelector) -> Selection:
        selection = self._all[selector.id] = Selection(selector)
        if selector.namespace:
            self._of_namespace.setdefault(selector.namespace, {})[selector.id] = selection
            namespaces: Iterable[str] = (selector.namespace,)
        else:
            self._across[selector.id] = selection
            namespaces = self._labels
        for namespace in namespaces:
            if selector.takes_namespace(namespace, self._labels.get(namespace)):
                for key in self._pods_of.get(namespace, ()):
                    if selector.takes_labels(self._counted[key].labels):
                        self._enter(selection, self._counted[key])
        return selection

    def _drop(self, selection: Selection) -> None:
        identity = selection.selector.id
        del self._all[identity]
        self._across.pop(identity, None)
        self._of_namespace.get(selection.selector.namespace, {}).pop(identity, None)
        for key in selection.chosen:
            self._of_pod[key].pop(identity, None)

    # Pods and namespaces

    def put_pod(self, key: str, pod: Pod | None) -> dict[Owner, None]:
        """A pod that needs a port came or changed (or went, or needs none any more: None)."""
        old = self._counted.pop(key, None)
        if old is not None and pod is not None and old.labels == pod.labels and old.ports == pod.ports:
            self._counted[key] = pod
            return {}
        touched: dict[Owner, None] = {}
        before = dict(self._of_pod.get(key, {}))
        for selection in before.values():
            assert old is not None  # only counted pods are chosen
            self._leave(selection, old, touched)
        if pod is None:
            self._of_pod.pop(key, None)
            if old is not None:
                self._pods_of[old.namespace].discard(key)
            return touched
        self._counted[key] = pod
        self._pods_of.setdefault(pod.namespace, set()).add(key)
        labels = self._labels.get(pod.namespace)
        for selection in (*self._of_namespace.get(pod.namespace, {}).values(), *self._across.values()):
            selector = selection.selector
            if selector.takes_namespace(pod.namespace, labels) and selector.takes_labels(pod.labels):
                self._enter(selection, pod, touched)
        return touched

    def put_namespace(self, name: str, labels: Mapping[str, str] | None) -> dict[Owner, None]:
        """A namespace came or its labels changed (or it went: None)."""
        if self._labels.get(name) == labels:
            return {}
        old = self._labels.get(name)
        if labels is None:
            del self._labels[name]
        else:
            self._labels[name] = labels
        touched: dict[Owner, None] = {}
        for selection in self._across.values():
            selector = selection.selector
            was, now = selector.takes_namespace(name, old), selector.takes_namespace(name, labels)
            if was == now:
                continue
            for key in self._pods_of.get(name, ()):
                pod = self._counted[key]
                if selector.takes_labels(pod.labels):
                    if now:
                        self._enter(selection, pod, touched)
                    else:
                        self._leave(selection, pod, touched)
                    touched[pod_owner(key)] = None
        return touched

    def _enter(self, selection: Selection, pod: Pod, touched: dict[Owner, None] | None = None) -> None:
        selection.chosen.add(pod.key)
        self._of_pod.setdefault(pod.key, {})[selection.selector.id] = selection
        for port in pod.ports:
            counter = selection.numbers.setdefault((port.name, port.protocol), Counter())
            counter[port.port] += 1
            if counter[port.port] == 1 and touched is not None:
                self._touch_users(selection, port.name, touched)

    def _leave(self, selection: Selection, pod: Pod, touched: dict[Owner, None]) -> None:
        selection.chosen.discard(pod.key)
        self._of_pod[pod.key].pop(selection.selector.id, None)
        for port in pod.ports:
            counter = selection.numbers[(port.name, port.protocol)]
            counter[port.port] -= 1
            if not counter[port.port]:
                del counter[port.port]
                self._touch_users(selection, port.name, touched)

    def _touch_users(self, selection: Selection, port_name: str, touched: dict[Owner, None]) -> None:
        """A name stands for other numbers now: the rules that use it are others."""
        for user, roles in selection.users.items():
            if any(role.port_name == port_name for role in roles):
                touched[user] = None
                touched[selector_owner(selection.selector.id)] = None
