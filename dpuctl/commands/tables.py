"""`status`, `pods`, `volumes`: what there is, as tables."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence

import click

from dpuctl import exits, rows
from dpuctl.commands.shared import Options, answered, common, looked_at, warn_unreached
from dpuctl.display import show_rows
from dpuctl.machines import Reached
from dpuctl.rows import Row
from dpuctl.snapshot import Snapshot, Unreadable
from foundation.kube.client import KubeClient

_WIDE = click.option("--wide", is_flag=True, help="Look into the machines too (takes a second or more).")


@click.command()
@common
def status(options: Options) -> None:
    """Nodes with their modes, pairs of host and DPU, readiness, functions in use, share of offloaded traffic."""
    _show(options, wide=False, make=lambda seen, _: rows.nodes(seen))


@click.command()
@click.option("-n", "--namespace", default="", help="Only this namespace.")
@_WIDE
@common
def pods(options: Options, *, namespace: str, wide: bool) -> None:
    """Pods with their addresses and logical ports; --wide adds function, representor and chassis."""
    _show(options, wide=wide, make=lambda seen, reached: rows.pods(seen, namespace, list(reached.machines)))


@click.command()
@_WIDE
@common
def volumes(options: Options, *, wide: bool) -> None:
    """Volumes with node, DPU, function and target; --wide adds the paths to the storage."""
    _show(
        options,
        wide=wide,
        needed=("persistentvolumes", "volumeattachments"),
        make=lambda seen, reached: rows.volumes(seen, list(reached.machines)),
    )


def _show(
    options: Options,
    *,
    wide: bool,
    make: Callable[[Snapshot, Reached], Sequence[Row]],
    needed: Collection[str] = (),
) -> None:
    async def ask(client: KubeClient) -> Sequence[Row]:
        seen, reached = await looked_at(client, options, machines=wide)
        warn_unreached(reached)
        if hidden := sorted(seen.forbidden.intersection(needed)):
            # A table without them would say that there are none.
            raise Unreadable(f"you may not list {' and '.join(hidden)}")
        return make(seen, reached)

    found = answered(options, ask)
    show_rows(found, output=options.output)
    sys.exit(exits.WELL if all(row.well for row in found) else exits.NOT_WELL)
