"""Methods of the NVMe-oF target on transports and subsystems."""

from __future__ import annotations

import asyncio
from typing import Any

from lab.spdk import nqn as nqns
from lab.spdk.bdev_methods import TICK_RATE
from lab.spdk.dispatch import NVMF, method
from lab.spdk.failures import INTERNAL_ERROR, INVALID_PARAMS, RpcFailure, invalid_parameters, no_device
from lab.spdk.instance import Instance
from lab.spdk.subsystems import Subsystem

_TARGET = "nvmf_tgt"
_TRANSPORT = {
    "max_queue_depth": 128,
    "max_io_qpairs_per_ctrlr": 127,
    "in_capsule_data_size": 4096,
    "max_io_size": 131072,
    "max_aq_depth": 128,
    "iobuf_small_cache_size": 4294967295,
    "iobuf_large_cache_size": 4294967295,
    "dif_insert_or_strip": False,
    "zcopy": False,
    "c2h_success": True,
    "sock_priority": 0,
    "abort_timeout_sec": 1,
    "ack_timeout": 0,
    "data_wr_pool_size": 0,
    "disable_command_passthru": False,
    "kas": 100,
    "min_kato": 10000,
}


def subsystem_of(instance: Instance, params: dict[str, Any]) -> Subsystem:
    """Raises -32602, which is all that SPDK says about a subsystem that is not there."""
    found = instance.subsystems.find(params["nqn"])
    if found is None or params.get("tgt_name", _TARGET) != _TARGET:
        raise invalid_parameters()
    return found


@method("nvmf_create_transport", refusal=NVMF)
async def create_transport(instance: Instance, params: dict[str, Any]) -> bool:
    given = params["trtype"]
    kind = given.upper()
    if kind not in ("TCP", "RDMA", "VFIOUSER"):
        raise RpcFailure(INVALID_PARAMS, f"Invalid transport type '{given}'")
    if kind in instance.subsystems.transports:
        raise RpcFailure(INTERNAL_ERROR, f"Transport type '{given}' already exists")
    spins = instance.settings.mode == "target" and not params.get("disable_mappable_bar0", False)
    if kind == "RDMA" or (kind == "VFIOUSER" and spins):
        raise RpcFailure(INTERNAL_ERROR, "Failed to create transport.")
    options = {**_TRANSPORT, **{name: value for name, value in params.items() if name in _TRANSPORT}}
    instance.subsystems.transports[kind] = {"trtype": kind, **options}
    await asyncio.sleep(2 * instance.beat)
    return True


@method("nvmf_get_transports", refusal=NVMF, optional=True)
def get_transports(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    transports = instance.subsystems.transports
    kind = params.get("trtype")
    if kind is None:
        return list(transports.values())
    if kind.upper() not in transports:
        raise no_device()
    return [transports[kind.upper()]]


def _printable(text: str) -> bool:
    return all(" " <= character <= "~" for character in text)


@method("nvmf_create_subsystem", refusal=NVMF)
async def create_subsystem(instance: Instance, params: dict[str, Any]) -> bool:
    serial, model = params.get("serial_number", "0" * 20), params.get("model_number", "SPDK bdev Controller")
    if len(serial.encode()) > 20 or len(model.encode()) > 40:
        raise invalid_parameters()
    if (target := params.get("tgt_name", _TARGET)) != _TARGET:
        raise RpcFailure(INTERNAL_ERROR, f"Unable to find target {target}")
    nqn = params["nqn"]
    if not nqns.is_valid(nqn) or instance.subsystems.find(nqn):
        raise RpcFailure(INTERNAL_ERROR, f"Unable to create subsystem {nqn}")
    if not _printable(serial) or not _printable(model):
        raise invalid_parameters()
    low, high = params.get("min_cntlid", 1), params.get("max_cntlid", 65519)
    if not 1 <= low <= high <= 65519:
        raise RpcFailure(INVALID_PARAMS, f"Invalid cntlid range [{low}-{high}]")
    instance.subsystems.all[nqn] = Subsystem(
        nqn,
        serial=serial,
        model=model,
        allow_any_host=params.get("allow_any_host", False),
        max_namespaces=params.get("max_namespaces", 0) or 32,
        ana_reporting=params.get("ana_reporting", False),
        min_cntlid=low,
        max_cntlid=high,
        dmrsl=params.get("dmrsl", 2097152),
        wzsl=params.get("wzsl", 12),
        passthrough=params.get("passthrough", False),
    )
    await asyncio.sleep(0)
    return True


@method("nvmf_delete_subsystem", refusal=NVMF)
async def delete_subsystem(instance: Instance, params: dict[str, Any]) -> bool:
    instance.subsystems.delete(subsystem_of(instance, params))
    await asyncio.sleep(0)
    return True


@method("nvmf_get_subsystems", refusal=NVMF, optional=True)
def get_subsystems(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    if params.get("tgt_name", _TARGET) != _TARGET:
        raise RpcFailure(INTERNAL_ERROR, "Unable to find a target.")
    if "nqn" in params:
        found = instance.subsystems.find(params["nqn"])
        if found is None:
            raise no_device()
        return [found.describe()]
    return [subsystem.describe() for subsystem in instance.subsystems.sorted()]


@method("nvmf_subsystem_get_controllers", refusal=NVMF)
def get_controllers(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "cntlid": session.cntlid,
            "cntrltype": "io",
            "hostnqn": session.hostnqn,
            "hostid": session.hostid,
            "num_io_qpairs": 1,
        }
        for session in subsystem_of(instance, params).sessions
    ]


@method("nvmf_subsystem_get_qpairs", refusal=NVMF)
def get_qpairs(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    return [session.qpair() for session in subsystem_of(instance, params).sessions]


@method("nvmf_get_stats", refusal=NVMF, optional=True)
def get_stats(instance: Instance, params: dict[str, Any]) -> dict[str, Any]:
    sessions = sum(len(subsystem.sessions) for subsystem in instance.subsystems.all.values())
    group = {
        "name": "nvmf_tgt_poll_group_000",
        "admin_qpairs": sessions,
        "io_qpairs": sessions,
        "current_admin_qpairs": sessions,
        "current_io_qpairs": 0,
        "current_unassociated_qpairs": 0,
        "pending_bdev_io": 0,
        "completed_nvme_io": 0,
        "transports": [{"trtype": kind} for kind in instance.subsystems.transports],
    }
    return {"tick_rate": TICK_RATE, "poll_groups": [group]}
