"""Values, operations, remotes and the replica, as tables."""

from __future__ import annotations

from typing import Any

import pytest

from foundation.ovsdb import operations as op
from foundation.ovsdb.errors import RemoteInvalid, SchemaMismatch
from foundation.ovsdb.remotes import parse as parse_remotes
from foundation.ovsdb.replica import Change, Replica
from foundation.ovsdb.schema import parse
from foundation.ovsdb.values import NamedUuid, Uuid, apply_diff, from_wire, to_wire

SCHEMA = parse(
    {
        "name": "T",
        "version": "1.0.0",
        "tables": {
            "T": {
                "columns": {
                    "name": {"type": "string"},
                    "count": {"type": {"key": "integer"}},
                    "tag": {"type": {"key": {"type": "integer", "minInteger": 1}, "min": 0, "max": 1}},
                    "ports": {"type": {"key": {"type": "uuid", "refTable": "T"}, "min": 0, "max": "unlimited"}},
                    "ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
                }
            }
        },
    }
)
TYPES = SCHEMA.tables["T"]
A, B = Uuid("11111111-0000-0000-0000-000000000000"), Uuid("22222222-0000-0000-0000-000000000000")


@pytest.mark.parametrize(
    ("column", "wire", "value"),
    [
        ("name", "x", "x"),
        ("tag", ["set", []], None),
        ("tag", 7, 7),
        ("tag", ["set", [7]], 7),
        ("ports", ["uuid", A], frozenset({A})),
        ("ports", ["set", []], frozenset()),
        ("ports", ["set", [["uuid", A], ["uuid", B]]], frozenset({A, B})),
        ("ids", ["map", [["a", "b"]]], {"a": "b"}),
        ("ids", ["map", []], {}),
    ],
)
def test_from_wire(column: str, wire: Any, value: Any) -> None:
    assert from_wire(wire, TYPES[column]) == value


@pytest.mark.parametrize(
    ("value", "wire"),
    [
        ("x", "x"),
        (True, True),
        (None, ["set", []]),
        (A, ["uuid", A]),
        (NamedUuid("r1"), ["named-uuid", "r1"]),
        ({"a": A}, ["map", [["a", ["uuid", A]]]]),
        ((1, 2), ["set", [1, 2]]),
        (frozenset({A}), ["set", [["uuid", A]]]),
    ],
)
def test_to_wire(value: Any, wire: Any) -> None:
    assert to_wire(value) == wire


def test_what_ovsdb_cannot_hold_is_refused() -> None:
    with pytest.raises(TypeError, match="bytes"):
        to_wire(b"x")


@pytest.mark.parametrize(
    ("column", "old", "diff", "new"),
    [
        ("name", "x", "y", "y"),
        ("tag", 7, ["set", []], None),
        ("tag", None, 8, 8),
        ("ports", frozenset({A}), ["set", [["uuid", A], ["uuid", B]]], frozenset({B})),
        (
            "ids",
            {"a": "1", "b": "2", "c": "3"},
            ["map", [["a", "1"], ["b", "9"], ["d", "4"]]],
            {"b": "9", "c": "3", "d": "4"},
        ),
    ],
)
def test_apply_diff(column: str, old: Any, diff: Any, new: Any) -> None:
    assert apply_diff(old, diff, TYPES[column]) == new


def test_operations() -> None:
    assert op.insert("T", {"name": "n", "tag": None}, uuid_name=NamedUuid("r1")) == {
        "op": "insert",
        "table": "T",
        "row": {"name": "n", "tag": ["set", []]},
        "uuid-name": "r1",
    }
    assert op.mutate("T", A, [("ports", "delete", {B})]) == {
        "op": "mutate",
        "table": "T",
        "where": [["_uuid", "==", ["uuid", A]]],
        "mutations": [["ports", "delete", ["set", [["uuid", B]]]]],
    }
    assert op.wait("T", [("name", "==", "n")], []) == {
        "op": "wait",
        "table": "T",
        "where": [["name", "==", "n"]],
        "columns": ["_uuid"],
        "until": "==",
        "rows": [],
        "timeout": 0,
    }


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("unix:/a/b", ["unix:/a/b"]),
        ("ssl:10.0.0.1:6641, ssl:[fd00::1]:6641", ["ssl:10.0.0.1:6641", "ssl:[fd00::1]:6641"]),
        ("tcp:nb:1", ["tcp:nb:1"]),
    ],
)
def test_remotes(text: str, shown: list[str]) -> None:
    assert [str(remote) for remote in parse_remotes(text)] == shown


@pytest.mark.parametrize("text", ["", "unix:", "tcp:host", "tcp:host:0", "tcp::1", "http://x"])
def test_bad_remotes(text: str) -> None:
    with pytest.raises(RemoteInvalid, match="unix:PATH"):
        parse_remotes(text)


def _replica() -> tuple[Replica, list[Change]]:
    replica = Replica()
    replica.register({"T": ["name", "ids"]})
    replica.bind(SCHEMA)
    changes: list[Change] = []
    replica.subscribe("T", changes.append)
    return replica, changes


def test_replica_follows_updates_and_omitted_columns_hold_defaults() -> None:
    replica, changes = _replica()
    index = replica.index("T", lambda row: row["ids"].get("owner"))
    replica.apply({"T": {A: {"initial": {"name": "a"}}, B: {"insert": {"ids": ["map", [["owner", "o"]]]}}}})
    assert replica.rows("T")[A]["ids"] == {}
    assert replica.rows("T")[B]["name"] == ""
    found = index.one("o")
    assert found is not None
    assert found.uuid == B
    replica.apply({"T": {A: {"modify": {"ids": ["map", [["owner", "o"]]]}}}})
    assert {row.uuid for row in index.all("o")} == {A, B}
    replica.apply({"T": {B: {"delete": None}}})
    assert [row.uuid for row in index.all("o")] == [A]
    assert [change.kind for change in changes] == ["insert", "insert", "modify", "delete"]


def test_replica_replace_tells_only_the_difference() -> None:
    replica, changes = _replica()
    replica.apply({"T": {A: {"initial": {"name": "a"}}, B: {"initial": {"name": "b"}}}})
    changes.clear()
    replica.replace({"T": {A: {"initial": {"name": "a2"}}}})
    assert [(change.kind, change.uuid) for change in changes] == [("delete", B), ("modify", A)]
    changes.clear()
    replica.replace({"T": {A: {"initial": {"name": "a2"}}}})
    assert changes == []


def test_a_failing_subscriber_costs_the_others_nothing(caplog: pytest.LogCaptureFixture) -> None:
    replica, changes = _replica()

    def fail(change: Change) -> None:
        raise ValueError("boom")

    unsubscribe = replica.subscribe("T", fail)
    changes_after: list[Change] = []
    replica.subscribe("T", changes_after.append)
    replica.apply({"T": {A: {"initial": {"name": "a"}}}})
    assert len(changes) == len(changes_after) == 1
    assert "boom" in caplog.text
    unsubscribe()


def test_unknown_tables_and_columns_are_named() -> None:
    replica = Replica()
    replica.register({"T": ["nope"]})
    with pytest.raises(SchemaMismatch, match="nope"):
        replica.bind(SCHEMA)
    with pytest.raises(SchemaMismatch, match="not monitored"):
        replica.rows("U")
