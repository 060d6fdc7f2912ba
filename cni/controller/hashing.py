"""Short names that are functions of long texts."""

from __future__ import annotations

import hashlib


def short_hash(text: str, length: int = 16) -> str:
    """`length` + 1 characters: a letter, then hexadecimal digits; fit for every OVN name."""
    return "h" + hashlib.blake2s(text.encode(), digest_size=length // 2).hexdigest()
