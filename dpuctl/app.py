"""dpuctl: what the suite does on this cluster, for an operator's shell. Read-only.

Exit codes: 0 all is well, 1 something is not (it is shown), 2 wrong usage, 3 the cluster could not be read.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from dpuctl.cluster import Cluster, Row

NOT_WELL = 1
UNREADABLE = 3


@click.group(help=__doc__)
@click.option("--kubeconfig", default="", help="Kubeconfig file; default: $KUBECONFIG, or in-cluster.")
@click.option("--context", "kube_context", default="", help="Context of the kubeconfig.")
@click.option("-o", "output", type=click.Choice(["table", "json"]), default="table", help="Output format.")
@click.pass_context
def main(context: click.Context, /, kubeconfig: str, kube_context: str, output: str) -> None:
    """The command's entry point."""
    context.obj = {"kubeconfig": kubeconfig, "context": kube_context, "output": output}


@main.command()
@click.pass_obj
def status(options: dict[str, str]) -> None:
    """Nodes with their modes, pairs of host and DPU, readiness, functions in use."""
    _show(options, lambda cluster: cluster.nodes())


@main.command()
@click.option("-n", "--namespace", default="", help="Only this namespace.")
@click.pass_obj
def pods(options: dict[str, str], namespace: str) -> None:
    """Pods with the addresses the suite gave them."""
    _show(options, lambda cluster: cluster.pods(namespace))


@main.command()
@click.pass_obj
def volumes(options: dict[str, str]) -> None:
    """Volumes with the node, DPU and function they are attached to."""
    _show(options, lambda cluster: cluster.volumes())


def _show(options: dict[str, str], read: Callable[[Cluster], Awaitable[Sequence[Row]]]) -> None:
    rows = asyncio.run(_read(options, read))
    if options["output"] == "json":
        click.echo(json.dumps([row.fields for row in rows], indent=1))
    else:
        click.echo(_table(rows))
    sys.exit(0 if all(row.well for row in rows) else NOT_WELL)


async def _read(options: dict[str, str], read: Callable[[Cluster], Awaitable[Sequence[Row]]]) -> Sequence[Row]:
    # Imported here: shell completion and --help must not wait for an HTTP client.
    from dpuctl.cluster import Cluster, Unreadable

    try:
        async with Cluster.open(options["kubeconfig"], options["context"]) as cluster:
            return await read(cluster)
    except Unreadable as error:
        click.echo(f"dpuctl: {error}", err=True)
        sys.exit(UNREADABLE)


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return "nothing found"
    headings = list(rows[0].fields)
    cells = [[_cell(row.fields[heading]) for heading in headings] for row in rows]
    widths = [max(len(line[column]) for line in [headings, *cells]) for column in range(len(headings))]
    lines = [[heading.upper() for heading in headings], *cells]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines
    )


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return ",".join(map(str, value)) or "-"
    return "-" if value in (None, "") else str(value)


if __name__ == "__main__":
    main()
