"""The bridge under test: --target HOST:PORT (clear text) or unix:/path; the function it may use: --function PF.VF."""

from collections.abc import AsyncIterator

import grpc.aio
import pytest

from opi_bridge.conformance.client import OpiClient


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--target", default="", help="HOST:PORT or unix:/path of the bridge to be tested")
    parser.addoption("--function", default="0.1", help="a free PCI function of its card, PF.VF")


@pytest.fixture
async def api(request: pytest.FixtureRequest) -> AsyncIterator[OpiClient]:
    target = request.config.getoption("--target")
    if not target:
        pytest.fail("say which bridge: --target HOST:PORT or --target unix:/path")
    options = [("grpc.default_authority", "localhost")]
    async with grpc.aio.insecure_channel(target, options=options) as channel:
        yield OpiClient(channel)


@pytest.fixture
def function(request: pytest.FixtureRequest) -> tuple[int, int]:
    pf, _, vf = str(request.config.getoption("--function")).partition(".")
    return int(pf), int(vf)
