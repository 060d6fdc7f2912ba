"""Requests: what is repeated, what is not, and what a refusal becomes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from typing import Any

import pytest

from foundation.kube import errors
from foundation.kube.client import KubeClient
from foundation.kube.configuration import Connection
from foundation.kube.credentials import TokenFile
from foundation.kube.models.core import ConfigMap, Pod
from foundation.kube.models.meta import ObjectMeta
from foundation.kube.resources import ALL, CONFIG_MAPS, LEASES, NAMESPACES, NODES, PODS, VIRTUAL_MACHINES, resource_of
from lab.apiserver.access import Tokens
from lab.apiserver.faults import Rule
from lab.apiserver.server import ApiServer

BODY = {"metadata": {"name": "a", "namespace": "default"}}


async def test_a_read_is_repeated_until_it_succeeds(client: KubeClient, server: ApiServer) -> None:
    for code in (500, 503, 429, -1):
        server.faults.add(Rule(method="GET", code=code, times=1))
    assert (await client.get(NAMESPACES, "default")).metadata.name == "default"
    assert server.faults.requests == 5


@pytest.mark.parametrize("code", [500, 503, -1, -2])
async def test_a_create_is_sent_once(client: KubeClient, server: ApiServer, code: int) -> None:
    server.faults.add(Rule(method="POST", code=code))
    with pytest.raises(errors.Unavailable):
        await client.create(CONFIG_MAPS, BODY)
    assert server.faults.requests == 1


async def test_a_create_that_was_not_looked_at_is_sent_again(client: KubeClient, server: ApiServer) -> None:
    server.faults.add(Rule(method="POST", code=429, reason="TooManyRequests", retry_after=0.1, times=2))
    await client.create(CONFIG_MAPS, BODY)
    assert server.faults.requests == 3


async def test_patches_are_repeated_only_if_that_is_harmless(client: KubeClient, server: ApiServer) -> None:
    made = await client.create(CONFIG_MAPS, BODY)
    version = made.metadata.resource_version
    server.faults.add(Rule(method="PATCH", code=-2, times=1))
    assert (await client.merge_patch(CONFIG_MAPS, "a", "default", {"data": {"x": "1"}})).data == {"x": "1"}
    server.faults.add(Rule(method="PATCH", code=-2, times=1))
    applied = await client.apply(CONFIG_MAPS, BODY | {"data": {"y": "1"}}, "me")
    assert applied.data == {"x": "1", "y": "1"}
    for once in (
        client.merge_patch(CONFIG_MAPS, "a", "default", {"metadata": {"resourceVersion": version}}),
        client.json_patch(CONFIG_MAPS, "a", "default", [{"op": "add", "path": "/data/z", "value": "1"}]),
    ):
        server.faults.requests = 0
        server.faults.add(Rule(method="PATCH", code=503, times=1))
        with pytest.raises(errors.Unavailable):
            await once
        assert server.faults.requests == 1


async def test_a_deadline_ends_it(server: ApiServer) -> None:
    loop = asyncio.get_running_loop()
    async with KubeClient(Connection(server=server.url), deadline=0.2) as client:
        server.faults.add(Rule(latency=60))
        start = loop.time()
        with pytest.raises(errors.Unavailable, match=r"no answer within 0\.2 s"):
            await client.get(NAMESPACES, "default")
        assert loop.time() - start < 10
        server.faults.clear()
        server.faults.add(Rule(code=503, retry_after=30))
        with pytest.raises(errors.Unavailable) as refusal:
            await client.get(NAMESPACES, "default")
        assert refusal.value.retry_after == 30
        assert loop.time() - start < 20, "a wait that the deadline forbids is not begun"


@pytest.mark.parametrize(
    ("code", "reason", "kind"),
    [
        (400, "BadRequest", errors.BadRequest),
        (401, "Unauthorized", errors.Unauthorized),
        (403, "Forbidden", errors.Forbidden),
        (404, "NotFound", errors.NotFound),
        (409, "Conflict", errors.Conflict),
        (409, "AlreadyExists", errors.AlreadyExists),
        (410, "Expired", errors.Gone),
        (415, "UnsupportedMediaType", errors.BadRequest),
        (422, "Invalid", errors.Unprocessable),
        (500, "InternalError", errors.Unavailable),
        (503, "ServiceUnavailable", errors.Unavailable),
    ],
)
async def test_a_refusal_becomes_its_exception(
    client: KubeClient, server: ApiServer, code: int, reason: str, kind: type[errors.KubeError]
) -> None:
    server.faults.add(Rule(code=code, reason=reason))
    with pytest.raises(errors.KubeError) as refusal:
        await client.create(CONFIG_MAPS, BODY)
    assert type(refusal.value) is kind
    assert (refusal.value.code, refusal.value.reason) == (code, reason)
    assert "POST /api/v1/namespaces/default/configmaps" in str(refusal.value)


async def test_an_answer_that_is_no_status_is_still_told(client: KubeClient) -> None:
    refusal = errors.from_status(errors.decode_status(b"<html>502 from a proxy"), request="GET /x", code=502)
    assert isinstance(refusal, errors.Unavailable)
    assert "502 from a proxy" in str(refusal)


async def test_nothing_listens(server: ApiServer) -> None:
    await server.refuse()
    async with KubeClient(Connection(server=server.url), deadline=0.1) as client:
        with pytest.raises(errors.Unavailable, match="Cannot connect"):
            await client.get(NAMESPACES, "default")


async def test_what_does_not_fit_the_model_is_malformed(client: KubeClient) -> None:
    body = b'{"metadata":{"name":"a"},"spec":{"running":"yes"}}'
    await client.request("POST", VIRTUAL_MACHINES.path("default"), body=body)
    with pytest.raises(errors.Malformed, match=r"spec\.running"):
        await client.get(VIRTUAL_MACHINES, "a", "default")
    with pytest.raises(errors.Malformed, match="default/a"):
        await client.list(VIRTUAL_MACHINES)


async def test_a_model_can_be_created(client: KubeClient, server: ApiServer) -> None:
    made = await client.create(
        CONFIG_MAPS, ConfigMap(metadata=ObjectMeta(name="m", namespace="default"), data={"x": "1"})
    )
    assert made.data == {"x": "1"}


def test_paths_name_one_thing() -> None:
    assert PODS.path("ns", "a", "status") == "/api/v1/namespaces/ns/pods/a/status"
    assert PODS.path() == "/api/v1/pods"
    assert LEASES.path("ns") == "/apis/coordination.k8s.io/v1/namespaces/ns/leases"
    assert NODES.path(name="n1") == "/api/v1/nodes/n1"
    for wrong in (("", "a", ""), ("ns", "../b", ""), ("a/b", "c", ""), ("ns", "a", "x?y"), ("ns", "..", "")):
        with pytest.raises(ValueError):
            PODS.path(*wrong)
    with pytest.raises(ValueError, match="have no namespace"):
        NODES.path("ns", "n1")


def test_every_model_has_one_resource() -> None:
    assert resource_of(Pod(metadata=ObjectMeta(name="a"))) is PODS
    assert len({(each.group, each.plural) for each in ALL}) == len(ALL)
    assert len({each.model for each in ALL}) == len(ALL)


@pytest.fixture
def tokens(tmp_path: Path) -> Path:
    path = tmp_path / "tokens"
    path.write_text('old-token,alice,1\nnew-token,bob,2,"admins,others"\n')
    return path


async def test_a_rotated_token_is_read_again(tmp_path: Path, tokens: Path) -> None:
    async with ApiServer(tokens=Tokens.read(tokens), record=tmp_path / "record") as server:
        path = tmp_path / "token"
        path.write_text("old-token\n")
        now = 0.0
        credentials = TokenFile(path, clock=lambda: now)
        async with KubeClient(Connection(server=server.url, credentials=credentials), deadline=20.0) as client:
            await client.get(NAMESPACES, "default")
            path.write_text("new-token\n")
            await client.get(NAMESPACES, "default")
            assert {each[0] for each in server.recorder.seen} == {"alice"}
            now = 61.0
            await client.get(NAMESPACES, "default")
            assert {each[0] for each in server.recorder.seen} == {"alice", "bob"}
            path.unlink()
            now = 200.0
            await client.get(NAMESPACES, "default")


async def test_a_refused_token_is_read_again_at_once(tmp_path: Path, tokens: Path) -> None:
    async with ApiServer(tokens=Tokens.read(tokens)) as server:
        path = tmp_path / "token"
        path.write_text("revoked")
        credentials = TokenFile(path)
        async with KubeClient(Connection(server=server.url, credentials=credentials), deadline=20.0) as client:
            with pytest.raises(errors.Unauthorized):
                await client.get(NAMESPACES, "default")
            path.write_text("new-token")
            await client.create(CONFIG_MAPS, BODY)


async def test_a_token_never_shows(tmp_path: Path, tokens: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "token"
    path.write_text("canary-token-value")
    connection = Connection(server="http://127.0.0.1:1", credentials=TokenFile(path))
    with caplog.at_level(logging.DEBUG):
        async with KubeClient(connection, deadline=0.1) as client:
            with pytest.raises(errors.Unavailable) as refusal:
                await client.get(NAMESPACES, "default")
    shown: list[Any] = [caplog.text, str(refusal.value), repr(refusal.value), repr(connection), repr(client)]
    assert not [each for each in shown if "canary" in each]


async def test_the_stand_in_records_what_is_asked_for(tmp_path: Path, tokens: Path) -> None:
    record = tmp_path / "record.jsonl"
    async with ApiServer(tokens=Tokens.read(tokens), record=record) as server:
        path = tmp_path / "token"
        path.write_text("new-token")
        async with KubeClient(Connection(server=server.url, credentials=TokenFile(path))) as client:
            await client.create(CONFIG_MAPS, BODY)
            await client.list(CONFIG_MAPS)
            await client.list(CONFIG_MAPS, namespace="default")
            await client.delete(CONFIG_MAPS, "a", "default")
    lines = record.read_text().splitlines()
    assert len(lines) == 3
    assert '"verb": "delete"' in lines[-1]
    assert '"user": "bob"' in lines[-1]
