"""Which code an exception becomes."""

from __future__ import annotations

import grpc
import pytest

from foundation.daemon.errors import ErrorTable
from foundation.daemon.work import Conflict, StillRunning


class Base(Exception):
    pass


class Missing(Base):
    pass


class MissingDisk(Missing):
    pass


class Both(KeyError, Base):
    pass


class Carrying(Exception):
    def __init__(self, code: grpc.StatusCode) -> None:
        super().__init__("carried")
        self.code = code


TABLE = ErrorTable(
    {
        Base: grpc.StatusCode.FAILED_PRECONDITION,
        Missing: grpc.StatusCode.NOT_FOUND,
        KeyError: grpc.StatusCode.INVALID_ARGUMENT,
        Carrying: lambda error: error.code,
    }
)


@pytest.mark.parametrize(
    ("error", "code", "known"),
    [
        (Base(), grpc.StatusCode.FAILED_PRECONDITION, True),
        (Missing(), grpc.StatusCode.NOT_FOUND, True),
        (MissingDisk(), grpc.StatusCode.NOT_FOUND, True),
        (Both(), grpc.StatusCode.INVALID_ARGUMENT, True),
        (Carrying(grpc.StatusCode.RESOURCE_EXHAUSTED), grpc.StatusCode.RESOURCE_EXHAUSTED, True),
        (TimeoutError(), grpc.StatusCode.DEADLINE_EXCEEDED, True),
        (NotImplementedError(), grpc.StatusCode.UNIMPLEMENTED, True),
        (Conflict(), grpc.StatusCode.ABORTED, True),
        (StillRunning(), grpc.StatusCode.ABORTED, True),
        (ValueError(), grpc.StatusCode.INTERNAL, False),
        (OSError(), grpc.StatusCode.INTERNAL, False),
        (LookupError(), grpc.StatusCode.INTERNAL, False),
    ],
)
def test_most_derived_class_the_table_names_decides(error: Exception, code: grpc.StatusCode, known: bool) -> None:
    assert TABLE.code(error) is code
    assert TABLE.knows(error) is known


def test_order_of_the_table_does_not_matter() -> None:
    turned = ErrorTable({Missing: grpc.StatusCode.NOT_FOUND, Base: grpc.StatusCode.FAILED_PRECONDITION})
    assert turned.code(MissingDisk()) is grpc.StatusCode.NOT_FOUND


def test_shared_rules_can_be_overridden() -> None:
    table = ErrorTable({TimeoutError: grpc.StatusCode.UNAVAILABLE, OSError: grpc.StatusCode.UNKNOWN})
    assert table.code(TimeoutError()) is grpc.StatusCode.UNAVAILABLE
    assert table.code(FileNotFoundError()) is grpc.StatusCode.UNKNOWN


def test_a_code_carried_by_an_exception_counts_only_where_the_table_says_so() -> None:
    assert ErrorTable({}).code(Carrying(grpc.StatusCode.NOT_FOUND)) is grpc.StatusCode.INTERNAL
