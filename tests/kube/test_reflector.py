"""The reflector against a server that makes trouble."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foundation.daemon.backoff import Backoff
from foundation.kube import reflector as reflector_module
from foundation.kube.client import KubeClient
from foundation.kube.configuration import Connection
from foundation.kube.models.cncf import NetworkAttachmentDefinition
from foundation.kube.models.core import ConfigMap
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import CONFIG_MAPS, NETWORK_ATTACHMENT_DEFINITIONS
from lab.apiserver.faults import Rule
from lab.apiserver.server import ApiServer

Json = dict[str, Any]


async def until(condition: Callable[[], bool], *, seconds: float = 30.0) -> None:
    """Wait for what a callback or another task brings about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running(reflector: Reflector[Any]) -> AsyncIterator[list[tuple[str, str]]]:
    """Run a reflector; gives the changes it reports as (kind, key)."""
    changes: list[tuple[str, str]] = []
    reflector.subscribe(lambda change: changes.append((change.kind, change.key)))
    task = asyncio.create_task(reflector.run())
    try:
        async with asyncio.timeout(30):
            await reflector.synced()
        yield changes
    finally:
        task.cancel()
        await asyncio.wait({task})


def reflector(client: KubeClient, **settings: Any) -> Reflector[ConfigMap]:
    """A reflector of our config maps which tries again soon."""
    settings = {"namespace": "default", "backoff": Backoff(0.01, 0.05), **settings}
    return Reflector(client, CONFIG_MAPS, **settings)


async def make(client: KubeClient, *names: str, **body: Any) -> None:
    for name in names:
        await client.create(CONFIG_MAPS, {"metadata": {"name": name}, **body}, "default")


async def change(client: KubeClient, name: str, value: str) -> None:
    await client.merge_patch(CONFIG_MAPS, name, "default", {"data": {"x": value}})


async def drop(client: KubeClient, *names: str) -> None:
    for name in names:
        await client.delete(CONFIG_MAPS, name, "default")


async def equal(mirror: Reflector[ConfigMap], client: KubeClient) -> None:
    """Wait until the store shows what the server has."""
    wanted = {each.metadata.key: each for each in await client.list(CONFIG_MAPS, namespace="default")}
    await until(lambda: dict(mirror.store) == wanted)


async def test_it_shows_what_is_there_and_what_happens(client: KubeClient) -> None:
    await make(client, "a", "b")
    async with running(reflector(client)) as changes:
        assert sorted(changes) == [("added", "default/a"), ("added", "default/b")]
        await change(client, "a", "1")
        await drop(client, "b")
        await make(client, "c")
        await until(lambda: len(changes) == 5)
        assert changes[2:] == [("updated", "default/a"), ("deleted", "default/b"), ("added", "default/c")]


async def test_a_change_shows_both_sides(client: KubeClient) -> None:
    await make(client, "a", data={"x": "1"})
    mirror = reflector(client)
    seen: list[Change[ConfigMap]] = []
    mirror.subscribe(seen.append)
    async with running(mirror):
        await change(client, "a", "2")
        await drop(client, "a")
        await until(lambda: len(seen) == 3)
    assert [(each.old and each.old.data, each.new and each.new.data) for each in seen] == [
        (None, {"x": "1"}),
        ({"x": "1"}, {"x": "2"}),
        ({"x": "2"}, None),
    ]


async def test_a_late_subscriber_hears_of_all_that_is_there(client: KubeClient) -> None:
    await make(client, "a", "b")
    mirror = reflector(client)
    async with running(mirror):
        heard: list[str] = []
        end = mirror.subscribe(lambda change: heard.append(change.kind))
        assert heard == ["added", "added"]
        end()
        await make(client, "c")
        await equal(mirror, client)
        assert heard == ["added", "added"]


async def test_a_subscriber_that_fails_harms_nobody(client: KubeClient, caplog: pytest.LogCaptureFixture) -> None:
    def fail(change: Change[ConfigMap]) -> None:
        raise RuntimeError("a bug")

    mirror = reflector(client)
    mirror.subscribe(fail)
    async with running(mirror) as changes:
        with caplog.at_level(logging.CRITICAL):
            await make(client, "a", "b")
            await until(lambda: len(changes) == 2)


