"""Fixtures which the tests of the DPU's storage share."""

from collections.abc import Iterator
from typing import Any

import pytest

from foundation.spdk.client import SpdkClient
from tests.dpu_rig.rig import Pair
from tests.dpu_rig.schema import problems


@pytest.fixture(scope="session", name="pair")
def shared_pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Two stand-ins, started when first needed."""
    pair = Pair(tmp_path_factory.mktemp("pair"))
    yield pair
    pair.end()


@pytest.fixture(autouse=True)
def every_request_is_valid(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SPDK's schema is the judge of each request that any of these tests sends."""
    wrong: list[str] = []
    call = SpdkClient.call_as

    async def checked(self: SpdkClient, kind: Any, method: str, params: Any = None, **more: Any) -> Any:
        wrong.extend(problems(method, params))
        return await call(self, kind, method, params, **more)

    monkeypatch.setattr(SpdkClient, "call_as", checked)
    yield
    assert not wrong
