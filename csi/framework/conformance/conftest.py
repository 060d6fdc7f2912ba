"""Lets a backend author run the suite from the command line, against any configured storage."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import yaml

from csi.framework.conformance.storage import Storage
from csi.framework.registry import Registry


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("storage backend conformance")
    group.addoption(
        "--backend-section", help="YAML file: one section of csi-controller's `backends`, key `kind` included"
    )
    group.addoption("--backend-parameters", default="{}", help="StorageClass parameters of the backend, as YAML")
    group.addoption("--backend-volume-bytes", type=int, default=16 << 20, help="a small size it gives exactly")


@pytest.fixture
async def configured_storage(request: pytest.FixtureRequest) -> AsyncIterator[Storage]:
    """An empty storage; what the cases leave is deleted again."""
    path = request.config.getoption("--backend-section")
    if not path:
        pytest.skip("no --backend-section given")
    section = yaml.safe_load(Path(path).read_text())
    registry = Registry.open({"conformance": section})
    backend = registry.backends["conformance"]
    given = yaml.safe_load(request.config.getoption("--backend-parameters"))
    parameters = msgspec.convert(given, registry.kinds["conformance"].parameters, strict=False)
    await backend.start()
    try:
        yield Storage(
            backend=backend, parameters=parameters, volume_bytes=request.config.getoption("--backend-volume-bytes")
        )
        for volume in await backend.volumes():
            for host in volume.hosts:
                await backend.revoke(volume.key, host)
            await backend.delete(volume.key)
        for snapshot in await backend.snapshots():
            await backend.delete_snapshot(snapshot.key)
    finally:
        await backend.close()
