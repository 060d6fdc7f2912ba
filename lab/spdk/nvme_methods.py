"""Methods of the NVMe-oF initiator."""

from __future__ import annotations

import errno
from typing import Any

from lab.spdk.controllers import Controller, NvmeBdev, Path, Times
from lab.spdk.dispatch import method
from lab.spdk.failures import INVALID_PARAMS, RpcFailure, no_device, refused
from lab.spdk.initiator import Credentials, TransportId
from lab.spdk.instance import Instance
from lab.spdk.keyring import Key

_FAMILIES = {"ipv4": "IPv4", "ipv6": "IPv6", "ib": "IB", "fc": "FC", "intra_host": "Intra_Host"}


def _times(params: dict[str, Any], defaults: Times) -> Times:
    return Times(
        params.get("ctrlr_loss_timeout_sec", defaults.loss),
        params.get("reconnect_delay_sec", defaults.delay),
        params.get("fast_io_fail_timeout_sec", defaults.fast_fail),
    )


def _key(instance: Instance, params: dict[str, Any], name: str) -> Key | None:
    return instance.keyring.get(params[name]) if name in params else None


def _same_name(controller: Controller, trid: TransportId, hostnqn: str, multipath: str) -> None:
    """Refuses what can't be a further path of a controller that exists."""
    already = f"A controller named {controller.name} already exists"
    if any(path.trid == trid or path.state == "deleting" for path in controller.paths):
        raise RpcFailure(-errno.EALREADY, f"{already} with the specified network path")
    if multipath == "disable":
        raise RpcFailure(-errno.EALREADY, f"{already} and multipath is disabled")
    first = controller.paths[0]
    if first.trid.subnqn != trid.subnqn:
        raise RpcFailure(-errno.EINVAL, f"{already}, but uses a different subnqn ({first.trid.subnqn})")
    if first.credentials.hostnqn != hostnqn:
        raise RpcFailure(-errno.EINVAL, f"{already}, but uses a different hostnqn ({first.credentials.hostnqn})")


@method("bdev_nvme_attach_controller")
async def attach(instance: Instance, params: dict[str, Any]) -> list[str]:
    name, kind = params["name"], params["trtype"].upper()
    if kind not in ("TCP", "VFIOUSER", "PCIE"):
        raise no_device()
    if kind != "TCP" or instance.settings.mode == "target":
        raise refused(errno.EOPNOTSUPP)
    family = params.get("adrfam", "")
    if family and family.lower() not in _FAMILIES:
        raise refused(errno.EINVAL)
    trid = TransportId(
        kind,
        _FAMILIES.get(family.lower(), ""),
        params["traddr"],
        params.get("trsvcid", ""),
        params.get("subnqn", ""),
    )
    hostnqn = params.get("hostnqn", instance.host_nqn)
    controllers = instance.controllers
    existing = controllers.all.get(name)
    if existing is not None:
        _same_name(existing, trid, hostnqn, params.get("multipath", "failover"))
    elif any(
        path.trid == trid and path.credentials.hostnqn == hostnqn
        for other in controllers.all.values()
        for path in other.paths
    ):
        raise refused(errno.EEXIST)
    times = _times(params, controllers.times)
    times.check()
    if not name:
        raise refused(errno.EINVAL)
    credentials = Credentials(
        hostnqn,
        _key(instance, params, "dhchap_key"),
        _key(instance, params, "dhchap_ctrlr_key"),
        _key(instance, params, "psk"),
    )
    return await controllers.attach(name, trid, credentials, times)


def _matching(controller: Controller, params: dict[str, Any]) -> list[Path]:
    def fits(path: Path) -> bool:
        asked = {
            "trtype": path.trid.trtype.lower(),
            "adrfam": path.trid.adrfam.lower(),
            "traddr": path.trid.traddr.lower(),
            "trsvcid": path.trid.trsvcid.lower(),
            "subnqn": path.trid.subnqn.lower(),
            "hostaddr": "",
            "hostsvcid": "",
        }
        return all(params.get(name, value).lower() == value for name, value in asked.items())

    return [path for path in controller.paths if fits(path)]


@method("bdev_nvme_detach_controller")
async def detach(instance: Instance, params: dict[str, Any]) -> bool:
    controller = instance.controllers.all.get(params["name"])
    if controller is None:
        raise no_device()
    paths = _matching(controller, params)
    if not paths:
        raise refused(errno.ENXIO)
    await instance.controllers.detach(paths)
    return True


def _find(instance: Instance, name: str) -> Controller:
    """Raises -22 with the name in it."""
    controller = instance.controllers.all.get(name)
    if controller is None:
        raise RpcFailure(-errno.EINVAL, f"Controller {name} does not exist")
    return controller


