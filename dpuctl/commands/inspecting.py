"""`inspect`: what other dpuctl commands run in the suite's containers. JSON in, JSON out, no cluster asked."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import msgspec

from cni.node.config import CniNodeConfig
from cni.node.modes import MODES
from dpuctl.inspection import daemons, leftovers, machine, tracing
from dpuctl.inspection.daemons import CONFIGURATIONS, Installed
from dpuctl.inspection.dialling import Dial
from dpuctl.path_trace import Question


@click.group(invoke_without_command=True)
@click.option(
    "--daemon",
    "named",
    multiple=True,
    metavar="NAME=FILE",
    help="A daemon by its configuration file; default: those that run on this machine.",
)
@click.option("--dial", "dials", multiple=True, help="daemon/node=host:port/server.name: try to get through.")
@click.pass_context
def inspect(context: click.Context, /, named: tuple[str, ...], dials: tuple[str, ...]) -> None:
    """What this machine shows of the suite, as JSON."""
    context.obj = _installed(named)
    if context.invoked_subcommand is None:
        try:
            wanted = [Dial.parse(text) for text in dials]
        except ValueError as error:
            raise click.BadParameter(str(error)) from None
        _print(asyncio.run(machine.inspect(context.obj, wanted)))


@inspect.command()
@click.argument("ports", nargs=-1, required=True)
@click.pass_obj
def offload(installed: list[Installed], ports: Sequence[str]) -> None:
    """Flows of these logical ports, in hardware and in software."""

    async def ask() -> list[Any]:
        configs = [one.config for one in installed if isinstance(one.config, CniNodeConfig)]
        return [
            each for config in configs if MODES[config.mode].has_switch for each in await machine.offload(config, ports)
        ]

    _print(asyncio.run(ask()))


@inspect.command()
@click.argument("question")
@click.pass_obj
def trace(installed: list[Installed], question: str) -> None:
    """The verdict on a question, given as JSON."""
    try:
        _print(asyncio.run(tracing.trace(installed, msgspec.json.decode(question, type=Question))))
    except (tracing.Untraceable, msgspec.DecodeError) as error:
        raise click.ClickException(str(error)) from None


@inspect.command()
@click.argument("hint")
@click.pass_obj
def rule(installed: list[Installed], hint: str) -> None:
    """Whose ACL has a uuid that begins so."""
    _print(asyncio.run(tracing.owner_of(installed, hint)))


@inspect.command()
@click.argument("items", nargs=-1, required=True)
@click.pass_obj
def remove(installed: list[Installed], items: Sequence[str]) -> None:
    """Remove leftovers of this machine, given as JSON."""
    try:
        wanted = [msgspec.json.decode(one, type=leftovers.Leftover) for one in items]
    except msgspec.DecodeError as error:
        raise click.BadParameter(str(error)) from None
    _print(asyncio.run(leftovers.remove(installed, wanted)))


def _installed(named: Sequence[str]) -> list[Installed]:
    if not named:
        return list(daemons.running())
    found = []
    for text in named:
        name, _, file = text.partition("=")
        if name not in CONFIGURATIONS or not file:
            raise click.BadParameter(f"{text!r}: expected NAME=FILE, NAME one of {', '.join(CONFIGURATIONS)}")
        found.append(daemons.named(name, Path(file)))
    return found


def _print(value: Any) -> None:
    click.echo(msgspec.json.encode(value).decode())
