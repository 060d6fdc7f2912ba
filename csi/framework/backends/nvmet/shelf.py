"""Where the volumes of backend kind `nvmet` lie: what its verbs need of files and of logical volumes alike."""

from pathlib import Path
from typing import Protocol


class Shelf(Protocol):
    """Blocking. A name appears only when what it names is whole; sizes are bytes."""

    def path(self, name: str) -> Path:
        """What the kernel's target opens."""

    def sizes(self) -> dict[str, int]:
        """Everything that is whole, by name."""

    def size(self, name: str) -> int | None: ...

    def free(self) -> tuple[int, int]:
        """Bytes free, bytes in all. Sizes beyond the second cannot be had."""

    def unit(self) -> int:
        """Sizes are whole multiples of it."""

    def can_clone(self) -> bool: ...

    def can_reserve(self) -> bool:
        """Whether `thick` is possible."""

    def create(self, name: str, size: int, *, thick: bool) -> None:
        """Reads as zeros. Raises ResourceExhausted."""

    def clone(self, source: str, name: str, size: int) -> None:
        """At least `size` bytes, never less than the source. Raises NotFound."""

    def snapshot(self, source: str, name: str) -> None:
        """Raises NotFound."""

    def source(self, name: str) -> str:
        """What a volume was cloned from; "" for one that was made empty."""

    def grow(self, name: str, size: int) -> None: ...

    def delete(self, name: str) -> None:
        """Succeeds for an unknown name."""

    def unfinished(self) -> dict[str, str]:
        """What broken-off work has left: a name for `delete_unfinished`, with the reason."""

    def delete_unfinished(self, name: str) -> None: ...