async def test_long_lists_come_in_pages(client: KubeClient, server: ApiServer) -> None:
    await make(client, *(f"n-{number}" for number in range(25)))
    server.faults.requests = 0
    mirror = reflector(client, page=10)
    async with running(mirror):
        await until(lambda: server.faults.watches == 1)
        assert server.faults.requests == 4, "three pages and one watch"
        assert len(mirror.store) == 25


async def test_a_page_token_that_expires_starts_the_list_over(client: KubeClient, server: ApiServer) -> None:
    await make(client, *(f"n-{number}" for number in range(8)))
    mirror = reflector(client, page=5)
    rule = server.faults.add(Rule(method="GET", latency=0.1))
    task = asyncio.create_task(mirror.run())
    await until(lambda: server.faults.requests > 0 and len(mirror.store) == 5)
    server.expire()
    await drop(client, "n-0")
    server.faults.remove(rule)
    async with asyncio.timeout(30):
        await mirror.synced()
    await equal(mirror, client)
    assert len(mirror.store) == 7
    assert mirror.statistics.failures == 1
    task.cancel()
    await asyncio.wait({task})


async def test_a_cut_watch_goes_on_where_it_was(client: KubeClient, server: ApiServer) -> None:
    await make(client, "a", "b")
    mirror = reflector(client)
    async with running(mirror) as changes:
        for trouble in (server.faults.drop_watches, server.faults.end_watches):
            await until(lambda: server.faults.watches == 1)
            trouble()
            await change(client, "a", trouble.__name__)
            await equal(mirror, client)
        assert mirror.statistics.lists == 1, "nothing was listed again"
        assert changes.count(("updated", "default/a")) == 2
        assert changes.count(("added", "default/a")) == 1


async def test_bookmarks_move_an_idle_watch_along() -> None:
    async with ApiServer(bookmark_seconds=0.05) as server, KubeClient(Connection(server=server.url)) as client:
        mirror = reflector(client, label_selector="on=yes")
        async with running(mirror):
            await make(client, "unseen", "unseen-too")
            newest = server.store.version
            await until(lambda: int(mirror.resource_version) >= newest)
            server.store.begin()  # only the newest version may still be resumed from
            server.faults.drop_watches()
            await client.create(CONFIG_MAPS, {"metadata": {"name": "a", "labels": {"on": "yes"}}}, "default")
            await until(lambda: list(mirror.store) == ["default/a"])
            assert mirror.statistics.lists == 1
            assert mirror.statistics.bookmarks > 0


@pytest.mark.parametrize("trouble", ["gone in the stream", "gone on resume"])
async def test_a_forgotten_version_is_listed_again_with_the_difference(
    client: KubeClient, server: ApiServer, trouble: str
) -> None:
    await make(client, "kept", "changed", "removed", "remade")
    mirror = reflector(client)
    async with running(mirror) as changes:
        await until(lambda: server.faults.watches == 1)
        hold = server.faults.add(Rule(verbs=("list", "watch"), latency=0.2))
        if trouble == "gone in the stream":
            server.gone()
        else:
            server.faults.drop_watches()
        changes.clear()
        await change(client, "changed", "1")
        await drop(client, "removed", "remade")
        await make(client, "remade", "new")
        server.expire()
        server.faults.remove(hold)
        await equal(mirror, client)
        assert mirror.statistics.lists == 2
        assert sorted(changes) == [
            ("added", "default/new"),
            ("added", "default/remade"),
            ("deleted", "default/remade"),
            ("deleted", "default/removed"),
            ("updated", "default/changed"),
        ], "and nothing about what is as it was"


async def test_a_server_that_is_away_is_waited_for(client: KubeClient, server: ApiServer) -> None:
    await make(client, "a")
    mirror = reflector(client, backoff=Backoff(0.02, 0.2))
    async with running(mirror) as changes:
        await until(lambda: server.faults.watches == 1)
        await server.refuse()
        await until(lambda: mirror.statistics.failures >= 4)
        assert "default/a" in mirror.store, "what is known stays known"
        assert "Cannot connect" in mirror.last_error
        await server.accept()
        await make(client, "b")
        await equal(mirror, client)
        assert changes == [("added", "default/a"), ("added", "default/b")]
        assert mirror.last_error == ""


