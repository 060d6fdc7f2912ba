"""Troubles on demand: what a test may do to the server."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from dataclasses import dataclass

from lab.apiserver.status import Json, StatusError


@dataclass(slots=True)
class Rule:
    """Requests that match (method and path are regular expressions) wait `latency` seconds, then fail with `code`.

    `code` 0 lets them go on, -1 cuts the connection without an answer, and -2 does the request first and cuts then.
    """

    method: str = ".*"
    path: str = ".*"
    latency: float = 0.0
    code: int = 0
    reason: str = "InternalError"
    retry_after: float = 0.0
    times: int = -1
    """How many requests are hit before the rule is used up; -1: all."""
    verbs: tuple[str, ...] = ()
    """Only these verbs (list, watch, get, create, ...); empty: all."""

    def hits(self, method: str, path: str, verb: str) -> bool:
        """Whether the rule is about a request."""
        return (
            self.times != 0
            and (not self.verbs or verb in self.verbs)
            and re.fullmatch(self.method, method) is not None
            and re.fullmatch(self.path, path) is not None
        )


class Faults:
    """The troubles that are in force. The server asks before each request; watches follow `broadcast`."""

    def __init__(self) -> None:
        self.rules: list[Rule] = []
        self.stalled = asyncio.Event()
        self._watches: set[Callable[[str, bytes], None]] = set()
        self.requests = 0
        self.opened = 0

    def add(self, rule: Rule) -> Rule:
        """Put a rule in force; returns it, for `remove`."""
        self.rules.append(rule)
        return rule

    def remove(self, rule: Rule) -> None:
        """End a rule."""
        if rule in self.rules:
            self.rules.remove(rule)

    def clear(self) -> None:
        """End all rules and stalls."""
        self.rules.clear()
        self.stalled.clear()

    async def before(self, method: str, path: str, verb: str) -> int:
        """Wait and fail as the rules say; returns -1 or -2 for a cut, else 0. Raises StatusError."""
        self.requests += 1
        for rule in list(self.rules):
            if not rule.hits(method, path, verb):
                continue
            rule.times -= rule.times > 0
            if rule.latency:
                await asyncio.sleep(rule.latency)
            if rule.code < 0:
                return rule.code
            if rule.code:
                headers = {"Retry-After": f"{rule.retry_after:g}"} if rule.retry_after else {}
                details: Json = {"retryAfterSeconds": round(rule.retry_after)} if rule.retry_after >= 1 else {}
                raise StatusError(rule.code, rule.reason, "forced by the test", details, headers=headers)
        return 0

    def joined(self, watch: Callable[[str, bytes], None]) -> None:
        """A watch has begun."""
        self.opened += 1
        self._watches.add(watch)

    def left(self, watch: Callable[[str, bytes], None]) -> None:
        """A watch has ended."""
        self._watches.discard(watch)

    @property
    def watches(self) -> int:
        """How many watches are open."""
        return len(self._watches)

    def drop_watches(self) -> None:
        """Cut all watches as a broken network would, in the middle of the stream."""
        self._broadcast("cut", b"")

    def end_watches(self) -> None:
        """End all watches in good order, as at a time-out."""
        self._broadcast("end", b"")

    def send_to_watches(self, raw: bytes) -> None:
        """Put bytes into all watches, whatever they are."""
        self._broadcast("raw", raw)

    def stall_watches(self) -> None:
        """Let all watches be silent from now on (no events, no bookmarks) until `resume_watches`."""
        self.stalled.set()

    def resume_watches(self) -> None:
        """End the silence; what happened meanwhile is sent."""
        self.stalled.clear()
        self._broadcast("wake", b"")

    def _broadcast(self, what: str, raw: bytes) -> None:
        for watch in list(self._watches):
            watch(what, raw)
