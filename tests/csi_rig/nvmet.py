"""The kernel's NVMe-oF target as a laid-out tree of its configfs.

Such a tree lacks two habits of the kernel's: objects have no attributes of their own, and removing one removes its own
entries. Both are added here, and nothing else.
"""

import os
import shutil
from pathlib import Path

from csi.framework.backends.nvmet.configfs import Configfs


def empty(tree: Path) -> Path:
    """As when the machine has just booted."""
    for name in ("ports", "subsystems", "hosts"):
        shutil.rmtree(tree / name, ignore_errors=True)
        (tree / name).mkdir(parents=True)
    return tree


class LaidOut(Configfs):
    def _make(self, path: Path) -> None:
        if path.exists():
            return
        super()._make(path)
        for below in {"subsystems": ("namespaces", "allowed_hosts"), "ports": ("subsystems",)}.get(
            path.parent.name, ()
        ):
            (path / below).mkdir()

    def _remove(self, path: Path) -> None:
        if not path.exists():
            return
        for root, directories, _ in os.walk(path):
            held = [name for name in directories if Path(root, name).is_symlink()]
            assert not held, f"the kernel would refuse: {root} still holds {held}"
        assert not list(path.glob("namespaces/*")), "the kernel would refuse: namespaces are left"
        shutil.rmtree(path)
