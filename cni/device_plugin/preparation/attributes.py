"""Writing attributes of sysfs."""

from __future__ import annotations

import os
from pathlib import Path

from cni.device_plugin.errors import PreparationError


class Attributes:
    """Blocking; a write returns when the driver has acted on it, which for VFs may take seconds."""

    def write(self, path: Path, text: str) -> None:
        """Raises PreparationError with what the driver answered."""
        try:
            # Never O_CREAT or O_TRUNC: these are not files.
            descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.write(descriptor, text.encode())
            finally:
                os.close(descriptor)
        except OSError as error:
            raise PreparationError(f"cannot write {text.strip()!r} to {path}: {error.strerror}") from error
