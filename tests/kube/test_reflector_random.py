"""Whatever happens to objects and connections, a reflector ends with the server's state and has told a true story."""

from __future__ import annotations

import asyncio
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.daemon.backoff import Backoff
from foundation.kube.client import KubeClient
from foundation.kube.configuration import Connection
from foundation.kube.models.core import ConfigMap
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import CONFIG_MAPS
from lab.apiserver.faults import Rule
from lab.apiserver.kinds import Kind
from lab.apiserver.registry import Write
from lab.apiserver.server import ApiServer
from lab.apiserver.status import StatusError

NAMES = ("a", "b", "c", "d")

steps = st.lists(
    st.one_of(
        st.tuples(st.just("make"), st.sampled_from(NAMES)),
        st.tuples(st.just("change"), st.sampled_from(NAMES)),
        st.tuples(st.just("sight"), st.sampled_from(NAMES)),
        st.tuples(st.just("drop"), st.sampled_from(NAMES)),
        st.tuples(
            st.just("trouble"),
            st.sampled_from(["cut", "end", "gone", "expire", "stall", "resume", "garbage", "away", "back", "fail"]),
        ),
        st.tuples(st.just("breathe"), st.sampled_from(["", "longer"])),
    ),
    max_size=40,
)


class Writer:
    """Writes to the server without going through its (broken) network."""

    def __init__(self, server: ApiServer) -> None:
        self._registry = server.registry
        kind = server.kinds.find("", "v1", "configmaps")
        assert kind is not None
        self._kind: Kind = kind
        self._number = 0

    def do(self, what: str, name: str) -> None:
        self._number += 1
        key = ("default", name)
        try:
            if what == "make":
                labels = {"on": "yes"} if self._number % 3 else {}
                body: dict[str, Any] = {"metadata": {"name": name, "labels": labels}}
                self._registry.create(self._kind, "default", body, Write())
            elif what == "change":
                self._registry.patch(self._kind, key, {"data": {"n": str(self._number)}}, "merge", Write())
            elif what == "sight":
                labels = {"on": "yes" if self._number % 2 else None}
                self._registry.patch(self._kind, key, {"metadata": {"labels": labels}}, "merge", Write())
            else:
                self._registry.delete(self._kind, key, {})
        except StatusError:
            return  # made twice, or not there: as good as not done


async def _trouble(server: ApiServer, what: str) -> None:
    match what:
        case "cut":
            server.faults.drop_watches()
        case "end":
            server.faults.end_watches()
        case "gone":
            server.gone()
        case "expire":
            server.expire()
        case "stall":
            server.faults.stall_watches()
        case "resume":
            server.faults.resume_watches()
        case "garbage":
            server.faults.send_to_watches(b'{"type":"ADDED","obj\n')
        case "away":
            await server.refuse()
        case "back":
            await server.accept()
        case "fail":
            server.faults.add(Rule(code=500, times=2))


class Story:
    """Follows the changes as a subscriber would, and finds those that can't be true."""

    def __init__(self) -> None:
        self.known: dict[str, ConfigMap] = {}

    def hear(self, change: Change[ConfigMap]) -> None:
        assert self.known.get(change.key) == change.old, "what is said to have been is what was told before"
        if change.kind == "deleted":
            assert change.new is None
            del self.known[change.key]
            return
        assert change.new is not None
        assert (change.kind == "added") == (change.old is None)
        if change.old is not None:
            assert change.old.metadata.uid == change.new.metadata.uid
            before, after = change.old.metadata.resource_version, change.new.metadata.resource_version
            assert int(before) < int(after), "never back in time"
        self.known[change.key] = change.new


async def _play(script: list[tuple[str, str]], selector: str) -> None:
    lies: list[BaseException] = []
    story = Story()

    def hear(change: Change[ConfigMap]) -> None:
        try:
            story.hear(change)
        except (AssertionError, KeyError) as lie:
            lies.append(lie)

    async with ApiServer(history=12) as server, KubeClient(Connection(server=server.url), deadline=0.2) as client:
        mirror = Reflector(
            client,
            CONFIG_MAPS,
            namespace="default",
            label_selector=selector,
            page=2,
            idle_seconds=0.15,
            watch_seconds=1.0,
            backoff=Backoff(0.001, 0.01),
        )
        mirror.subscribe(hear)
        writer = Writer(server)
        task = asyncio.create_task(mirror.run())
        for what, which in script:
            if what == "trouble":
                await _trouble(server, which)
            elif what == "breathe":
                await asyncio.sleep(0.01 if which else 0)
            else:
                writer.do(what, which)
        await server.accept()
        server.faults.clear()
        server.faults.resume_watches()
        table = server.store.all(("", "configmaps"))
        wanted = {
            f"{key[0]}/{key[1]}": stored.object["metadata"]["resourceVersion"]
            for key, stored in table
            if not selector or (stored.object["metadata"].get("labels") or {}).get("on") == "yes"
        }
        async with asyncio.timeout(30):
            while not mirror.has_synced or _versions(mirror) != wanted:
                assert not task.done()
                await asyncio.sleep(0.002)
        task.cancel()
        await asyncio.wait({task})
        assert not lies, lies
        assert story.known == dict(mirror.store)


def _versions(mirror: Reflector[ConfigMap]) -> dict[str, str]:
    return {key: each.metadata.resource_version for key, each in mirror.store.items()}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(script=steps, selector=st.sampled_from(["", "on=yes"]))
def test_it_ends_with_the_servers_state(script: list[tuple[str, str]], selector: str) -> None:
    asyncio.run(_play(script, selector))
