"""The bridge under test: --target HOST:PORT or unix:/path; the function it may use: --function PF.VF."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
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
    async with _channel(target, request.config) as channel:
        yield OpiClient(channel)


def _channel(target: str, config: pytest.Config) -> grpc.aio.Channel:
    authority = _file(config, "--target-ca")
    if authority is None:
        # Some servers close a connection whose authority is a socket's path.
        return grpc.aio.insecure_channel(target, options=[("grpc.default_authority", "localhost")])
    name = config.getoption("--target-name")
    credentials = grpc.ssl_channel_credentials(
        authority, private_key=_file(config, "--target-key"), certificate_chain=_file(config, "--target-certificate")
    )
    options = [("grpc.ssl_target_name_override", name)] if name else []
    return grpc.aio.secure_channel(target, credentials, options=options)


def _file(config: pytest.Config, option: str) -> bytes | None:
    path = config.getoption(option)
    return Path(path).read_bytes() if path else None


@pytest.fixture
def function(request: pytest.FixtureRequest) -> tuple[int, int]:
    pf, _, vf = str(request.config.getoption("--function")).partition(".")
    return int(pf), int(vf)
