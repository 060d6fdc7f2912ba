"""An API server for each test: the stand-in, or the one that KUBECONFIG names."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest

from foundation.kube.client import KubeClient
from foundation.kube.configuration import Connection
from foundation.kube.errors import NotFound
from foundation.kube.models.meta import Unstructured
from foundation.kube.resources import LEASES, NAMESPACES, SERVICE_ACCOUNTS, Resource
from lab.apiserver.server import ApiServer

Json = dict[str, Any]


@dataclass
class Cluster:
    """A server, a client for it, and a namespace that is ours alone."""

    client: KubeClient
    namespace: str
    server: ApiServer | None
    controllers: bool
    """Whether the controller manager runs (always in the stand-in, not beside a bare API server)."""

    async def raw(
        self, method: str, path: str, body: Any = None, *, type: str = "application/json", **query: str
    ) -> Json:
        """A request with JSON in and out; raises KubeError."""
        encoded = None if body is None else msgspec.json.encode(body)
        answer: Json = msgspec.json.decode(
            await self.client.request(method, path, query=query, body=encoded, content_type=type)
        )
        return answer

    def path(self, plural: str, name: str = "", *, group: str = "", version: str = "v1") -> str:
        """The path of a collection or an object in our namespace."""
        root = f"/apis/{group}/{version}" if group else f"/api/{version}"
        return f"{root}/namespaces/{self.namespace}/{plural}" + (f"/{name}" if name else "")


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    """For the contract tests: they pass on both servers."""
    kubeconfig = os.environ.get("KUBECONFIG", "")
    if not kubeconfig:
        async with ApiServer() as server, KubeClient(Connection(server=server.url)) as client:
            made = await client.create(NAMESPACES, {"metadata": {"generateName": "dpu-offload-test-"}})
            yield Cluster(client, made.metadata.name, server, True)
        return
    async with await KubeClient.connect(kubeconfig) as client:
        made = await client.create(NAMESPACES, {"metadata": {"generateName": "dpu-offload-test-"}})
        try:
            await client.get(LEASES, "kube-controller-manager", "kube-system")
            controllers = True
            await _until_there(client, made.metadata.name)
        except NotFound:
            controllers = False
            await client.create(SERVICE_ACCOUNTS, {"metadata": {"name": "default"}}, made.metadata.name)
        yield Cluster(client, made.metadata.name, None, controllers)
        await client.delete(NAMESPACES, made.metadata.name)


async def _until_there(client: KubeClient, namespace: str) -> None:
    """Wait for the service account that the controller manager makes: without it no pod is admitted."""
    async with asyncio.timeout(30):
        while not await client.list(SERVICE_ACCOUNTS, namespace=namespace):
            await asyncio.sleep(0.1)


@pytest.fixture
async def server() -> AsyncIterator[ApiServer]:
    """The stand-in, for tests that make trouble."""
    async with ApiServer() as server:
        yield server


@pytest.fixture
async def client(server: ApiServer) -> AsyncIterator[KubeClient]:
    """A client of the stand-in."""
    async with KubeClient(Connection(server=server.url), deadline=20.0) as client:
        yield client


@pytest.fixture
def pod() -> Callable[..., Json]:
    """Makes pods that no scheduler touches."""

    def make(name: str, *, labels: dict[str, str] | None = None, **spec: Any) -> Json:
        metadata: Json = {"name": name, **({"labels": labels} if labels else {})}
        container = {"name": "main", "image": "registry.example/none:1"}
        return {"metadata": metadata, "spec": {"schedulerName": "nobody", "containers": [container]} | spec}

    return make


@pytest.fixture
def widgets() -> Callable[[str], tuple[Json, Resource[Unstructured]]]:
    """Makes a definition of a custom kind in a group of its own, and the resource it serves."""

    def make(namespace: str) -> tuple[Json, Resource[Unstructured]]:
        group = f"{namespace}.example.com"
        spec = {
            "type": "object",
            "required": ["size"],
            "properties": {
                "size": {"type": "integer", "minimum": 1},
                "color": {"type": "string", "enum": ["red", "blue"], "default": "red"},
                "parts": {
                    "type": "array",
                    "x-kubernetes-list-type": "map",
                    "x-kubernetes-list-map-keys": ["name"],
                    "items": {
                        "type": "object",
                        "required": ["name"],
                        "properties": {"name": {"type": "string"}, "count": {"type": "integer"}},
                    },
                },
            },
        }
        state = {"type": "object", "properties": {"ready": {"type": "boolean"}}}
        schema = {"type": "object", "properties": {"spec": spec, "status": state}}
        version = {
            "name": "v1",
            "served": True,
            "storage": True,
            "subresources": {"status": {}},
            "schema": {"openAPIV3Schema": schema},
        }
        definition = {
            "apiVersion": "apiextensions.k8s.io/v1",
            "kind": "CustomResourceDefinition",
            "metadata": {"name": f"widgets.{group}"},
            "spec": {
                "group": group,
                "scope": "Namespaced",
                "names": {"plural": "widgets", "kind": "Widget"},
                "versions": [version],
            },
        }
        return definition, Resource(group, "v1", "widgets", True, Unstructured, kind="Widget")

    return make
