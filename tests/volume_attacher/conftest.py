"""A DPU with its target, for the attacher's tests."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from foundation.spdk.client import SpdkClient
from tests.dpu_rig.rig import DpuRig
from tests.dpu_rig.schema import problems


@pytest.fixture(autouse=True)
def _every_request_is_valid(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """SPDK's schema is the judge of each request that any of these tests sends."""
    wrong: list[str] = []
    call = SpdkClient.call

    async def checked(self: SpdkClient, method: str, params: Any = None, **more: Any) -> Any:
        wrong.extend(problems(method, params))
        return await call(self, method, params, **more)

    monkeypatch.setattr(SpdkClient, "call", checked)
    yield
    assert not wrong


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[DpuRig]:
    rig = DpuRig(tmp_path)
    await rig.start()
    yield rig
    await rig.stop()
