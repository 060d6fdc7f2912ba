"""The Kubernetes API's verbs over typed resources."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from foundation.daemon.backoff import Backoff, Pauses
from foundation.kube.configuration import Connection, connection
from foundation.kube.decoding import ObjectDecoder, Page
from foundation.kube.errors import Conflict, Malformed
from foundation.kube.models.meta import KubernetesObject
from foundation.kube.resources import Resource
from foundation.kube.transport import Body, Transport

T = TypeVar("T", bound=KubernetesObject)
Writable = Mapping[str, Any] | KubernetesObject

PAGE = 500
MERGE_PATCH = "application/merge-patch+json"
JSON_PATCH = "application/json-patch+json"
APPLY_PATCH = "application/apply-patch+yaml"


class KubeClient:
    """Requests to one API server. There is no client-side rate limit: the server has its own.

    Every method raises `foundation.kube.errors.KubeError`. Requests that may be repeated without harm are repeated on
    429, 5xx and lost connections until `deadline` seconds have passed; a create, a replace, a JSON patch or a patch
    that carries a resourceVersion is sent once.
    """

    def __init__(self, settings: Connection, *, deadline: float = 30.0) -> None:
        self._transport = Transport(settings)
        self._deadline = deadline
        self._decoders: dict[Resource[Any], ObjectDecoder[Any]] = {}

    @classmethod
    async def connect(cls, kubeconfig: str = "", context: str = "", *, deadline: float = 30.0) -> KubeClient:
        """A client for `kubeconfig`; "" means in-cluster, then $KUBECONFIG. Nothing is sent yet.

        Raises ConfigurationInvalid.
        """
        return cls(await connection(kubeconfig, context), deadline=deadline)

    @property
    def settings(self) -> Connection:
        """The server, and the caller's own namespace."""
        return self._transport.connection

    async def close(self) -> None:
        """Close all connections."""
        await self._transport.close()

    async def __aenter__(self) -> KubeClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    def decoder(self, resource: Resource[T]) -> ObjectDecoder[T]:
        """The (cached) decoder of a resource."""
        found = self._decoders.get(resource)
        if found is None:
            found = self._decoders[resource] = ObjectDecoder(resource)
        return found

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: bytes | None = None,
        content_type: str = "application/json",
        repeatable: bool | None = None,
    ) -> bytes:
        """Any request, for what has no model (`/version`, `/readyz`, token requests).

        `repeatable` None: a GET is.
        """
        return await self._transport.send(
            method,
            path,
            query=query,
            body=body,
            content_type=content_type,
            deadline=self._deadline,
            repeatable=method == "GET" if repeatable is None else repeatable,
        )

    async def get(self, resource: Resource[T], name: str, namespace: str = "") -> T:
        """One object; raises NotFound."""
        path = resource.path(namespace, _named(name))
        return self._one(resource, await self.request("GET", path), f"GET {path}")

    async def page(
        self,
        resource: Resource[T],
        *,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        limit: int = PAGE,
        token: str = "",
    ) -> Page[T]:
        """One page of a list; `token` is the last page's `metadata.continue_`. Raises Gone for a token too old."""
        query = _selection(label_selector, field_selector)
        if limit:
            query["limit"] = str(limit)
        if token:
            query["continue"] = token
        path = resource.path(namespace)
        body = await self.request("GET", path, query=query)
        return self.decoder(resource).page(body, request=f"GET {path}")

    async def list(
        self, resource: Resource[T], *, namespace: str = "", label_selector: str = "", field_selector: str = ""
    ) -> list[T]:
        """All objects ("" = of all namespaces), read in pages. Raises Malformed if one does not fit its model."""
        items: list[T] = []
        token = ""
        while True:
            page = await self.page(
                resource,
                namespace=namespace,
                label_selector=label_selector,
                field_selector=field_selector,
                token=token,
            )
            for bad in page.unreadable:
                raise Malformed(f"{resource.plural} {bad.key}: {bad.why}")
            items += page.items
            token = page.metadata.continue_
            if not token:
                return items

    @contextlib.asynccontextmanager
    async def watch(
        self,
        resource: Resource[T],
        *,
        resource_version: str,
        namespace: str = "",
        label_selector: str = "",
        field_selector: str = "",
        timeout_seconds: float,
        idle: float,
    ) -> AsyncIterator[Body]:
        """The raw stream of a watch with bookmarks (see `foundation.kube.watching.lines`).

        The server ends it after `timeout_seconds`; `idle` seconds without a byte raise TimeoutError.
        """
        query = {
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": resource_version,
            "timeoutSeconds": str(max(1, round(timeout_seconds))),
            **_selection(label_selector, field_selector),
        }
        async with self._transport.stream(resource.path(namespace), query=query, idle=idle) as content:
            yield content

    async def create(self, resource: Resource[T], obj: Writable, namespace: str = "", *, subresource: str = "") -> T:
        """Create an object; its namespace may stand in its metadata. Raises AlreadyExists, Unprocessable."""
        namespace = namespace or _metadata(obj, "namespace")
        path = resource.path(namespace, _metadata(obj, "name") if subresource else "", subresource)
        if resource.namespaced and not namespace:
            raise ValueError(f"a namespace is needed to create one of {resource.plural}")
        body = await self.request("POST", path, body=_encode(resource, obj))
        return self._one(resource, body, f"POST {path}")

    async def replace(self, resource: Resource[T], obj: Mapping[str, Any], *, subresource: str = "") -> T:
        """Put a *whole* object in the place of the old one; raises Conflict if its resourceVersion is stale.

        Takes no model: a model holds only some fields, and the others would be lost.
        """
        path = resource.path(_metadata(obj, "namespace"), _named(_metadata(obj, "name")), subresource)
        body = await self.request("PUT", path, body=_encode(resource, obj))
        return self._one(resource, body, f"PUT {path}")

    async def merge_patch(
        self, resource: Resource[T], name: str, namespace: str, body: Mapping[str, Any], subresource: str = ""
    ) -> T:
        """Merge `body` into an object (RFC 7386: null removes, lists are replaced). Raises NotFound, and Conflict if
        the body carries a `metadata.resourceVersion` that is not the object's."""
        once = bool((body.get("metadata") or {}).get("resourceVersion"))
        return await self._patch(resource, name, namespace, body, subresource, MERGE_PATCH, repeatable=not once)

    async def json_patch(
        self,
        resource: Resource[T],
        name: str,
        namespace: str,
        operations: Sequence[Mapping[str, Any]],
        subresource: str = "",
    ) -> T:
        """Apply operations (`foundation.kube.patching`), all or none; a failed `test` raises Unprocessable."""
        return await self._patch(resource, name, namespace, operations, subresource, JSON_PATCH, repeatable=False)

    async def apply(
        self,
        resource: Resource[T],
        obj: Mapping[str, Any],
        field_manager: str,
        *,
        force: bool = False,
        subresource: str = "",
    ) -> T:
        """Server-side apply: own the given fields, create the object if it is missing.

        Raises Conflict when another manager owns a field with another value, unless `force` takes it over.
        """
        body = {"apiVersion": resource.api_version, "kind": resource.kind, **obj}
        name, namespace = _metadata(obj, "name"), _metadata(obj, "namespace")
        query = {"fieldManager": field_manager, "force": "true" if force else "false"}
        return await self._patch(
            resource, name, namespace, body, subresource, APPLY_PATCH, repeatable=True, query=query
        )

    async def delete(
        self,
        resource: Resource[T],
        name: str,
        namespace: str = "",
        *,
        uid: str = "",
        resource_version: str = "",
        propagation: str = "",
        grace_seconds: int | None = None,
    ) -> None:
        """Delete an object; raises NotFound, and Conflict when it is not the one of that uid or version.

        `propagation` is Background, Foreground or Orphan ("" = the kind's default).
        """
        options: dict[str, Any] = {"apiVersion": "v1", "kind": "DeleteOptions"}
        preconditions = {"uid": uid, "resourceVersion": resource_version}
        if uid or resource_version:
            options["preconditions"] = {key: value for key, value in preconditions.items() if value}
        if propagation:
            options["propagationPolicy"] = propagation
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        path = resource.path(namespace, _named(name))
        await self.request("DELETE", path, body=msgspec.json.encode(options), repeatable=True)

    async def update(
        self,
        resource: Resource[T],
        name: str,
        namespace: str,
        change: Callable[[T], Mapping[str, Any] | None],
        *,
        subresource: str = "",
        attempts: int = 8,
    ) -> T:
        """Read, let `change` make a merge patch of what it sees (None = nothing to do), write if nobody wrote since.

        `change` must be pure: it is called again with the newer object after a conflict. Raises Conflict when
        `attempts` were not enough.
        """
        pauses = Pauses(Backoff(0.01, 0.5, jitter=0.5))
        while True:
            current = await self.get(resource, name, namespace)
            patch = change(current)
            if patch is None:
                return current
            metadata = {**(patch.get("metadata") or {}), "resourceVersion": current.metadata.resource_version}
            try:
                return await self.merge_patch(resource, name, namespace, {**patch, "metadata": metadata}, subresource)
            except Conflict:
                attempts -= 1
                if attempts <= 0:
                    raise
                await pauses.wait()

    async def _patch(
        self,
        resource: Resource[T],
        name: str,
        namespace: str,
        body: Any,
        subresource: str,
        content_type: str,
        *,
        repeatable: bool,
        query: Mapping[str, str] | None = None,
    ) -> T:
        path = resource.path(namespace, _named(name), subresource)
        answer = await self.request(
            "PATCH",
            path,
            query=query,
            body=msgspec.json.encode(body),
            content_type=content_type,
            repeatable=repeatable,
        )
        return self._one(resource, answer, f"PATCH {path}")

    def _one(self, resource: Resource[T], body: bytes, request: str) -> T:
        return self.decoder(resource).one(body, request=request)


def _named(name: str) -> str:
    if not name:
        raise ValueError("the object's name is empty")
    return name


def _metadata(obj: Writable, key: str) -> str:
    if isinstance(obj, KubernetesObject):
        return str(getattr(obj.metadata, key))
    return str((obj.get("metadata") or {}).get(key) or "")


def _encode(resource: Resource[Any], obj: Writable) -> bytes:
    fields: Mapping[str, Any] = msgspec.to_builtins(obj) if isinstance(obj, KubernetesObject) else obj
    return msgspec.json.encode({"apiVersion": resource.api_version, "kind": resource.kind, **fields})


def _selection(label_selector: str, field_selector: str) -> dict[str, str]:
    query = {}
    if label_selector:
        query["labelSelector"] = label_selector
    if field_selector:
        query["fieldSelector"] = field_selector
    return query
