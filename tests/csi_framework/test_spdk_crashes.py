"""csi-controller killed at any call to its target, and the target killed between: the retry ends with what was wanted.

A kill is an exception that nothing catches, before a call is sent or after the target has carried it out; whoever comes
next is a new backend that remembers nothing. Sequences of operations are drawn by hypothesis against a model; 200 more,
with real processes killed, are in tests/csi_controller/test_kills.py.
"""

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from benchmarks import report
from csi import identity
from csi.errors import AlreadyExists, FailedPrecondition, NotFound
from csi.framework import naming as names
from csi.framework.backend import HostKeys, SizeRange, Source, VolumeSpec
from csi.framework.backends.spdk import BACKEND, calls
from csi.framework.backends.spdk.backend import SpdkBackend
from csi.framework.backends.spdk.config import SpdkConfig, SpdkParameters
from foundation.spdk.client import SpdkClient
from tests.csi_rig.target import Target, section

MIB = 1 << 20
SEQUENCES = 50
VOLUMES, SNAPSHOTS, HOSTS = ("a", "b", "c"), ("s", "t"), ("h1", "h2")


class Killed(BaseException):
    """SIGKILL, as far as Python code can tell."""


@dataclasses.dataclass
class Executioner:
    """Kills at the call that is `left` calls away; `after`: the target has done that call."""

    left: int = -1
    after: bool = False
    kills: int = 0

    def arm(self, left: int, *, after: bool) -> None:
        self.left, self.after = left, after

    async def around(self, call: Callable[[], Awaitable[Any]]) -> Any:
        if self.left < 0:
            return await call()
        self.left -= 1
        if self.left >= 0:
            return await call()
        self.kills += 1
        if self.after:
            await call()
        raise Killed


@pytest.fixture
def executioner(monkeypatch: pytest.MonkeyPatch) -> Executioner:
    found = Executioner()
    ask, do, together = calls.Target.ask, calls.Target.do, calls.Target.together

    async def dying_ask(self: calls.Target, kind: Any, method: str, params: Any = None) -> Any:
        return await found.around(lambda: ask(self, kind, method, params))

    async def dying_do(self: calls.Target, what: str, method: str, params: Any = None) -> Any:
        return await found.around(lambda: do(self, what, method, params))

    async def dying_together(self: calls.Target, batch: Any) -> Any:
        """Of calls written at once the target may have read only the first ones."""
        if 0 <= found.left < len(batch):
            done, found.left = found.left, -1
            found.kills += 1
            await together(self, batch[: done + found.after])
            raise Killed
        found.left -= len(batch) if found.left >= 0 else 0
        return await together(self, batch)

    monkeypatch.setattr(calls.Target, "ask", dying_ask)
    monkeypatch.setattr(calls.Target, "do", dying_do)
    monkeypatch.setattr(calls.Target, "together", dying_together)
    return found


@dataclasses.dataclass
class Model:
    """What Kubernetes says exists."""

    sizes: dict[str, int] = dataclasses.field(default_factory=dict)
    made_from: dict[str, str] = dataclasses.field(default_factory=dict)
    snapshots: dict[str, str] = dataclasses.field(default_factory=dict)
    hosts: dict[str, set[str]] = dataclasses.field(default_factory=dict)


