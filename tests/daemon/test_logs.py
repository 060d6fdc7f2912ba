"""Log lines: their form, their context, and that no secret gets through."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import logging
import re
import sys
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from foundation.daemon import logs

CANARY = "c4n4ry-77'\"\\\n\tß-end"


class Captured:
    def __init__(self) -> None:
        self.stream = io.StringIO()

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.split("\n") if line]


@pytest.fixture
def captured() -> Iterator[Captured]:
    """Logging as a daemon has it, into memory; what was before is put back."""
    root = logging.getLogger()
    before = (root.handlers[:], root.level, logging.raiseExceptions, sys.excepthook, threading.excepthook)
    captured = Captured()
    logs.configure(daemon="sample", level="debug", stream=captured.stream)
    yield captured
    logging.captureWarnings(False)
    root.handlers[:], level, logging.raiseExceptions, sys.excepthook, threading.excepthook = before
    root.setLevel(level)


log = logging.getLogger("sample.room")


def test_a_line_is_one_json_object_with_time_level_logger_message(captured: Captured) -> None:
    log.warning("two\nlines and %d", 7)
    (line,) = captured.lines
    assert captured.text.count("\n") == 1
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning", "daemon": "sample", "logger": "sample.room", "message": "two\nlines and 7",
    }  # fmt: skip


def test_bound_context_reaches_inner_tasks_and_ends_with_its_block(captured: Captured) -> None:
    async def inner(name: str) -> None:
        with logs.bound(step=name):
            await asyncio.sleep(0)
            log.info("inside")

    async def main() -> None:
        with logs.bound(pod="ns/a", volume=7):
            await asyncio.gather(inner("one"), inner("two"))
            log.info("after")
        log.info("outside")

    asyncio.run(main())
    seen = [(line.get("pod"), line.get("volume"), line.get("step")) for line in captured.lines if "side" in str(line)]
    assert seen == [("ns/a", 7, "one"), ("ns/a", 7, "two"), (None, None, None)]
    assert captured.lines[-2]["message"] == "after"
    assert "step" not in captured.lines[-2]


def test_extra_fields_stand_beside_and_never_over_the_line_s_own(captured: Captured) -> None:
    with logs.bound(level="bound", pod="p"):
        log.info("text", extra={"time": "later", "seconds": 0.5, "many": [1, "x"], "deep": {"a": None}})
    (line,) = captured.lines
    assert line["level"] == "info"
    assert line["level_"] == "bound"
    assert line["time_"] == "later"
    assert line["seconds"] == 0.5
    assert line["many"] == [1, "x"]
    assert line["deep"] == {"a": None}


def test_levels_of_single_loggers(captured: Captured) -> None:
    logs.configure(daemon="sample", level="warning", loggers={"sample.loud": "debug"}, stream=captured.stream)
    log.info("unheard")
    logging.getLogger("sample.loud.inner").debug("heard")
    logging.getLogger("sample.loud").setLevel(logging.NOTSET)
    assert [line["message"] for line in captured.lines] == ["heard"]


class Unshowable:
    def __str__(self) -> str:
        raise RuntimeError("no text for this")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: log.info("%d apples", "no number"), "%d apples (its arguments do not fit)"),
        (lambda: log.info("%s %s", "one"), "%s %s (its arguments do not fit)"),
        (lambda: log.info("see %s", Unshowable()), "see %s (its arguments do not fit)"),
        (lambda: log.info("x", extra={"thing": Unshowable()}), "x"),
        (lambda: log.info("big", extra={"number": 2**90}), "big"),
        (lambda: log.info("name %s", "\udcff"), "name \udcff"),
        (lambda: log.info("not a number", extra={"value": float("nan")}), "not a number"),
    ],
    ids=["wrong type", "too few", "unshowable", "unshowable extra", "big", "surrogate", "nan"],
)
def test_no_line_is_lost_for_what_it_carries(captured: Captured, call: Any, message: str) -> None:
    call()
    assert [line["message"] for line in captured.lines] == [message]


def fails_with(text: str) -> None:
    raise ValueError(f"cannot use {text}")


def chained(text: str) -> None:
    try:
        fails_with(text)
    except ValueError as error:
        raise KeyError(text) from error


def log_exception() -> None:
    try:
        chained(CANARY)
    except KeyError:
        log.exception("failed for %s", CANARY)


def log_warning() -> None:
    warnings.warn(f"odd {CANARY}", UserWarning, stacklevel=1)


def die_in_a_thread() -> None:
    thread = threading.Thread(target=chained, args=(CANARY,), name="worker")
    thread.start()
    thread.join()


def die_at_the_top() -> None:
    try:
        chained(CANARY)
    except KeyError:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]  # inside an except block none of them is None


def die_in_a_task() -> None:
    async def main() -> None:
        async def lost() -> None:
            chained(CANARY)

        task = asyncio.create_task(lost())
        while not task.done():
            await asyncio.sleep(0)
        del task

    asyncio.run(main())


def bind_it() -> None:
    with logs.bound(where=f"at {CANARY}", deep={"list": [CANARY, {"x": CANARY}], CANARY: 1}):
        log.info("bound")


PATHS = {
    "message": lambda: log.info(f"it is {CANARY}."),
    "argument": lambda: log.info("it is %s.", CANARY),
    "repr": lambda: log.info("it is %r", CANARY),
    "structure": lambda: log.info("call %s", {"params": [CANARY]}),
    "json": lambda: log.info("sent %s", json.dumps({"value": CANARY}, ensure_ascii=False)),
    "extra": lambda: log.info("x", extra={"value": CANARY, "inner": {"deep": [CANARY]}}),
    "object": lambda: log.info("x", extra={"value": ValueError(CANARY)}),
    "bound": bind_it,
    "exception": log_exception,
    "warning": log_warning,
    "thread": die_in_a_thread,
    "top": die_at_the_top,
    "task": die_in_a_task,
    "stack": lambda: log.info(CANARY, stack_info=True),
    "bad arguments": lambda: log.info(f"%d {CANARY}", "x"),
    "surrogate": lambda: log.info("\udcff" + CANARY),
}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.filterwarnings("default::UserWarning")
def test_a_remembered_secret_gets_out_by_no_path(captured: Captured, path: str) -> None:
    logs.secret(CANARY)
    PATHS[path]()
    assert captured.lines, "nothing was logged, so nothing was proven"
    assert logs.REDACTED in captured.text
    for piece in ("c4n4ry", "-end"):
        assert piece not in captured.text


def test_the_paths_above_do_show_what_is_no_secret(captured: Captured) -> None:
    """Without this the test before it could pass because nothing reached the log at all."""
    for name in ("message", "extra", "bound", "exception", "thread", "top"):
        PATHS[name]()
    assert captured.text.count("c4n4ry") > 6


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("password=hunter2 x", "password=[redacted] x"),
        ("Password: 'hunter2'", "Password: [redacted]"),
        ('{"psk": "hunter2", "name": "n"}', '{"psk": [redacted], "name": "n"}'),
        (r'{"secret": "hunter2\"hunter2"}', '{"secret": [redacted]}'),
        ("{'dhchap_key': 'hunter2', 'x': 1}", "{'dhchap_key': [redacted], 'x': 1}"),
        ("chap_user_token=hunter2&b=1", "chap_user_token=[redacted]&b=1"),
        (
            json.dumps({"body": json.dumps({"psk": "hunter2 x", "n": 1})}),
            r'{"body": "{\"psk\": [redacted], \"n\": 1}"}',
        ),
        ("authToken=hunter2 and nodePsk: hunter2", "authToken=[redacted] and nodePsk: [redacted]"),
        ("Authorization: Bearer hunter2hunter2.x-y", "Authorization: Bearer [redacted]"),
        ("basic aHVudGVyMjpodW50ZXIy", "basic [redacted]"),
        ("GET http://admin:hunter2@spdk:9009/", "GET http://admin:[redacted]@spdk:9009/"),
        ("key DHHC-1:00:aHVudGVyMmh1bnRlcjI=: set", "key [redacted] set"),
        ("NVMeTLSkey-1:01:aHVudGVyMmh1bnRlcjI=:", "[redacted]"),
        ("-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----\nx", "[redacted]\nx"),
        ("-----BEGIN PRIVATE KEY-----\nhunter2 cut off", "[redacted]"),
    ],
)
def test_what_looks_like_a_secret_is_redacted_though_nobody_named_it(text: str, shown: str) -> None:
    assert logs.redact(text) == shown


@pytest.mark.parametrize(
    "piece",
    [
        "a_",
        "a",
        "password=",
        'password="',
        "password='\\",
        "psk ",
        "x://",
        "x://a:",
        "basic ",
        " ",
        "-----BEGIN PRIVATE KEY",
    ],
)
def test_time_grows_with_the_length_of_a_line_and_not_with_its_square(piece: str) -> None:
    began = time.process_time()
    logs.redact(piece * (100_000 // len(piece)))
    # Linear is some 10 ms here, quadratic was minutes.
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    "text",
    [
        "secret_name=nvme-keys",
        "mypassword of yours = none",
        "notasecret=1",
        "token_file: /var/run/token",
        "passwords are not kept here",
        "secret nvme-keys in namespace storage was not found",
        "http://spdk:9009/path",
        "tcp:10.0.0.1:4420",
        "basic test",
        "namespace_uuid=1b4e28ba-2fa1-11d2-883f-0016d3cca427",
        "-----BEGIN CERTIFICATE-----",
    ],
)
def test_what_is_no_secret_stays_readable(text: str) -> None:
    assert logs.redact(text) == text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("password", True), ("targetPassword", True), ("spdk.password", True), ("tls-psk", True), ("dhchap_key", True),
        ("dhchap_ctrlr_key", True), ("apiKey", True), ("client_secret", True), ("tokens", True), ("credentials", True),
        ("key", False), ("key_file", False), ("secretName", False), ("secret_ref", False), ("token_path", False),
        ("passwordless", False), ("namespace", False),
    ],
)  # fmt: skip
def test_names_that_stand_for_secrets(name: str, expected: bool) -> None:
    assert logs.names_secret(name) is expected


def test_a_field_named_like_a_secret_is_hidden_whatever_it_holds(captured: Captured) -> None:
    log.info("x", extra={"password": "abc", "inner": {"authToken": ["q1w2e3"], "token_file": "/f"}, "psk": ""})
    (line,) = captured.lines
    assert line["password"] == logs.REDACTED
    assert line["inner"] == {"authToken": logs.REDACTED, "token_file": "/f"}
    assert line["psk"] == ""


def test_a_secret_that_begins_another_leaves_no_tail() -> None:
    logs.secret("swordfish")
    logs.secret("swordfish-and-more")
    assert logs.redact("x swordfish-and-more y swordfish") == f"x {logs.REDACTED} y {logs.REDACTED}"


def test_too_short_a_secret_would_blot_out_everything() -> None:
    assert logs.secret("abc") == "abc"
    assert logs.redact("abc abcd") == "abc abcd"
    assert logs.secret("") == ""


# A mark that occurs in no template, so that what is found in the output can only come from the secret.
secrets = st.text(st.characters(), min_size=1, max_size=20).map(lambda text: f"zQ{text}Qz")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(value=secrets, around=st.text(st.characters(exclude_characters="zQ"), max_size=10))
def test_any_secret_anywhere_in_a_line_is_gone(captured: Captured, value: str, around: str) -> None:
    captured.stream.seek(0)
    captured.stream.truncate()
    logs.secret(value)
    encoded = base64.b64encode(value.encode("utf-8", "surrogatepass")).decode()
    log.info(
        "%s%s%s %r %s",
        around,
        value,
        around,
        value,
        json.dumps([value, encoded]),
        extra={"field": {"deep": around + value}},
    )
    assert len(captured.lines) == 1
    assert "zQ" not in captured.text
    assert "Qz" not in captured.text
    assert encoded not in captured.text
