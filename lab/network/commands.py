"""Runs the system's own tools (ip, ethtool, ovsdb-tool) for the lab."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

from lab import threads

SECONDS = 20.0


class CommandFailed(RuntimeError):
    """A tool ended with an error; the message holds its command line and what it said."""


async def run(*command: str | Path, stdin: str = "") -> str:
    """Standard output of `command`. Raises CommandFailed, also when the tool is missing or takes too long."""
    words = [str(word) for word in command]
    try:
        done = await threads.to_the_end(
            subprocess.run, words, input=stdin, capture_output=True, text=True, timeout=SECONDS, check=False
        )
    except FileNotFoundError:
        raise CommandFailed(f"{words[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise CommandFailed(f"{' '.join(words)} did not end within {SECONDS:g} s") from None
    if done.returncode != 0:
        detail = done.stderr.strip() or done.stdout.strip()
        raise CommandFailed(f"{' '.join(words)} failed with {done.returncode}: {detail}")
    return done.stdout


async def ip(*lines: str, namespace: str = "") -> None:
    """Runs `ip` commands, one a line, in one process; stops at the first that fails. Raises CommandFailed."""
    where: Sequence[str] = ("-n", namespace) if namespace else ()
    await run("ip", *where, "-batch", "-", stdin="\n".join(lines) + "\n")
