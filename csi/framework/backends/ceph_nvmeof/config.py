"""The configuration section and the StorageClass parameters of backend kind `ceph-nvmeof`."""

import msgspec


class Listener(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One gateway of the group: its name as Ceph knows it, and the address at which it serves NVMe/TCP. `secure`: with
    TLS only, for volumes encrypted in transit, on a port of its own."""

    host_name: str
    address: str
    port: int = 4420
    secure: bool = False


class CephTls(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """PEM files; the gateways' management interface asks for a client certificate."""

    ca: str
    certificate: str
    key: str
    server_name: str = ""


class CephConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`gateways`: management addresses, `host:port` (with `tls`) or `unix:/path`, tried in turn."""

    gateways: tuple[str, ...]
    listeners: tuple[Listener, ...]
    rbd_pool: str
    tls: CephTls | None = None
    call_seconds: float = 8.0
    default_size: int = 1 << 30


class CephParameters(msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True):
    """`rbdPool`: another pool than the configured one."""

    rbd_pool: str = ""
