"""Parameters as SPDK wants them: without those that were not given."""

from __future__ import annotations

from typing import Any


def given(**parameters: Any) -> dict[str, Any]:
    return {name: value for name, value in parameters.items() if value is not None}
