"""`doctor` and `gc`: what is wrong with its cure, and what lies about."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence

import click

from dpuctl import exits, leftovers
from dpuctl.commands.shared import Options, answered, common, looked_at, warn_unreached
from dpuctl.display import plain, show_json, table
from dpuctl.doctor.check import Verdict, View, examine
from dpuctl.doctor.checks import ALL
from dpuctl.inspection.leftovers import Leftover, Removed
from dpuctl.machines import Reached
from dpuctl.snapshot import Snapshot
from foundation.kube.client import KubeClient


@click.command()
@click.option("--no-machines", is_flag=True, help="Only what the API server says; do not look into the machines.")
@click.option("--list", "listing", is_flag=True, help="List the checks, and do none.")
@common
def doctor(options: Options, *, no_machines: bool, listing: bool) -> None:
    """Every check of the installation, each finding with its cure. Exit 1 when there is an error."""
    if listing and options.as_json:
        show_json([{"check": check.name, "about": check.about} for check in ALL])
        return
    if listing:
        for check in ALL:
            click.echo(f"{check.name:18}  {check.about}")
        return

    async def ask(client: KubeClient) -> tuple[Snapshot, Reached]:
        return await looked_at(client, options, machines=not no_machines)

    seen, reached = answered(options, ask)
    verdicts = examine(View(seen, reached.machines), ALL)
    if options.as_json:
        show_json([_plain(verdict) for verdict in verdicts])
    else:
        for line in _told(verdicts):
            click.echo(line)
    warn_unreached(reached)
    errors = sum(finding.severity == "error" for verdict in verdicts for finding in verdict.findings)
    sys.exit(exits.NOT_WELL if errors else exits.WELL)


def _plain(verdict: Verdict) -> dict[str, object]:
    return {
        "check": verdict.check.name,
        "about": verdict.check.about,
        "findings": [
            {"severity": one.severity, "where": one.where, "problem": one.problem, "cure": one.cure}
            for one in verdict.findings
        ],
    }


def _told(verdicts: Sequence[Verdict]) -> Iterator[str]:
    well = [verdict.check.name for verdict in verdicts if not verdict.findings]
    for verdict in verdicts:
        for one in verdict.findings:
            mark = click.style("error  " if one.severity == "error" else "warning", fg="red", bold=True)
            yield f"{mark}  {verdict.check.name}: {plain(one.where)}"
            yield f"         {plain(one.problem)}"
            yield f"         {click.style('cure:', bold=True)} {plain(one.cure)}"
    found = sum(len(verdict.findings) for verdict in verdicts)
    yield f"{len(well)} of {len(verdicts)} checks are well, {found} finding{'' if found == 1 else 's'}"


@click.command()
@click.option("--yes", is_flag=True, help="Remove what was found. Without it nothing is touched.")
@common
def gc(options: Options, *, yes: bool) -> None:
    """What belongs to nothing: stale ports, orphan disks and exports. Shows it; removes it with --yes.

    Volumes are never removed, whatever names them. The daemons do the same by themselves after a grace.
    """

    async def ask(client: KubeClient) -> tuple[list[Leftover], list[Removed], Reached]:
        seen, reached = await looked_at(client, options)
        found = leftovers.find(View(seen, reached.machines))
        removed = await leftovers.remove(found, seen, options.remote, server=client.settings.server) if yes else []
        return found, removed, reached

    found, removed, reached = answered(options, ask)
    warn_unreached(reached)
    problems = {one.leftover: one.problem for one in removed}
    lines = [
        {
            "kind": one.kind,
            "place": one.place,
            "name": one.name,
            "why": one.why,
            "done": _done(one, problems, yes=yes),
        }
        for one in found
    ]
    if options.as_json:
        show_json(lines)
    elif not lines:
        click.echo("nothing is left over")
    else:
        for line in table(lines):
            click.echo(line)
        if not yes:
            click.echo("nothing was removed; do so with: dpuctl gc --yes")
    left = [one for one in found if one not in problems or problems[one]]
    sys.exit(exits.NOT_WELL if left else exits.WELL)


def _done(one: Leftover, problems: dict[Leftover, str], *, yes: bool) -> str:
    if not yes:
        return "found"
    return "not reached" if one not in problems else problems[one] or "removed"
