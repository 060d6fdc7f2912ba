"""Life of every kind of resource: create, repeat, read, list, update, figures, delete, delete again."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from opi_bridge.conformance.client import OpiClient, pci

_NQN = "nqn.2026-11.io.dpu-offload:conf."
_DISK = {"block_size": "512", "blocks_count": "16384"}
_KEY = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="
_OTHER_KEY = "IAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="


@dataclass(frozen=True)
class Case:
    """One kind: `body` makes it, `other` differs from it in `differs`, `collection` ends its parent's pattern."""

    kind: str
    collection: str
    body: dict[str, Any]
    other: dict[str, Any]
    plural: str = ""
    hidden: tuple[str, ...] = ()
    needs: tuple[tuple[str, dict[str, Any]], ...] = ()
    list_parent: str = ""
    marks: tuple[Any, ...] = field(default=())

    @property
    def snake(self) -> str:
        return "".join(f"_{c.lower()}" if c.isupper() else c for c in self.kind).lstrip("_")

    @property
    def many(self) -> str:
        return self.plural or f"{self.kind}s"


_MALLOC = ("MallocVolume", {"malloc_volume_id": "conf-disk", "malloc_volume": _DISK})
CASES = [
    Case("NullVolume", "nullVolumes", _DISK, {**_DISK, "block_size": "4096"}),
    Case("MallocVolume", "mallocVolumes", _DISK, {**_DISK, "blocks_count": "32768"}),
    Case(
        "NvmeSubsystem",
        "nvmeSubsystems",
        {"spec": {"nqn": _NQN + "a", "serial_number": "S1", "model_number": "M", "max_namespaces": "8"}},
        {"spec": {"nqn": _NQN + "b"}},
    ),
    Case(
        "NvmeRemoteController",
        "nvmeRemoteControllers",
        {"multipath": "NVME_MULTIPATH_MULTIPATH", "io_queues_count": "4", "tcp": {"hdgst": True}},
        {"multipath": "NVME_MULTIPATH_DISABLE"},
    ),
    Case(
        "EncryptedVolume",
        "encryptedVolumes",
        {"volume_name_ref": "volumes/conf-disk", "key": _KEY, "cipher": "ENCRYPTION_TYPE_AES_XTS_128"},
        {"volume_name_ref": "conf-disk", "key": _OTHER_KEY, "cipher": "ENCRYPTION_TYPE_AES_XTS_128"},
        hidden=("key",),
        needs=(_MALLOC,),
        list_parent="volumes",
    ),
    Case(
        "QosVolume",
        "qosVolumes",
        {"volume_name_ref": "conf-disk", "limits": {"max": {"rw_iops_kiops": "3", "rd_bandwidth_mbs": "10"}}},
        {"volume_name_ref": "conf-disk", "limits": {"max": {"rw_iops_kiops": "4"}}},
        needs=(_MALLOC,),
        list_parent="volumes",
    ),
    Case(
        "VirtioBlk",
        "virtioBlks",
        {"volume_name_ref": "conf-disk", "pcie_id": pci(1), "max_io_qps": "2"},
        {"volume_name_ref": "conf-disk", "pcie_id": pci(2)},
        needs=(_MALLOC,),
    ),
]


@pytest.fixture(params=CASES, ids=lambda case: case.kind)
async def case(request: pytest.FixtureRequest, api: OpiClient) -> AsyncIterator[Case]:
    case: Case = request.param
    for kind, fields in case.needs:
        await api(f"Create{kind}", **fields)
    yield case
    await api(f"Delete{case.kind}", name=f"{case.collection}/conf-1", allow_missing=True)
    for kind, fields in reversed(case.needs):
        collection = f"{kind[0].lower()}{kind[1:]}s"
        identifier = next(value for key, value in fields.items() if key.endswith("_id"))
        await api(f"Delete{kind}", name=f"{collection}/{identifier}", allow_missing=True)


def _create(case: Case, body: dict[str, Any], identifier: str = "conf-1") -> dict[str, Any]:
    return {case.snake: body, f"{case.snake}_id": identifier}


def _contains(answer: Any, body: Any, hidden: tuple[str, ...]) -> bool:
    if isinstance(body, dict):
        return all(key in hidden or _contains(answer.get(key), value, hidden) for key, value in body.items())
    if isinstance(body, str) and "/" in body:
        return bool(str(answer).endswith(body.rpartition("/")[2]))
    return bool(answer == body)


