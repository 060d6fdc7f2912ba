"""Backend kind `nvmet` over LVM under the conformance suite: the tools are modelled, as device-mapper may be missing.

The model refuses what lvm(8) refuses, and rounds sizes to extents as it does; the real tools run in the VM lab.
"""

import dataclasses
import itertools
from collections.abc import AsyncIterator
from pathlib import Path

import msgspec
import pytest

from csi.errors import InvalidArgument
from csi.framework.backend import SizeRange, VolumeSpec
from csi.framework.backends.nvmet import NvmetBackend
from csi.framework.backends.nvmet.config import NvmetConfig, NvmetParameters
from csi.framework.backends.nvmet.lvm import Lvm
from csi.framework.conformance.storage import Storage
from csi.framework.conformance.suite import BackendConformance
from csi.framework.naming import volume
from csi.framework.registry import BadSection, Registry
from csi.identity import hashed
from tests.csi_rig.nvmet import LaidOut, empty

EXTENT = 4 << 20
POOL_SIZE = 1 << 40
CONFIG = {"volume_group": "vg0", "thin_pool": "pool0", "portals": [{"transport": "tcp", "address": "::1", "port": 1}]}


@dataclasses.dataclass
class Logical:
    size: int
    tags: str = ""


class Modelled(Lvm):
    def __init__(self) -> None:
        super().__init__("vg0", "pool0")
        self.volumes: dict[str, Logical] = {}
        self.verbs: list[str] = []

    def _run(self, verb: str, *arguments: str) -> str:
        self.verbs.append(verb)
        if verb == "lvs":
            return self._report()
        given = dict(itertools.pairwise(arguments))
        if verb == "lvcreate":
            name = given["-n"]
            assert name not in self.volumes, f"lvcreate: {name} already exists"
            if "-V" in given:
                assert (given["--type"], given["--thinpool"]) == ("thin", "pool0")
                self.volumes[name] = Logical(_extents(given["-V"]))
            else:
                assert "-s" in arguments
                assert given["-k"] == "n", "a thin snapshot is not activated by itself"
                self.volumes[name] = Logical(self._named(arguments[-1]).size, given.get("--addtag", ""))
        elif verb == "lvextend":
            grown = _extents(given["-L"])
            assert grown > self._named(arguments[-1]).size, "lvextend: new size matches or is smaller"
            self._named(arguments[-1]).size = grown
        elif verb == "lvremove":
            del self.volumes[arguments[-1].removeprefix("vg0/")]
        elif verb == "lvrename":
            group, old, new = arguments
            assert (group, new in self.volumes) == ("vg0", False)
            self.volumes[new] = self.volumes.pop(old)
        else:
            raise AssertionError(f"{verb} is no verb of lvm")
        return ""

    def _named(self, path: str) -> Logical:
        return self.volumes[path.removeprefix("vg0/")]

    def _report(self) -> str:
        pool = {"lv_name": "pool0", "lv_size": str(POOL_SIZE), "data_percent": "1.50", "vg_extent_size": str(EXTENT)}
        listed = [
            {"lv_name": name, "lv_size": str(each.size), "lv_tags": each.tags, "pool_lv": "pool0"}
            for name, each in self.volumes.items()
        ]
        other = {"lv_name": f"v{'a' * 20}", "lv_size": str(EXTENT), "pool_lv": ""}
        return msgspec.json.encode({"report": [{"lv": [pool, other, *listed]}]}).decode()


def _extents(text: str) -> int:
    assert text.endswith("b")
    return -(-int(text[:-1]) // EXTENT) * EXTENT


@pytest.fixture
def lvm() -> Modelled:
    return Modelled()


@pytest.fixture
async def backend(lvm: Modelled, tmp_path: Path) -> AsyncIterator[NvmetBackend]:
    tree = empty(tmp_path / "nvmet")
    backend = NvmetBackend("nvmet", msgspec.convert(CONFIG, NvmetConfig), configfs=LaidOut(tree), shelf=lvm)
    await backend.start()
    yield backend
    await backend.close()


class TestLvm(BackendConformance):
    @pytest.fixture
    async def storage(self, backend: NvmetBackend, tmp_path: Path) -> Storage:
        async def restart() -> None:
            empty(tmp_path / "nvmet")

        return Storage(backend=backend, parameters=NvmetParameters(), restart=restart)


async def test_the_kernel_is_given_the_logical_volumes_device(backend: NvmetBackend, tmp_path: Path) -> None:
    spec = VolumeSpec(token=hashed("a"), size=SizeRange(1), parameters=NvmetParameters())
    made = await backend.create(spec)
    assert made.size == EXTENT
    (path,) = (tmp_path / "nvmet/subsystems").glob("*/namespaces/1/device_path")
    assert path.read_text() == f"/dev/vg0/{volume(hashed('a'))}\n"
    thick = VolumeSpec(token=hashed("b"), size=SizeRange(1), parameters=NvmetParameters(provisioning="thick"))
    with pytest.raises(InvalidArgument, match="always thin"):
        await backend.create(thick)


async def test_a_clone_broken_off_before_its_renaming_is_begun_anew(backend: NvmetBackend, lvm: Modelled) -> None:
    source = await backend.create(VolumeSpec(token=hashed("a"), size=SizeRange(1), parameters=NvmetParameters()))
    half = f"n{hashed('b')}"
    lvm.snapshot(source.key, half)
    (finding,) = await backend.garbage()
    assert (finding.kind, finding.name) == ("unfinished", half)
    lvm.clone(source.key, volume(hashed("b")), 2 * EXTENT)
    assert await backend.garbage() == []
    assert lvm.source(volume(hashed("b"))) == source.key
    await backend.remove(finding)
    assert lvm.size(volume(hashed("b"))) == 2 * EXTENT


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"directory": "/x", "volume_group": "vg0", "thin_pool": "p"}, "not both"),
        ({}, "one of them"),
        ({"volume_group": "vg0"}, "thin_pool"),
    ],
)
def test_sections_that_say_too_little_or_too_much(section: dict[str, str], words: str) -> None:
    with pytest.raises(BadSection, match=words):
        Registry.open({"nvmet": {**section, "portals": CONFIG["portals"]}})


def test_portals_are_needed() -> None:
    with pytest.raises(BadSection, match="portals"):
        Registry.open({"nvmet": {"directory": "/x", "portals": []}})
