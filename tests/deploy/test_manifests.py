"""Every object is one that Kubernetes takes, and every pod has the least it can do with."""

import kubernetes_validate
import pytest

from tests.deploy.shipped import WORKLOADS, Body, containers, identity, workloads

KUBERNETES = "1.36"
CUSTOM = {"NetworkAttachmentDefinition", "VolumeSnapshotClass", "PodMonitor", "PrometheusRule"}
# Privileged, each with its reason in the manifest: pods' /proc/sys, and mounts that kubelet sees.
PRIVILEGED = {"cni-node", "csi-node-host"}
CAPABILITIES = {
    "ovs-vswitchd": {"NET_ADMIN", "NET_BROADCAST", "NET_RAW", "IPC_LOCK", "SYS_NICE"},
    "sriov-device-plugin": {"NET_ADMIN"},
}
UNPRIVILEGED = {
    "certificate-signer",
    "cni-controller",
    "csi-controller",
    "csi-provisioner",
    "csi-attacher",
    "csi-resizer",
    "csi-snapshotter",
}


def test_kubernetes_own_schemas_take_every_object(everything: list[Body]) -> None:
    checked = 0
    for one in everything:
        if one["kind"] in CUSTOM:
            continue
        kubernetes_validate.validate(one, KUBERNETES, strict=True)
        checked += 1
    assert checked > 90


def test_no_object_stands_twice(objects: list[Body]) -> None:
    names = [identity(one) for one in objects]
    assert len(names) == len(set(names))


def test_every_object_carries_the_suites_labels(everything: list[Body]) -> None:
    for one in everything:
        labels = one["metadata"]["labels"]
        assert labels["app.kubernetes.io/part-of"] == "dpu-offload", identity(one)
        assert labels["app.kubernetes.io/component"], identity(one)


def test_what_a_pod_names_is_there(objects: list[Body]) -> None:
    there = {identity(one) for one in objects}
    for one in workloads(objects):
        namespace, pod = one["metadata"]["namespace"], one["spec"]["template"]["spec"]
        assert ("ServiceAccount", namespace, pod["serviceAccountName"]) in there
        assert ("PriorityClass", "", pod["priorityClassName"]) in there
        volumes = {volume["name"] for volume in pod["volumes"]}
        for volume in pod["volumes"]:
            name = volume.get("configMap", {}).get("name")
            # Made by certificate-signer, with what everybody trusts.
            if name is not None and name != "certificate-authority":
                assert ("ConfigMap", namespace, name) in there
        for container in containers(one):
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
            for variable in container.get("env", ()):
                reference = variable.get("valueFrom", {}).get("configMapKeyRef")
                if reference:
                    name = ("ConfigMap", namespace, reference["name"])
                    assert any(identity(each) == name and reference["key"] in each["data"] for each in objects)


def test_selectors_select_their_own_pods(objects: list[Body]) -> None:
    labels = [one["spec"]["template"]["metadata"]["labels"] for one in workloads(objects)]
    for one in objects:
        if one["kind"] in (*WORKLOADS, "PodDisruptionBudget"):
            wanted = one["spec"]["selector"]["matchLabels"].items()
            assert sum(wanted <= each.items() for each in labels) == 1, identity(one)


def test_every_container_has_the_least_it_can_do_with(everything: list[Body]) -> None:
    seen = set()
    for one in workloads(everything):
        for container in containers(one):
            name, security = container["name"], container["securityContext"]
            seen.add(name)
            assert security["readOnlyRootFilesystem"] is True, name
            if security.get("privileged"):
                assert name in PRIVILEGED
                continue
            assert security["allowPrivilegeEscalation"] is False, name
            assert security["capabilities"]["drop"] == ["ALL"], name
            assert set(security["capabilities"].get("add", ())) == CAPABILITIES.get(name, set()), name
            assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
            assert bool(security.get("runAsNonRoot")) == (name in UNPRIVILEGED), name
    assert seen >= PRIVILEGED | UNPRIVILEGED | set(CAPABILITIES)


def test_every_container_has_bounds_and_a_pinned_image(everything: list[Body]) -> None:
    for one in workloads(everything):
        for container in containers(one):
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
            _, _, tag = container["image"].rpartition(":")
            assert tag[:1].isdigit() or tag[:1] == "v", container["image"]


def test_what_runs_for_long_is_probed(everything: list[Body]) -> None:
    for one in workloads(everything):
        for container in one["spec"]["template"]["spec"]["containers"]:
            # The registrar only keeps its socket open; kubelet asks it again when it restarts.
            assert "livenessProbe" in container or container["name"] == "node-driver-registrar", container["name"]


def test_two_listeners_of_one_node_never_share_a_port(everything: list[Body]) -> None:
    """All pods use the node's network."""
    ports: dict[int, str] = {}
    for one in workloads(everything):
        name = one["metadata"]["name"]
        for container in containers(one):
            for port in container.get("ports", ()):
                other = ports.setdefault(port["containerPort"], name)
                modes = {"cni-node", "cni-node-dpu", "cni-node-host"}
                assert other == name or {other, name} <= modes, f"{other} and {name}: {port}"


@pytest.mark.parametrize(
    ("kind", "name", "strategy"),
    [
        # What carries traffic changes when somebody says so; who must not be there twice goes before the next comes.
        ("DaemonSet", "openvswitch", {"type": "OnDelete"}),
        ("Deployment", "csi-controller", {"type": "Recreate"}),
        ("Deployment", "cni-controller", {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}),
        ("StatefulSet", "ovn-central", {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}),
    ],
)
def test_upgrades_go_as_the_work_needs_it(everything: list[Body], kind: str, name: str, strategy: Body) -> None:
    (found,) = [one for one in everything if one["kind"] == kind and one["metadata"]["name"] == name]
    assert found["spec"].get("strategy") or found["spec"].get("updateStrategy")
    assert (found["spec"].get("strategy") or found["spec"]["updateStrategy"]) == strategy


def test_everything_with_replicas_has_a_disruption_budget(objects: list[Body]) -> None:
    budgets = {one["metadata"]["name"] for one in objects if one["kind"] == "PodDisruptionBudget"}
    replicated = {one["metadata"]["name"] for one in workloads(objects) if one["spec"].get("replicas", 1) > 1}
    assert budgets == replicated


def test_ovn_central_is_a_raft_of_three(everything: list[Body]) -> None:
    (central,) = [one for one in everything if one["kind"] == "StatefulSet"]
    assert central["spec"]["replicas"] == 3
    assert central["spec"]["podManagementPolicy"] == "Parallel", "one alone has no majority and is never ready"
    (addresses,) = [
        one["data"]["addresses"] for one in everything if one["metadata"]["name"] == "ovn" and "data" in one
    ]
    assert len(addresses.split(",")) == 3
