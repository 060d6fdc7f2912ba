"""Turns a runtime's variables and configuration into a checked call. Pure.

CNI specification 1.1.0, sections 2 "Execution protocol" and 3 "Network configuration format".
"""

import re
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import msgspec

from cni.node.errors import BadConfiguration, BadEnvironment, IncompatibleVersion, NotJson

VERSIONS = ("0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
NEWEST = VERSIONS[-1]
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION")

_SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}
_REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
}
_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_MAC = re.compile(r"([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}")
_SCALABLE = re.compile(r"[a-z0-9_]+\.sf\.\d+")
_PCI = re.compile(r"(?:[0-9a-fA-F]{4,8}:)?[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")
_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_Bits = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
DEFAULT_NETWORK = "default"


class Bandwidth(msgspec.Struct, frozen=True, rename="camel"):
    """Capability "bandwidth": bits a second, and bits; 0 means no bound."""

    ingress_rate: _Bits = 0
    ingress_burst: _Bits = 0
    egress_rate: _Bits = 0
    egress_burst: _Bits = 0

    def __bool__(self) -> bool:
        return bool(self.ingress_rate or self.egress_rate)


class RuntimeConfig(msgspec.Struct, frozen=True):
    """A value that is null counts as absent, as with plugins in Go."""

    mac: str | None = None
    ips: tuple[str, ...] | None = None
    bandwidth: Bandwidth | None = None
    device_id: str | None = msgspec.field(name="deviceID", default=None)
    device_info_file: str | None = msgspec.field(name="CNIDeviceInfoFile", default=None)


class ValidAttachment(msgspec.Struct, frozen=True):
    container_id: str = msgspec.field(name="containerID")
    ifname: str


class Network(msgspec.Struct, frozen=True):
    """What every verb needs. A configuration without a version is of the time before there were any."""

    cni_version: str = msgspec.field(name="cniVersion", default="0.1.0")
    name: str = ""


