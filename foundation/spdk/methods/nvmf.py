"""The NVMe-oF target: transports, subsystems, and what belongs to them.

SPDK's answers tell little here: a missing subsystem, a duplicate, a claimed bdev are all -32602 "Invalid parameters",
a duplicate host -32603. So compare with nvmf_get_subsystems first, then act.
"""

from __future__ import annotations

from typing import Any

import msgspec

from foundation.spdk.client import Caller
from foundation.spdk.errors import SpdkError
from foundation.spdk.methods.parameters import given


class ListenAddress(msgspec.Struct, frozen=True, omit_defaults=True):
    """``traddr`` is an address, or a directory for VFIOUSER, whose ``adrfam`` reads "unknown" and need not be given."""

    trtype: str
    traddr: str
    adrfam: str = ""
    trsvcid: str = ""

    def params(self) -> dict[str, str]:
        return {name: value for name, value in msgspec.structs.asdict(self).items() if value and value != "unknown"}


class Host(msgspec.Struct, frozen=True):
    """The keys are names in the keyring."""

    nqn: str
    dhchap_key: str = ""
    dhchap_ctrlr_key: str = ""
    psk: str = ""


class Namespace(msgspec.Struct, frozen=True):
    """``nguid`` is upper-case hexadecimal without dashes; an SPDK initiator takes its bdev's uuid from it."""

    nsid: int
    bdev_name: str = ""
    nguid: str = ""
    eui64: str = ""
    uuid: str = ""
    anagrpid: int = 0


class Subsystem(msgspec.Struct, frozen=True):
    """Listeners and hosts come newest first, namespaces by nsid. ``subtype`` NVMe or Discovery."""

    nqn: str
    subtype: str
    listen_addresses: tuple[ListenAddress, ...] = ()
    allow_any_host: bool = False
    hosts: tuple[Host, ...] = ()
    serial_number: str = ""
    model_number: str = ""
    max_namespaces: int = 0
    min_cntlid: int = 0
    max_cntlid: int = 0
    namespaces: tuple[Namespace, ...] = ()


class Controller(msgspec.Struct, frozen=True):
    """A connected host. ``hostnqn`` is empty for a vfio-user guest."""

    cntlid: int
    hostnqn: str = ""
    hostid: str = ""
    num_io_qpairs: int = 0


class Authentication(msgspec.Struct, frozen=True):
    state: str
    digest: str = ""
    dhgroup: str = ""


class Qpair(msgspec.Struct, frozen=True):
    cntlid: int
    qid: int
    state: str
    hostnqn: str = ""
    listen_address: ListenAddress | None = None
    peer_address: ListenAddress | None = None
    auth: Authentication | None = None


async def nvmf_create_transport(caller: Caller, trtype: str, *, deadline: float = 30.0, **options: Any) -> None:
    """``exists`` when there is one of that type. ``options`` as in SPDK, e.g. max_queue_depth=128."""
    await caller.call_as(bool, "nvmf_create_transport", {"trtype": trtype, **options}, deadline=deadline)


async def nvmf_create_subsystem(
    caller: Caller,
    *,
    nqn: str,
    serial_number: str | None = None,
    model_number: str | None = None,
    allow_any_host: bool | None = None,
    max_namespaces: int | None = None,
    ana_reporting: bool | None = None,
    min_cntlid: int | None = None,
    max_cntlid: int | None = None,
    deadline: float = 10.0,
) -> None:
    """-32603 both for a duplicate and for an NQN that is none. Serial: 20 characters at most, model: 40."""
    await caller.call_as(
        bool,
        "nvmf_create_subsystem",
        given(
            nqn=nqn,
            serial_number=serial_number,
            model_number=model_number,
            allow_any_host=allow_any_host,
            max_namespaces=max_namespaces,
            ana_reporting=ana_reporting,
            min_cntlid=min_cntlid,
            max_cntlid=max_cntlid,
        ),
        deadline=deadline,
    )


async def nvmf_delete_subsystem(caller: Caller, nqn: str, *, deadline: float = 30.0) -> None:
    """Disconnects its hosts at once."""
    await caller.call_as(bool, "nvmf_delete_subsystem", {"nqn": nqn}, deadline=deadline)


async def nvmf_get_subsystems(caller: Caller, *, nqn: str | None = None, deadline: float = 10.0) -> list[Subsystem]:
    """Sorted by NQN; the discovery subsystem is among them. -19 when the named one is missing."""
    return await caller.call_as(list[Subsystem], "nvmf_get_subsystems", given(nqn=nqn), deadline=deadline)


