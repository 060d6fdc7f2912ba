"""Backends by name: kinds found by entry point, instances made of the configuration's sections."""

import difflib
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

import msgspec

from csi import identity
from csi.framework.backend import Backend, BackendKind
from csi.framework.parameters import known_keys

ENTRY_POINTS = "dpu_offload.storage_backends"


class BadSection(ValueError):
    """The configuration of a backend is wrong; the message is one sentence for the operator."""


def discover() -> dict[str, BackendKind]:
    """Kinds by the name of their entry point. One that cannot be imported raises now, not later."""
    kinds: dict[str, BackendKind] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        kind = entry.load()
        if not isinstance(kind, BackendKind):
            raise BadSection(f"entry point {ENTRY_POINTS}:{entry.name} is a {type(kind).__name__}, not a BackendKind")
        kinds[entry.name] = kind
    return kinds


class Registry:
    """The configured backends, ready to be started. `kinds[name]` is the kind of `backends[name]`."""

    def __init__(self, backends: Mapping[str, Backend[Any]], kinds: Mapping[str, BackendKind], default: str) -> None:
        self.backends = backends
        self.kinds = kinds
        self.default = default

    def can(self, capability: str) -> bool:
        """Whether any backend declares this field of `Capabilities`."""
        return any(getattr(backend.capabilities, capability) for backend in self.backends.values())

    @classmethod
    def open(
        cls,
        sections: Mapping[str, Mapping[str, Any]],
        *,
        default: str = "",
        kinds: Mapping[str, BackendKind] | None = None,
    ) -> "Registry":
        """`sections`: name -> section; key `kind` in it names the kind, by default the section's own name.

        Raises BadSection.
        """
        available = discover() if kinds is None else kinds
        opened: dict[str, Backend[Any]] = {}
        chosen: dict[str, BackendKind] = {}
        for name, section in sections.items():
            if not identity.valid_backend_name(name):
                raise BadSection(f"backends.{name}: a backend's name is 1 to 31 of a-z, 0-9 and -, a letter first")
            kind_name = str(section.get("kind", name))
            if kind_name not in available:
                near = difflib.get_close_matches(kind_name, available, n=1)
                raise BadSection(
                    f"backends.{name}.kind: no storage backend {kind_name!r} is installed; "
                    + (f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(available))}")
                )
            kind = available[kind_name]
            try:
                opened[name] = kind.open(name, _section(name, section, kind))
            except ValueError as error:
                raise BadSection(error if isinstance(error, BadSection) else f"backends.{name}: {error}") from error
            chosen[name] = kind
        if not opened:
            raise BadSection("backends: at least one storage backend must be configured")
        if default and default not in opened:
            raise BadSection(f"default_backend: {default!r} is not among backends {', '.join(sorted(opened))}")
        return cls(opened, chosen, default or next(iter(opened)))


def _section(name: str, section: Mapping[str, Any], kind: BackendKind) -> msgspec.Struct:
    given = {key: value for key, value in section.items() if key != "kind"}
    known = known_keys(kind.configuration)
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1)
            raise BadSection(
                f"backends.{name}.{key} is unknown; "
                + (f"did you mean {near[0]!r}?" if near else f"known: {sorted(known)}")
            )
    try:
        return msgspec.convert(given, kind.configuration)
    except msgspec.ValidationError as error:
        raise BadSection(f"backends.{name}: {error}") from error
