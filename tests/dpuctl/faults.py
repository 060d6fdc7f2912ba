"""The faults that dpuctl doctor has to find, with the words of each problem and its cure."""

from __future__ import annotations

from foundation.kube import resources
from lab import objects
from lab.layout import DPU_NODE, HOST_NODE
from tests.dpuctl.cluster_objects import PF, POD, VOLUME
from tests.dpuctl.installation import disk
from tests.dpuctl.seeds import (
    ORPHAN,
    Fault,
    chassis_lost,
    configured,
    exhausted,
    expired,
    host,
    interface,
    legacy,
    misnamed,
    narrow_underlay,
    no_spdk,
    no_target,
    pod_named,
    representor_lost,
    restored_remote,
    root,
    seen,
    started,
    two_without_election,
    undone,
    volumes,
)

GATEWAY = f"csi-node-host-{HOST_NODE}"
FAULTS = {
    "node not ready": Fault(
        undone(lambda one: one.node_ready(HOST_NODE, "False"), lambda one: one.node_ready(HOST_NODE, "True")),
        "nodes-ready",
        "not Ready: fine",
        "kubelet's log",
    ),
    "DPU that has said nothing": Fault(
        undone(lambda one: one.silence_dpu(), lambda one: one.annotate_dpu()),
        "announcements",
        "has no annotation dpu-offload.io/storage",
        "csi-node-dpu runs",
    ),
    "no StorageClass": Fault(
        undone(
            lambda one: one.client.delete(resources.STORAGE_CLASSES, objects.STORAGE_CLASS),
            lambda one: one.client.create(resources.STORAGE_CLASSES, objects.storage_class({})),
        ),
        "storage-classes",
        "no StorageClass has the provisioner",
        "docs/storage-backends.md",
    ),
    "DPU without host label": Fault(
        undone(lambda one: one.label_dpu(None), lambda one: one.label_dpu(HOST_NODE)),
        "labels",
        "names no host",
        f"kubectl label node {DPU_NODE} dpu-offload.io/host-node=",
    ),
    "host without DPU": Fault(
        undone(lambda one: one.label_dpu("node-gone"), lambda one: one.label_dpu(HOST_NODE)),
        "pairs",
        "no DPU's node names it",
        f"dpu-offload.io/host-node={HOST_NODE}",
    ),
    "all functions in use": Fault(
        undone(
            lambda one: one.annotate_dpu(storage={"functions": {"total": 8, "free": 0}}),
            lambda one: one.annotate_dpu(),
        ),
        "free-functions",
        "all 8 emulated functions are in use",
        "hotplug_functions",
    ),
    "expired certificate": Fault(expired, "certificates", "certificate has expired", "renew it"),
    "certificate of another node": Fault(misnamed, "certificates", "peers expect node-dpu.cni-node", "renew it"),
    "clock skew": Fault(seen(skew=-7.5), "clocks", "7.5 s behind", "chrony"),
    "node's heartbeat from the future": Fault(
        undone(
            lambda one: one.lease(namespace="kube-node-lease", name=HOST_NODE, offset=90.0),
            lambda one: one.client.delete(resources.LEASES, HOST_NODE, "kube-node-lease"),
        ),
        "clocks",
        "comes from the future",
        "chrony",
    ),
    "DPU unreachable": Fault(
        undone(
            lambda one: one.annotate_dpu(link={"endpoint": "127.0.0.1:1"}),
            lambda one: one.annotate_dpu(),
        ),
        "reachability",
        "node-dpu.cni-node.dpu-offload.io at 127.0.0.1:1",
        "firewall",
    ),
    "OVS gone": Fault(
        configured("cni-node", ovsdb="unix:{directory}/nobody.sock"), "switches", "OVS does not answer", "openvswitch"
    ),
    "OVN disconnected": Fault(
        undone(
            root("external_ids", "ovn-remote", "unix:/nowhere/sb.sock"),
            lambda one: restored_remote(one),
        ),
        "ovn-controllers",
        "southbound database",
        "ovn-remote",
    ),
    "ovn-controller gone": Fault(
        undone(lambda one: one.stop_controller(), lambda one: started(one)),
        "ovn-controllers",
        "ovn-controller does not run",
        "ovn-controller's log",
    ),
    "chassis missing": Fault(chassis_lost, "chassis", f"no chassis '{DPU_NODE}'", "system-id"),
    "northbound database gone": Fault(
        configured("cni-controller", northbound={"remotes": "unix:/nowhere/nb.sock"}),
        "northbound",
        "/nowhere/nb.sock",
        "northbound.remotes",
    ),
    "wrong hw-offload": Fault(
        undone(root("other_config", "hw-offload", "false"), root("other_config", "hw-offload", "true")),
        "hardware-offload",
        "hardware offload off",
        "other_config:hw-offload=true, then restart ovs-vswitchd",
    ),
    "no switchdev": Fault(legacy, "switchdev", f"{PF} is not in switchdev mode", f"pci/{PF} mode switchdev"),
    "missing representor": Fault(representor_lost, "representors", "pf0vf3 of pod dpu-lab/web", "delete the pod"),
    "stale port": Fault(
        undone(
            lambda one: one.add_port("pf0vf9", attachment="feed", port="dpu-lab_gone", uid="u"),
            lambda one: one.remove_port("pf0vf9"),
        ),
        "ports",
        "stale: it is port dpu-lab_gone",
        "dpuctl gc --yes",
    ),
    "device under a port gone": Fault(
        undone(interface(error="could not open network device pf0vf0"), interface(error=None)),
        "ports",
        "could not open network device",
        "delete the pod",
    ),
    "flows missing": Fault(
        undone(
            interface(external_ids={"iface-id": f"dpu-lab_{POD}", "dpu-offload/attachment": "0123456789abcdef"}),
            interface(
                external_ids={
                    "iface-id": f"dpu-lab_{POD}",
                    "dpu-offload/attachment": "0123456789abcdef",
                    "ovn-installed": "true",
                }
            ),
        ),
        "ports",
        "has not installed the flows",
        "cni-controller leads",
    ),
    "wrong MTU of a representor": Fault(
        undone(interface(mtu=1280), interface(mtu=1400)), "mtu", "its MTU is 1280, the pod's is 1400", "mtu 1400"
    ),
    "wrong MTU of the underlay": Fault(
        narrow_underlay, "mtu", "(192.0.2.77) is 1450, but pods' 1400 needs 1458", "cluster.mtu to 1392"
    ),
    "IP pool exhausted": Fault(exhausted, "addresses", "10.250.0.0/29 has no free address", "podCIDR"),
    "no address given": Fault(
        pod_named("lonely", address="", phase="Pending"), "assignments", "has given it no address", "Event"
    ),
    "missing NAD": Fault(
        pod_named("picky", address="10.244.1.20", networks="blue@net1"),
        "networks",
        "selects network dpu-lab/blue",
        "get network-attachment-definitions",
    ),
    "CSIDriver missing": Fault(
        undone(
            lambda one: one.client.delete(resources.CSI_DRIVERS, "csi.dpu-offload.io"),
            lambda one: one.client.create(resources.CSI_DRIVERS, objects.csi_driver()),
        ),
        "csi-driver",
        "no CSIDriver",
        "manifests",
    ),
    "driver not registered on a host": Fault(
        undone(
            lambda one: one.client.merge_patch(resources.CSI_NODES, HOST_NODE, "", {"spec": {"drivers": []}}),
            lambda one: one.client.merge_patch(
                resources.CSI_NODES,
                HOST_NODE,
                "",
                {"spec": {"drivers": [{"name": "csi.dpu-offload.io", "nodeID": HOST_NODE, "topologyKeys": None}]}},
            ),
        ),
        "csi-nodes",
        "kubelet does not know the driver",
        "node-driver-registrar",
    ),
    "sidecar missing": Fault(
        undone(
            lambda one: one.suite_pod("csi-controller", node="node-default", sidecars=False),
            lambda one: one.suite_pod("csi-controller", node="node-default"),
        ),
        "side-cars",
        "runs without csi-attacher: no volume is attached",
        "add the container csi-attacher",
    ),
    "a daemon that crashes": Fault(
        undone(
            lambda one: one.suite_pod_status(GATEWAY, waiting="CrashLoopBackOff"),
            lambda one: one.suite_pod_status(GATEWAY),
        ),
        "pods",
        "CrashLoopBackOff, 7 restarts",
        "--previous",
    ),
    "unmatched versions": Fault(
        undone(
            lambda one: one.suite_pod("csi-node-host", node=HOST_NODE, version="0.0.9"),
            lambda one: one.suite_pod("csi-node-host", node=HOST_NODE),
        ),
        "versions",
        "0.0.9: pod dpu-offload/csi-node-host",
        "finish the upgrade",
    ),
    "unusable configuration": Fault(
        configured("csi-controller", backend="main"), "configurations", "unknown key backend", "csi-controller --help"
    ),
    "controller lease stale": Fault(
        undone(lambda one: one.lease(offset=-100_000.0), lambda one: one.lease()),
        "leader",
        "not renewed for 100",
        "northbound database",
    ),
    "two leaders": Fault(
        undone(
            lambda one: one.lease(namespace="abandoned"),
            lambda one: one.client.delete(resources.LEASES, "cni-controller", "abandoned"),
        ),
        "single-writer",
        "two leaders at once",
        "leader_election.enabled: true",
    ),
    "two writers": Fault(two_without_election, "single-writer", "without leader election", "leader_election.enabled"),
    "SPDK of the card gone": Fault(no_spdk, "cards", "SPDK process does not answer", "SNAP"),
    "volume-attacher gone": Fault(
        configured("csi-node-dpu", attacher="unix:/nowhere/attacher.sock"),
        "cards",
        "volume-attacher does not answer",
        "attacher",
    ),
    "storage target gone": Fault(no_target, "targets", "storage does not answer", "start the target"),
    "target ACL missing": Fault(
        undone(host("nvmf_subsystem_remove_host"), host("nvmf_subsystem_add_host")),
        "target-access",
        "access list lacks the DPU's",
        "nvmf_subsystem_add_host",
    ),
    "orphan subsystem": Fault(
        undone(
            lambda one: one.spdk("nvmf_create_subsystem", nqn=ORPHAN, allow_any_host=False),
            lambda one: one.spdk("nvmf_delete_subsystem", nqn=ORPHAN),
        ),
        "leftovers",
        f"orphan subsystem {ORPHAN}",
        "dpuctl gc --yes",
    ),
    "orphan disk on a DPU": Fault(
        volumes(lambda one: one.attacher.volumes.update({"main:p0.vcccc": disk("main:p0.vcccc")})),
        "leftovers",
        "holds volume main:p0.vcccc",
        "dpuctl gc --yes",
    ),
    "disk lost on a DPU": Fault(
        volumes(lambda one: one.attacher.volumes.clear()), "disks", f"does not hold volume {VOLUME}", "csi-node-dpu"
    ),
    "path down": Fault(
        volumes(lambda one: one.attacher.volumes.update({VOLUME: disk(connected=False)})),
        "disks",
        "192.0.2.10:4420 (down)",
        "network between DPU and storage",
    ),
    "attach refused": Fault(
        undone(
            lambda one: one.attachment_status(attached=False, attachError={"message": "no function is free"}),
            lambda one: one.attachment_status(attached=True),
        ),
        "attachments",
        "no function is free",
        "tries again",
    ),
}