class World:
    def __init__(self, target: Target, executioner: Executioner) -> None:
        self.target = target
        self.executioner = executioner
        self.model = Model()
        self.keys: dict[str, str] = {}
        self.backend = self._new()

    def _new(self) -> SpdkBackend:
        given = {key: value for key, value in section(self.target).items() if key != "kind"}
        backend = BACKEND.open("spdk", msgspec.convert(given, SpdkConfig))
        assert isinstance(backend, SpdkBackend)
        return backend

    async def survive(self, work: Callable[[], Awaitable[Any]]) -> Any:
        """Once with the kill, then by a new process without one, as the side-cars retry."""
        try:
            return await work()
        except Killed:
            await self.backend.close()
            self.backend = self._new()
            return await work()
        finally:
            self.executioner.left = -1

    def key(self, name: str) -> str:
        return f"p0.{names.volume(identity.hashed(name))}"

    def host(self, name: str) -> str:
        return identity.host_nqn(name)

    # --- operations: each says what the model expects ---------------------------------------------------------------

    async def create(self, name: str, size: int, source: str) -> None:
        given: Source | None = None
        wanted_size = size
        if source in VOLUMES:
            given = Source("volume", self.key(source))
        elif source in SNAPSHOTS:
            given = Source("snapshot", self.keys.get(source, f"p0.s{'a' * 20}.00000001.v{'a' * 20}"))
        spec = VolumeSpec(
            token=identity.hashed(name), size=SizeRange(wanted_size), parameters=SpdkParameters(), source=given
        )
        known = name in self.model.sizes
        if known:
            same = self.model.made_from[name] == (given.key if given else "") and self.model.sizes[name] >= size
            try:
                await self.survive(lambda: self.backend.create(spec))
                # A source that is gone is no longer known by name; then the claim cannot be told from the volume.
                assert same or self.model.sizes[name] >= size
            except AlreadyExists:
                assert not same
            return
        if given is not None and source not in self.model.sizes and source not in self.model.snapshots:
            with pytest.raises(NotFound):
                await self.survive(lambda: self.backend.create(spec))
            return
        volume = await self.survive(lambda: self.backend.create(spec))
        least = self.model.sizes.get(source, self.model.sizes.get(self.model.snapshots.get(source, ""), 0))
        assert volume.size >= size
        assert volume.key == self.key(name)
        assert volume.size >= min(least, volume.size)
        self.model.sizes[name] = volume.size
        self.model.made_from[name] = given.key if given else ""
        self.model.hosts[name] = set()

    async def delete(self, name: str, *_: object) -> None:
        if self.model.hosts.get(name):
            with pytest.raises(FailedPrecondition):
                await self.survive(lambda: self.backend.delete(self.key(name)))
            return
        await self.survive(lambda: self.backend.delete(self.key(name)))
        for table in (self.model.sizes, self.model.made_from, self.model.hosts):
            table.pop(name, None)  # type: ignore[attr-defined]  # three dicts of different values

    async def expand(self, name: str, size: int, _: str) -> None:
        if name not in self.model.sizes:
            with pytest.raises(NotFound):
                await self.survive(lambda: self.backend.expand(self.key(name), SizeRange(size)))
            return
        volume = await self.survive(lambda: self.backend.expand(self.key(name), SizeRange(size)))
        assert volume.size == max(size, self.model.sizes[name])
        self.model.sizes[name] = volume.size

    async def snapshot(self, name: str, _: int, snapshot: str) -> None:
        snapshot = snapshot if snapshot in SNAPSHOTS else "s"
        token = identity.hashed(snapshot)
        if snapshot in self.model.snapshots and self.model.snapshots[snapshot] != name:
            expected: type[Exception] = AlreadyExists
        elif name not in self.model.sizes and snapshot not in self.model.snapshots:
            expected = NotFound
        else:
            taken = await self.survive(lambda: self.backend.snapshot(token, self.key(name)))
            self.model.snapshots[snapshot] = name
            self.keys[snapshot] = taken.key
            return
        with pytest.raises(expected):
            await self.survive(lambda: self.backend.snapshot(token, self.key(name)))

    async def delete_snapshot(self, _: str, __: int, snapshot: str) -> None:
        key = self.keys.get(snapshot if snapshot in SNAPSHOTS else "s")
        if key is not None:
            await self.survive(lambda: self.backend.delete_snapshot(key))
            self.model.snapshots.pop(snapshot if snapshot in SNAPSHOTS else "s", None)

    async def publish(self, name: str, size: int, _: str) -> None:
        host = HOSTS[size // MIB % 2]

        def work() -> Awaitable[Any]:
            return self.backend.grant(self.key(name), self.host(host), keys=HostKeys(), shared=False)

        if name not in self.model.sizes:
            with pytest.raises(NotFound):
                await self.survive(work)
        elif self.model.hosts[name] - {host}:
            with pytest.raises(FailedPrecondition):
                await self.survive(work)
        else:
            await self.survive(work)
            self.model.hosts[name].add(host)

    async def unpublish(self, name: str, size: int, _: str) -> None:
        host = HOSTS[size // MIB % 2]
        await self.survive(lambda: self.backend.revoke(self.key(name), self.host(host)))
        self.model.hosts.get(name, set()).discard(host)

    async def converge(self, *_: object) -> None:
        wanted = {
            self.key(name): {self.host(host): HostKeys() for host in hosts} for name, hosts in self.model.hosts.items()
        }
        await self.survive(lambda: self.backend.converge(wanted, {}))

    async def lose_exports(self, *_: object) -> None:
        """What a restart of the target does to subsystems, without the half second that a process needs."""
        async with SpdkClient(self.target.address) as client:
            for subsystem in await client.call("nvmf_get_subsystems"):
                if identity.is_ours(subsystem["nqn"]):
                    await client.call("nvmf_delete_subsystem", {"nqn": subsystem["nqn"]})
        await self.converge()

    # --- judgement --------------------------------------------------------------------------------------------------

    async def check(self) -> None:
        for finding in await self.backend.garbage():
            await self.backend.remove(finding)
        assert await self.backend.garbage() == []
        volumes = {volume.key: volume for volume in await self.backend.volumes()}
        assert {key: volume.size for key, volume in volumes.items()} == {
            self.key(name): size for name, size in self.model.sizes.items()
        }
        for name, hosts in self.model.hosts.items():
            assert set(volumes[self.key(name)].hosts) == {self.host(host) for host in hosts}
            assert volumes[self.key(name)].exported
        snapshots = {snapshot.key: snapshot.source_key for snapshot in await self.backend.snapshots()}
        assert snapshots == {self.keys[each]: self.key(source) for each, source in self.model.snapshots.items()}

    async def clear(self) -> None:
        """Everything deleted leaves nothing at all."""
        for name, hosts in list(self.model.hosts.items()):
            for host in hosts:
                await self.backend.revoke(self.key(name), self.host(host))
            await self.backend.delete(self.key(name))
        for snapshot in list(self.model.snapshots):
            await self.backend.delete_snapshot(self.keys[snapshot])
        for _ in range(6):
            for finding in await self.backend.garbage():
                await self.backend.remove(finding)
        async with SpdkClient(self.target.address) as client:
            assert [each["name"] for each in await client.call("bdev_lvol_get_lvols")] == []
            left = [each["nqn"] for each in await client.call("nvmf_get_subsystems")]
        assert [nqn for nqn in left if identity.is_ours(nqn)] == []


OPERATIONS = (
    *("create", "create", "create", "snapshot", "publish", "unpublish", "expand", "delete", "delete_snapshot"),
    "lose_exports",
)
operation = st.tuples(
    st.sampled_from(OPERATIONS),
    st.sampled_from(VOLUMES),
    st.sampled_from((8 * MIB, 16 * MIB, 25 * MIB)),
    st.sampled_from(("", "", *SNAPSHOTS, *VOLUMES)),
    st.integers(-1, 9),
    st.booleans(),
)


async def play(target: Target, executioner: Executioner, sequence: list[tuple[str, str, int, str, int, bool]]) -> None:
    world = World(target, executioner)
    try:
        for what, name, size, other, left, after in sequence:
            executioner.arm(left, after=after)
            await getattr(world, what)(name, size, other)
            executioner.left = -1
        await world.check()
        await world.clear()
    finally:
        executioner.left = -1
        await world.backend.close()


@pytest.fixture
def runner() -> Iterator[asyncio.Runner]:
    with asyncio.Runner() as found:
        yield found


@pytest.mark.timeout(180)
def test_any_sequence_with_any_kill(running: Target, executioner: Executioner, runner: asyncio.Runner) -> None:
    runner.run(running.empty())

    @settings(
        max_examples=SEQUENCES,
        deadline=None,
        phases=(Phase.explicit, Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
        database=None,
        # The same sequences each time: new ones are for a machine with somebody at it.
        derandomize=True,
    )
    @given(st.lists(operation, min_size=4, max_size=9))
    def sequences(sequence: list[tuple[str, str, int, str, int, bool]]) -> None:
        try:
            runner.run(asyncio.wait_for(play(running, executioner, sequence), 60))
        except BaseException:
            runner.run(running.empty())
            raise

    sequences()
    report.merge(
        "faults.json", {"claim: sequences on the target": {"points": executioner.kills, "clean": executioner.kills}}
    )
    assert executioner.kills >= SEQUENCES


SETUP = {
    "create": [],
    "restore": [("create", "a", 16 * MIB, ""), ("snapshot", "a", 0, "s")],
    "clone": [("create", "a", 16 * MIB, "")],
    "delete": [("create", "a", 16 * MIB, ""), ("snapshot", "a", 0, "s"), ("delete_snapshot", "", 0, "s")],
}
STEP = {
    "create": ("create", "a", 16 * MIB, ""),
    "restore": ("create", "b", 32 * MIB, "s"),
    "clone": ("create", "b", 16 * MIB, "a"),
    "delete": ("delete", "a", 0, ""),
}


@pytest.mark.parametrize("step", STEP)
def test_a_kill_at_every_call_of_a_step(
    running: Target, executioner: Executioner, runner: asyncio.Runner, step: str
) -> None:
    """Until the step needs fewer calls than the kill waits for: then every call of it has been tried."""
    runner.run(running.empty())
    points = 0
    for left in range(40):
        before = executioner.kills
        for after in (False, True):
            sequence = [*((*each, -1, False) for each in SETUP[step]), (*STEP[step], left, after)]
            runner.run(play(running, executioner, sequence))
        points += executioner.kills - before
        if executioner.kills == before:
            break
    else:
        raise AssertionError("the step has more calls than expected")
    report.merge("faults.json", {f"claim: {step}": {"points": points, "clean": points}})
    assert points >= 2
