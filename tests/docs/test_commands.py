"""Every command of README and docs is run as a reader runs it, or the page says who runs it, or why nobody does."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.docs.blocks import ROOT, Block, blocks, fits

BLOCKS = tuple(blocks())
PAGES_WITH_LAB = sorted({block.page for block in BLOCKS if block.where == "lab"})
SCRIPTS = Path(sys.executable).parent
COMMAND_SECONDS = 170.0
# What needs a card or a cluster. A page that gains one says so by raising this number.
NOT_RUN = 14


class Shell:
    """One shell for the blocks of a page, so that `export` lasts; each command's output and status are seen."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._end = "--end-of-command--"

    async def __aenter__(self) -> Shell:
        self._process = await asyncio.create_subprocess_exec(
            *("bash", "--noprofile", "--norc"),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=ROOT,
            env={**os.environ, "PATH": f"{self._directory}:{SCRIPTS}:{os.environ['PATH']}", "NO_COLOR": "1"},
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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Path]:
    """A directory with a `dpu-lab` that keeps to a lab of this test's own; whatever a page leaves is taken down."""
    directory = tmp_path_factory.mktemp("bin")
    run, prefix = Path(f"/tmp/docs-{os.getpid()}"), f"d{os.getpid() % 10000}"
    script = directory / "dpu-lab"
    script.write_text(f'#!/bin/sh\nexec {SCRIPTS}/dpu-lab "$@" --run-dir {run} --prefix {prefix}\n')
    script.chmod(0o755)
    (directory / "run").write_text(str(run))
    try:
        yield directory
    finally:
        async with Shell(directory) as shell:
            await shell.run("dpu-lab down")
        shutil.rmtree(run, ignore_errors=True)


@pytest.mark.root
@pytest.mark.timeout(300)
@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("page", PAGES_WITH_LAB)
async def test_the_commands_of_a_page_do_what_it_shows(page: str, lab: Path) -> None:
    run = (lab / "run").read_text()
    own = [block for block in BLOCKS if block.page == page and block.where == "lab"]
    async with Shell(lab) as shell:
        if not any("dpu-lab up" in command.line for block in own for command in block.commands):
            code, output = await shell.run("dpu-lab up")
            assert code == 0, output
            await shell.run(f"export KUBECONFIG={run}/kubeconfig")
        for block in own:
            if not block.needs or shutil.which(block.needs):
                await _run(shell, block, run)
        await shell.run("dpu-lab down")


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.where == "here"], ids=lambda block: block.place)
async def test_a_command_that_needs_nothing(block: Block, tmp_path: Path) -> None:
    if block.needs and shutil.which(block.needs) is None:
        pytest.skip(f"{block.needs} is not installed (tools/setup --tests does it)")
    async with Shell(tmp_path) as shell:
        await _run(shell, block, "")


async def _run(shell: Shell, block: Block, run: str) -> None:
    for number, command in enumerate(block.commands, start=1):
        line = command.line.replace("/run/dpu-lab", run) if run else command.line
        code, output = await shell.run(line)
        assert code == (block.code if number == len(block.commands) else 0), f"{block.place}: {line}\n{output}"
        assert fits(output, command.shown), f"{block.place}: {line}\nshown: {command.shown}\n{output}"


def test_without_kubectl_the_pages_that_need_it_are_not_passed_over() -> None:
    needed = {block.needs for block in BLOCKS if block.needs}
    missing = sorted(name for name in needed if shutil.which(name) is None)
    if missing:
        pytest.skip(f"{', '.join(missing)} not installed, so some blocks did not run (tools/setup --tests installs it)")
