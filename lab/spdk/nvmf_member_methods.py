"""Methods on what a subsystem holds: namespaces, listeners, hosts."""

from __future__ import annotations

import asyncio
import errno
import os
import re
from typing import Any

from lab.spdk import nqn as nqns
from lab.spdk.dispatch import NVMF, method
from lab.spdk.fabric import TcpPortal
from lab.spdk.failures import INTERNAL_ERROR, INVALID_PARAMS, RpcFailure, invalid_parameters, refused
from lab.spdk.guests import GuestPortal
from lab.spdk.instance import Instance
from lab.spdk.keyring import is_psk
from lab.spdk.nvmf_methods import subsystem_of
from lab.spdk.subsystems import Host, Listener, Namespace, Subsystem

_NGUID = re.compile(r"[0-9A-Fa-f]{32}")
_EUI64 = re.compile(r"[0-9A-Fa-f]{16}")
_ANA = "error setting ANA state: -22"


@method("nvmf_subsystem_add_ns", refusal=NVMF)
async def add_ns(instance: Instance, params: dict[str, Any]) -> int:
    subsystem, given = subsystem_of(instance, params), params["namespace"]
    bdev = instance.bdevs.find(given["bdev_name"])
    nsid: int = given.get("nsid", 0)
    if bdev is None or bdev.claims or nsid > subsystem.max_namespaces or nsid in subsystem.namespaces:
        raise invalid_parameters()
    if not nsid:
        free = (number for number in range(1, subsystem.max_namespaces + 1) if number not in subsystem.namespaces)
        nsid = next(free, 0)
    group = given.get("anagrpid", 0) or nsid
    nguid, eui64 = given.get("nguid", ""), given.get("eui64", "")
    uuid = given.get("uuid", bdev.uuid)
    if (
        not nsid
        or group > subsystem.max_namespaces
        or ("nguid" in given and not _NGUID.fullmatch(nguid))
        or ("eui64" in given and not _EUI64.fullmatch(eui64))
        or any(uuid == other.uuid for other in subsystem.namespaces.values())
    ):
        raise invalid_parameters()
    namespace = Namespace(nsid, bdev, uuid, (nguid or bdev.uuid.replace("-", "")).upper(), eui64.upper(), group)
    instance.subsystems.add_namespace(subsystem, namespace)
    await asyncio.sleep(0)
    return nsid


@method("nvmf_subsystem_remove_ns", refusal=NVMF)
async def remove_ns(instance: Instance, params: dict[str, Any]) -> bool:
    subsystem = subsystem_of(instance, params)
    if params["nsid"] not in subsystem.namespaces:
        raise invalid_parameters()
    instance.subsystems.remove_namespace(subsystem, params["nsid"])
    await asyncio.sleep(0)
    return True


def _address(instance: Instance, params: dict[str, Any]) -> tuple[str, str, str]:
    """Type, address and port of a listener. Raises -32602."""
    given = params["listen_address"]
    kind, family = given["trtype"].upper(), given.get("adrfam", "").lower()
    if kind not in instance.subsystems.transports:
        raise invalid_parameters()
    if family and family not in ("ipv4", "ipv6", "ib", "fc", "intra_host"):
        raise invalid_parameters()
    service = given.get("trsvcid", "")
    if kind == "TCP" and not (service.isdigit() and 0 < int(service) < 65536):
        raise invalid_parameters()
    return kind, given["traddr"], service


def _listener(subsystem: Subsystem, address: tuple[str, str, str]) -> Listener | None:
    return next((listener for listener in subsystem.listeners if listener.matches(*address)), None)


def _portal(instance: Instance, address: tuple[str, str, str]) -> TcpPortal | GuestPortal:
    kind, traddr, service = address
    try:
        if kind == "TCP":
            return instance.portals.get((traddr, service)) or TcpPortal(instance, traddr, service)
        return instance.directories.get(os.path.abspath(traddr)) or GuestPortal(instance, os.path.abspath(traddr))
    except OSError as error:
        raise invalid_parameters() from error


@method("nvmf_subsystem_add_listener", refusal=NVMF)
async def add_listener(instance: Instance, params: dict[str, Any]) -> bool:
    subsystem = subsystem_of(instance, params)
    address = _address(instance, params)
    if _listener(subsystem, address):
        raise invalid_parameters()
    portal = _portal(instance, address)
    if isinstance(portal, TcpPortal):
        portal.subsystems.add(subsystem)
        instance.portals[portal.key] = portal
    else:
        portal.subsystems.append(subsystem)
        instance.directories[portal.directory] = portal
    kind, traddr, service = address
    state = params.get("ana_state", "optimized")
    groups = dict.fromkeys(range(1, subsystem.max_namespaces + 1), state)
    listener = Listener(kind, "", traddr, service, params.get("secure_channel", False), portal, groups)
    subsystem.listeners.insert(0, listener)
    await asyncio.sleep(0)
    return True


