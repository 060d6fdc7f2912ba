"""The backend of docs/a-backend-in-100-lines.md, as it stands there, under the conformance suite."""

import re
import types
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from csi.framework.backend import BackendKind
from csi.framework.conformance.storage import Storage
from csi.framework.conformance.suite import BackendConformance
from csi.framework.registry import Registry
from foundation.spdk.client import SpdkClient
from tests.csi_rig.target import PORT, Target

PAGE = Path(__file__).resolve().parents[2] / "docs/a-backend-in-100-lines.md"
(CODE,) = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def kind() -> BackendKind:
    module = types.ModuleType("acme")
    exec(compile(CODE, str(PAGE), "exec"), module.__dict__)
    found: Any = module.__dict__["BACKEND"]
    assert isinstance(found, BackendKind)
    return found


def test_it_has_a_hundred_lines() -> None:
    assert sum(1 for line in CODE.splitlines() if line.strip()) <= 100


class TestDocumentedBackend(BackendConformance):
    @pytest.fixture
    async def storage(
        self, kind: BackendKind, target: Target, raw: SpdkClient, tmp_path: Path
    ) -> AsyncIterator[Storage]:
        portals = [{"transport": "tcp", "address": "127.0.0.1", "port": PORT}]
        section = {"directory": str(tmp_path), "spdk": target.address, "portals": portals}
        backend = Registry.open({"acme": section}, kinds={"acme": kind}).backends["acme"]
        await backend.start()
        yield Storage(backend=backend, parameters=kind.parameters(), restart=target.restart)
        await backend.close()
        for bdev in await raw.call("bdev_get_bdevs"):
            if bdev["name"].startswith("v") and bdev["product_name"] == "AIO disk":
                await raw.call("bdev_aio_delete", {"name": bdev["name"]})
