"""A virtual machine of KubeVirt: what its interfaces shall be like, and how its live migrations stand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import msgspec

from cni.controller.model.addressing import Attachment
from cni.controller.model.annotations import VM_NETWORKS
from foundation.kube.models import kubevirt

DEFAULT = "default"
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
    """An interface of the guest. `dhcp`: the guest asks for its address itself, so the pod must not have it."""

    mac: str
    dhcp: bool


@dataclass(frozen=True, slots=True)
class Machine:
    """What a VirtualMachine, or its instance, says. `nics` by network as annotation pod-networks names it.

    `written`: what annotation vm-networks says; empty when it is missing or unreadable, for then it is written anew.
    """

    key: str
    hostname: str
    subdomain: str
    nics: Mapping[str, Nic]
    annotations: Mapping[str, str]
    written: Mapping[str, Attachment]


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
    return _machine(vm, vm.spec.template.spec)


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
        machine=_machine(instance, instance.spec),
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
    obj: kubevirt.VirtualMachine | kubevirt.VirtualMachineInstance, spec: kubevirt.VirtualMachineInstanceSpec
) -> Machine:
    metadata = obj.metadata
    return Machine(
        key=metadata.key,
        hostname=spec.hostname or metadata.name,
        subdomain=spec.subdomain,
        nics=_nics(spec, metadata.namespace),
        annotations=metadata.annotations,
        written=_written(metadata.annotations.get(VM_NETWORKS)),
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
        found[key] = Nic(interface.mac_address, _asks(interface))
    return found


def _asks(interface: kubevirt.Interface) -> bool:
    if interface.masquerade is not None or interface.passt is not None:
        return False
    if interface.binding is not None:
        return interface.binding.name not in _POD_ADDRESSED
    return interface.bridge is not None or interface.sriov is not None


def _written(text: str | None) -> Mapping[str, Attachment]:
    if text is None:
        return {}
    try:
        return _WRITTEN.decode(text)
    except msgspec.DecodeError:
        return {}