async def test_it_lives_from_create_to_delete(api: OpiClient, case: Case) -> None:
    name = f"{case.collection}/conf-1"
    made = await api(f"Create{case.kind}", **_create(case, case.body))
    assert made["name"] == name
    assert _contains(made, case.body, case.hidden)
    read = await api(f"Get{case.kind}", name=name)
    assert read["name"] == name
    assert _contains(read, case.body, case.hidden)
    assert not any(key in read for key in case.hidden)
    parent = {"parent": case.list_parent} if case.list_parent else {}
    names: list[str] = []
    token = ""
    while True:
        page = await api(f"List{case.many}", page_size=1, page_token=token, **parent)
        names += [item["name"] for item in next(iter(value for value in page.values() if isinstance(value, list)), [])]
        token = page.get("next_page_token", "")
        if not token:
            break
    assert name in names
    assert len(names) == len(set(names))
    assert "stats" in await api(f"Stats{case.kind}", name=name)
    assert await api.code(f"Delete{case.kind}", name=name) == "OK"
    assert await api.code(f"Get{case.kind}", name=name) == "NOT_FOUND"


async def test_creating_again_gives_the_same_or_says_what_differs(api: OpiClient, case: Case) -> None:
    await api(f"Create{case.kind}", **_create(case, case.body))
    again = await api(f"Create{case.kind}", **_create(case, case.body))
    assert again["name"] == f"{case.collection}/conf-1"
    assert await api.code(f"Create{case.kind}", **_create(case, case.other)) == "ALREADY_EXISTS"
    assert _contains(await api(f"Get{case.kind}", name=f"{case.collection}/conf-1"), case.body, case.hidden)


async def test_an_id_is_made_up_when_none_is_given(api: OpiClient, case: Case) -> None:
    made = await api(f"Create{case.kind}", **{case.snake: case.body})
    try:
        collection, _, identifier = made["name"].partition("/")
        assert collection == case.collection
        assert len(identifier) >= 8
    finally:
        await api(f"Delete{case.kind}", name=made["name"])


async def test_what_is_missing_is_not_found(api: OpiClient, case: Case) -> None:
    name = f"{case.collection}/conf-missing"
    for verb in ("Get", "Delete", "Stats"):
        assert await api.code(f"{verb}{case.kind}", name=name) == "NOT_FOUND"
    assert await api.code(f"Update{case.kind}", **{case.snake: {**case.body, "name": name}}) == "NOT_FOUND"
    assert await api.code(f"Delete{case.kind}", name=name, allow_missing=True) == "OK"


_NO_IDS = ("Capital", "with/slash", "under_score", "-dash", "dash-", "sp ace", "x" * 129, "ö")
_NO_NAMES = ("", "conf-1", "other/conf-1", "nvmeSubsystems/a/b", "x/y/z/q", "{}/Capital")


async def test_ids_and_names_of_another_form_are_refused(api: OpiClient, case: Case) -> None:
    for identifier in _NO_IDS:
        assert await api.code(f"Create{case.kind}", **_create(case, case.body, identifier)) == "INVALID_ARGUMENT"
    for name in _NO_NAMES:
        for verb in ("Get", "Delete"):
            assert await api.code(f"{verb}{case.kind}", name=name.format(case.collection)) == "INVALID_ARGUMENT"


async def test_a_create_without_a_body_is_refused(api: OpiClient, case: Case) -> None:
    assert await api.code(f"Create{case.kind}", **{f"{case.snake}_id": "conf-1"}) == "INVALID_ARGUMENT"
    assert await api.code(f"Create{case.kind}", **_create(case, {})) == "INVALID_ARGUMENT"


async def test_masks_and_tokens_that_fit_nothing_are_refused(api: OpiClient, case: Case) -> None:
    name = f"{case.collection}/conf-1"
    await api(f"Create{case.kind}", **_create(case, case.body))
    update = {case.snake: {**case.body, "name": name}, "update_mask": "noSuchField"}
    assert await api.code(f"Update{case.kind}", **update) == "INVALID_ARGUMENT"
    parent = {"parent": case.list_parent} if case.list_parent else {}
    foreign = "AAAAAAAAeA"
    assert await api.code(f"List{case.many}", page_token=foreign, **parent) == "INVALID_ARGUMENT"
    assert await api.code(f"List{case.many}", page_token="%%%", **parent) == "INVALID_ARGUMENT"
    assert await api.code(f"List{case.many}", page_size=-1, **parent) == "INVALID_ARGUMENT"
    unchanged = {key: value for key, value in case.body.items() if key not in case.hidden}
    assert await api.code(f"Update{case.kind}", **{case.snake: {**unchanged, "name": name}}) == "OK"
