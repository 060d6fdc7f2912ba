"""Several pools, of which one is away or elsewhere: what the others can do goes on, and what cannot be says why."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from csi import identity
from csi.errors import AlreadyExists, InvalidArgument, ResourceExhausted, Unavailable
from csi.framework.backend import SizeRange, Source, VolumeSpec
from csi.framework.backends.spdk import BACKEND, SpdkBackend
from csi.framework.backends.spdk.config import SpdkConfig, SpdkParameters
from tests.csi_rig.target import Target, section

MIB = 1 << 20


@pytest.fixture
async def backend(target: Target, tmp_path: Path) -> AsyncIterator[SpdkBackend]:
    """Pool p0 answers, in zone 1; pool p1 has never been up, in zone 2."""
    given: dict[str, Any] = {key: value for key, value in section(target).items() if key != "kind"}
    (name,) = given["pools"]
    here = given["pools"][name]
    pools = {
        name: {**here, "topology": {"zone": "1"}},
        "p1": {**here, "address": f"unix:{tmp_path}/nobody", "topology": {"zone": "2"}},
    }
    backend = BACKEND.open("spdk", msgspec.convert({**given, "pools": pools, "call_seconds": 0.5}, SpdkConfig))
    await backend.start()
    assert isinstance(backend, SpdkBackend)
    yield backend
    await backend.close()


def spec(name: str, *, pool: str = "", **more: Any) -> VolumeSpec[SpdkParameters]:
    token = identity.hashed(name)
    return VolumeSpec(token=token, size=SizeRange(16 * MIB), parameters=SpdkParameters(pool=pool), **more)


async def test_a_pool_that_is_away_is_not_a_full_one(backend: SpdkBackend) -> None:
    """external-provisioner takes RESOURCE_EXHAUSTED as a reason to look for another node."""
    with pytest.raises(Unavailable, match="nobody"):
        await backend.create(spec("a", pool="p1"))
    with pytest.raises(ResourceExhausted, match="topology"):
        await backend.create(spec("a", requisite=({"zone": "2"},)))
    assert (await backend.create(spec("a"))).key.startswith("p0.")


async def test_a_name_is_taken_wherever_it_is(backend: SpdkBackend) -> None:
    volume = await backend.create(spec("a", requisite=({"zone": "1"},)))
    assert await backend.create(spec("a", requisite=({"zone": "2"}, {"zone": "1"}))) == volume
    with pytest.raises(AlreadyExists, match="topology"):
        await backend.create(spec("a", requisite=({"zone": "2"},)))


async def test_snapshots_need_only_their_own_pool(backend: SpdkBackend) -> None:
    volume = await backend.create(spec("a"))
    snapshot = await backend.snapshot(identity.hashed("s"), volume.key)
    assert await backend.snapshot(identity.hashed("s"), volume.key) == snapshot
    clone = await backend.create(spec("b", source=Source("snapshot", snapshot.key)))
    for source in (Source("snapshot", snapshot.key), Source("volume", clone.key)):
        with pytest.raises(InvalidArgument, match="across pools"):
            await backend.create(spec("c", pool="p1", source=source))
    with pytest.raises(Unavailable, match="nobody"):
        await backend.snapshots()