async def only(caller: Caller, nqn: str, *, deadline: float = 10.0) -> Subsystem | None:
    """The subsystem of that NQN, None when there is none."""
    try:
        found = await nvmf_get_subsystems(caller, nqn=nqn, deadline=deadline)
    except SpdkError as error:
        if error.missing:
            return None
        raise
    return found[0] if found else None


async def nvmf_subsystem_add_ns(
    caller: Caller,
    *,
    nqn: str,
    bdev_name: str,
    nsid: int | None = None,
    uuid: str | None = None,
    nguid: str | None = None,
    eui64: str | None = None,
    anagrpid: int | None = None,
    deadline: float = 10.0,
) -> int:
    """The nsid. The bdev is claimed: it can't be a namespace anywhere else. Give uuid and nguid, or neither."""
    namespace = given(bdev_name=bdev_name, nsid=nsid, uuid=uuid, nguid=nguid, eui64=eui64, anagrpid=anagrpid)
    return await caller.call_as(int, "nvmf_subsystem_add_ns", {"nqn": nqn, "namespace": namespace}, deadline=deadline)


async def nvmf_subsystem_remove_ns(caller: Caller, *, nqn: str, nsid: int, deadline: float = 30.0) -> None:
    await caller.call_as(bool, "nvmf_subsystem_remove_ns", {"nqn": nqn, "nsid": nsid}, deadline=deadline)


async def nvmf_subsystem_add_listener(
    caller: Caller,
    *,
    nqn: str,
    listen_address: ListenAddress,
    secure_channel: bool | None = None,
    ana_state: str | None = None,
    deadline: float = 10.0,
) -> None:
    """VFIOUSER: the directory must exist without ``cntrl``; a second subsystem on one directory is not refused."""
    await caller.call_as(
        bool,
        "nvmf_subsystem_add_listener",
        given(nqn=nqn, listen_address=listen_address.params(), secure_channel=secure_channel, ana_state=ana_state),
        deadline=deadline,
    )


async def nvmf_subsystem_remove_listener(
    caller: Caller, *, nqn: str, listen_address: ListenAddress, deadline: float = 30.0
) -> None:
    await caller.call_as(
        bool,
        "nvmf_subsystem_remove_listener",
        {"nqn": nqn, "listen_address": listen_address.params()},
        deadline=deadline,
    )


async def nvmf_subsystem_add_host(
    caller: Caller,
    *,
    nqn: str,
    host: str,
    psk: str | None = None,
    dhchap_key: str | None = None,
    dhchap_ctrlr_key: str | None = None,
    deadline: float = 10.0,
) -> None:
    """Keys by their names in the keyring."""
    await caller.call_as(
        bool,
        "nvmf_subsystem_add_host",
        given(nqn=nqn, host=host, psk=psk, dhchap_key=dhchap_key, dhchap_ctrlr_key=dhchap_ctrlr_key),
        deadline=deadline,
    )


async def nvmf_subsystem_remove_host(caller: Caller, *, nqn: str, host: str, deadline: float = 30.0) -> None:
    """Cuts the host off at once."""
    await caller.call_as(bool, "nvmf_subsystem_remove_host", {"nqn": nqn, "host": host}, deadline=deadline)


async def nvmf_subsystem_set_keys(
    caller: Caller,
    *,
    nqn: str,
    host: str,
    dhchap_key: str | None = None,
    dhchap_ctrlr_key: str | None = None,
    deadline: float = 10.0,
) -> None:
    """Live connections stay; new ones need the new keys. Needed also after a key was replaced under its old name."""
    await caller.call_as(
        bool,
        "nvmf_subsystem_set_keys",
        given(nqn=nqn, host=host, dhchap_key=dhchap_key, dhchap_ctrlr_key=dhchap_ctrlr_key),
        deadline=deadline,
    )


async def nvmf_subsystem_get_controllers(caller: Caller, nqn: str, *, deadline: float = 10.0) -> list[Controller]:
    return await caller.call_as(list[Controller], "nvmf_subsystem_get_controllers", {"nqn": nqn}, deadline=deadline)


async def nvmf_subsystem_get_qpairs(caller: Caller, nqn: str, *, deadline: float = 10.0) -> list[Qpair]:
    return await caller.call_as(list[Qpair], "nvmf_subsystem_get_qpairs", {"nqn": nqn}, deadline=deadline)
