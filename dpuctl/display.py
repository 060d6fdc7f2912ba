"""Output for people and for programs: tables, JSON, colour on a terminal only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import click

from dpuctl.rows import Row


def show_rows(rows: Sequence[Row], *, output: str) -> None:
    """A table whose unwell lines are red on a terminal, or a JSON list."""
    if output == "json":
        show_json([row.fields for row in rows])
    elif not rows:
        click.echo("nothing found")
    else:
        for line, row in zip(table([row.fields for row in rows]), [None, *rows], strict=True):
            # click drops colours where the output is no terminal, or where NO_COLOR or --no-color says so.
            click.echo(click.style(line, fg=None if row is None or row.well else "red", bold=row is None))


def show_json(value: Any) -> None:
    """Indented JSON on standard output."""
    click.echo(json.dumps(value, indent=1))


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Lines with aligned columns, the headings first; one row at least."""
    headings = list(rows[0])
    cells = [[cell(row[heading]) for heading in headings] for row in rows]
    widths = [max(len(line[column]) for line in [headings, *cells]) for column in range(len(headings))]
    lines = [[heading.upper() for heading in headings], *cells]
    return ["  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def cell(value: Any) -> str:
    """One value in a table; `-` for nothing."""
    if isinstance(value, (list, tuple)):
        return plain(",".join(map(str, value))) or "-"
    return "-" if value in (None, "") else plain(str(value))


def plain(text: str) -> str:
    """Others' words on one line, without what a terminal would obey."""
    return " ".join("".join(each if each.isprintable() else " " for each in text).split())


def size(count: int) -> str:
    """Bytes as people read them."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB", "PiB"]
    while value >= 1024 and len(units) > 1:
        value /= 1024
        units.pop(0)
    return f"{value:.0f} {units[0]}" if value >= 100 or units[0] == "B" else f"{value:.1f} {units[0]}"