async def test_a_server_restored_from_a_backup_is_listed_again(tmp_path: Path) -> None:
    """Its versions are lower now: a watch from ours would be accepted, and be silent for a long time."""
    async with ApiServer(data=tmp_path / "now") as server, KubeClient(Connection(server=server.url)) as client:
        await make(client, "a", "b")
        shutil.copytree(tmp_path / "now", tmp_path / "backup")
        await drop(client, "b")
        await make(client, *(f"lost-{index}" for index in range(20)))
        mirror = reflector(client)
        async with running(mirror) as changes:
            await until(lambda: server.faults.watches == 1)
            await server.stop()
            async with ApiServer(server.url.removeprefix("http://"), data=tmp_path / "backup"):
                await make(client, "new")
                await equal(mirror, client)
                assert set(mirror.store) == {"default/a", "default/b", "default/new"}
                assert ("deleted", "default/lost-3") in changes


async def test_it_starts_before_its_server(client: KubeClient, server: ApiServer) -> None:
    await make(client, "a")
    await server.refuse(0.3)
    mirror = reflector(KubeClient(client.settings, deadline=0.1))
    async with running(mirror):
        assert list(mirror.store) == ["default/a"]
        assert mirror.statistics.failures > 0
    await mirror._client.close()


async def test_failures_are_spaced_out(client: KubeClient, server: ApiServer) -> None:
    server.faults.add(Rule(verbs=("watch",), code=500, times=6))
    mirror = reflector(client, backoff=Backoff(0.02, 5.0))
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with running(mirror):
        await until(lambda: server.faults.watches == 1)
    assert loop.time() - start >= 0.5 * sum(0.02 * 2**power for power in range(6))
    assert mirror.statistics.watches == 7


async def test_the_servers_wish_to_wait_is_kept(client: KubeClient, server: ApiServer) -> None:
    server.faults.add(Rule(verbs=("watch",), code=429, reason="TooManyRequests", retry_after=0.4, times=1))
    loop = asyncio.get_running_loop()
    start = loop.time()
    async with running(reflector(client)):
        await until(lambda: server.faults.watches == 1)
    assert loop.time() - start >= 0.4


async def test_a_watch_that_ends_at_once_does_not_spin(client: KubeClient, server: ApiServer) -> None:
    mirror = reflector(client, backoff=Backoff(0.05, 5.0))
    async with running(mirror):
        for _ in range(5):
            await until(lambda: server.faults.watches == 1)
            server.faults.end_watches()
            await until(lambda: server.faults.watches == 0)
        start = mirror.statistics.watches
        await asyncio.sleep(0.1)
        assert mirror.statistics.watches - start <= 1


async def test_a_silent_connection_is_given_up(client: KubeClient, server: ApiServer) -> None:
    mirror = reflector(client, idle_seconds=0.2)
    async with running(mirror):
        await until(lambda: server.faults.watches == 1)
        server.faults.stall_watches()
        await make(client, "a")
        await until(lambda: mirror.statistics.failures > 0)
        assert mirror.last_error == "nothing heard for 0.2 s"
        server.faults.resume_watches()
        await equal(mirror, client)


async def test_a_kind_of_which_nothing_changes_is_watched_without_a_pause(
    client: KubeClient, server: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector_module, "SHORT_WATCH_SECONDS", 0.1)
    mirror = reflector(client, idle_seconds=0.2)
    async with running(mirror):
        await until(lambda: mirror.statistics.watches >= 8)
        assert (mirror.statistics.failures, mirror.last_error) == (0, "")
        await make(client, "a")
        await equal(mirror, client)


@pytest.mark.parametrize(
    "garbage",
    [
        b'{"type":"MODI\n',
        b"<html>bad gateway</html>\n",
        b'{"type":"STRANGE","object":{"metadata":{"name":"x"}}}\n',
        b'{"type":"ADDED"}\n',
        b"\x00\xff\n",
    ],
)
async def test_a_line_that_is_no_event_breaks_the_watch_only(
    client: KubeClient, server: ApiServer, garbage: bytes
) -> None:
    mirror = reflector(client)
    async with running(mirror):
        await until(lambda: server.faults.watches == 1)
        server.faults.send_to_watches(garbage)
        await until(lambda: mirror.statistics.failures == 1)
        await make(client, "a")
        await equal(mirror, client)
        assert mirror.statistics.lists == 1


