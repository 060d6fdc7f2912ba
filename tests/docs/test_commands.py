"""Every command of README and docs is run as a reader runs it, or the page says who runs it, or why nobody does."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.docs.blocks import ROOT, Block, blocks, fits
from tests.tracing.collector import Collector

BLOCKS = tuple(blocks())
SCRIPTS = Path(sys.executable).parent
COMMAND_SECONDS = 170.0
ATTACH = "dpu_offload.attacher.v1.VolumeAttacher/Attach"
# What needs a card or a cluster. A page that gains one says so by raising this number.
NOT_RUN = 13


class Shell:
    """One shell for the blocks of a page, so that `export` lasts; each command's output and status are seen."""

    def __init__(self, directory: Path, environ: Mapping[str, str]) -> None:
        self._directory = directory
        self._environ = environ
        self._end = "--end-of-command--"

    async def __aenter__(self) -> Shell:
        self._process = await asyncio.create_subprocess_exec(
            *("bash", "--noprofile", "--norc"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=ROOT,
            env={
                **os.environ,
                **self._environ,
                "PATH": f"{self._directory}:{SCRIPTS}:{os.environ['PATH']}",
                "NO_COLOR": "1",
            },
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def run(self, line: str) -> tuple[int, str]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{line} </dev/null; status=$?\necho; echo {self._end} $status\n".encode())
        output: list[str] = []
        async with asyncio.timeout(COMMAND_SECONDS):
            while text := (await self._process.stdout.readline()).decode("utf-8", "replace"):
                if text.startswith(self._end):
                    return int(text.split()[1]), "".join(output)
                output.append(text)
        raise AssertionError(f"the shell ended in: {line}")


def test_each_block_says_how_it_is_run() -> None:
    unmarked = [block.place for block in BLOCKS if not (block.where or block.elsewhere or block.not_run)]
    assert unmarked == [], (
        "put <!-- lab -->, <!-- here -->, <!-- run elsewhere: FILE --> or <!-- not run: WHY --> there"
    )
    assert [block.place for block in BLOCKS if not block.commands] == []


def test_what_is_run_elsewhere_is_there() -> None:
    missing = [block.place for block in BLOCKS if block.elsewhere and not (ROOT / block.elsewhere).exists()]
    assert missing == []


def test_what_nobody_can_run_is_counted() -> None:
    assert [block.place for block in BLOCKS if block.not_run and len(block.not_run) < 10] == []
    assert sum(bool(block.not_run) for block in BLOCKS) == NOT_RUN


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A directory with a `dpu-lab` that keeps to a lab of this test's own, and a kubectl where there is none."""
    run, prefix = Path(f"/tmp/docs-{os.getpid()}"), f"d{os.getpid() % 10000}"
    scripts = {"dpu-lab": f'exec {SCRIPTS}/dpu-lab "$@" --run-dir {run} --prefix {prefix}'}
    if shutil.which("kubectl") is None:
        scripts["kubectl"] = f'exec {sys.executable} -m tests.docs.kubectl "$@"'
    for name, line in scripts.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{line}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "run").write_text(str(run))
    return tmp_path


@pytest.mark.root
@pytest.mark.timeout(300)
async def test_what_the_pages_do_in_the_lab_is_what_they_show(programs: Path) -> None:
    """One lab for all pages: the page that builds it comes first, and its taking down last."""
    run = (programs / "run").read_text()
    own = [block for block in BLOCKS if block.where == "lab"]
    first = next(block.page for block in own for command in block.commands if command.line == "dpu-lab up")
    own.sort(key=lambda block: (_ends(block), block.page != first))
    async with Collector() as collector, Shell(programs, traced(collector.url)) as shell:
        try:
            for block in own:
                await _run(shell, block, run)
        finally:
            await shell.run("dpu-lab down")
            shutil.rmtree(run, ignore_errors=True)
        plugged = collector.ancestry("dpu_offload.link.v1.Link/Plug")
        created = collector.ancestry("dpu_offload.card.v1.Card/CreateAll")
    # What the pages' pod and claim went through, as one trace each: the host with its DPU, csi-controller to the card.
    assert any(way[0] == "CNI ADD" for way in plugged), plugged
    through = ["csi.v1.Controller/ControllerPublishVolume", ATTACH, ATTACH]
    assert any([name for name in way if name in through] == through for way in created), created


def traced(url: str) -> dict[str, str]:
    """Environment of daemons that send their traces to this collector."""
    names = ("CNI_NODE", "CSI_CONTROLLER", "CSI_NODE_DPU", "VOLUME_ATTACHER", "OPI_BRIDGE")
    return {f"DPU_OFFLOAD_{name}__TRACING__ENDPOINT": url for name in names}


def _ends(block: Block) -> bool:
    return any(command.line == "dpu-lab down" for command in block.commands)


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.where == "here"], ids=lambda block: block.place)
async def test_a_command_that_needs_nothing(block: Block, tmp_path: Path) -> None:
    if block.needs and shutil.which(block.needs) is None:
        pytest.skip(f"{block.needs} is not on the PATH; with it this block runs too")
    async with Shell(tmp_path, {}) as shell:
        await _run(shell, block, "")


async def _run(shell: Shell, block: Block, run: str) -> None:
    for number, command in enumerate(block.commands, start=1):
        line = command.line.replace("/run/dpu-lab", run) if run else command.line
        code, output = await shell.run(line)
        expected = block.codes if number == len(block.commands) else (0,)
        assert code in expected, f"{block.place}: {line}\n{output}"
        assert fits(output, command.shown), f"{block.place}: {line}\nshown: {command.shown}\n{output}"
