"""`trace` and `offload`: may two pods talk, and who carries a pod's packets."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import click
import msgspec

from dpuctl import exits, questions
from dpuctl.commands.shared import Options, answered, common
from dpuctl.display import show_json, size, table
from dpuctl.inspection.offload import OffloadFacts
from dpuctl.path_trace import Protocol, Verdict, words
from dpuctl.questions import Unanswerable
from foundation.kube.client import KubeClient


@click.command()
@click.argument("source")
@click.argument("destination")
@click.option("-n", "--namespace", default="default", show_default=True, help="Of pods given without one.")
@click.option("--port", type=click.IntRange(1, 65535), default=80, show_default=True, help="Destination port.")
@click.option("--protocol", type=click.Choice(["tcp", "udp", "icmp"]), default="tcp", show_default=True)
@common
def trace(options: Options, *, source: str, destination: str, namespace: str, port: int, protocol: Protocol) -> None:
    """Whether OVN lets SOURCE open a connection to DESTINATION (pods, [namespace/]name), in words.

    Exit 0 when the packet arrives, 1 when it is refused, with the rule that refuses it.
    """

    async def ask(client: KubeClient) -> Verdict | str:
        try:
            return await questions.trace(
                client,
                options.remote,
                source=questions.pod_key(source, namespace),
                destination=questions.pod_key(destination, namespace),
                protocol=protocol,
                port=port,
            )
        except Unanswerable as error:
            return str(error)

    verdict = answered(options, ask)
    if isinstance(verdict, str):
        click.echo(f"dpuctl: {verdict}", err=True)
        sys.exit(exits.UNREADABLE)
    if options.as_json:
        show_json(msgspec.to_builtins(verdict))
    else:
        for number, line in enumerate(words(verdict)):
            click.echo(click.style(line, fg="green" if verdict.delivered else "red") if number == 0 else line)
    sys.exit(exits.WELL if verdict.delivered else exits.NOT_WELL)


@click.command()
@click.argument("pod")
@click.option("-n", "--namespace", default="default", show_default=True, help="Of a pod given without one.")
@common
def offload(options: Options, *, pod: str, namespace: str) -> None:
    """Bytes of POD that the card carries, and each flow that it does not carry with the reason.

    Exit 0 when every flow is in hardware or there is no traffic, 1 when some are in software.
    """

    async def ask(client: KubeClient) -> Sequence[OffloadFacts] | str:
        try:
            return await questions.offload(client, options.remote, questions.pod_key(pod, namespace))
        except Unanswerable as error:
            return str(error)

    found = answered(options, ask)
    if isinstance(found, str):
        click.echo(f"dpuctl: {found}", err=True)
        sys.exit(exits.UNREADABLE)
    if options.as_json:
        show_json([msgspec.to_builtins(one) for one in found])
    else:
        for one in found:
            _tell(one)
    sys.exit(exits.NOT_WELL if any(one.problem or one.software.flows for one in found) else exits.WELL)


def _tell(one: OffloadFacts) -> None:
    click.echo(click.style(f"{one.port} ({one.interface}) on {one.node}", bold=True))
    if one.problem:
        click.echo(f"  {one.problem}")
        return
    lines = [
        {"where": where, "flows": counts.flows, "packets": counts.packets, "bytes": size(counts.bytes)}
        for where, counts in (("hardware", one.hardware), ("software", one.software))
    ]
    for line in table(lines):
        click.echo(f"  {line}")
    if not one.flows:
        click.echo("  no flows: nothing was sent within OVS' idle time of 10 s")
    for flow in one.flows:
        if flow.reason:
            click.echo(f"  {flow.packets} packets in software: {flow.reason}")
            click.echo(f"    {flow.match}")
