"""Block devices of any kind, with those made from files and memory."""

from __future__ import annotations

import msgspec

from foundation.spdk.client import Caller
from foundation.spdk.errors import SpdkError
from foundation.spdk.methods.parameters import given


class RateLimits(msgspec.Struct, frozen=True):
    """Per second; 0 is no limit. SPDK rounds iops up to a multiple of 1000."""

    rw_ios_per_sec: int = 0
    rw_mbytes_per_sec: int = 0
    r_mbytes_per_sec: int = 0
    w_mbytes_per_sec: int = 0


class LvolDetails(msgspec.Struct, frozen=True):
    lvol_store_uuid: str
    base_bdev: str = ""
    thin_provision: bool = False
    num_allocated_clusters: int = 0
    snapshot: bool = False
    clone: bool = False
    esnap_clone: bool = False
    base_snapshot: str = ""
    clones: tuple[str, ...] = ()
    external_snapshot_name: str = ""


class CryptoDetails(msgspec.Struct, frozen=True):
    base_bdev_name: str
    name: str
    key_name: str = ""


class AioDetails(msgspec.Struct, frozen=True):
    filename: str
    readonly: bool = False


class NvmeTransportId(msgspec.Struct, frozen=True):
    trtype: str
    traddr: str = ""
    adrfam: str = ""
    trsvcid: str = ""
    subnqn: str = ""


class NvmeControllerData(msgspec.Struct, frozen=True):
    cntlid: int = 0
    model_number: str = ""
    serial_number: str = ""
    firmware_revision: str = ""
    subnqn: str = ""
    multi_ctrlr: bool = False
    ana_reporting: bool = False


class NvmeNamespaceData(msgspec.Struct, frozen=True):
    """``ana_state`` is absent where the subsystem does not report ANA."""

    id: int
    ana_state: str = ""
    can_share: bool = False


class NvmeDetails(msgspec.Struct, frozen=True):
    """One path's view."""

    trid: NvmeTransportId
    ctrlr_data: NvmeControllerData
    ns_data: NvmeNamespaceData


class DriverSpecific(msgspec.Struct, frozen=True):
    lvol: LvolDetails | None = None
    crypto: CryptoDetails | None = None
    aio: AioDetails | None = None
    nvme: tuple[NvmeDetails, ...] = ()
    mp_policy: str = ""


class Bdev(msgspec.Struct, frozen=True):
    """``name`` is the uuid for an lvol, and "<lvstore>/<lvol>" is among the aliases; else the uuid is the alias."""

    name: str
    block_size: int
    num_blocks: int
    uuid: str = ""
    aliases: tuple[str, ...] = ()
    product_name: str = ""
    claimed: bool = False
    claim_type: str = ""
    assigned_rate_limits: RateLimits = RateLimits()
    driver_specific: DriverSpecific = DriverSpecific()

    @property
    def size(self) -> int:
        """Bytes."""
        return self.block_size * self.num_blocks


async def bdev_get_bdevs(
    caller: Caller, *, name: str | None = None, timeout: int | None = None, deadline: float = 10.0
) -> list[Bdev]:
    """All bdevs in the order of their creation, or the one that ``name`` (name, alias or uuid) means.

    With ``timeout`` (ms) SPDK waits for it to appear; then -110, without it -19, when there is none.
    """
    return await caller.call_as(list[Bdev], "bdev_get_bdevs", given(name=name, timeout=timeout), deadline=deadline)


async def bdev_aio_create(
    caller: Caller,
    *,
    name: str,
    filename: str,
    block_size: int | None = None,
    readonly: bool | None = None,
    uuid: str | None = None,
    deadline: float = 30.0,
) -> str:
    """The name. An lvstore on the file is back, lvols and all, before this returns. A plain file needs block_size."""
    return await caller.call_as(
        str,
        "bdev_aio_create",
        given(name=name, filename=filename, block_size=block_size, readonly=readonly, uuid=uuid),
        deadline=deadline,
    )


async def bdev_aio_delete(caller: Caller, name: str, *, deadline: float = 30.0) -> None:
    """Unloads the lvstore on it, and takes exported namespaces away, without asking."""
    await caller.call_as(bool, "bdev_aio_delete", {"name": name}, deadline=deadline)


async def bdev_malloc_create(
    caller: Caller,
    *,
    num_blocks: int,
    block_size: int,
    name: str | None = None,
    uuid: str | None = None,
    deadline: float = 10.0,
) -> str:
    """The name, "Malloc<n>" when none is given."""
    return await caller.call_as(
        str,
        "bdev_malloc_create",
        given(name=name, num_blocks=num_blocks, block_size=block_size, uuid=uuid),
        deadline=deadline,
    )


async def bdev_malloc_delete(caller: Caller, name: str, *, deadline: float = 10.0) -> None:
    await caller.call_as(bool, "bdev_malloc_delete", {"name": name}, deadline=deadline)


async def only(caller: Caller, name: str, *, deadline: float = 10.0) -> Bdev | None:
    """The bdev that ``name`` (name, alias or uuid) means, None when there is none."""
    try:
        found = await bdev_get_bdevs(caller, name=name, deadline=deadline)
    except SpdkError as error:
        if error.missing:
            return None
        raise
    return found[0] if found else None
