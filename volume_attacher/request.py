"""Reading an AttachRequest: everything that can be wrong with it is found here, before anything is changed."""

import ipaddress
import re
import uuid
from typing import Final

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from volume_attacher.actual import place_of
from volume_attacher.errors import InvalidRequest
from volume_attacher.functions import SHARED_NAMESPACES
from volume_attacher.model import Limits, Pinned, Policy, Portal, Remote, Secrets, Specification
from volume_attacher.naming import is_nqn

_VOLUME_ID_BYTES: Final = 128
_HOST_NAME: Final = re.compile(
    r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*\.?"
)
# More than any counter of a card holds, in operations and in bytes a second.
_IOPS_LIMIT: Final = 2**63
_MB_LIMIT: Final = 2**63 >> 20
_HEX_KEY: Final = re.compile(r"(?:[0-9a-fA-F]{32}|[0-9a-fA-F]{64})")
_TRANSPORTS: Final = {pb.TRANSPORT_TCP: "tcp", pb.TRANSPORT_RDMA: "rdma"}
_POLICIES: Final = {
    pb.FUNCTION_POLICY_HOTPLUG: Policy.HOTPLUG,
    pb.FUNCTION_POLICY_STATIC: Policy.STATIC,
    pb.FUNCTION_POLICY_SHARED_CONTROLLER: Policy.SHARED,
}


def volume_id(text: str) -> str:
    if not text or len(text.encode()) > _VOLUME_ID_BYTES or not text.isprintable():
        raise InvalidRequest(f"volume_id {text[:60]!r}: 1 to {_VOLUME_ID_BYTES} printable bytes are required")
    return text


def specification(request: pb.AttachRequest, default: Policy) -> Specification:
    """The wanted attachment. Raises InvalidRequest."""
    if not request.HasField("remote"):
        raise InvalidRequest("remote is required")
    if request.function_policy and request.function_policy not in _POLICIES:
        raise InvalidRequest(f"function_policy {request.function_policy} is not known")
    return Specification(
        volume_id=volume_id(request.volume_id),
        remote=_remote(request.remote),
        policy=_POLICIES.get(request.function_policy, default),
        read_only=request.read_only,
        encrypted=request.HasField("encryption"),
        limits=_limits(request.qos),
    )


def pinned(request: pb.AttachRequest) -> Pinned | None:
    """The function that the request insists on, if it does. Raises InvalidRequest."""
    if not request.HasField("function"):
        if request.nsid:
            raise InvalidRequest("nsid needs function beside it")
        return None
    shared = request.function_policy == pb.FUNCTION_POLICY_SHARED_CONTROLLER
    if request.nsid > (SHARED_NAMESPACES if shared else 1):
        raise InvalidRequest(f"nsid {request.nsid} is above what a controller of this policy has")
    return Pinned(place_of(request.function), request.nsid)


def secrets(request: pb.AttachRequest) -> Secrets:
    """The request's keys, checked for their form. Raises InvalidRequest, whose message never shows them."""
    credentials, encryption = request.credentials, request.encryption
    for field, prefix in (("dhchap_key", "DHHC-1:"), ("dhchap_ctrlr_key", "DHHC-1:"), ("tls_psk", "NVMeTLSkey-1:")):
        value = getattr(credentials, field)
        if value and not (value.startswith(prefix) and value.endswith(":")):
            raise InvalidRequest(f"credentials.{field} is not in NVMe's interchange format ({prefix}...:)")
    if credentials.dhchap_ctrlr_key and not credentials.dhchap_key:
        raise InvalidRequest("credentials.dhchap_ctrlr_key needs dhchap_key beside it")
    if request.HasField("encryption"):
        if not _HEX_KEY.fullmatch(encryption.key) or not _HEX_KEY.fullmatch(encryption.tweak_key):
            raise InvalidRequest("encryption.key and encryption.tweak_key are 32 or 64 hexadecimal digits each")
        if len(encryption.key) != len(encryption.tweak_key):
            raise InvalidRequest("encryption.key and encryption.tweak_key are of one length")
        if encryption.key.lower() == encryption.tweak_key.lower():
            raise InvalidRequest("encryption.key and encryption.tweak_key must differ")
    return Secrets(
        dhchap_key=credentials.dhchap_key,
        dhchap_ctrlr_key=credentials.dhchap_ctrlr_key,
        tls_psk=credentials.tls_psk,
        key=encryption.key,
        tweak_key=encryption.tweak_key,
    )


def _remote(remote: pb.RemoteVolume) -> Remote:
    nqn = remote.subsystem_nqn
    if not is_nqn(nqn):
        raise InvalidRequest(f"remote.subsystem_nqn {nqn[:80]!r} is not an NQN of at most 223 bytes")
    try:
        identity = uuid.UUID(remote.namespace_uuid)
    except ValueError:
        raise InvalidRequest(f"remote.namespace_uuid {remote.namespace_uuid[:60]!r} is not a UUID") from None
    if identity.int == 0:
        raise InvalidRequest("remote.namespace_uuid is all zeros, which NVMe reserves for none")
    if not remote.paths:
        raise InvalidRequest("remote.paths: at least one is required")
    portals = tuple(_portal(path, f"remote.paths[{number}]") for number, path in enumerate(remote.paths))
    if len(set(portals)) != len(portals):
        raise InvalidRequest("remote.paths lists a path twice")
    return Remote(nqn=nqn, portals=portals, uuid=str(identity), size=remote.size_bytes)


def _portal(path: pb.Path, field: str) -> Portal:
    transport = _TRANSPORTS.get(path.transport)
    if transport is None:
        raise InvalidRequest(f"{field}.transport is required: TCP or RDMA")
    if not 0 < path.port < 65536:
        raise InvalidRequest(f"{field}.port {path.port} is not in 1..65535")
    return Portal(transport, _address(path.address, f"{field}.address"), path.port)


def _address(text: str, field: str) -> str:
    try:
        return str(ipaddress.ip_address(text))
    except ValueError:
        # A name whose last label is a number is a mistyped address (RFC 1123, 2.1).
        if _HOST_NAME.fullmatch(text) and not text.rstrip(".").rpartition(".")[2].isdecimal():
            return text.lower()
    raise InvalidRequest(f"{field} {text[:60]!r} is neither an IP address nor a host name")


def _limits(qos: pb.Qos) -> Limits:
    for descriptor, value in qos.ListFields():
        iops = descriptor.name.endswith("_iops")
        if value >= (_IOPS_LIMIT if iops else _MB_LIMIT):
            raise InvalidRequest(f"qos.{descriptor.name} {value} is more than any card counts: use 0 for no limit")
        if iops and value % 1000:
            raise InvalidRequest(f"qos.{descriptor.name} {value} is not a multiple of 1000")
    return Limits(
        read_iops=qos.read_iops,
        write_iops=qos.write_iops,
        read_write_iops=qos.read_write_iops,
        read_mb=qos.read_mb_per_second,
        write_mb=qos.write_mb_per_second,
        read_write_mb=qos.read_write_mb_per_second,
    )
