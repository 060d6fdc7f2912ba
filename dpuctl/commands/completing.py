"""`completion`: the line that makes a shell complete dpuctl's commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(context: click.Context, /, shell: str) -> None:
    """Print a completion script for SHELL: `source <(dpuctl completion bash)`."""
    kind = get_completion_class(shell)
    root = context.find_root()
    assert kind is not None
    click.echo(kind(root.command, {}, "dpuctl", "_DPUCTL_COMPLETE").source())
