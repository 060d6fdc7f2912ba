"""`bundle`: everything that helps somebody else to find a fault, in one archive without secrets."""

from __future__ import annotations

import time
from pathlib import Path

import click

from dpuctl.bundle import collect, write
from dpuctl.commands.shared import Options, answered, common, looked_at, warn_unreached
from dpuctl.display import show_json
from dpuctl.machines import Reached
from foundation.kube.client import KubeClient


@click.command()
@click.option(
    "-f",
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Where to; default: in this directory.",
)
@common
def bundle(options: Options, *, file: Path | None) -> None:
    """A support archive (.tar.gz): objects, inspections, findings, events, logs. Reads no Secret, redacts the rest."""
    target = file or Path(f"dpu-offload-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.tar.gz")

    async def ask(client: KubeClient) -> tuple[dict[str, bytes], Reached]:
        seen, reached = await looked_at(client, options)
        return await collect(client, seen, reached), reached

    # Before the work, not after it.
    if not target.parent.is_dir():
        raise click.BadParameter(f"there is no directory {target.parent}", param_hint="--file")
    found, reached = answered(options, ask)
    warn_unreached(reached)
    try:
        write(target, found)
    except OSError as error:
        raise click.ClickException(f"{target} cannot be written: {error.strerror}") from None
    if options.as_json:
        show_json({"file": str(target), "files": len(found)})
    else:
        click.echo(f"{target}: {len(found)} files")