@method("bdev_nvme_get_controllers", optional=True)
def get_controllers(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    if "name" in params:
        return [_find(instance, params["name"]).describe()]
    return [controller.describe() for controller in instance.controllers.all.values()]


@method("bdev_nvme_get_io_paths", optional=True)
def get_io_paths(instance: Instance, params: dict[str, Any]) -> dict[str, Any]:
    name = params.get("name")
    if name is not None and not isinstance(instance.bdevs.get(name), NvmeBdev):
        raise no_device()
    paths = [
        {
            "bdev_name": bdev.name,
            "cntlid": path.cntlid,
            "current": False,
            "connected": path.state == "enabled",
            "accessible": path.ana_state(bdev.nsid) != "inaccessible",
            "transport": {
                "trtype": path.trid.trtype,
                "traddr": path.trid.traddr,
                "trsvcid": path.trid.trsvcid,
                "adrfam": path.trid.adrfam,
            },
        }
        for bdev in instance.bdevs
        if isinstance(bdev, NvmeBdev) and bdev.openers and name in (None, bdev.name, bdev.uuid)
        for path in bdev.paths()
    ]
    return {"poll_groups": [{"thread": "nvmf_tgt_poll_group_000", "io_paths": paths}] if paths else []}


@method("bdev_nvme_set_options")
def set_options(instance: Instance, params: dict[str, Any]) -> bool:
    controllers = instance.controllers
    if controllers.all:
        raise RpcFailure(-1, "RPC not permitted with nvme controllers already attached")
    _times(params, controllers.times).check()
    controllers.options.update({name: value for name, value in params.items() if value != []})
    return True


@method("bdev_nvme_set_keys")
async def set_keys(instance: Instance, params: dict[str, Any]) -> bool:
    controller = instance.controllers.all.get(params["name"])
    if controller is None:
        raise no_device()
    keyring = instance.keyring
    fresh = (_key(instance, params, "dhchap_key"), _key(instance, params, "dhchap_ctrlr_key"))
    for path in controller.paths:
        old = (path.credentials.dhchap_key, path.credentials.dhchap_ctrlr_key)
        path.credentials.dhchap_key, path.credentials.dhchap_ctrlr_key = (keyring.hold(key) for key in fresh)
        for key in old:
            keyring.let_go(key)
    await instance.controllers.authenticate_again(controller)
    return True


@method("bdev_nvme_reset_controller")
async def reset(instance: Instance, params: dict[str, Any]) -> bool:
    controller = instance.controllers.all.get(params["name"])
    if controller is None:
        raise no_device()
    await instance.controllers.reset(controller)
    return True


def _nvme_bdev(instance: Instance, name: str) -> NvmeBdev:
    bdev = instance.bdevs.find(name)
    if not isinstance(bdev, NvmeBdev):
        raise no_device()
    return bdev


@method("bdev_nvme_set_multipath_policy")
def set_multipath_policy(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = _nvme_bdev(instance, params["name"])
    bdev.policy = params["policy"]
    return True


@method("bdev_nvme_set_preferred_path")
def set_preferred_path(instance: Instance, params: dict[str, Any]) -> bool:
    bdev = _nvme_bdev(instance, params["name"])
    if all(path.cntlid != params["cntlid"] for path in bdev.paths()):
        raise no_device()
    return True


@method("bdev_nvme_get_path_iostat")
def get_path_iostat(instance: Instance, params: dict[str, Any]) -> Any:
    raise RpcFailure(-1, "RPC not enabled if enable_io_path_stat is false")


@method(
    "bdev_nvme_get_transport_statistics",
    refusal=(INVALID_PARAMS, "'bdev_nvme_get_transport_statistics' requires no arguments"),
)
def get_transport_statistics(instance: Instance, params: dict[str, Any]) -> dict[str, Any]:
    return {"poll_groups": []}


@method("bdev_nvme_get_controller_health_info")
def get_health_info(instance: Instance, params: dict[str, Any]) -> dict[str, Any]:
    path = _find(instance, params["name"]).paths[0]
    counters = (
        "critical_warning temperature_celsius available_spare_percentage available_spare_threshold_percentage "
        "percentage_used data_units_read data_units_written host_read_commands host_write_commands "
        "controller_busy_time power_cycles power_on_hours unsafe_shutdowns media_errors num_err_log_entries "
        "warning_temperature_time_minutes critical_composite_temperature_time_minutes"
    )
    return {
        "model_number": path.greeting["model"],
        "serial_number": path.greeting["serial"],
        "firmware_revision": path.greeting["firmware"],
        "traddr": path.trid.traddr,
        **dict.fromkeys(counters.split(), 0),
        # 0 K in degrees Celsius, as an unsigned number: what SPDK's own target reports.
        "temperature_celsius": 2**64 - 273,
    }
