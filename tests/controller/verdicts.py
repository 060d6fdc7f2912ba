"""The report on policies' and services' verdicts, build/reports/netpol.json: {pairs, wrong, parts}."""

from __future__ import annotations

from typing import Any

from benchmarks import report


def record(part: str, *, pairs: int, wrong: int) -> None:
    """Adds (or renews) one part; `pairs` and `wrong` of the file are the sums over its parts."""

    def renewed(known: dict[str, Any]) -> dict[str, Any]:
        parts = {**known.get("parts", {}), part: {"pairs": pairs, "wrong": wrong}}
        totals = {key: sum(each[key] for each in parts.values()) for key in ("pairs", "wrong")}
        return {**totals, "parts": parts}

    report.change("netpol.json", renewed)
