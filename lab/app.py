"""dpu-lab: the whole suite on one Linux machine, to see it work or to play with it."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import click

from lab.layout import DEFAULT_RUN_DIRECTORY, Layout

INTERRUPTED = 130


def _options(command: Any) -> Any:
    for option in (
        click.option(
            "--run-dir",
            type=click.Path(path_type=Path),
            default=DEFAULT_RUN_DIRECTORY,
            show_default=True,
            help="Where the lab keeps its sockets, files and logs; keep it short.",
        ),
        click.option("--prefix", default="lab", show_default=True, help="Prefix of its network namespaces."),
    ):
        command = option(command)
    return command


def _parts(command: Any) -> Any:
    for option in (
        click.option(
            "--kubeconfig",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Use this cluster's API server in place of the stand-in.",
        ),
        click.option(
            "--spdk-tgt",
            type=click.Path(exists=True, dir_okay=False, path_type=Path),
            help="Use this spdk_tgt binary in place of the stand-ins.",
        ),
    ):
        command = option(command)
    return command


@click.group(help=__doc__)
def main() -> None:
    """The command's entry point."""
    # Until the event loop takes over there is nothing to clear up.
    signal.signal(signal.SIGINT, lambda *_: sys.exit(INTERRUPTED))


@main.command()
@_options
@_parts
@click.option("--report", type=click.Path(path_type=Path), help="Write the steps as JSON to this file.")
def demo(run_dir: Path, prefix: str, kubeconfig: Path | None, spdk_tgt: Path | None, report: Path | None) -> None:
    """Build the lab, walk a pod and a claim through it, and take it down again."""
    from lab.demo import session

    layout = _layout(run_dir, prefix)
    sys.exit(_run(session.demo(layout, kubeconfig=kubeconfig, spdk_tgt=spdk_tgt, report=report)))


@main.command()
@_options
@_parts
def up(run_dir: Path, prefix: str, kubeconfig: Path | None, spdk_tgt: Path | None) -> None:
    """Build the lab and leave it running."""
    from lab.demo import session

    sys.exit(_run(session.up(_layout(run_dir, prefix), kubeconfig=kubeconfig, spdk_tgt=spdk_tgt)))


@main.command()
@_options
@click.option("-o", "output", type=click.Choice(["text", "json"]), default="text", help="Output format.")
def status(run_dir: Path, prefix: str, output: str) -> None:
    """Show the lab's processes. Exits 1 when one is dead, 3 when there is no lab."""
    from lab.demo import session

    sys.exit(session.status(Layout(run=run_dir, prefix=prefix), as_json=output == "json"))


@main.command()
@_options
def down(run_dir: Path, prefix: str) -> None:
    """End the lab and remove all it made."""
    from lab.demo import session

    sys.exit(_run(session.down(_layout(run_dir, prefix))))


def _layout(run_dir: Path, prefix: str) -> Layout:
    from lab import requirements

    try:
        layout = Layout(run=run_dir, prefix=prefix)
        requirements.check(layout)
    except (ValueError, requirements.Missing) as error:
        raise click.ClickException(str(error)) from None
    return layout


def _run(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end. The first SIGINT or SIGTERM cancels the work, which clears up; further ones are ignored."""

    async def supervised() -> int:
        task = asyncio.ensure_future(work)
        loop = asyncio.get_running_loop()

        def interrupt() -> None:
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, lambda: click.echo("already clearing up, a moment", err=True))
            click.echo("interrupted: clearing up", err=True)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, interrupt)
        try:
            return await task
        except asyncio.CancelledError:
            return INTERRUPTED

    return asyncio.run(supervised())


if __name__ == "__main__":
    main()
