"""The report on policies' verdicts, build/reports/netpol.json: {pairs, wrong, parts}."""

from __future__ import annotations

import json

from benchmarks import report


def record(part: str, *, pairs: int, wrong: int) -> None:
    """Adds (or renews) one part; `pairs` and `wrong` of the file are the sums over its parts."""
    try:
        parts = json.loads((report.DIRECTORY / "netpol.json").read_text()).get("parts", {})
    except FileNotFoundError:
        parts = {}
    parts[part] = {"pairs": pairs, "wrong": wrong}
    totals = {key: sum(each[key] for each in parts.values()) for key in ("pairs", "wrong")}
    report.merge("netpol.json", {**totals, "parts": parts})
