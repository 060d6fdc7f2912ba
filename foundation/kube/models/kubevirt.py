"""Virtual machines, their instances and migrations (API group kubevirt.io/v1)."""

from __future__ import annotations

from collections.abc import Mapping

from foundation.kube.models.meta import Condition, KubernetesObject, Model, ObjectMeta


class InterfaceBinding(Model, frozen=True):
    """A binding plugin's name."""

    name: str = ""


class DhcpOptions(Model, frozen=True):
    """What a guest is told by DHCP beside its address."""

    boot_file_name: str = ""
    tftp_server_name: str = ""
    ntp_servers: tuple[str, ...] | None = None


class Interface(Model, frozen=True):
    """A NIC of the guest; at most one binding is present. `state` is "absent" when it is to be unplugged."""

    name: str = ""
    mac_address: str = ""
    model: str = ""
    state: str = ""
    dhcp_options: DhcpOptions | None = None
    bridge: Mapping[str, object] | None = None
    masquerade: Mapping[str, object] | None = None
    sriov: Mapping[str, object] | None = None
    passt: Mapping[str, object] | None = None
    passt_binding: Mapping[str, object] | None = None
    binding: InterfaceBinding | None = None


class Devices(Model, frozen=True):
    """Devices of the guest."""

    interfaces: tuple[Interface, ...] | None = None


class Domain(Model, frozen=True):
    """The guest machine."""

    devices: Devices = Devices()


class MultusNetwork(Model, frozen=True):
    """A NAD as `name` or `namespace/name`; `default` replaces the pod network."""

    network_name: str = ""
    default: bool = False


class Network(Model, frozen=True):
    """A network of the guest: the pod network, or a NAD."""

    name: str = ""
    pod: Mapping[str, object] | None = None
    multus: MultusNetwork | None = None


class ClaimVolume(Model, frozen=True):
    """A claim as a disk."""

    claim_name: str = ""
    hotpluggable: bool = False


class DataVolume(Model, frozen=True):
    """A data volume (its claim has the same name) as a disk."""

    name: str = ""
    hotpluggable: bool = False


class Volume(Model, frozen=True):
    """A disk's source; only claims are told apart."""

    name: str = ""
    persistent_volume_claim: ClaimVolume | None = None
    data_volume: DataVolume | None = None


class VirtualMachineInstanceSpec(Model, frozen=True):
    """What the guest is."""

    hostname: str = ""
    subdomain: str = ""
    eviction_strategy: str | None = None
    domain: Domain = Domain()
    networks: tuple[Network, ...] | None = None
    volumes: tuple[Volume, ...] | None = None


class InstanceInterface(Model, frozen=True):
    """A NIC as it is seen in the running guest."""

    name: str = ""
    mac: str = ""
    ip_address: str = ""
    ip_addresses: tuple[str, ...] | None = None
    interface_name: str = ""
    pod_interface_name: str = ""
    info_source: str = ""


class MigrationState(Model, frozen=True):
    """A migration as the instance sees it."""

    migration_uid: str = ""
    source_node: str = ""
    source_pod: str = ""
    target_node: str = ""
    target_pod: str = ""
    mode: str = ""
    completed: bool = False
    failed: bool = False
    abort_requested: bool = False
    abort_status: str = ""
    start_timestamp: str | None = None
    end_timestamp: str | None = None
    target_node_domain_detected: bool = False
    target_node_domain_ready_timestamp: str | None = None


class VirtualMachineInstanceStatus(Model, frozen=True):
    """State of a guest; `active_pods` maps a pod's uid to its node."""

    phase: str = ""
    node_name: str = ""
    interfaces: tuple[InstanceInterface, ...] | None = None
    active_pods: Mapping[str, str] | None = None
    migration_state: MigrationState | None = None
    migration_method: str = ""
    conditions: tuple[Condition, ...] | None = None


class VirtualMachineInstance(KubernetesObject, frozen=True):
    """A running guest."""

    spec: VirtualMachineInstanceSpec = VirtualMachineInstanceSpec()
    status: VirtualMachineInstanceStatus = VirtualMachineInstanceStatus()


class InstanceTemplate(Model, frozen=True):
    """What a machine's instances are made of."""

    metadata: ObjectMeta = ObjectMeta()
    spec: VirtualMachineInstanceSpec = VirtualMachineInstanceSpec()


class VirtualMachineSpec(Model, frozen=True):
    """A machine and when it runs."""

    running: bool | None = None
    run_strategy: str | None = None
    template: InstanceTemplate = InstanceTemplate()


class VirtualMachineStatus(Model, frozen=True):
    """State of a machine."""

    created: bool = False
    ready: bool = False
    printable_status: str = ""
    conditions: tuple[Condition, ...] | None = None


class VirtualMachine(KubernetesObject, frozen=True):
    """A machine; it stays when its instances come and go."""

    spec: VirtualMachineSpec = VirtualMachineSpec()
    status: VirtualMachineStatus = VirtualMachineStatus()


class MigrationSpec(Model, frozen=True):
    """Which instance shall move."""

    vmi_name: str = ""


class MigrationStatus(Model, frozen=True):
    """`phase` is Pending, Scheduling, Scheduled, PreparingTarget, TargetReady, Running, Succeeded or Failed."""

    phase: str = ""
    migration_state: MigrationState | None = None
    conditions: tuple[Condition, ...] | None = None


class VirtualMachineInstanceMigration(KubernetesObject, frozen=True):
    """One live migration."""

    spec: MigrationSpec = MigrationSpec()
    status: MigrationStatus = MigrationStatus()
