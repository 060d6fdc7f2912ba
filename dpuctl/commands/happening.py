"""`events`: what the suite has said about pods, nodes and volumes, and what it says from now on."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable

import click

from dpuctl import suite
from dpuctl.commands.shared import Options, answered, common
from dpuctl.display import plain, show_json, table
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.models.core import Event
from foundation.kube.reflector import Change, Reflector

_COMPONENTS = frozenset(suite.DAEMONS)
_BY_SIDECARS = ("csi-provisioner", "csi-attacher", "csi-resizer", "csi-snapshotter", suite.DRIVER)


@click.command()
@click.option("-n", "--namespace", default="", help="Only this namespace.")
@click.option("-w", "--watch", is_flag=True, help="Go on with each event as it comes, until Ctrl-C.")
@common
def events(options: Options, *, namespace: str, watch: bool) -> None:
    """Kubernetes Events of the suite's daemons and their side-cars, oldest first."""

    async def ask(client: KubeClient) -> None:
        if watch:
            await _follow(client, options, namespace)
        else:
            _show(options, sorted(filter(_ours, await client.list(resources.EVENTS, namespace=namespace)), key=_when))

    answered(options, ask)


async def _follow(client: KubeClient, options: Options, namespace: str) -> None:
    # Asked once before: the reflector would go on trying where there is no cluster, or no permission.
    await client.list(resources.EVENTS, namespace=namespace)
    reflector = Reflector(client, resources.EVENTS, namespace=namespace)
    running = asyncio.create_task(reflector.run(), name="events")
    try:
        await reflector.synced()
        shown = sorted(filter(_ours, reflector.store.values()), key=_when)
        for event in shown:
            _line(options, event)

        def changed(change: Change[Event]) -> None:
            if change.new is not None and _ours(change.new) and change.new not in shown:
                _line(options, change.new)

        reflector.subscribe(changed)
        await running
    finally:
        running.cancel()


def _ours(event: Event) -> bool:
    component = event.reporting_component or event.source.component
    return component in _COMPONENTS or component.startswith(_BY_SIDECARS)


def _when(event: Event) -> str:
    return event.last_timestamp or event.first_timestamp or event.metadata.creation_timestamp or ""


def _fields(event: Event) -> dict[str, object]:
    about = event.involved_object
    return {
        "time": _when(event),
        "type": event.type,
        "object": f"{about.kind} {about.namespace + '/' if about.namespace else ''}{about.name}",
        "reason": event.reason,
        "count": event.count or 1,
        "by": event.reporting_component or event.source.component,
        "message": event.message,
    }


def _show(options: Options, found: Iterable[Event]) -> None:
    lines = [_fields(one) for one in found]
    if options.as_json:
        show_json(lines)
    else:
        for line in table(lines) if lines else ["no events"]:
            click.echo(line)


def _line(options: Options, event: Event) -> None:
    """One event as soon as it is known: a line of text, or of JSON."""
    if options.as_json:
        click.echo(json.dumps(_fields(event)))
        return
    fields = _fields(event)
    text = f"{fields['time']}  {fields['type']}  {fields['object']}  {fields['reason']}: {fields['message']}"
    click.echo(click.style(plain(text), fg="red" if event.type == "Warning" else None))
