"""dpuctl, also `kubectl dpu`: what the suite does on this cluster, for an operator's shell.

Read-only, but for `gc --yes`. Needs a kubeconfig; what only a machine knows it asks of daemons on this machine and,
through kubectl exec, of those in the cluster.

Exit codes: 0 all is well, 1 something is not (it is shown), 2 wrong usage, 3 the cluster could not be read,
130 interrupted.
"""

from __future__ import annotations

import importlib
from typing import Final

import click

# Command: its module, and what the list of commands says of it.
_COMMANDS: Final = {
    "status": ("tables", "Nodes, pairs of host and DPU, what is wrong with them."),
    "pods": ("tables", "Pods with their addresses, functions, representors."),
    "volumes": ("tables", "Volumes with node, DPU, function, target, paths."),
    "trace": ("traffic", "May one pod talk to another? OVN's verdict in words."),
    "offload": ("traffic", "What the card carries of a pod's traffic, and why not all."),
    "doctor": ("diagnosis", "Check the whole installation; each finding has its cure."),
    "gc": ("diagnosis", "Show what belongs to nothing; remove it with --yes."),
    "events": ("happening", "What the suite's daemons say, once or with -w."),
    "bundle": ("packing", "Write a support archive without secrets."),
    "inspect": ("inspecting", "What this machine shows, as JSON (for the others)."),
    "completion": ("completing", "Print a shell's completion script."),
}


class _OnDemand(click.Group):
    """Loads a command's module when it is run: completion and --help must not wait for gRPC and an HTTP client."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return [*_COMMANDS]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        known = _COMMANDS.get(cmd_name)
        if known is None:
            return None
        found = getattr(importlib.import_module(f"dpuctl.commands.{known[0]}"), cmd_name)
        return found if isinstance(found, click.Command) else None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, summary) for name, (_, summary) in _COMMANDS.items()])


@click.command(cls=_OnDemand, help=__doc__)
@click.option("--kubeconfig", default="", help="Kubeconfig file; default: in-cluster, $KUBECONFIG, ~/.kube/config.")
@click.option("--context", "kube_context", default="", help="Context of the kubeconfig.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", help="Output format.")
@click.version_option(package_name="dpu-offload")
@click.pass_context
def main(context: click.Context, /, kubeconfig: str, kube_context: str, output: str) -> None:
    """The command's entry point."""
    from dpuctl.commands.shared import Options

    context.obj = Options(kubeconfig=kubeconfig, context=kube_context, output=output)


if __name__ == "__main__":
    main()
