"""Pods, nodes, services, volumes, claims, secrets, events (API group core/v1)."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from foundation.kube.models.meta import Condition, KubernetesObject, Model, ObjectReference

Quantity = str | int | float


class ContainerPort(Model, frozen=True):
    """A port of a container; `name` is what a Service or NetworkPolicy may refer to."""

    name: str = ""
    container_port: int = 0
    host_port: int = 0
    host_ip: str = msgspec.field(name="hostIP", default="")
    protocol: str = "TCP"


class ContainerResources(Model, frozen=True):
    """What a container may use at most; for devices that is also what it asks for."""

    limits: Mapping[str, Quantity] | None = None


class Container(Model, frozen=True):
    """A container; `restart_policy` is set for side cars among the init containers only."""

    name: str = ""
    ports: tuple[ContainerPort, ...] | None = None
    resources: ContainerResources | None = None
    restart_policy: str | None = None

    def __hash__(self) -> int:
        # `resources` can't be hashed; equality still looks at it
        return hash((self.name, self.ports, self.restart_policy))


class PersistentVolumeClaimVolumeSource(Model, frozen=True):
    """A pod's volume that is a claim."""

    claim_name: str = ""
    read_only: bool = False


class Volume(Model, frozen=True):
    """A pod's volume; only claims and generic ephemeral volumes (`<pod>-<name>` claims) are told apart."""

    name: str = ""
    persistent_volume_claim: PersistentVolumeClaimVolumeSource | None = None
    ephemeral: Mapping[str, object] | None = None

    def __hash__(self) -> int:
        # `ephemeral` can't be hashed; equality still looks at it
        return hash((self.name, self.persistent_volume_claim))


class PodSpec(Model, frozen=True):
    """What a pod asks for."""

    node_name: str = ""
    host_network: bool = False
    hostname: str = ""
    subdomain: str = ""
    containers: tuple[Container, ...] = ()
    init_containers: tuple[Container, ...] | None = None
    volumes: tuple[Volume, ...] | None = None


class PodIP(Model, frozen=True):
    """One address of a pod."""

    ip: str = ""


class PodStatus(Model, frozen=True):
    """What kubelet reports; `phase` is Pending, Running, Succeeded, Failed or Unknown."""

    phase: str = ""
    reason: str = ""
    message: str = ""
    host_ip: str = msgspec.field(name="hostIP", default="")
    pod_ip: str = msgspec.field(name="podIP", default="")
    pod_ips: tuple[PodIP, ...] | None = msgspec.field(name="podIPs", default=None)


class Pod(KubernetesObject, frozen=True):
    """A pod."""

    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()


class Taint(Model, frozen=True):
    """A mark that keeps pods off a node."""

    key: str = ""
    value: str = ""
    effect: str = ""


class NodeSpec(Model, frozen=True):
    """What the cluster gives a node."""

    pod_cidr: str = msgspec.field(name="podCIDR", default="")
    pod_cidrs: tuple[str, ...] | None = msgspec.field(name="podCIDRs", default=None)
    provider_id: str = msgspec.field(name="providerID", default="")
    unschedulable: bool = False
    taints: tuple[Taint, ...] | None = None


class NodeAddress(Model, frozen=True):
    """An address of a node; `type` is InternalIP, ExternalIP, Hostname, ..."""

    type: str = ""
    address: str = ""


class NodeStatus(Model, frozen=True):
    """What kubelet reports of its node."""

    addresses: tuple[NodeAddress, ...] | None = None
    conditions: tuple[Condition, ...] | None = None
    capacity: Mapping[str, Quantity] | None = None
    allocatable: Mapping[str, Quantity] | None = None
    volumes_in_use: tuple[str, ...] | None = None


class Node(KubernetesObject, frozen=True):
    """A node."""

    spec: NodeSpec = NodeSpec()
    status: NodeStatus = NodeStatus()


class NamespaceStatus(Model, frozen=True):
    """`phase` is Active or Terminating."""

    phase: str = ""


class Namespace(KubernetesObject, frozen=True):
    """A namespace."""

    status: NamespaceStatus = NamespaceStatus()


class ServicePort(Model, frozen=True):
    """One port of a service; `target_port` is a number, a container port's name, or absent (same as `port`)."""

    name: str = ""
    protocol: str = "TCP"
    app_protocol: str | None = None
    port: int = 0
    target_port: int | str | None = None
    node_port: int = 0


class ClientIPConfig(Model, frozen=True):
    """How long a client keeps its endpoint, in seconds."""

    timeout_seconds: int | None = None


class SessionAffinityConfig(Model, frozen=True):
    """Settings of session affinity."""

    client_ip: ClientIPConfig | None = msgspec.field(name="clientIP", default=None)


class ServiceSpec(Model, frozen=True):
    """What a service offers. `cluster_ip` is "None" for a headless one."""

    type: str = "ClusterIP"
    cluster_ip: str = msgspec.field(name="clusterIP", default="")
    cluster_ips: tuple[str, ...] | None = msgspec.field(name="clusterIPs", default=None)
    external_ips: tuple[str, ...] | None = msgspec.field(name="externalIPs", default=None)
    external_name: str = ""
    ip_families: tuple[str, ...] | None = None
    ip_family_policy: str | None = None
    ports: tuple[ServicePort, ...] | None = None
    selector: Mapping[str, str] | None = None
    session_affinity: str = "None"
    session_affinity_config: SessionAffinityConfig | None = None
    external_traffic_policy: str = ""
    internal_traffic_policy: str | None = None
    health_check_node_port: int = 0
    publish_not_ready_addresses: bool = False
    load_balancer_ip: str = msgspec.field(name="loadBalancerIP", default="")
    load_balancer_class: str | None = None
    load_balancer_source_ranges: tuple[str, ...] | None = None
    allocate_load_balancer_node_ports: bool | None = None
    traffic_distribution: str | None = None


