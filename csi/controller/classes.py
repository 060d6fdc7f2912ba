"""What volumes were created as, so that a name does not stand for two sorts of volume.

A backend compares what it stores (size, source, pool); how a volume is to be used stands only in its volume context.
This process remembers what it has answered; before that counts what the PersistentVolume carries.
"""

from collections.abc import Callable

import msgspec

from csi.controller.volume_context import VolumeContext
from csi.errors import AlreadyExists


class Classes:
    """By `calls.lock_of` of the volume's id. `recorded`: the context that Kubernetes has of a volume, by its name."""

    def __init__(self, recorded: Callable[[str], VolumeContext | None]) -> None:
        self._recorded = recorded
        self._known: dict[str, VolumeContext] = {}

    def note(self, lock: str, context: VolumeContext) -> None:
        self._known[lock] = _comparable(context)

    def forget(self, lock: str) -> None:
        self._known.pop(lock, None)

    def compare(self, lock: str, wanted: VolumeContext, *, name: str) -> None:
        """Raises AlreadyExists when a volume of that name was made for another use."""
        recorded = self._recorded(name)
        known = self._known.get(lock) or (_comparable(recorded) if recorded is not None else None)
        if known is None:
            return
        before, now = known.as_text(), _comparable(wanted).as_text()
        for parameter, value in before.items():
            if now[parameter] != value:
                raise AlreadyExists(
                    f"volume {name[:128]!r} exists with StorageClass parameter {parameter}={value}, "
                    f"not {now[parameter]}: choose another name"
                )


def _comparable(context: VolumeContext) -> VolumeContext:
    """Portals are the backend's: they may change in a volume's life."""
    return msgspec.structs.replace(context, portals="")
