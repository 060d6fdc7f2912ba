"""What every command takes: where the cluster is, which form of output; with the way from there to an answer."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import click

from dpuctl import exits
from dpuctl.machines import Reached, Remote, look
from dpuctl.snapshot import Snapshot, Unreadable, connected, read
from foundation.kube.client import KubeClient

R = TypeVar("R")


@dataclasses.dataclass(frozen=True)
class Options:
    """Given before the command's name or behind it; behind wins."""

    kubeconfig: str = ""
    context: str = ""
    output: str = "table"

    @property
    def remote(self) -> Remote:
        """The way into the cluster's containers."""
        return Remote(self.kubeconfig, self.context)

    @property
    def as_json(self) -> bool:
        """Whether a program reads the output."""
        return self.output == "json"


def common(command: Callable[..., None]) -> Callable[..., None]:
    """Adds the options to a command and hands it one `options`."""

    @click.option("--kubeconfig", default="", help="Kubeconfig file; default: in-cluster, $KUBECONFIG, ~/.kube/config.")
    @click.option("--context", "kube_context", default="", help="Context of the kubeconfig.")
    @click.option("-o", "--output", type=click.Choice(["table", "json"]), default=None, help="Output format.")
    @click.pass_context
    @functools.wraps(command)
    def wrapped(context: click.Context, /, kubeconfig: str, kube_context: str, output: str | None, **rest: Any) -> None:
        before = context.obj if isinstance(context.obj, Options) else Options()
        options = Options(
            kubeconfig=kubeconfig or before.kubeconfig,
            context=kube_context or before.context,
            output=output or before.output,
        )
        command(options, **rest)

    return wrapped


def answered(options: Options, ask: Callable[[KubeClient], Awaitable[R]]) -> R:
    """The result of `ask` on the cluster; ends the command with 3 when the cluster cannot be read."""

    async def body() -> R:
        async with connected(options.kubeconfig, options.context) as client:
            return await ask(client)

    try:
        return asyncio.run(body())
    except Unreadable as error:
        click.echo(f"dpuctl: {error}", err=True)
        sys.exit(exits.UNREADABLE)
    except KeyboardInterrupt:
        sys.exit(exits.INTERRUPTED)


async def looked_at(client: KubeClient, options: Options, *, machines: bool = True) -> tuple[Snapshot, Reached]:
    """The cluster and its machines. The cluster is read again afterwards: what came meanwhile must not seem stale."""
    seen = await read(client)
    if seen.forbidden:
        click.echo(f"dpuctl: not looked at: {', '.join(sorted(seen.forbidden))}: you may not list them", err=True)
    if not machines:
        return seen, Reached()
    if sys.stderr.isatty():
        click.echo(f"looking at the machines of {len(seen.suite_pods)} pods ...\r", err=True, nl=False)
    reached = await look(seen, options.remote, server=client.settings.server)
    if sys.stderr.isatty():
        click.echo("\x1b[2K\r", err=True, nl=False)
    return await read(client), reached


def warn_unreached(reached: Reached) -> None:
    """Says on standard error what is missing from the answer."""
    for sentence in reached.unreached:
        click.echo(f"dpuctl: not looked at: {sentence}", err=True)
