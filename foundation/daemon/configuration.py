"""A daemon's settings from file, environment and flags, checked against one frozen struct.

Later wins: defaults, the YAML file (`--config PATH` or `$DPU_OFFLOAD_<NAME>_CONFIG`), the environment
(`DPU_OFFLOAD_<NAME>__FIELD__SUBFIELD=value`), `--set field.subfield=value`. Mappings are merged key by key; anything
else is replaced. Values in the environment and in flags are plain text where the field is a scalar and YAML where it
is a list, a mapping or a struct.
"""

from __future__ import annotations

import difflib
import importlib.metadata
import math
import re
import sys
from collections import deque
from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import msgspec
import yaml

from foundation.daemon import logs, schema

Key = tuple[str, ...]
T = TypeVar("T", bound="DaemonConfig")


class ConfigurationError(Exception):
    """The settings cannot be used; the message names the source, the key and what is expected there."""


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What is logged."""

    level: logs.Level = "info"
    """Least level that is logged."""
    loggers: dict[str, logs.Level] = {}
    """Levels of single loggers, by name."""


class TracingConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Traces of calls from daemon to daemon; needs the extra `otel`."""

    endpoint: str = ""
    """OTLP over HTTP, such as http://collector:4318/v1/traces; empty: off."""
    share: Annotated[float, msgspec.Meta(ge=0, le=1)] = 1.0
    """Part of the traces that begin here which is kept."""


class DaemonConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The settings which every daemon has; a daemon's own struct derives from it."""

    log: LogConfig = LogConfig()
    """Log lines on standard error."""
    http: str = "127.0.0.1:0"
    """Listener for /metrics, /healthz and /readyz: host:port (port 0: any free one), unix:/path, or empty for none."""
    tracing: TracingConfig = TracingConfig()
    """Traces of calls."""
    shutdown_seconds: Annotated[float, msgspec.Meta(gt=0)] = 10.0
    """Longest orderly stop, in seconds."""


def load(kind: type[T], *, name: str, argv: Sequence[str], environ: Mapping[str, str]) -> T:
    """The settings of daemon `name`. `argv` is without the program's name.

    `--help`, `--version` and `--print-config` print to standard output and end the process with 0.

    :raises ConfigurationError: a source cannot be read, or holds an unknown key or a wrong value.
    :raises SystemExit: after one of the printing flags.
    """
    flags = _Flags(name, argv)
    if flags.help:
        _print(schema.help_text(kind, name))
    if flags.version:
        _print(f"{name} {version()}\n")
    tree = _Tree(kind)
    path = flags.config or environ.get(f"{variable_prefix(name)}_CONFIG", "")
    if path:
        tree.merge(_read(Path(path)), origin=path)
    prefix = f"{variable_prefix(name)}__"
    for variable in sorted(environ):
        if variable.startswith(prefix):
            key = tuple(variable.removeprefix(prefix).lower().split("__"))
            tree.set(key, environ[variable], origin=f"environment variable {variable}")
    for key, value in flags.settings:
        tree.set(key, value, origin="--set")
    config: T = tree.convert(name)
    if flags.print_config:
        _print(yaml.safe_dump(schema.shown(config), sort_keys=False, allow_unicode=True))
    return config


def variable_prefix(name: str) -> str:
    """`cni-node` -> `DPU_OFFLOAD_CNI_NODE`."""
    return "DPU_OFFLOAD_" + name.upper().replace("-", "_")


def version() -> str:
    """The installed version of the suite."""
    try:
        return importlib.metadata.version("dpu-offload")
    except importlib.metadata.PackageNotFoundError:
        return "unknown (not installed as a package)"


def _print(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
    raise SystemExit(0)


class _Flags:
    """The few flags of a daemon; everything else goes through --set."""

    def __init__(self, name: str, argv: Sequence[str]) -> None:
        self.help = self.version = self.print_config = False
        self.config = ""
        self.settings: list[tuple[Key, str]] = []
        rest = list(argv)
        while rest:
            flag, given, value = rest.pop(0).partition("=")
            if flag in ("--help", "-h", "--version", "--print-config") and not given:
                setattr(self, {"-h": "help"}.get(flag, flag.strip("-").replace("-", "_")), True)
            elif flag in ("--config", "--set"):
                if not given:
                    if not rest:
                        raise ConfigurationError(f"{flag} needs a value; see {name} --help")
                    value = rest.pop(0)
                if flag == "--config":
                    self.config = value
                else:
                    key, assigned, value = value.partition("=")
                    if not assigned or not key:
                        raise ConfigurationError(f"--set {key}: expected field.subfield=value")
                    self.settings.append((tuple(key.split(".")), value))
            elif given and flag in ("--help", "--version", "--print-config"):
                raise ConfigurationError(f"{flag} takes no value; see {name} --help")
            else:
                known = ("--config", "--set", "--print-config", "--help", "--version")
                raise ConfigurationError(f"unknown argument {flag}{nearest(flag, known)}; see {name} --help")


def nearest(word: str, known: Sequence[str]) -> str:
    """`; did you mean x?`, or the known names when none is near, or nothing."""
    found = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if found:
        return f"; did you mean {found[0]}?"
    return f"; known here: {', '.join(sorted(known))}" if known else ""


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping, of which YAML would quietly take the last.

    Numbers are those of YAML 1.2: to 1.1, which the package follows, the PCI address 0000:03:00.0 is 180 minutes.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Hashable] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