@method("nvmf_subsystem_remove_listener", refusal=NVMF)
async def remove_listener(instance: Instance, params: dict[str, Any]) -> bool:
    subsystem = subsystem_of(instance, params)
    listener = _listener(subsystem, _address(instance, params))
    if listener is None:
        raise invalid_parameters()
    instance.subsystems.remove_listener(subsystem, listener)
    await asyncio.sleep(0)
    return True


@method("nvmf_subsystem_get_listeners", refusal=NVMF)
def get_listeners(instance: Instance, params: dict[str, Any]) -> list[dict[str, Any]]:
    subsystem = subsystem_of(instance, params)
    result = []
    for listener in subsystem.listeners:
        entry: dict[str, Any] = {"address": listener.address}
        if subsystem.ana_reporting:
            entry["ana_states"] = [
                {"ana_group": group, "ana_state": state} for group, state in sorted(listener.ana.items())
            ]
        result.append(entry)
    return result


@method("nvmf_subsystem_listener_set_ana_state", refusal=NVMF)
async def set_ana_state(instance: Instance, params: dict[str, Any]) -> bool:
    subsystem = instance.subsystems.find(params["nqn"])
    if subsystem is None:
        raise RpcFailure(INVALID_PARAMS, f"Unable to find subsystem with NQN {params['nqn']}")
    given = params["listen_address"]
    listener = _listener(subsystem, (given["trtype"].upper(), given["traddr"], given.get("trsvcid", "")))
    group = params.get("anagrpid", 0)
    if listener is None or not subsystem.ana_reporting or group > subsystem.max_namespaces:
        raise RpcFailure(INTERNAL_ERROR, _ANA)
    for number in [group] if group else list(listener.ana):
        listener.ana[number] = params["ana_state"]
    for session in subsystem.sessions:
        if session.listener is listener:
            session.push({"event": "ana", "states": listener.ana})
    await asyncio.sleep(0)
    return True


@method("nvmf_subsystem_add_host", refusal=NVMF)
def add_host(instance: Instance, params: dict[str, Any]) -> bool:
    subsystem, nqn = subsystem_of(instance, params), params["host"]
    keyring = instance.keyring
    internal = RpcFailure(INTERNAL_ERROR, "Internal error")
    for name in ("dhchap_key", "dhchap_ctrlr_key"):
        if name in params and keyring.find(params[name]) is None:
            raise invalid_parameters()
    if not nqns.is_valid(nqn) or subsystem.host(nqn) is not None:
        raise internal
    if ("dhchap_ctrlr_key" in params and "dhchap_key" not in params) or (
        "psk" in params and not ((psk := keyring.find(params["psk"])) and is_psk(psk))
    ):
        raise internal
    keys = {name: keyring.find(params[name]) for name in ("dhchap_key", "dhchap_ctrlr_key", "psk") if name in params}
    subsystem.hosts.insert(0, Host(nqn, **{name: keyring.hold(key) for name, key in keys.items()}))
    return True


@method("nvmf_subsystem_remove_host", refusal=NVMF)
async def remove_host(instance: Instance, params: dict[str, Any]) -> bool:
    subsystem = subsystem_of(instance, params)
    host = subsystem.host(params["host"])
    if host is None:
        raise RpcFailure(INTERNAL_ERROR, "Internal error")
    subsystem.hosts.remove(host)
    for key in host.keys:
        instance.keyring.let_go(key)
    for session in [session for session in subsystem.sessions if session.hostnqn == host.nqn]:
        session.disconnect()
    await asyncio.sleep(0)
    return True


@method("nvmf_subsystem_allow_any_host", refusal=NVMF)
def allow_any_host(instance: Instance, params: dict[str, Any]) -> bool:
    subsystem_of(instance, params).allow_any_host = params["allow_any_host"]
    return True


@method("nvmf_subsystem_set_keys", refusal=NVMF)
def set_keys(instance: Instance, params: dict[str, Any]) -> bool:
    subsystem, keyring = subsystem_of(instance, params), instance.keyring
    for name in ("dhchap_key", "dhchap_ctrlr_key"):
        if name in params and keyring.find(params[name]) is None:
            raise invalid_parameters()
    host = subsystem.host(params["host"])
    if host is None:
        raise refused(errno.EINVAL)
    old = (host.dhchap_key, host.dhchap_ctrlr_key)
    host.dhchap_key = keyring.hold(keyring.find(params.get("dhchap_key", "")))
    host.dhchap_ctrlr_key = keyring.hold(keyring.find(params.get("dhchap_ctrlr_key", "")))
    for key in old:
        keyring.let_go(key)
    return True
