"""Object metadata as every Kubernetes kind carries it (API group meta/v1)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec


class Model(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, gc=False):
    """Base of all models: immutable, camelCase on the wire, absent where it holds its default.

    Instances never form cycles, so they are kept out of the garbage collector's sight (a full collection over the
    pods of a large cluster would otherwise stop the loop for tens of milliseconds).
    """


class OwnerReference(Model, frozen=True):
    """One owner of an object; the object is collected when the last owner has gone."""

    api_version: str = ""
    kind: str = ""
    name: str = ""
    uid: str = ""
    controller: bool | None = None
    block_owner_deletion: bool | None = None


class ObjectMeta(Model, frozen=True):
    """Metadata of an object. Times are RFC 3339 texts, as on the wire; absent ones are None."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    generation: int = 0
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    deletion_grace_period_seconds: int | None = None
    labels: Mapping[str, str] = msgspec.field(default_factory=dict)
    annotations: Mapping[str, str] = msgspec.field(default_factory=dict)
    finalizers: tuple[str, ...] = ()
    owner_references: tuple[OwnerReference, ...] = ()

    @property
    def key(self) -> str:
        """`namespace/name`, or `name` for an object without a namespace: the key of `Reflector.store`."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


class KubernetesObject(Model, frozen=True):
    """Base of the kinds that the API serves by themselves."""

    metadata: ObjectMeta


class ListMeta(Model, frozen=True):
    """Metadata of a list: the version it shows, and the token of the next page ("" on the last one)."""

    resource_version: str = ""
    continue_: str = msgspec.field(name="continue", default="")
    remaining_item_count: int | None = None


class StatusCause(Model, frozen=True):
    """One reason behind a refusal: which field, and what is wrong with it."""

    reason: str = ""
    message: str = ""
    field: str = ""


class StatusDetails(Model, frozen=True):
    """The object which a refusal is about, and the seconds to wait before trying again."""

    name: str = ""
    group: str = ""
    kind: str = ""
    uid: str = ""
    causes: tuple[StatusCause, ...] = ()
    retry_after_seconds: float = 0.0


class Status(Model, frozen=True):
    """The body of every refusal (meta/v1 Status)."""

    status: str = ""
    message: str = ""
    reason: str = ""
    code: int = 0
    details: StatusDetails | None = None
    metadata: ListMeta | None = None


class Condition(Model, frozen=True):
    """An observed fact about an object: `status` is `True`, `False` or `Unknown`."""

    type: str = ""
    status: str = ""
    reason: str = ""
    message: str = ""
    last_transition_time: str | None = None
    observed_generation: int = 0


class LabelSelectorRequirement(Model, frozen=True):
    """One expression: `operator` is In, NotIn, Exists or DoesNotExist."""

    key: str = ""
    operator: str = ""
    values: tuple[str, ...] | None = None


class LabelSelector(Model, frozen=True):
    """All labels and all expressions must hold; one without any matches everything."""

    match_labels: Mapping[str, str] | None = None
    match_expressions: tuple[LabelSelectorRequirement, ...] | None = None


class ObjectReference(Model, frozen=True):
    """A pointer at another object."""

    api_version: str = ""
    kind: str = ""
    namespace: str = ""
    name: str = ""
    uid: str = ""
    resource_version: str = ""
    field_path: str = ""


class Unstructured(KubernetesObject, frozen=True):
    """An object of a kind without a model: its metadata typed, its spec and status as plain JSON values."""

    spec: Any = None
    status: Any = None