_NUMBERS = {
    "tag:yaml.org,2002:int": r"[-+]?(?:0b[01]+|0x[0-9a-fA-F]+|0[0-7]*|[1-9][0-9_]*)$",
    "tag:yaml.org,2002:float": (
        r"[-+]?(?:(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?|\.(?:inf|Inf|INF|nan|NaN|NAN))$"
    ),
}
# Neither are there dates among the settings: 2026-13-45 is text, not a fault of the calendar.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if tag not in (*_NUMBERS, "tag:yaml.org,2002:timestamp")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Loader.add_implicit_resolver(_tag, re.compile(_pattern), list("-+.0123456789"))


def _leaves(value: Any, at: Key = ()) -> Iterator[tuple[Key, Any]]:
    """Everything in a tree that holds nothing more, by its key."""
    if isinstance(value, Mapping):
        for name, inside in value.items():
            yield from _leaves(inside, (*at, str(name)))
    elif isinstance(value, list):
        for number, inside in enumerate(value):
            yield from _leaves(inside, (*at, str(number)))
    else:
        yield at, value


def _yaml(text: str, origin: str) -> Any:
    try:
        content = yaml.load(text, _Loader)
        # One that holds itself, by an alias, has no end.
        deque(_leaves(content), maxlen=0)
        return content
    except RecursionError:
        raise ConfigurationError(f"{origin}: nested too deeply, or an alias leads back to what holds it") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f" line {mark.line + 1} column {mark.column + 1}" if mark else ""
        raise ConfigurationError(f"{origin}:{where} is not YAML: {error.problem}") from None
    except yaml.YAMLError as error:
        raise ConfigurationError(f"{origin}: is not YAML: {type(error).__name__}") from None
    except ValueError:
        raise ConfigurationError(f"{origin}: is not YAML: a value does not fit its tag") from None


def _read(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot read the configuration: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigurationError(f"{path}: the configuration is not UTF-8 text") from None
    content = _yaml(text, str(path))
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ConfigurationError(f"{path}: expected a mapping of settings, got {type(content).__name__}")
    return content


class _Tree:
    """The sources laid over one another, with the origin of each key for messages."""

    def __init__(self, kind: type[Any]) -> None:
        self._kind = kind
        self._values: dict[str, Any] = {}
        self._origins: dict[Key, str] = {}

    def merge(self, values: Mapping[Any, Any], *, origin: str) -> None:
        self._merge(self._kind, self._values, values, (), origin)

    def set(self, key: Key, text: str, *, origin: str) -> None:
        kind = schema.at(self._kind, key)
        value: Any = text
        if kind is not None and not schema.is_scalar(kind):
            value = _yaml(text, origin)
        elif kind is not None:
            value = schema.scalar(kind, text)
        for part in reversed(key):
            value = {part: value}
        self._merge(self._kind, self._values, value, (), origin)

    def _merge(self, kind: Any, into: dict[str, Any], values: Mapping[Any, Any], at: Key, origin: str) -> None:
        fields = schema.fields(kind)
        for name, value in values.items():
            key = (*at, str(name))
            if fields is not None and name not in fields:
                raise ConfigurationError(f"{origin}: unknown key {'.'.join(key)}{nearest(str(name), list(fields))}")
            inner = schema.inner(kind, str(name))
            mergeable = isinstance(value, Mapping) and schema.is_mapping(inner)
            if mergeable and isinstance(into.get(name), dict):
                self._merge(inner, into[name], value, key, origin)
            elif mergeable:
                into[name] = {}
                self._merge(inner, into[name], value, key, origin)
            else:
                self._check_unknown(inner, value, key, origin)
                into[name] = value
            self._origins[key] = origin

    def _check_unknown(self, kind: Any, value: Any, at: Key, origin: str) -> None:
        """Unknown keys of structs inside lists, which are not merged but must be known all the same."""
        if isinstance(value, list):
            for number, item in enumerate(value):
                self._check_unknown(schema.item(kind), item, (*at, str(number)), origin)
        elif isinstance(value, Mapping) and (fields := schema.fields(kind)) is not None:
            for name, inner in value.items():
                if name not in fields:
                    key = ".".join((*at, str(name)))
                    raise ConfigurationError(f"{origin}: unknown key {key}{nearest(str(name), list(fields))}")
                self._check_unknown(schema.inner(kind, name), inner, (*at, str(name)), origin)

    def convert(self, name: str) -> Any:
        # Known before anything can complain about them.
        for value in schema.secrets(self._kind, self._values):
            logs.secret(value)
        for key, value in _leaves(self._values):
            # No wait of ours lasts for ever, and clocks cannot count to it.
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigurationError(f"{self._origin(key)}: {'.'.join(key)} is {value}, expected a finite number")
        try:
            config = msgspec.convert(self._values, self._kind, dec_hook=schema.decode_path)
        except msgspec.ValidationError as error:
            message, key = schema.located(str(error), self._kind)
            origin = self._origin(key) or f"{name} configuration"
            where = f" {'.'.join(key)}" if key else ""
            raise ConfigurationError(logs.redact(f"{origin}:{where} {message}")) from None
        for value in schema.secrets(self._kind, msgspec.to_builtins(config, enc_hook=schema.encode_path)):
            logs.secret(value)
        return config

    def _origin(self, key: Key) -> str:
        while key:
            if key in self._origins:
                return self._origins[key]
            key = key[:-1]
        return next(iter(self._origins.values()), "")
