"""Kernel modules: which ones a name needs, in which order, and building our own."""

from __future__ import annotations

import hashlib
import lzma
import shutil
from collections.abc import Iterable
from pathlib import Path

from lab.vm import tools
from lab.vm.unpacked import Unpacked

SOURCE = Path(__file__).parent / "module"
NAME = "dpu_lab"


async def index(unpacked: Unpacked) -> None:
    """Make modules.dep, as installing the kernel would have done."""
    if not (unpacked.modules / "modules.dep").exists():
        command: list[str | Path] = ["depmod", "-b", unpacked.root, unpacked.release]
        await tools.run(command, program=unpacked.kmod, environment=unpacked.environment())


def needed(unpacked: Unpacked, names: Iterable[str]) -> tuple[Path, ...]:
    """Files of these modules with all they depend on, in the order to load them; built-in ones are left out.

    Raises LookupError for a module that the kernel does not have.
    """
    dependencies = {}
    for line in (unpacked.modules / "modules.dep").read_text().splitlines():
        file, _, others = line.partition(":")
        dependencies[_name(file)] = (file, others.split())
    builtin = {_name(line) for line in (unpacked.modules / "modules.builtin").read_text().split()}
    files: dict[str, None] = {}
    for name in names:
        if name in builtin:
            continue
        if name not in dependencies:
            raise LookupError(f"kernel {unpacked.release} has no module {name}")
        own, required = dependencies[name]
        # modules.dep lists what is needed in the reverse order of loading.
        files |= dict.fromkeys((*reversed(required), own))
    return tuple(unpacked.modules / file for file in files)


def content(module: Path) -> bytes:
    data = module.read_bytes()
    return lzma.decompress(data) if module.suffix == ".xz" else data


async def build(unpacked: Unpacked, directory: Path) -> Path:
    """Our module for this kernel, built anew when its source has changed. Raises ToolFailed."""
    sources = sorted(path for path in SOURCE.iterdir() if path.is_file())
    text = unpacked.release.encode() + b"".join(path.read_bytes() for path in sources)
    place = directory / f"module-{hashlib.sha256(text).hexdigest()[:12]}"
    module = place / f"{NAME}.ko"
    if module.exists():
        return module
    for stale in directory.glob("module-*"):
        shutil.rmtree(stale)
    place.mkdir(parents=True)
    for path in sources:
        shutil.copy(path, place)
    # As packaged, both expect to lie in /usr/src; without vmlinux no type information is made, which needs pahole.
    (unpacked.headers / "Makefile").write_text(f"include {unpacked.common_headers}/Makefile\n")
    (unpacked.headers / "vmlinux").unlink(missing_ok=True)
    try:
        await tools.run(
            ["make", "-s", "-C", unpacked.headers, f"M={place}", "modules"], environment=unpacked.environment()
        )
    except BaseException:
        module.unlink(missing_ok=True)
        raise
    return module


def _name(file: str) -> str:
    return Path(file).name.partition(".ko")[0].replace("-", "_")
