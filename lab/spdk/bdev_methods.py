"""Methods on bdevs of any kind."""

from __future__ import annotations

import errno
import time
from typing import Any

from lab.spdk.bdevs import Bdev
from lab.spdk.dispatch import BDEV, VHOST, method
from lab.spdk.failures import INVALID_PARAMS, RpcFailure, refused
from lab.spdk.instance import Instance

TICK_RATE = 2_600_000_000
_LIMITS = ("rw_ios_per_sec", "rw_mbytes_per_sec", "r_mbytes_per_sec", "w_mbytes_per_sec")


@method("bdev_get_bdevs", optional=True)
def get_bdevs(instance: Instance, params: dict[str, Any]) -> Any:
    name, timeout = params.get("name"), params.get("timeout", 0)
    if name is None:
        return [bdev.describe() for bdev in instance.bdevs]
    if timeout:
        return _appearing(instance, name, timeout / 1000)
    return [instance.bdevs.get(name).describe()]


async def _appearing(instance: Instance, name: str, seconds: float) -> list[dict[str, Any]]:
    return [(await instance.bdevs.wait(name, seconds)).describe()]


@method("bdev_set_qos_limit")
def set_qos_limit(instance: Instance, params: dict[str, Any]) -> bool:
    given = {limit: params[limit] for limit in _LIMITS if limit in params}
    bdev = instance.bdevs.get(params["name"])
    if not given:
        raise RpcFailure(-errno.EINVAL, "No rate limits specified")
    if any(bdev.limits.values()) and not bdev.openers:
        text = "Failed to configure rate limit: Resource temporarily unavailable"
        raise RpcFailure(INVALID_PARAMS, text)
    if "rw_ios_per_sec" in given:
        given["rw_ios_per_sec"] = -(-given["rw_ios_per_sec"] // 1000) * 1000
    bdev.limits.update(given)
    return True


@method("bdev_get_iostat", optional=True)
def get_iostat(instance: Instance, params: dict[str, Any]) -> dict[str, Any]:
    names, per_channel = params.get("names"), params.get("per_channel", False)
    if per_channel and (names is None or len(names) != 1):
        raise refused(errno.EINVAL)
    bdevs = list(instance.bdevs) if names is None else [instance.bdevs.get(name) for name in names]
    head = {"tick_rate": TICK_RATE, "ticks": time.monotonic_ns() * TICK_RATE // 1_000_000_000}
    if per_channel:
        return {**head, "name": bdevs[0].name, "channels": []}
    return {**head, "bdevs": [_statistics(bdev) for bdev in bdevs]}


def _statistics(bdev: Bdev) -> dict[str, Any]:
    # The bytes are read and written by way of the file: this process sees nothing of it.
    counters = (
        "bytes_read num_read_ops bytes_written num_write_ops bytes_unmapped num_unmap_ops bytes_copied num_copy_ops"
    )
    result: dict[str, Any] = {"name": bdev.name, **dict.fromkeys(counters.split(), 0)}
    for operation in ("read", "write", "unmap", "copy"):
        for prefix in ("", "max_", "min_"):
            result[f"{prefix}{operation}_latency_ticks"] = 0
    return {**result, "io_error": {}}


@method("bdev_reset_iostat", optional=True)
def reset_iostat(instance: Instance, params: dict[str, Any]) -> bool:
    if "name" in params:
        instance.bdevs.get(params["name"])
    return True


@method("bdev_wait_for_examine", refusal=(INVALID_PARAMS, "bdev_wait_for_examine requires no parameters"))
async def wait_for_examine(instance: Instance, params: dict[str, Any]) -> bool:
    await instance.lvstores.examined()
    return True


@method("bdev_examine", refusal=BDEV)
def examine(instance: Instance, params: dict[str, Any]) -> bool:
    # Everything is examined by itself as it appears, and then SPDK refuses to do it by hand.
    raise refused(errno.EINVAL)


@method("notify_get_notifications", refusal=VHOST, optional=True)
def get_notifications(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    first, most = params.get("id", 0), params.get("max", 2**64)
    return instance.bdevs.notifications[first : first + most]


@method("notify_get_types", refusal=(INVALID_PARAMS, "No parameters required"))
def get_types(instance: Instance, params: dict[str, Any]) -> list[str]:
    return ["fsdev_register", "fsdev_unregister", "bdev_register", "bdev_unregister", "bdev_resize"]
