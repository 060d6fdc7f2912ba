"""Every typed wrapper sends what SPDK's own schema takes, and reads what SPDK was recorded to send."""

from __future__ import annotations

import inspect
import json
import lzma
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from foundation.spdk.methods import accel, app, bdev, keyring, lvol, nvme, nvmf
from lab.spdk import schema
from lab.spdk.dispatch import as_params
from lab.spdk.methods import METHODS

MODULES = (accel, app, bdev, keyring, lvol, nvme, nvmf)
WRAPPERS = [
    function
    for module in MODULES
    for name, function in vars(module).items()
    if inspect.iscoroutinefunction(function) and name != "only"
]
RECORDING = Path(__file__).with_name("recorded.jsonl.xz")

# Values that the schema takes, by the wrapper's own types; enumerations need a word of theirs.
WORDS = {
    "cipher": "AES_XTS",
    "tweak_mode": "SIMPLE_LBA",
    "multipath": "multipath",
    "ana_state": "optimized",
    "policy": "active_active",
    "uuid": "22222222-2222-4222-8222-222222222222",
}


class Asked(Exception):
    """Carries what a wrapper would have sent."""


class Recorder:
    def __init__(self) -> None:
        self.kind: Any = Any

    async def call(self, method: str, params: Mapping[str, Any] | None = None, *, deadline: float = 10.0) -> Any:
        raise Asked(method, params, Any)

    async def call_as(
        self, kind: Any, method: str, params: Mapping[str, Any] | None = None, *, deadline: float = 10.0
    ) -> Any:
        raise Asked(method, params, kind)


def argument(name: str, kind: Any) -> Any:
    if name in WORDS:
        return WORDS[name]
    options = [option for option in typing.get_args(kind) if option is not type(None)]
    if type(None) in typing.get_args(kind):
        kind = options[0]
    if kind is nvmf.ListenAddress:
        return nvmf.ListenAddress("TCP", "127.0.0.1", "IPv4", "4420")
    if kind in (bool, int, str):
        return {bool: True, int: 7, str: "name"}[kind]
    assert kind == list[str], (name, kind)
    return ["name"]


async def asked(function: Callable[..., Any], *, optional: bool) -> tuple[str, Mapping[str, Any] | None, Any]:
    hints = typing.get_type_hints(function)
    positional, named = [], {}
    for name, parameter in list(inspect.signature(function).parameters.items())[1:]:
        if name == "deadline" or parameter.kind is parameter.VAR_KEYWORD:
            continue
        if parameter.default is not parameter.empty and not optional:
            continue
        value = argument(name, hints[name])
        if parameter.kind is parameter.KEYWORD_ONLY:
            named[name] = value
        else:
            positional.append(value)
    with pytest.raises(Asked) as caught:
        await function(Recorder(), *positional, **named)
    method, params, kind = caught.value.args
    return method, params, kind


@pytest.mark.parametrize("optional", [False, True], ids=["required", "all"])
@pytest.mark.parametrize("function", WRAPPERS, ids=lambda function: function.__name__)
async def test_parameters_fit_the_schema(function: Callable[..., Any], optional: bool) -> None:
    method, params, _ = await asked(function, optional=optional)
    assert method == function.__name__
    assert method in METHODS, "the stand-in must know what the suite calls"
    sent = as_params(dict(params)) if params else as_params({})
    decoded = schema.decode(method, sent)
    assert decoded == (params or {})


async def test_recorded_results_are_read() -> None:
    kinds = {}
    for function in WRAPPERS:
        method, _, kind = await asked(function, optional=False)
        kinds[method] = kind
    read: dict[str, int] = {}
    for line in lzma.decompress(RECORDING.read_bytes()).splitlines():
        step = json.loads(line)
        result = step.get("r", {}).get("result")
        method = step.get("q", {}).get("method")
        per_channel = (
            (step.get("q", {}).get("params") or {}) if isinstance(step.get("q", {}).get("params"), dict) else {}
        )
        if result is None or method not in kinds or kinds[method] is Any or per_channel.get("per_channel"):
            continue
        msgspec.json.decode(json.dumps(result), type=kinds[method])
        read[method] = read.get(method, 0) + 1
    # A recording without a method proves nothing about it: these are the ones that matter most.
    assert {"bdev_get_bdevs", "nvmf_get_subsystems", "bdev_nvme_get_controllers"} <= read.keys()
    assert sum(read.values()) > 350


async def test_recorded_objects_keep_what_the_suite_looks_at() -> None:
    lines = [json.loads(line) for line in lzma.decompress(RECORDING.read_bytes()).splitlines()]
    bdevs = [
        msgspec.convert(entry, bdev.Bdev)
        for line in lines
        if line.get("q", {}).get("method") == "bdev_get_bdevs"
        for entry in line["r"].get("result", [])
    ]
    kinds = {
        "lvol": any(it.driver_specific.lvol and it.driver_specific.lvol.base_snapshot for it in bdevs),
        "crypto": any(it.driver_specific.crypto and it.driver_specific.crypto.key_name for it in bdevs),
        "aio": any(it.driver_specific.aio and it.driver_specific.aio.filename for it in bdevs),
        "nvme": any(it.driver_specific.nvme and it.driver_specific.nvme[0].ns_data.ana_state for it in bdevs),
        "limits": any(it.assigned_rate_limits.rw_ios_per_sec == 21000 for it in bdevs),
        "claims": any(it.claimed and it.claim_type == "exclusive_write" for it in bdevs),
    }
    assert all(kinds.values()), kinds
    assert {it.size for it in bdevs if it.aliases == ("lvs0/v1",)} >= {10 * 2**20, 20 * 2**20, 0}
