"""The few fields of SPDK's answers that the backend reads (SPDK 26.05 bdev_get_bdevs, nvmf_get_subsystems, …)."""

import msgspec

from csi.framework.backend import Portal, Qos
from csi.framework.backends.spdk.config import Listening


class LvolFacts(msgspec.Struct, frozen=True, kw_only=True):
    """`driver_specific.lvol` of a bdev. `base_snapshot` and `clones` are lvol names within the same store."""

    lvol_store_uuid: str = ""
    thin_provision: bool = False
    num_allocated_clusters: int = 0
    snapshot: bool = False
    clone: bool = False
    base_snapshot: str = ""
    clones: tuple[str, ...] = ()
    esnap_clone: bool = False
    external_snapshot_name: str = ""


class DriverSpecific(msgspec.Struct, frozen=True):
    lvol: LvolFacts | None = None


class RateLimits(msgspec.Struct, frozen=True, kw_only=True):
    rw_ios_per_sec: int = 0
    rw_mbytes_per_sec: int = 0
    r_mbytes_per_sec: int = 0
    w_mbytes_per_sec: int = 0


class Bdev(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    aliases: tuple[str, ...] = ()
    uuid: str = ""
    block_size: int = 512
    num_blocks: int = 0
    claimed: bool = False
    claim_type: str = ""
    assigned_rate_limits: RateLimits = RateLimits()
    driver_specific: DriverSpecific = DriverSpecific()

    def has_limits(self, qos: Qos) -> bool:
        return self.assigned_rate_limits == RateLimits(
            rw_ios_per_sec=qos.read_write_iops,
            rw_mbytes_per_sec=qos.read_write_mb_per_second,
            r_mbytes_per_sec=qos.read_mb_per_second,
            w_mbytes_per_sec=qos.write_mb_per_second,
        )

    @property
    def size(self) -> int:
        return self.block_size * self.num_blocks

    @property
    def lvol(self) -> LvolFacts:
        return self.driver_specific.lvol or LvolFacts()

    def lvol_name(self, lvstore: str) -> str:
        """The name within that store; empty for a bdev of another kind or store."""
        for alias in self.aliases:
            store, _, name = alias.partition("/")
            if store == lvstore and self.driver_specific.lvol is not None:
                return name
        return ""


class Lvstore(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    uuid: str = ""
    total_data_clusters: int = 0
    free_clusters: int = 0
    cluster_size: int = 0


class Address(msgspec.Struct, frozen=True, kw_only=True):
    trtype: str = ""
    adrfam: str = ""
    traddr: str = ""
    trsvcid: str = ""

    def is_portal(self, portal: Portal) -> bool:
        same = self.trtype.lower() == portal.transport and self.traddr == portal.address
        return same and self.trsvcid == str(portal.port)


class Host(msgspec.Struct, frozen=True):
    nqn: str
    dhchap_key: str = ""
    dhchap_ctrlr_key: str = ""


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    nsid: int
    bdev_name: str = ""
    uuid: str = ""
    nguid: str = ""


class Subsystem(msgspec.Struct, frozen=True, kw_only=True):
    nqn: str
    listen_addresses: tuple[Address, ...] = ()
    hosts: tuple[Host, ...] = ()
    allow_any_host: bool = False
    namespaces: tuple[Namespace, ...] = ()

    def listens_at(self, portal: Portal) -> bool:
        return any(address.is_portal(portal) for address in self.listen_addresses)

    def listens(self, listening: Listening, *, secure: bool) -> bool:
        """Everywhere with TLS, or everywhere without; nowhere the other way."""
        wanted, unwanted = listening.at(secure=secure), listening.at(secure=not secure)
        return bool(wanted) and all(map(self.listens_at, wanted)) and not any(map(self.listens_at, unwanted))

    def whole(self, listening: Listening, *, secure: bool | None = None) -> bool:
        """Whether nothing of an export is missing, and nobody gets in unnamed. `secure` None: either way will do."""
        ways = (False, True) if secure is None else (secure,)
        offered = any(self.listens(listening, secure=way) for way in ways)
        return bool(self.namespaces) and not self.allow_any_host and offered
