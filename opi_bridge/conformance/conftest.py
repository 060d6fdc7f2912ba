"""The bridge under test: --target HOST:PORT (clear text) or unix:/path; the function it may use: --function PF.VF."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from opi_bridge.conformance import options
from opi_bridge.conformance.client import OpiClient


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    if not any(getattr(plugin, "__name__", "") == options.__name__ for plugin in pluginmanager.get_plugins()):
        options.pytest_addoption(parser)


def pytest_configure(config: pytest.Config) -> None:
    """The tests are coroutines; run from elsewhere, no settings of this project say so."""
    if config.getoption("asyncio_mode", default=None) is None:
        config.option.asyncio_mode = "auto"


@pytest.fixture
async def api(request: pytest.FixtureRequest) -> AsyncIterator[OpiClient]:
    target = request.config.getoption("--target")
    if not target:
        pytest.fail("say which bridge: --target HOST:PORT or --target unix:/path")
    # Some servers close a connection whose authority is a socket's path.
    settings = [("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(target, options=settings) as channel:
        yield OpiClient(channel)


@pytest.fixture
def function(request: pytest.FixtureRequest) -> tuple[int, int]:
    pf, _, vf = str(request.config.getoption("--function")).partition(".")
    return int(pf), int(vf)
