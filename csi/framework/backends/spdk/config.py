"""The configuration section and the StorageClass parameters of backend kind `spdk`."""

from typing import Literal

import msgspec

from csi.framework.backend import Portal


class Listening(msgspec.Struct, frozen=True):
    """Where a target offers volumes: each of them in clear or with TLS, never both."""

    clear: tuple[Portal, ...]
    tls: tuple[Portal, ...] = ()

    def at(self, *, secure: bool) -> tuple[Portal, ...]:
        return self.tls if secure else self.clear


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One lvol store of one SPDK target. Several pools may share an address.

    `address`: `unix:/path`, `tcp:host:port` or `http://user@host:port/`. `portals`: where the target listens for DPUs.
    `topology`: segments of the nodes that reach it, empty for all. One lvol store belongs to one cluster.
    `key_directory`: directory for DH-HMAC-CHAP and TLS key files, as this process writes it; `target_key_directory`
    is the same directory as the target sees it (empty: the same path). Without it such volumes are refused.
    `secure_portals`: TCP ports of their own where the target listens with TLS only, for volumes encrypted in transit;
    without them such volumes are refused.
    """

    address: str
    lvstore: str
    portals: tuple[Portal, ...]
    secure_portals: tuple[Portal, ...] = ()
    topology: dict[str, str] = {}
    key_directory: str = ""
    target_key_directory: str = ""

    @property
    def listening(self) -> Listening:
        return Listening(self.portals, self.secure_portals)


class SpdkConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`call_seconds` bounds each JSON-RPC call; `converge_seconds` is the slow beat of comparing exports."""

    pools: dict[str, PoolConfig]
    call_seconds: float = 8.0
    default_size: int = 1 << 30


class SpdkParameters(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`pool`: one pool or several with commas, empty for any. `provisioning`: thick reserves all clusters at once."""

    pool: str = ""
    provisioning: Literal["thin", "thick"] = "thin"

    @property
    def pools(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.pool.split(",") if name.strip())
