"""Which lists are merged item by item, and by which keys; all others are replaced as a whole."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lab.apiserver.kinds import Kind

Json = dict[str, Any]


@dataclass(slots=True)
class Node:
    """How the value at one place is merged.

    `keys` name the fields that tell items of a list apart (server-side apply), `merge_key` the one that a strategic
    merge patch uses; `is_set` is a list of distinct scalars; `atomic` a map or list with one owner as a whole.
    """

    fields: dict[str, Node] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    merge_key: str = ""
    is_set: bool = False
    atomic: bool = False

    def child(self, name: str) -> Node:
        """The node of a field (of an item, in a list)."""
        return self.fields.get(name, PLAIN)

    def key_of(self, item: Json) -> tuple[tuple[str, Any], ...]:
        """What tells this item of a list from the others; a missing protocol is TCP."""
        return tuple((key, item.get(key, "TCP" if key == "protocol" else None)) for key in self.keys)


PLAIN = Node()

_Rules = dict[str, Any]
_SET = "set"
_ATOMIC = "atomic"


def _keyed(*keys: str, merge_key: str = "", **fields: Any) -> _Rules:
    return {"keys": keys, "merge_key": merge_key or keys[0], "fields": fields}


_CONTAINER: _Rules = {
    "ports": _keyed("containerPort", "protocol"),
    "env": _keyed("name"),
    "volumeMounts": _keyed("mountPath"),
    "volumeDevices": _keyed("devicePath"),
}
_POD_SPEC: _Rules = {
    "containers": _keyed("name", **_CONTAINER),
    "initContainers": _keyed("name", **_CONTAINER),
    "ephemeralContainers": _keyed("name", **_CONTAINER),
    "volumes": _keyed("name"),
    "imagePullSecrets": _keyed("name"),
    "hostAliases": _keyed("ip"),
    "schedulingGates": _keyed("name"),
    "resourceClaims": _keyed("name"),
    "topologySpreadConstraints": _keyed("topologyKey", "whenUnsatisfiable"),
    "nodeSelector": _ATOMIC,
}
_CONDITIONS: _Rules = {"conditions": _keyed("type")}
_METADATA: _Rules = {"ownerReferences": _keyed("uid"), "finalizers": _SET}
_TEMPLATE: _Rules = {"selector": _ATOMIC, "template": {"fields": {"metadata": _METADATA, "spec": _POD_SPEC}}}

_BY_KIND: dict[str, _Rules] = {
    "Pod": {"spec": _POD_SPEC, "status": {**_CONDITIONS, "podIPs": _keyed("ip"), "hostIPs": _ATOMIC}},
    "Service": {"spec": {"ports": _keyed("port", "protocol"), "selector": _ATOMIC}, "status": _CONDITIONS},
    "Node": {
        "spec": {"podCIDRs": _SET, "taints": {"merge_key": "key"}},
        "status": {**_CONDITIONS, "addresses": _keyed("type")},
    },
    "CSINode": {"spec": {"drivers": _keyed("name")}},
    "PersistentVolume": {"spec": {"claimRef": _ATOMIC}},
    "PersistentVolumeClaim": {"spec": {"selector": _ATOMIC}, "status": _CONDITIONS},
    "NetworkPolicy": {"spec": {"podSelector": _ATOMIC}},
    "ServiceAccount": {"secrets": _keyed("name"), "imagePullSecrets": {"merge_key": "name"}},
    "Namespace": {"status": _CONDITIONS},
    "Deployment": {"spec": _TEMPLATE, "status": _CONDITIONS},
    "DaemonSet": {"spec": _TEMPLATE, "status": _CONDITIONS},
    "StatefulSet": {"spec": _TEMPLATE, "status": _CONDITIONS},
    "ReplicaSet": {"spec": _TEMPLATE, "status": _CONDITIONS},
    "Job": {"spec": _TEMPLATE, "status": _CONDITIONS},
    "PodDisruptionBudget": {"spec": {"selector": _ATOMIC}, "status": _CONDITIONS},
    "CustomResourceDefinition": {"status": _CONDITIONS},
}


def _node(rules: Any) -> Node:
    if rules == _SET:
        return Node(is_set=True)
    if rules == _ATOMIC:
        return Node(atomic=True)
    if isinstance(rules, dict) and rules.keys() & {"keys", "merge_key", "fields"}:
        inner = {name: _node(rule) for name, rule in rules.get("fields", {}).items()}
        return Node(inner, keys=tuple(rules.get("keys", ())), merge_key=rules.get("merge_key", ""))
    return Node({name: _node(rule) for name, rule in rules.items()})


_metadata = _node(_METADATA)
_roots = {kind: _node({"metadata": _METADATA, **rules}) for kind, rules in _BY_KIND.items()}
_other = Node({"metadata": _metadata})
_custom: dict[int, Node] = {}


def root(kind: Kind) -> Node:
    """The rules of a kind."""
    if kind.schema is not None:
        found = _custom.get(id(kind.schema))
        if found is None:
            found = _custom[id(kind.schema)] = _from_schema(kind.schema)
            found.fields["metadata"] = _metadata
        return found
    return _other if kind.custom else _roots.get(kind.kind, _other)


def _from_schema(schema: Json) -> Node:
    list_type = schema.get("x-kubernetes-list-type")
    inner = schema.get("items", schema) if schema.get("type") == "array" else schema
    return Node(
        {name: _from_schema(each) for name, each in (inner.get("properties") or {}).items()},
        keys=tuple(schema.get("x-kubernetes-list-map-keys") or ()) if list_type == "map" else (),
        is_set=list_type == "set",
        atomic=list_type == "atomic" or schema.get("x-kubernetes-map-type") == "atomic",
    )
