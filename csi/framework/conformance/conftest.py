"""Lets a backend author run the suite from the command line, against any configured storage."""

from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest
import yaml

from csi.framework.conformance import options
from csi.framework.conformance.storage import Storage
from csi.framework.registry import Registry


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not any(getattr(plugin, "__name__", "") == options.__name__ for plugin in pluginmanager.get_plugins()):
        options.pytest_addoption(parser)


def pytest_configure(config: pytest.Config) -> None:
    """The cases are coroutines; run from elsewhere, no settings of this project say so."""
    if config.getoption("asyncio_mode", default=None) is None:
        config.option.asyncio_mode = "auto"


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
