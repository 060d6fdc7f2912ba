"""A laid-out sysfs tree in the shapes of facts seen on real cards and guests."""

import os
from pathlib import Path

import pytest


class Tree:
    """Writes files and links below a root as the kernel lays them out."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def put(self, path: str, **files: str) -> Path:
        directory = self.root / path
        directory.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (directory / name).write_text(text + "\n")
        return directory

    def link(self, path: str, target: str) -> None:
        place = self.root / path
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(os.path.relpath(self.root / target, place.parent))

    def function(self, bdf: str, device_class: str = "0x020000", **files: str) -> str:
        real = f"devices/pci0000:00/{bdf}"
        self.put(real, vendor="0x15b3", device="0xa2dc", **{"class": device_class}, **files)
        self.link(f"bus/pci/devices/{bdf}", real)
        return real

    def netdev(self, parent: str, name: str, **files: str) -> None:
        self.put(f"{parent}/net/{name}", **files)
        self.link(f"{parent}/net/{name}/device", parent)
        self.link(f"class/net/{name}", f"{parent}/net/{name}")

    def virtual_functions(self, pf: str, addresses: list[str]) -> None:
        for index, bdf in enumerate(addresses):
            real = self.function(bdf)
            self.link(f"{real}/physfn", f"devices/pci0000:00/{pf}")
            self.link(f"devices/pci0000:00/{pf}/virtfn{index}", real)


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path)
