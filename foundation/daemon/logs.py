"""JSON log lines in which no secret can stand.

One line a record on standard error: `time` (RFC 3339, UTC, milliseconds), `level`, `daemon`, `logger`, `message`,
whatever is bound to the running context (`bound(pod=...)`), the record's own `extra`, and `exception`. Every text
passes `redact`.
"""

from __future__ import annotations

import base64
import contextlib
import contextvars
import json
import logging
import re
import sys
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, TextIO

import msgspec

REDACTED = "[redacted]"
Level = Literal["debug", "info", "warning", "error"]

# A shorter "secret" would blot out half of every line and protect nothing.
SHORTEST_SECRET = 4

_SECRET_WORD = (
    r"(?:password|passwd|passphrase|secret|token|credential|psk"
    r"|dhchap_(?:ctrlr_)?key|private_key|api_key|key_material|passkey)s?"
)
# "secret_name", "token_file" and the like name a place, not the thing.
_SECRET_NAME = re.compile(rf"(?:^|[_\-.]){_SECRET_WORD}$", re.IGNORECASE)
# Looks back instead of matching what stands before the word: that would take quadratic time on a long a_b_c_d.
_SECRET_PAIR = re.compile(
    rf"""((?:(?<![A-Za-z0-9])|(?<=[a-z0-9])(?=[A-Z]))(?i:{_SECRET_WORD})\\*["']?\s*[:=]\s*)"""
    # The value: in quotes that a surrounding JSON has escaped, in quotes, or bare.
    r"""(?:\\+(?P<q>["']).*?\\+(?P=q)|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|[^\s,;&)\]}'"]+)"""
)
_BEARER = re.compile(r"\b(bearer|basic)\s+[A-Za-z0-9+/=._~-]{8,}", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(\w://[^/\s:@]*):[^/\s@]+@")
# The interchange forms of NVMe: DH-HMAC-CHAP secrets, TLS pre-shared keys; private keys in PEM.
_SHAPES = re.compile(
    r"(?:DHHC-1:\d\d:|NVMeTLSkey-1:\d\d:)[A-Za-z0-9+/=]{8,}:?"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")

_NOTHING: Mapping[str, object] = MappingProxyType({})
_bound: contextvars.ContextVar[Mapping[str, object]] = contextvars.ContextVar(
    "dpu_offload_log_context", default=_NOTHING
)
_known: dict[str, None] = {}
_pattern: re.Pattern[str] | None = None
_lock = threading.Lock()

_STANDARD = frozenset(vars(logging.LogRecord("", 0, "", 0, "", (), None))) | {"message", "asctime", "taskName"}


def secret(value: str) -> str:
    """Remember `value` so that no log line ever shows it, and return it unchanged.

    Known with it are the forms in which it may turn up: escaped as by `repr` and JSON, percent-encoded, base64. Values
    shorter than four characters are not remembered.
    """
    global _pattern
    if len(value) < SHORTEST_SECRET:
        return value
    with _lock:
        if value not in _known:
            forms = {
                value,
                repr(value)[1:-1],
                json.dumps(value)[1:-1],
                json.dumps(value, ensure_ascii=False)[1:-1],
                urllib.parse.quote(value, safe="", errors="surrogatepass"),
                base64.b64encode(value.encode("utf-8", "surrogatepass")).decode(),
            }
            _known.update(dict.fromkeys(forms))
            # Longest first, or a secret that begins another would leave the other's tail standing.
            _pattern = re.compile("|".join(re.escape(form) for form in sorted(_known, key=len, reverse=True)))
    return value


def names_secret(name: str) -> bool:
    """Whether a key of this name (snake_case, kebab-case or camelCase) is taken to hold a secret."""
    return _SECRET_NAME.search(_CAMEL.sub("_", name)) is not None


def redact(text: str) -> str:
    """`text` without remembered secrets, `password=...` pairs, bearer tokens, passwords in URLs, NVMe and PEM keys."""
    if _pattern is not None:
        text = _pattern.sub(REDACTED, text)
    text = _SHAPES.sub(REDACTED, text)
    text = _SECRET_PAIR.sub(rf"\1{REDACTED}", text)
    text = _URL_PASSWORD.sub(rf"\1:{REDACTED}@", text)
    return _BEARER.sub(rf"\1 {REDACTED}", text)


def _clean(value: object, name: str = "") -> object:
    if name and value not in (None, "") and names_secret(name):
        return REDACTED
    if isinstance(value, str):
        return redact(value)
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, Mapping):
        return {redact(str(key)): _clean(item, str(key)) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_clean(item) for item in value]
    try:
        return redact(str(value))
    except Exception:
        return f"({type(value).__name__} that cannot be shown)"


@contextlib.contextmanager
def bound(**fields: object) -> Iterator[None]:
    """Put `fields` on every log line of this task, and of the tasks it starts, until the block ends."""
    token = _bound.set({**_bound.get(), **fields})
    try:
        yield
    finally:
        _bound.reset(token)


def context() -> Mapping[str, object]:
    """The fields bound where this is called."""
    return _bound.get()


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:
        # A line whose arguments do not fit is a slip; losing the line would be another.
        return f"{record.msg} (its arguments do not fit)"


class JsonFormatter(logging.Formatter):
    """A record as one JSON object without line breaks."""

    def __init__(self, daemon: str) -> None:
        super().__init__()
        self._daemon = daemon

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")[:-6] + "Z",
            "level": record.levelname.lower(),
            "daemon": self._daemon,
            "logger": record.name,
            "message": redact(_message(record)),
        }
        for source in (_bound.get(), {k: v for k, v in vars(record).items() if k not in _STANDARD}):
            for key, value in source.items():
                line[key if key not in line else f"{key}_"] = _clean(value, key)
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = redact(self.formatException(record.exc_info))
        if record.stack_info:
            line["stack"] = redact(self.formatStack(record.stack_info))
        try:
            return msgspec.json.encode(line).decode()
        except (UnicodeEncodeError, OverflowError):
            # File names that are no UTF-8, integers over 64 bits: the slower encoder takes them.
            return json.dumps(line)


def configure(
    *, daemon: str, level: Level = "info", loggers: Mapping[str, Level] | None = None, stream: TextIO | None = None
) -> None:
    """Send all logging, warnings and unhandled exceptions of this process to `stream` (standard error) as JSON lines.

    `loggers` gives single loggers a level of their own.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter(daemon))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(level.upper())
    for name, its_level in (loggers or {}).items():
        logging.getLogger(name).setLevel(its_level.upper())
    # A handler that fails must not print the record it failed on, arguments and all, to standard error.
    logging.raiseExceptions = False
    logging.captureWarnings(True)
    sys.excepthook = _unhandled
    threading.excepthook = _unhandled_in_thread


def _unhandled(kind: type[BaseException], error: BaseException, trace: Any) -> None:
    logging.getLogger(__name__).critical("unhandled exception", exc_info=(kind, error, trace))


def _unhandled_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        name = args.thread.name if args.thread else "?"
        exc_info = (args.exc_type, args.exc_value, args.exc_traceback)
        logging.getLogger(__name__).critical("unhandled exception in thread %s", name, exc_info=exc_info)
