"""Methods on the process itself: version, start, configuration, end."""

from __future__ import annotations

import signal
from typing import Any

from lab.spdk.configuration import subsystem_config
from lab.spdk.dispatch import ALWAYS, CONFIG, METHODS, NVMF, STARTUP, method
from lab.spdk.failures import INVALID_PARAMS, RpcFailure
from lab.spdk.instance import Instance

SUBSYSTEMS: dict[str, list[str]] = {
    "scheduler": [],
    "vmd": [],
    "sock": [],
    "iobuf": [],
    "keyring": [],
    "fsdev": [],
    "accel": ["iobuf"],
    "bdev": ["accel", "keyring", "vmd", "sock", "iobuf"],
    "nvmf": ["bdev", "keyring", "sock", "accel", "iobuf"],
    "nbd": ["bdev"],
    "vhost_blk": ["bdev"],
    "scsi": ["bdev"],
    "vhost_scsi": ["scsi"],
    "vfio_user_target": ["bdev", "scsi", "fsdev"],
}


@method("spdk_get_version", refusal=(INVALID_PARAMS, "spdk_get_version method requires no parameters"), when=ALWAYS)
def get_version(instance: Instance, params: dict[str, Any]) -> dict[str, Any]:
    return {
        "version": "SPDK v26.05 git sha1 d519b163cb",
        "fields": {"major": 26, "minor": 5, "patch": 0, "suffix": "", "commit": "d519b163cb"},
    }


@method("rpc_get_methods", refusal=NVMF, optional=True, when=ALWAYS)
def get_methods(instance: Instance, params: dict[str, Any]) -> list[str]:
    if not params.get("current", False):
        return list(METHODS)
    fitting = {ALWAYS, "runtime" if instance.started else STARTUP}
    return [name for name, found in METHODS.items() if found.when in fitting]


@method("framework_get_subsystems", refusal=(INVALID_PARAMS, "'framework_get_subsystems' requires no arguments"))
def get_subsystems(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"subsystem": name, "depends_on": needed} for name, needed in SUBSYSTEMS.items()]


@method("framework_get_config", refusal=CONFIG)
def get_config(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]] | None:
    name = params["name"]
    if name not in SUBSYSTEMS:
        raise RpcFailure(INVALID_PARAMS, f"Subsystem '{name}' not found")
    return subsystem_config(instance, name)


@method("framework_wait_init", refusal=NVMF, when=ALWAYS)
async def wait_init(instance: Instance, params: dict[str, Any]) -> bool:
    await instance.initialized.wait()
    return True


@method("framework_start_init", refusal=NVMF, when=STARTUP)
def start_init(instance: Instance, params: dict[str, Any]) -> bool:
    instance.started = True
    instance.initialized.set()
    return True


@method("bdev_set_options", when=STARTUP)
def bdev_set_options(instance: Instance, params: dict[str, Any]) -> bool:
    return True


@method("iobuf_set_options", when=STARTUP)
def iobuf_set_options(instance: Instance, params: dict[str, Any]) -> bool:
    return True


@method("spdk_kill_instance", refusal=NVMF)
def kill_instance(instance: Instance, params: dict[str, Any]) -> bool:
    instance.stop(int(getattr(signal, params["sig_name"])))
    return True
