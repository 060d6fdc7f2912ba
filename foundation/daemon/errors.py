"""Which gRPC code an exception becomes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import grpc

from foundation.daemon.joining import Conflict, StillRunning

Rule = grpc.StatusCode | Callable[[Any], grpc.StatusCode]

# What every service shares. asyncio.TimeoutError is the built-in TimeoutError.
_SHARED: Mapping[type[BaseException], Rule] = {
    TimeoutError: grpc.StatusCode.DEADLINE_EXCEEDED,
    NotImplementedError: grpc.StatusCode.UNIMPLEMENTED,
    Conflict: grpc.StatusCode.ABORTED,
    StillRunning: grpc.StatusCode.ABORTED,
}


class ErrorTable:
    """One table a component: exception class to gRPC code.

    The most derived class of an exception that the table names decides. A rule is a code, or a function of the
    exception that returns one (the only way in which an exception can carry its own code). `TimeoutError`,
    `NotImplementedError` and the errors of `foundation.daemon.work` have rules which a table may override; anything
    else is INTERNAL.
    """

    def __init__(self, mapping: Mapping[type[BaseException], Rule]) -> None:
        self._rules: dict[type[BaseException], Rule] = {**_SHARED, **mapping}

    def knows(self, error: BaseException) -> bool:
        """Whether the table has a rule for it; the message of any other error stays out of the answer."""
        return self._rule(error) is not None

    def code(self, error: BaseException) -> grpc.StatusCode:
        """The code for `error`."""
        rule = self._rule(error)
        if rule is None:
            return grpc.StatusCode.INTERNAL
        return rule if isinstance(rule, grpc.StatusCode) else rule(error)

    def _rule(self, error: BaseException) -> Rule | None:
        return next((self._rules[kind] for kind in type(error).__mro__ if kind in self._rules), None)
