"""What daemons call: spans around their work, and the thread of a trace through gRPC metadata.

While nothing records, each costs one comparison. `foundation.tracing.recording` puts a recorder here.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from typing import Protocol

Value = str | int | float | bool


class Recorder(Protocol):
    """Makes spans. Errors that leave a block are noted in its span and go on."""

    def span(
        self, name: str, attributes: Mapping[str, Value], *, parent: Mapping[str, str] | None
    ) -> contextlib.AbstractContextManager[object]:
        """A span that is the current one within the block; `parent` is what `carry` wrote elsewhere."""
        ...

    def carry(self, carrier: MutableMapping[str, str]) -> None:
        """Writes which span is the current one."""
        ...


_recorder: Recorder | None = None


def use(recorder: Recorder | None) -> None:
    """From now on spans go to `recorder`; None turns them off."""
    global _recorder
    _recorder = recorder


@contextlib.contextmanager
def span(name: str, **attributes: Value) -> Iterator[None]:
    """The block as a part of the current trace, or as the beginning of one."""
    if _recorder is None:
        yield
        return
    with _recorder.span(name, attributes, parent=None):
        yield


@contextlib.contextmanager
def served(method: str, metadata: Iterable[tuple[str, str | bytes]] | None, **attributes: Value) -> Iterator[None]:
    """A call that came in with this metadata, as a part of its caller's trace."""
    if _recorder is None:
        yield
        return
    carrier = {key: value for key, value in metadata or () if isinstance(value, str)}
    with _recorder.span(method.strip("/"), attributes, parent=carrier):
        yield


def carried() -> Mapping[str, str]:
    """What a call that goes out has to take along in its metadata."""
    carrier: dict[str, str] = {}
    if _recorder is not None:
        _recorder.carry(carrier)
    return carrier
