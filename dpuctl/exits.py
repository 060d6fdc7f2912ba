"""Exit codes of dpuctl, which scripts may rely on."""

from typing import Final

WELL: Final = 0
"""All is well with what was asked for."""
NOT_WELL: Final = 1
"""Something is not, or traffic is refused; it is shown."""
USAGE: Final = 2
"""Wrong usage (from click)."""
UNREADABLE: Final = 3
"""The cluster, or the part of it that was needed, could not be read."""
INTERRUPTED: Final = 130
"""Ctrl-C."""
