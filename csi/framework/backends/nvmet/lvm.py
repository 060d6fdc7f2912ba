"""Volumes as thin logical volumes of one LVM pool; snapshots and clones share blocks in it.

Only thin ones: a plain logical volume shows what was deleted from its blocks before, a thin one zeros. What a volume
was made from is a tag of it. LVM commits its metadata as one, so each command is done or not; a clone that has to grow
does so under the name of an unfinished one.
"""

import contextlib
import os
import subprocess
from pathlib import Path
from typing import Final

import msgspec

from csi.errors import Internal, NotFound, ResourceExhausted, Unavailable

_SECONDS: Final = 60.0
_SOURCE_TAG: Final = "dpu-offload.source."
# Answers to what the tools would ask for.
_QUIET: Final = ("--yes", "--quiet")


class _Volume(msgspec.Struct, frozen=True):
    lv_name: str
    lv_size: str
    lv_tags: str = ""
    pool_lv: str = ""
    data_percent: str = ""
    vg_extent_size: str = ""

    @property
    def source(self) -> str:
        tags = (tag for tag in self.lv_tags.split(",") if tag.startswith(_SOURCE_TAG))
        return next((tag.removeprefix(_SOURCE_TAG) for tag in tags), "")


class _Report(msgspec.Struct, frozen=True):
    lv: list[_Volume] = []


class _Reports(msgspec.Struct, frozen=True):
    report: list[_Report] = []


class Lvm:
    def __init__(self, group: str, pool: str, *, command: str = "lvm") -> None:
        self._group = group
        self._pool = pool
        self._command = command

    def path(self, name: str) -> Path:
        return Path("/dev", self._group, name)

    def sizes(self) -> dict[str, int]:
        return {name: int(each.lv_size) for name, each in self._volumes().items() if not name.startswith("n")}

    def size(self, name: str) -> int | None:
        found = self._volumes().get(name)
        return int(found.lv_size) if found is not None else None

    def free(self) -> tuple[int, int]:
        pool = self._of_pool()
        total = int(pool.lv_size)
        return int(total * (100 - float(pool.data_percent or 0)) / 100), total

    def unit(self) -> int:
        return int(self._of_pool().vg_extent_size)

    def can_clone(self) -> bool:
        return True

    def can_reserve(self) -> bool:
        return False

    def create(self, name: str, size: int, *, thick: bool) -> None:
        self._run("lvcreate", "--type", "thin", "-V", f"{size}b", "--thinpool", self._pool, "-n", name, self._group)

    def clone(self, source: str, name: str, size: int) -> None:
        unfinished = f"n{name[1:]}"
        self.delete(unfinished)
        have = self._share(source, unfinished, "--addtag", f"{_SOURCE_TAG}{source}")
        if size > have:
            self.grow(unfinished, size)
        self._run("lvrename", self._group, unfinished, name)

    def snapshot(self, source: str, name: str) -> None:
        self._share(source, name)

    def source(self, name: str) -> str:
        found = self._volumes().get(name)
        return found.source if found is not None else ""

    def grow(self, name: str, size: int) -> None:
        if (self.size(name) or size) < size:
            self._run("lvextend", "-L", f"{size}b", f"{self._group}/{name}")

    def delete(self, name: str) -> None:
        if name in self._volumes():
            self._run("lvremove", "--force", f"{self._group}/{name}")

    def unfinished(self) -> dict[str, str]:
        return {name: "its creation was broken off" for name in self._volumes() if name.startswith("n")}

    def delete_unfinished(self, name: str) -> None:
        self.delete(name)

    def _share(self, source: str, name: str, *options: str) -> int:
        """The source's bytes. A snapshot's own tag of origin does not pass to what is made from it."""
        found = self._volumes().get(source)
        if found is None:
            raise NotFound(f"{source} does not exist in volume group {self._group}")
        with contextlib.suppress(OSError):
            # What writers of the block device still have in this machine's page cache belongs to the snapshot.
            descriptor = os.open(self.path(source), os.O_RDONLY | os.O_CLOEXEC)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        # Without -k n a thin snapshot is not activated, and has no device.
        self._run("lvcreate", "-s", "-k", "n", *options, "-n", name, f"{self._group}/{source}")
        return int(found.lv_size)

    def _of_pool(self) -> _Volume:
        pool = next((each for each in self._listed() if each.lv_name == self._pool), None)
        if pool is None:
            raise Unavailable(f"volume group {self._group} has no thin pool {self._pool}")
        return pool

    def _volumes(self) -> dict[str, _Volume]:
        """Those of the pool, by name."""
        return {each.lv_name: each for each in self._listed() if each.pool_lv == self._pool}

    def _listed(self) -> list[_Volume]:
        fields = ",".join(_Volume.__struct_fields__)
        text = self._run("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "-o", fields, self._group)
        return [each for report in msgspec.json.decode(text, type=_Reports).report for each in report.lv]

    def _run(self, verb: str, *arguments: str) -> str:
        options = () if verb == "lvs" else _QUIET
        try:
            done = subprocess.run(
                [self._command, verb, *options, *arguments],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
                env={**os.environ, "LC_ALL": "C", "LVM_SUPPRESS_FD_WARNINGS": "1"},
            )
        except FileNotFoundError as error:
            raise Unavailable(f"{self._command} is not installed on this machine (Debian package lvm2)") from error
        except subprocess.TimeoutExpired as error:
            raise Unavailable(f"{verb} did not end within {_SECONDS:g} s") from error
        if done.returncode:
            words = done.stderr.strip()[-400:]
            kind = ResourceExhausted if "nsufficient free space" in words else Internal
            raise kind(f"{verb} in volume group {self._group} failed with {done.returncode}: {words or 'no message'}")
        return done.stdout
