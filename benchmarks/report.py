"""Machine-readable figures under build/reports, merged so that several runs add to one file.

``bench.json``: {name: {value, unit, floor, ratio, goal: {of: "ratio" | "value", min | max: number}}}. Tests write their
own files there with ``merge``. A reader sees a whole file at any time; two writers never lose each other's figures.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

DIRECTORY = Path(os.environ.get("DPU_OFFLOAD_REPORTS", Path(__file__).parent.parent / "build" / "reports"))


def merge(file: str, figures: Mapping[str, Any]) -> None:
    """Put ``figures`` over what ``<reports>/<file>`` holds already."""
    change(file, lambda known: {**known, **figures})


def change(file: str, changed: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Make ``<reports>/<file>`` what ``changed`` makes of its content ({} for a file that is not there)."""
    DIRECTORY.mkdir(parents=True, exist_ok=True)
    with (DIRECTORY / f".{file}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        path = DIRECTORY / file
        try:
            known = json.loads(path.read_text())
        except FileNotFoundError:
            known = {}
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(changed(known), indent=1, sort_keys=True) + "\n")
        temporary.replace(path)


def add(
    name: str,
    *,
    value: float,
    unit: str,
    floor: float | None = None,
    goal: Mapping[str, Any] | None = None,
) -> None:
    """Record one figure and print it. ``ratio`` is value over floor, both in ``unit``.

    ``goal`` is {"of": "ratio" | "value", "min" | "max": number}.
    """
    ratio = value / floor if floor else None
    entry: dict[str, Any] = {"value": value, "unit": unit, "floor": floor, "ratio": ratio, "goal": goal}
    merge("bench.json", {name: entry})
    beside = f", floor {floor:.4g}, ratio {ratio:.3g}" if ratio is not None else ""
    print(f"{name}: {value:.4g} {unit}{beside}{_verdict(entry)}")


def _verdict(entry: Mapping[str, Any]) -> str:
    goal = entry["goal"]
    if not goal:
        return ""
    measured = entry[goal["of"]]
    met = measured is not None and goal.get("min", float("-inf")) <= measured <= goal.get("max", float("inf"))
    bound = f">= {goal['min']}" if "min" in goal else f"<= {goal['max']}"
    return f" (goal: {goal['of']} {bound}: {'met' if met else 'NOT MET'})"
