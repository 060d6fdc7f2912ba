"""From "something changed" to "this state is wanted": runs the translators on what was touched."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Iterable, Mapping

from cni.controller.errors import AnyOf, Refused
from cni.controller.rows import Owner, State
from cni.controller.writer.committer import Committer

_log = logging.getLogger(__name__)

SLICE = 200
"""Owners translated before others may run: about 10 ms."""
LATER_SLICE = 50
"""Of those that can wait."""

Translate = Callable[[str], State]


class Engine:
    """`translators` by owner kind: key -> State, raising Refused for an object that cannot be served.

    `on_problem(owner, refused or None)` is told when an object's problem comes, changes or goes.
    """

    def __init__(
        self,
        committer: Committer,
        translators: Mapping[str, Translate],
        *,
        on_problem: Callable[[Owner, Refused | None], None],
    ) -> None:
        self._committer = committer
        self._translators = translators
        self._on_problem = on_problem
        self._touched: dict[Owner, None] = {}
        self._later: dict[Owner, None] = {}
        self._wake = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()
        self._waiting: dict[Hashable, dict[Owner, None]] = {}
        self.problems: dict[Owner, Refused] = {}
        self.failures = 0

    def __len__(self) -> int:
        """Owners that wait to be translated."""
        return len(self._touched) + len(self._later)

    def touch(self, owners: Iterable[Owner], *, later: bool = False) -> None:
        """Has these translated anew. `later`: behind what is touched otherwise, in portions: a policy that concerns
        thousands of pods must not keep a new pod waiting."""
        (self._later if later else self._touched).update(dict.fromkeys(owners))
        self._idle.clear()
        self._wake.set()

    async def idle(self) -> None:
        """Returns when nothing waits to be translated."""
        await self._idle.wait()

    def wake(self, token: Hashable) -> None:
        """Something that refused objects waited for has changed: they try again."""
        waiting = self._waiting.pop(token, None)
        if waiting:
            self.touch(waiting)

    def translate_all(self) -> None:
        """Translates everything touched, at once: for the start."""
        while self._touched or self._later:
            self._take(self._touched, len(self._touched))
            self._take(self._later, len(self._later))
        self._idle.set()

    async def run(self) -> None:
        """Translates what is touched, for ever."""
        while True:
            if not self._touched and not self._later:
                self._idle.set()
                self._wake.clear()
                await self._wake.wait()
            self._take(self._touched, SLICE)
            self._take(self._later, LATER_SLICE)
            await asyncio.sleep(0)

    def _take(self, touched: dict[Owner, None], count: int) -> None:
        if len(touched) <= count:
            owners = list(touched)
            touched.clear()
        else:
            owners = [owner for owner, _ in zip(touched, range(count), strict=False)]
            for owner in owners:
                del touched[owner]
        changed = False
        for owner in owners:
            changed |= self._translate(owner)
        if changed:
            self._committer.wake()

    def _translate(self, owner: Owner) -> bool:
        try:
            state = self._translators[owner.kind](owner.key)
        except Refused as problem:
            self._problem(owner, problem)
            state = problem.instead
        except Exception:
            # A mistake of ours in one object must not stop the others; what it had stays.
            self.failures += 1
            _log.exception("translating %s %s failed", owner.kind, owner.key)
            return False
        else:
            if owner in self.problems:
                del self.problems[owner]
                self._on_problem(owner, None)
        return self._committer.desired.put(owner, state)

    def _problem(self, owner: Owner, problem: Refused) -> None:
        waited = problem.waits_for
        for token in waited if isinstance(waited, AnyOf) else (waited,):
            if token is not None:
                self._waiting.setdefault(token, {})[owner] = None
        old = self.problems.get(owner)
        self.problems[owner] = problem
        if old is None or str(old) != str(problem):
            self._on_problem(owner, problem)
