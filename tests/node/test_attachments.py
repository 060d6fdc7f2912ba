"""Attachments survive a kill at any moment: what is on disk is whole or not there."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cni.node.assignment import Assignment
from cni.node.attachments import Attachment, AttachmentStore, FunctionRef, attachment_id
from cni.node.errors import InputFailed


def made(container: str = "c", **more: object) -> Attachment:
    base = Attachment(
        id=attachment_id(container, "eth0"),
        generation=1,
        phase="adding",
        kind="veth",
        container_id=container,
        ifname="eth0",
        network="default",
        pod_namespace="n",
        pod_name="p",
        pod_uid="u",
        port="n_p",
        assignment=Assignment(ips=("10.0.0.1/24",)),
    )
    return msgspec.structs.replace(base, **more)


async def opened(directory: Path) -> AttachmentStore:
    store = AttachmentStore(directory)
    await store.open()
    return store


async def test_what_was_put_is_found_after_a_restart(tmp_path: Path) -> None:
    store = await opened(tmp_path)
    first, second = made("a"), made("b", function=FunctionRef(address="0000:03:00.2", pf=0, vf=1))
    store.put(first)
    store.put(second)
    store.put(msgspec.structs.replace(first, phase="ready", result={"x": 1}))
    again = await opened(tmp_path)
    assert sorted(again, key=lambda one: one.container_id) == sorted(store, key=lambda one: one.container_id)
    assert again.using("0000:03:00.2") == second
    again.remove(first.id)
    assert [one.id for one in await opened(tmp_path)] == [second.id]


async def test_generations_grow_over_restarts(tmp_path: Path) -> None:
    numbers = [(await opened(tmp_path)).generation() for _ in range(3)]
    assert numbers == sorted(set(numbers))
    store = await opened(tmp_path)
    store.put(made(generation=store.generation() + (9 << 32)))
    (tmp_path / "epoch").unlink()
    assert (await opened(tmp_path)).generation() > max(one.generation for one in store)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
@given(data=st.data())
async def test_damage_is_noticed_and_set_aside(tmp_path: Path, data: st.DataObject) -> None:
    for path in tmp_path.iterdir():
        path.unlink()
    store = await opened(tmp_path)
    store.put(made())
    (path,) = tmp_path.glob("*.json")
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(whole[:cut] + data.draw(st.binary(max_size=3)))
    found = list(await opened(tmp_path))
    assert found in ([], [made()])
    if not found:
        assert [one.suffix for one in tmp_path.iterdir() if one.name != "epoch"] == [".damaged"]


async def test_an_unfinished_write_is_forgotten(tmp_path: Path) -> None:
    (tmp_path / "0123.new").write_text("half")
    assert list(await opened(tmp_path)) == []
    assert not (tmp_path / "0123.new").exists()


async def test_an_unusable_directory_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputFailed, match="set state_dir to a writable directory"):
        await opened(tmp_path / "file" / "below")


async def test_many_reach_the_disk_together_and_a_failure_reaches_all(tmp_path: Path) -> None:
    store = await opened(tmp_path / "attachments")
    several = [made(f"c{number}") for number in range(20)]
    for one in several:
        store.put(one)
    store.remove(several[0].id)
    await asyncio.gather(*(store.flush(one.id) for one in several))
    shutil.rmtree(tmp_path / "attachments")
    failed = await asyncio.gather(*(store.flush(one.id) for one in several), return_exceptions=True)
    assert all(isinstance(error, InputFailed) for error in failed)
    assert "do not reach the disk" in str(failed[-1])