class LoadBalancerIngress(Model, frozen=True):
    """An address given by a load balancer; `ip_mode` VIP or Proxy."""

    ip: str = ""
    hostname: str = ""
    ip_mode: str | None = None


class LoadBalancerStatus(Model, frozen=True):
    """What the load balancer gave."""

    ingress: tuple[LoadBalancerIngress, ...] | None = None


class ServiceStatus(Model, frozen=True):
    """State of a service."""

    load_balancer: LoadBalancerStatus = LoadBalancerStatus()
    conditions: tuple[Condition, ...] | None = None


class Service(KubernetesObject, frozen=True):
    """A service."""

    spec: ServiceSpec = ServiceSpec()
    status: ServiceStatus = ServiceStatus()


class SecretReference(Model, frozen=True):
    """Name and namespace of a Secret."""

    name: str = ""
    namespace: str = ""


class CSIPersistentVolumeSource(Model, frozen=True):
    """The CSI part of a volume."""

    driver: str = ""
    volume_handle: str = ""
    read_only: bool = False
    fs_type: str = ""
    volume_attributes: Mapping[str, str] | None = None
    controller_publish_secret_ref: SecretReference | None = None
    controller_expand_secret_ref: SecretReference | None = None
    node_stage_secret_ref: SecretReference | None = None
    node_publish_secret_ref: SecretReference | None = None
    node_expand_secret_ref: SecretReference | None = None


class PersistentVolumeSpec(Model, frozen=True):
    """What a volume is."""

    capacity: Mapping[str, Quantity] | None = None
    access_modes: tuple[str, ...] | None = None
    volume_mode: str | None = None
    storage_class_name: str = ""
    volume_attributes_class_name: str | None = None
    persistent_volume_reclaim_policy: str = ""
    mount_options: tuple[str, ...] | None = None
    claim_ref: ObjectReference | None = None
    csi: CSIPersistentVolumeSource | None = None


class PersistentVolumeStatus(Model, frozen=True):
    """`phase` is Pending, Available, Bound, Released or Failed."""

    phase: str = ""
    reason: str = ""
    message: str = ""


class PersistentVolume(KubernetesObject, frozen=True):
    """A volume of the cluster."""

    spec: PersistentVolumeSpec = PersistentVolumeSpec()
    status: PersistentVolumeStatus = PersistentVolumeStatus()


class TypedObjectReference(Model, frozen=True):
    """Where a claim's contents come from: a snapshot or another claim."""

    api_group: str | None = None
    kind: str = ""
    name: str = ""
    namespace: str | None = None


class ResourceRequirements(Model, frozen=True):
    """What a claim asks for; quantities as written (`"1"`, `"100m"`, `"1Gi"`)."""

    requests: Mapping[str, Quantity] | None = None
    limits: Mapping[str, Quantity] | None = None


class PersistentVolumeClaimSpec(Model, frozen=True):
    """What a claim asks for."""

    access_modes: tuple[str, ...] | None = None
    volume_mode: str | None = None
    volume_name: str = ""
    storage_class_name: str | None = None
    volume_attributes_class_name: str | None = None
    resources: ResourceRequirements = ResourceRequirements()
    data_source: TypedObjectReference | None = None
    data_source_ref: TypedObjectReference | None = None


class PersistentVolumeClaimStatus(Model, frozen=True):
    """`phase` is Pending, Bound or Lost."""

    phase: str = ""
    capacity: Mapping[str, Quantity] | None = None
    access_modes: tuple[str, ...] | None = None
    conditions: tuple[Condition, ...] | None = None
    current_volume_attributes_class_name: str | None = None


class PersistentVolumeClaim(KubernetesObject, frozen=True):
    """A claim."""

    spec: PersistentVolumeClaimSpec = PersistentVolumeClaimSpec()
    status: PersistentVolumeClaimStatus = PersistentVolumeClaimStatus()


class ServiceAccount(KubernetesObject, frozen=True):
    """An identity for pods; only its metadata is used."""


class Secret(KubernetesObject, frozen=True):
    """A secret; values are raw bytes (base64 on the wire) and never shown by repr()."""

    type: str = ""
    data: Mapping[str, bytes] | None = None

    def __repr__(self) -> str:
        return f"Secret({self.metadata.key}, keys={sorted(self.data or ())})"


class ConfigMap(KubernetesObject, frozen=True):
    """A configuration map."""

    data: Mapping[str, str] | None = None


class EventSource(Model, frozen=True):
    """Who says it."""

    component: str = ""
    host: str = ""


class Event(KubernetesObject, frozen=True):
    """Something that happened to an object, `count` times between the two times (RFC 3339)."""

    involved_object: ObjectReference = ObjectReference()
    type: str = ""
    reason: str = ""
    message: str = ""
    source: EventSource = EventSource()
    reporting_component: str = ""
    reporting_instance: str = ""
    action: str = ""
    count: int = 0
    first_timestamp: str | None = None
    last_timestamp: str | None = None