async def test_half_an_event_at_the_end_is_sent_again(client: KubeClient, server: ApiServer) -> None:
    mirror = reflector(client)
    async with running(mirror) as changes:
        await until(lambda: server.faults.watches == 1)
        server.faults.send_to_watches(b'{"type":"ADDED","object":{"metadata":{"name":"half')
        server.faults.end_watches()
        await make(client, "a")
        await equal(mirror, client)
        assert changes == [("added", "default/a")]


async def test_an_error_in_the_stream_that_is_not_410_resumes(client: KubeClient, server: ApiServer) -> None:
    mirror = reflector(client)
    async with running(mirror):
        await until(lambda: server.faults.watches == 1)
        server.faults.send_to_watches(
            b'{"type":"ERROR","object":{"kind":"Status","status":"Failure","message":"etcd is busy","code":500}}\n'
        )
        await until(lambda: mirror.statistics.failures == 1)
        assert "etcd is busy" in mirror.last_error
        await make(client, "a")
        await equal(mirror, client)
        assert mirror.statistics.lists == 1


async def test_a_server_that_is_behind_is_given_time_then_listed(client: KubeClient, server: ApiServer) -> None:
    await make(client, "a")
    mirror = reflector(client)
    async with running(mirror):
        await until(lambda: server.faults.watches == 1)
        too_large = (
            b'{"type":"ERROR","object":{"kind":"Status","status":"Failure","reason":"Timeout","code":504,'
            b'"message":"Too large resource version","details":{"causes":[{"reason":"ResourceVersionTooLarge"}]}}}\n'
        )
        for opened in range(2, 6):
            server.faults.send_to_watches(too_large)
            await until(lambda opened=opened: server.faults.opened == opened)  # type: ignore[misc]
        assert mirror.statistics.lists == 1
        server.faults.send_to_watches(too_large)
        await until(lambda: mirror.statistics.lists == 2)


async def test_a_custom_object_that_does_not_fit_is_reported_and_left_out(client: KubeClient) -> None:
    async def nad(name: str, config: Any) -> None:
        body = {"metadata": {"name": name}, "spec": {"config": config}}
        await client.request("POST", NETWORK_ATTACHMENT_DEFINITIONS.path("default"), body=msgspec.json.encode(body))

    await nad("good", "{}")
    await nad("bad", {"not": "text"})
    reports: list[str] = []
    mirror: Reflector[NetworkAttachmentDefinition] = Reflector(
        client,
        NETWORK_ATTACHMENT_DEFINITIONS,
        namespace="default",
        on_unreadable=lambda bad: reports.append(bad.key),
    )
    async with running(mirror):
        assert list(mirror.store) == ["default/good"]
        assert reports == ["default/bad"]
        path = NETWORK_ATTACHMENT_DEFINITIONS.path("default", "good")
        merge = "application/merge-patch+json"
        await client.request("PATCH", path, body=b'{"spec":{"config":5}}', content_type=merge)
        await until(lambda: reports == ["default/bad", "default/good"])
        assert list(mirror.store) == []
        await client.request("PATCH", path, body=b'{"spec":{"config":"{}"}}', content_type=merge)
        await until(lambda: list(mirror.store) == ["default/good"])


async def test_selectors_are_kept_over_a_relist(client: KubeClient, server: ApiServer) -> None:
    await make(client, "other")
    await client.create(CONFIG_MAPS, {"metadata": {"name": "mine", "labels": {"on": "yes"}}}, "default")
    mirror = reflector(client, label_selector="on=yes")
    async with running(mirror) as changes:
        assert list(mirror.store) == ["default/mine"]
        server.gone()
        await until(lambda: mirror.statistics.lists == 2)
        body = {"metadata": {"labels": {"on": None}}}
        await client.merge_patch(CONFIG_MAPS, "mine", "default", body)
        await until(lambda: not mirror.store)
        assert changes == [("added", "default/mine"), ("deleted", "default/mine")]
