"""A demo's steps as they happen: their names, outcomes and times, for people and for machines.

On a terminal the running step is shown live (with the ``cli`` extra); in a pipe each step is one line when it ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TextIO


class StepFailed(Exception):
    """A step did not hold; the message says what was expected and what was found."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One step. ``ok`` is None for a step that was not run; ``note`` says why, or what was seen."""

    section: str
    name: str
    ok: bool | None
    seconds: float
    note: str = ""


class Recorder:
    """Collects outcomes and shows them. Steps may run side by side."""

    def __init__(self, output: TextIO = sys.stdout) -> None:
        self.outcomes: list[Outcome] = []
        self._output = output
        self._section = ""
        self._live = LiveLine(output)

    def section(self, title: str) -> None:
        self._section = title
        self._live.line(f"\n{title}")

    @contextlib.asynccontextmanager
    async def step(self, name: str) -> AsyncIterator[Notes]:
        """Time the body. An exception makes the step fail and goes on to the caller as StepFailed."""
        notes = Notes()
        started = time.monotonic()
        self._live.begin(name)
        try:
            yield notes
        except asyncio.CancelledError:
            self._live.end(name)
            raise
        except Exception as error:
            reason = str(error) or type(error).__name__
            self._add(Outcome(self._section, name, False, time.monotonic() - started, reason))
            raise StepFailed(f"{name}: {reason}") from error
        self._add(Outcome(self._section, name, True, time.monotonic() - started, notes.text))

    def not_run(self, name: str, reason: str) -> None:
        self._add(Outcome(self._section, name, None, 0.0, reason))

    def _add(self, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        self._live.end(outcome.name)
        mark = {True: "ok", False: "FAILED", None: "not run"}[outcome.ok]
        note = f"  ({outcome.note})" if outcome.note else ""
        self._live.line(f"  {mark:<8} {outcome.seconds:7.2f} s  {outcome.name}{note}")

    @property
    def held(self) -> bool:
        """Every step that ran held, and at least one ran."""
        return any(outcome.ok for outcome in self.outcomes) and all(
            outcome.ok is not False for outcome in self.outcomes
        )

    def table(self) -> None:
        """The closing table: a row a section."""
        self._live.close()
        sections: dict[str, list[Outcome]] = {}
        for outcome in self.outcomes:
            sections.setdefault(outcome.section, []).append(outcome)
        width = max((len(section) for section in sections), default=0)
        rows = [f"\n{'':{width}}  {'steps':>5}  {'held':>4}  {'not run':>7}  {'seconds':>7}"]
        for section, outcomes in sections.items():
            held = sum(outcome.ok is True for outcome in outcomes)
            skipped = sum(outcome.ok is None for outcome in outcomes)
            seconds = sum(outcome.seconds for outcome in outcomes)
            rows.append(f"{section:{width}}  {len(outcomes):5}  {held:4}  {skipped:7}  {seconds:7.2f}")
        failed = [outcome for outcome in self.outcomes if outcome.ok is False]
        rows.append("every step held" if self.held else f"{len(failed) or 'no'} step(s) failed")
        rows += [f"  {outcome.section}: {outcome.name}: {outcome.note}" for outcome in failed]
        self._output.write("\n".join(rows) + "\n")
        self._output.flush()

    def write(self, path: Path) -> None:
        """``{"steps": [{"name", "ok", "seconds", ...}]}``; ``ok`` is null for a step that was not run."""
        path.parent.mkdir(parents=True, exist_ok=True)
        steps = [
            {
                "section": outcome.section,
                "name": outcome.name,
                "ok": outcome.ok,
                "seconds": round(outcome.seconds, 3),
                **({"note": outcome.note} if outcome.note else {}),
            }
            for outcome in self.outcomes
        ]
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps({"steps": steps}, indent=1) + "\n")
        temporary.replace(path)


@dataclasses.dataclass
class Notes:
    """What a step has to say when it held."""

    text: str = ""


class LiveLine:
    """The running steps below the finished ones, on a terminal; nothing in a pipe."""

    def __init__(self, output: TextIO) -> None:
        self._output = output
        self._running: dict[str, None] = {}
        self._status = None
        if output.isatty():
            with contextlib.suppress(ImportError):
                from rich.console import Console

                self._console = Console(file=output, highlight=False)
                self._status = self._console.status("")

    def begin(self, name: str) -> None:
        self._running[name] = None
        self._show()

    def end(self, name: str) -> None:
        self._running.pop(name, None)
        self._show()

    def line(self, text: str) -> None:
        if self._status is not None:
            style = "red" if text.startswith("  FAILED") else ""
            self._console.print(text, style=style, markup=False)
        else:
            self._output.write(text + "\n")
            self._output.flush()

    def close(self) -> None:
        if self._status is not None:
            self._status.stop()

    def _show(self) -> None:
        if self._status is None:
            return
        if self._running:
            self._status.update(", ".join(self._running))
            self._status.start()
        else:
            self._status.stop()
