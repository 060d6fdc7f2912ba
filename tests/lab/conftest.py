"""One whole lab for the tests that kill parts of it, beside whatever lab the machine may be running."""

import io
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from foundation.kube.client import KubeClient
from lab.demo.observer import Observer
from lab.demo.steps import Recorder
from lab.layout import Layout
from lab.suite import Options, Suite


class RunningLab:
    """A lab with an observer of its cluster."""

    def __init__(self, suite: Suite, observer: Observer) -> None:
        self.suite = suite
        self.observer = observer
        self.layout = suite.layout

    @property
    def network(self):  # type: ignore[no-untyped-def]  # lab.network.Network; never None while it runs
        return self.suite.network


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running_lab() -> AsyncIterator[RunningLab]:
    layout = Layout(run=Path("/run") / f"dl{os.getpid()}", prefix=f"dl{os.getpid()}")
    suite = Suite(Options(layout=layout))
    output = io.StringIO()
    try:
        await suite.up(Recorder(output))
        async with await KubeClient.connect(kubeconfig=str(suite.kubeconfig)) as client:
            observer = Observer(client)
            await observer.start()
            yield RunningLab(suite, observer)
            await observer.stop()
    finally:
        await suite.down()
