"""The stand-in beside a real spdk_tgt: the same random conversation, the same answers.

Only where $SPDK_TGT names a real one. The order in which a reloaded lvstore lists its volumes is the blobstore's own
business (by freed pages), so volumes are compared by name.
"""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest

from foundation.spdk.client import SpdkClient
from foundation.spdk.errors import SpdkError
from lab.ports import free_port
from lab.spdk.process import SpdkProcess, real_binary
from lab.spdk.replay import Likeness
from lab.spdk.vocabulary import READS, Vocabulary
from tests.spdk.conftest import QUICK
from tests.spdk.test_fabric import dhchap_key

FILES = ("i1", "i2")
BEGINNING: tuple[tuple[str, dict[str, Any]], ...] = (
    ("bdev_aio_create", {"name": "f1", "filename": "/run/spdk/i1", "block_size": 4096}),
    ("bdev_lvol_create_lvstore", {"bdev_name": "f1", "lvs_name": "l1", "cluster_sz": 1 << 20, "clear_method": "none"}),
    ("nvmf_create_transport", {"trtype": "TCP"}),
    ("nvmf_create_subsystem", {"nqn": "nqn.2026-05.io.test:s1", "ana_reporting": True}),
    ("bdev_malloc_create", {"name": "m1", "num_blocks": 8192, "block_size": 512}),
    ("bdev_lvol_create", {"lvs_name": "l1", "lvol_name": "a", "size_in_mib": 4}),
    ("bdev_lvol_create", {"lvs_name": "l1", "lvol_name": "b", "size_in_mib": 4, "thin_provision": True}),
)


class Side:
    def __init__(self, directory: Path, binary: str) -> None:
        directory.mkdir()
        self.directory = directory
        self.process = SpdkProcess(directory, "t", binary=binary, mode="target", arguments=QUICK)
        self.client = SpdkClient(self.process.address)
        self.ports = {"4420": str(free_port()), "4421": str(free_port())}
        for name in FILES:
            with (directory / name).open("wb") as file:
                file.truncate(64 << 20)
        for name in ("k1", "k2", "p1", "open"):
            (directory / name).write_text(dhchap_key(bytes(range(32))))
            (directory / name).chmod(0o644 if name == "open" else 0o600)

    async def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        try:
            result = await self.client.call(method, self._here(params), deadline=20)
        except SpdkError as error:
            return {"error": {"code": error.code, "message": error.message}}
        if method in ("bdev_get_bdevs", "bdev_lvol_get_lvols"):
            result.sort(key=lambda it: it["alias"] if "alias" in it else min([it["name"], *it["aliases"]], key=len))
        return {"result": result}

    def _here(self, value: Any, key: str = "") -> Any:
        if isinstance(value, dict):
            return {name: self._here(member, name) for name, member in value.items()}
        if isinstance(value, str):
            return self.ports.get(value, value) if key == "trsvcid" else value.replace("/run/spdk", str(self.directory))
        return value


@pytest.mark.real_spdk
@pytest.mark.timeout(300)
@pytest.mark.skipif(not real_binary(), reason="SPDK_TGT names no spdk_tgt")
@pytest.mark.parametrize("seed", range(100, 104))
async def test_a_random_conversation_gets_the_same_answers(tmp_path: Path, seed: int) -> None:
    real, ours = Side(tmp_path / "r", real_binary()), Side(tmp_path / "s", "")
    await asyncio.gather(real.process.start(), ours.process.start())
    likeness = Likeness(lambda text: text.replace(str(real.directory), str(ours.directory)))
    vocabulary = Vocabulary(random.Random(seed), FILES)
    said: list[str] = []

    async def both(method: str, params: dict[str, Any]) -> None:
        answer, answered = await asyncio.gather(real.ask(method, params), ours.ask(method, params))
        said.append(f"{method} {json.dumps(params)} -> {json.dumps(answer)[:100]}")
        likeness.section = method
        likeness.compare(answer, answered)

    try:
        for method, params in BEGINNING:
            await both(method, params)
        for number in range(250):
            await both(*vocabulary.request())
            if number % 3 == 0:
                for method, params in READS:
                    await both(method, params)
    except Exception as error:
        error.add_note("\n".join(line for line in said[-60:] if "_get_" not in line))
        raise
    finally:
        for side in (real, ours):
            await side.client.close()
            await side.process.kill()
