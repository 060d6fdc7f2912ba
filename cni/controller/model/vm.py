"""A virtual machine of KubeVirt: what its interfaces shall be like, and how its live migrations stand."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import msgspec

from cni.controller.model.addressing import Attachment
from cni.controller.model.annotations import VM_NETWORKS
from foundation.kube.models import kubevirt

DEFAULT = "default"
LABEL = 63
"""Characters in a part of a DNS name (RFC 1035): KubeVirt takes as many of a machine's name for the guest's."""
JOB = "kubevirt.io/migrationJobUID"
"""On a migration's target pod: the uid of the migration."""
READY = "kubevirt.io/migration-target-ready-timestamp"
"""On a migration's target pod, by virt-handler: when the guest was seen to run there."""

# Bindings that put the pod's own address to use, and give the guest another one or none of their own.
_POD_ADDRESSED = frozenset({"passt", "slirp"})
_WRITTEN = msgspec.json.Decoder(dict[str, Attachment])


class Progress(Enum):
    """How a live migration stands. READY: the guest runs on the target."""

    RUNNING = "running"
    READY = "ready"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Nic:
    """An interface of the guest. `mac`: as its author wants the network to see it, if at all.

    `dhcp`: the guest asks for its address itself, so the pod must not have it; `told`: what it is told then beside
    what all are, options of OVN (ovn-nb(5), table DHCP_Options) for IPv4.
    """

    mac: str
    dhcp: bool
    told: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Machine:
    """What a VirtualMachine, or its instance, says. `nics` by network as annotation pod-networks names it.

    `written`: what annotation vm-networks says; empty when it is missing or unreadable, for then it is written anew.
    `created`: RFC 3339. `complete`: all interfaces say how they are bound; what a VirtualMachine leaves open, KubeVirt
    fills in in the instance only.
    """

    key: str
    hostname: str
    subdomain: str
    nics: Mapping[str, Nic]
    annotations: Mapping[str, str]
    written: Mapping[str, Attachment]
    complete: bool
    created: str = ""
    uid: str = ""


@dataclass(frozen=True, slots=True)
class Instance:
    """A running machine. `node`: where KubeVirt says the guest runs. `migration`: the uid of the latest one."""

    machine: Machine
    node: str
    migration: str
    progress: Progress


@dataclass(frozen=True, slots=True)
class Migration:
    """A VirtualMachineInstanceMigration."""

    uid: str
    machine: str
    progress: Progress


def parse_machine(vm: kubevirt.VirtualMachine) -> Machine:
    """From the API's object."""
    interfaces = vm.spec.template.spec.domain.devices.interfaces or ()
    return _machine(vm, vm.spec.template.spec, complete=bool(interfaces) and all(map(_bound, interfaces)))


def parse_instance(instance: kubevirt.VirtualMachineInstance) -> Instance:
    """From the API's object."""
    state = instance.status.migration_state or kubevirt.MigrationState()
    if state.failed or state.abort_status == "Succeeded":
        progress = Progress.FAILED
    elif state.completed or state.target_node_domain_ready_timestamp:
        progress = Progress.READY
    else:
        progress = Progress.RUNNING
    return Instance(
        machine=_machine(instance, instance.spec, complete=True),
        node=instance.status.node_name,
        migration=state.migration_uid,
        progress=progress,
    )


def parse_migration(migration: kubevirt.VirtualMachineInstanceMigration) -> Migration:
    """From the API's object."""
    phase = migration.status.phase
    known = {"Succeeded": Progress.READY, "Failed": Progress.FAILED}
    return Migration(
        uid=migration.metadata.uid,
        machine=f"{migration.metadata.namespace}/{migration.spec.vmi_name}",
        progress=known.get(phase, Progress.RUNNING),
    )


def _machine(
    obj: kubevirt.VirtualMachine | kubevirt.VirtualMachineInstance,
    spec: kubevirt.VirtualMachineInstanceSpec,
    *,
    complete: bool,
) -> Machine:
    metadata = obj.metadata
    return Machine(
        key=metadata.key,
        hostname=spec.hostname or metadata.name.partition(".")[0][:LABEL],
        subdomain=spec.subdomain,
        nics=_nics(spec, metadata.namespace),
        annotations=metadata.annotations,
        written=_written(metadata.annotations.get(VM_NETWORKS)),
        complete=complete,
        created=metadata.creation_timestamp or "",
        uid=metadata.uid,
    )


def _nics(spec: kubevirt.VirtualMachineInstanceSpec, namespace: str) -> dict[str, Nic]:
    """Numbered as the pod's selection annotation has them: KubeVirt writes it in the order of the networks."""
    interfaces = {each.name: each for each in spec.domain.devices.interfaces or ()}
    found: dict[str, Nic] = {}
    counts: dict[str, int] = {}
    for network in spec.networks or ():
        interface = interfaces.get(network.name)
        if interface is None or interface.state == "absent":
            continue
        if network.multus is None or network.multus.default:
            key = DEFAULT
        else:
            name = network.multus.network_name
            key = name if "/" in name else f"{namespace}/{name}"
            index = counts.get(key, 0)
            counts[key] = index + 1
            key = key if index == 0 else f"{key}/{index}"
        found[key] = _nic(interface)
    return found


def _nic(interface: kubevirt.Interface) -> Nic:
    if _hidden(interface):
        # The network sees the pod's MAC; the guest's own is between it and KubeVirt.
        return Nic(mac="", dhcp=False)
    asks = interface.binding is not None or interface.bridge is not None or interface.sriov is not None
    return Nic(interface.mac_address, asks, _told(interface.dhcp_options) if asks else {})


def _hidden(interface: kubevirt.Interface) -> bool:
    named = interface.binding is not None and interface.binding.name in _POD_ADDRESSED
    return named or any(each is not None for each in (interface.masquerade, interface.passt, interface.passt_binding))


def _bound(interface: kubevirt.Interface) -> bool:
    return _hidden(interface) or any(
        each is not None for each in (interface.binding, interface.bridge, interface.sriov)
    )


def _told(options: kubevirt.DhcpOptions | None) -> dict[str, str]:
    """OVN has no option by number, so that `privateOptions` cannot be told; names of NTP servers neither."""
    if options is None:
        return {}
    found: dict[str, str] = {}
    if options.boot_file_name:
        found["bootfile_name"] = _quoted(options.boot_file_name)
    if options.tftp_server_name:
        server = options.tftp_server_name
        found["tftp_server"] = server if _is_v4(server) else _quoted(server)
    servers = list(filter(_is_v4, options.ntp_servers or ()))
    if servers:
        found["ntp_server"] = servers[0] if len(servers) == 1 else "{" + ", ".join(servers) + "}"
    return found


def _quoted(text: str) -> str:
    return msgspec.json.encode(text).decode()


def _is_v4(text: str) -> bool:
    try:
        ipaddress.IPv4Address(text)
    except ValueError:
        return False
    return True


def _written(text: str | None) -> Mapping[str, Attachment]:
    if text is None:
        return {}
    try:
        return _WRITTEN.decode(text)
    except (msgspec.DecodeError, RecursionError):
        return {}