class NetworkConfig(Network, frozen=True):
    """The fields we use; others are the runtime's and are ignored, as the specification asks."""

    device_id: str | None = msgspec.field(name="deviceID", default=None)
    runtime: RuntimeConfig | None = msgspec.field(name="runtimeConfig", default=None)
    previous: dict[str, Any] | None = msgspec.field(name="prevResult", default=None)
    nad: str | None = msgspec.field(name="netAttachDefName", default=None)
    # libcni writes an empty list as null; a missing key is something else.
    valid: tuple[ValidAttachment, ...] | msgspec.UnsetType | None = msgspec.field(
        name="cni.dev/valid-attachments", default=msgspec.UNSET
    )
    valid_old: tuple[ValidAttachment, ...] | msgspec.UnsetType | None = msgspec.field(
        name="cni.dev/attachments", default=msgspec.UNSET
    )


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One checked call. Pod fields are "" for GC, STATUS, and for a DEL without CNI_ARGS. `valid` is None where GC
    came without a list, which is not the same as an empty one. `deadline` is in seconds."""

    verb: str
    version: str
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    pod_namespace: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    device_id: str = ""
    network: str = DEFAULT_NETWORK
    network_name: str = ""
    mac: str = ""
    ips: tuple[str, ...] = ()
    bandwidth: Bandwidth = Bandwidth()
    device_info_file: str = ""
    previous: dict[str, Any] | None = None
    valid: tuple[ValidAttachment, ...] | None = None
    deadline: float = 110.0


# Too deep a nesting, too, is nothing that a configuration can be.
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


def version_of(config: bytes) -> str:
    """The version in which to answer, also for a configuration that cannot be used; the newest when it has none."""
    try:
        found = msgspec.json.decode(config, type=dict[str, Any]).get("cniVersion", "")
    except _UNREADABLE:
        return NEWEST
    return found if found in VERSIONS else NEWEST


def parse(variables: Mapping[str, str], config: bytes) -> Call:
    """Raises BadEnvironment, NotJson, BadConfiguration, IncompatibleVersion; nothing has been touched then."""
    verb = variables.get("CNI_COMMAND", "")
    if verb not in VERBS:
        raise BadEnvironment(f"CNI_COMMAND is {verb!r}, which is not one of {', '.join(VERBS)}")
    missing = [name for name in _REQUIRED.get(verb, ()) if not variables.get(name)]
    if missing:
        raise BadEnvironment(f"{verb} needs {', '.join(missing)}, which the runtime did not set")
    container_id, ifname = variables.get("CNI_CONTAINERID", ""), variables.get("CNI_IFNAME", "")
    if container_id and not _CONTAINER_ID.fullmatch(container_id):
        raise BadEnvironment(f"CNI_CONTAINERID {container_id!r} has characters which the specification does not allow")
    if ifname:
        _check_ifname(ifname)
    # What ADD refused must not keep DEL from succeeding.
    conf = decode(config, kind=NetworkConfig) if verb != "DEL" else _least(decode(config, kind=Network))
    if conf.cni_version not in VERSIONS:
        raise IncompatibleVersion(
            f"cniVersion {conf.cni_version!r} is not supported; set one of {', '.join(VERSIONS)} in the configuration"
        )
    since = _SINCE.get(verb)
    if since is not None and VERSIONS.index(conf.cni_version) < VERSIONS.index(since):
        raise IncompatibleVersion(f"{verb} exists since CNI {since}, but the configuration says {conf.cni_version}")
    if verb in (*_REQUIRED, "GC") and not _NAME.fullmatch(conf.name):
        raise BadConfiguration(
            f"the configuration's name is {conf.name!r}; every network configuration needs one, of letters, digits, "
            "dots, dashes and underscores"
        )
    runtime = conf.runtime or RuntimeConfig()
    arguments = _arguments(variables.get("CNI_ARGS", ""))
    call = Call(
        verb=verb,
        version=conf.cni_version,
        container_id=container_id,
        netns=variables.get("CNI_NETNS", ""),
        ifname=ifname,
        pod_namespace=arguments.get("K8S_POD_NAMESPACE", ""),
        pod_name=arguments.get("K8S_POD_NAME", ""),
        pod_uid=arguments.get("K8S_POD_UID", ""),
        device_id=_device(conf) if verb == "ADD" else "",
        network=conf.nad or DEFAULT_NETWORK,
        network_name=conf.name,
        mac=_mac(runtime.mac or arguments.get("MAC", "")) if verb == "ADD" else "",
        ips=runtime.ips or (),
        bandwidth=runtime.bandwidth or Bandwidth(),
        device_info_file=runtime.device_info_file or "",
        previous=_previous(conf.previous) if verb in ("ADD", "CHECK") else None,
        valid=_valid(conf),
        deadline=_deadline(variables.get("DEADLINE_MS", "")),
    )
    if verb == "ADD" and not (call.pod_namespace and call.pod_name):
        raise BadEnvironment(
            "CNI_ARGS has no K8S_POD_NAMESPACE and K8S_POD_NAME; this plugin serves Kubernetes pods only"
        )
    if verb == "CHECK" and call.previous is None:
        raise BadConfiguration("CHECK needs prevResult in the configuration; the runtime keeps it from ADD")
    return call


N = TypeVar("N", bound=Network)


def decode(config: bytes, *, kind: type[N]) -> N:
    """Raises NotJson, BadConfiguration."""
    try:
        return msgspec.json.decode(config, type=kind)
    except msgspec.ValidationError as error:
        raise BadConfiguration(f"the network configuration is malformed: {error}") from None
    except _UNREADABLE as error:
        raise NotJson(f"the network configuration on standard input is not JSON: {error}") from None


def _least(conf: Network) -> NetworkConfig:
    return NetworkConfig(cni_version=conf.cni_version, name=conf.name)


def _valid(conf: NetworkConfig) -> tuple[ValidAttachment, ...] | None:
    found = conf.valid_old if conf.valid is msgspec.UNSET else conf.valid
    return None if found is msgspec.UNSET else found or ()


def _device(conf: NetworkConfig) -> str:
    at_runtime = conf.runtime.device_id if conf.runtime is not None else None
    given = {value for value in (conf.device_id, at_runtime) if value}
    if len(given) > 1:
        raise BadConfiguration(f"deviceID is {conf.device_id} in the configuration but {at_runtime} in runtimeConfig")
    device = next(iter(given), "")
    if device and not is_device(device):
        raise BadConfiguration(f"deviceID {device!r} is neither a PCI address nor a scalable function's name")
    return device


def is_device(text: str) -> bool:
    """Whether it has the form of a deviceID: a PCI address, or a scalable function's name."""
    return bool(_PCI.fullmatch(text) or _SCALABLE.fullmatch(text))


def _previous(found: dict[str, Any] | None) -> dict[str, Any] | None:
    """What the plugin before us, or ADD, has answered, with lists of objects where the specification has them."""
    for key in ("interfaces", "ips", "routes"):
        entries = (found or {}).get(key) or []
        if not (isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries)):
            raise BadConfiguration(f"prevResult's {key} are no list of objects; it must be the result of an ADD")
    if not isinstance((found or {}).get("dns") or {}, dict):
        raise BadConfiguration("prevResult's dns is no object; it must be the result of an ADD")
    return found


def _mac(text: str) -> str:
    if text and not _MAC.fullmatch(text):
        raise BadConfiguration(
            f"MAC address {text!r} is malformed; write it as six pairs of hexadecimal digits with colons"
        )
    return text.lower()


def _check_ifname(name: str) -> None:
    if len(name.encode()) > 15:
        raise BadEnvironment(
            f"CNI_IFNAME {name!r} is longer than the kernel's 15 bytes; choose a shorter interface name"
        )
    # The kernel takes a percent sign for the place of a number to choose.
    if name in (".", "..") or re.search(r"[/:%\s]", name):
        raise BadEnvironment(f"CNI_IFNAME {name!r} is no interface name: it must have no slash, colon, % or blank")


def _arguments(text: str) -> dict[str, str]:
    """CNI_ARGS `A=1;B=2`. Raises BadEnvironment for a part without `=`."""
    found: dict[str, str] = {}
    for part in text.split(";"):
        key, equals, value = part.partition("=")
        if not equals and part:
            raise BadEnvironment(f"CNI_ARGS has the part {part!r} without an equals sign")
        found[key] = value
    return found


def _deadline(text: str) -> float:
    return min(int(text) / 1000, 600.0) if text.isdigit() and int(text) else 110.0
