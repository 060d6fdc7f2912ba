"""The example manifests: a server takes them, the suite understands them, and they mean what their comments say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from cni.device_plugin.config import DevicePluginConfig
from csi.controller import volume_context
from csi.framework import parameters
from dpu_offload_stubs.csi import csi_pb2
from foundation.kube.client import KubeClient
from foundation.kube.configuration import Connection
from foundation.kube.models.meta import Unstructured
from foundation.kube.resources import Resource
from lab.apiserver.server import ApiServer
from lab.kubevirt import objects
from tests.controller.stage import Stage

DIRECTORY = Path(__file__).parents[2] / "deploy/examples/kubevirt"
FILES = sorted(path.name for path in DIRECTORY.glob("*.yaml") if ".patch." not in path.name)
Mode = csi_pb2.VolumeCapability.AccessMode
KUBEVIRT = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "kubevirts.kubevirt.io"},
    "spec": {
        "group": "kubevirt.io",
        "names": {"plural": "kubevirts", "singular": "kubevirt", "kind": "KubeVirt", "listKind": "KubeVirtList"},
        "scope": "Namespaced",
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}},
            }
        ],
    },
}
PLURALS = {
    "CustomResourceDefinition": "customresourcedefinitions",
    "Namespace": "namespaces",
    "NetworkAttachmentDefinition": "network-attachment-definitions",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "StorageClass": "storageclasses",
    "KubeVirt": "kubevirts",
    "VirtualMachine": "virtualmachines",
    "VirtualMachineInstanceMigration": "virtualmachineinstancemigrations",
}


def documents(name: str) -> list[dict[str, Any]]:
    return [each for each in yaml.safe_load_all((DIRECTORY / name).read_text()) if each]


def one(name: str, kind: str, of: str = "") -> dict[str, Any]:
    return next(each for each in documents(name) if each["kind"] == kind and of in ("", each["metadata"]["name"]))


def resource(body: dict[str, Any]) -> Resource[Any]:
    group, _, version = body["apiVersion"].rpartition("/")
    namespaced = "namespace" in body["metadata"]
    return Resource(group, version, PLURALS[body["kind"]], namespaced, Unstructured, kind=body["kind"])


def patched(given: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return patch
    found = dict(given) if isinstance(given, dict) else {}
    return found | {key: patched(found.get(key), value) for key, value in patch.items()}


def run(stage: Stage, vm: dict[str, Any], *, on: str) -> dict[str, Any]:
    """The machine as KubeVirt would run it; its pod."""
    vmi = objects.instance(vm)
    vmi["metadata"]["uid"] = "vmi"
    vmi["status"] = {"nodeName": on}
    pod = objects.launcher(vmi, suffix="x", node=on)
    pod["metadata"]["uid"] = "pod"
    pod["status"] = {"phase": "Running"}
    stage.put("vm", {**vm, "metadata": {**vm["metadata"], "uid": "vm"}})
    stage.put("vmi", vmi)
    stage.put("pod", pod)
    return pod


async def test_a_server_takes_every_example() -> None:
    async with ApiServer() as server, KubeClient(Connection(server=server.url)) as client:
        for body in (KUBEVIRT, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "kubevirt"}}):
            await client.create(resource(body), body)
        for name in ["vm.yaml", *FILES]:
            for body in documents(name):
                await client.apply(resource(body), body, "examples")
        patch = documents("nic-hotplug.patch.yaml")[0]
        vms = resource(one("vm.yaml", "VirtualMachine"))
        found = await client.merge_patch(vms, "db", "machines", patch)
        assert [each["name"] for each in found.spec["template"]["spec"]["networks"]] == ["cluster", "fast", "backup"]


@pytest.mark.parametrize("name", ["vm.yaml", "windows.yaml", "devices.yaml"])
async def test_each_machine_gets_its_ports(stage: Stage, name: str) -> None:
    stage.put("network", one("vm.yaml", "NetworkAttachmentDefinition"))
    vm = one(name, "VirtualMachine")
    pod = run(stage, vm, on="n3")
    await stage.settle()
    assert not stage.problems
    key, machine = f"machines/{pod['metadata']['name']}", vm["metadata"]["name"]
    port = stage.named("Logical_Switch_Port")[f"machines_vm_{machine}"]
    assert port["options"] == {"requested-chassis": "d3"}
    assert port["dhcpv4_options"]
    assert port["dhcpv6_options"]
    assert stage.annotations[key]["default"]["dhcp"] is True
    if name == "vm.yaml":
        fast = stage.annotations[key]["machines/fast"]
        assert fast["mac"] == "02:50:00:00:00:01"
        assert int(fast["ips"][0].partition("/")[0].split(".")[3]) >= 16
        assert fast["port"] == "machines.fast_machines_vm_db"


async def test_the_hot_plugged_interface_gets_a_port(stage: Stage) -> None:
    stage.put("network", one("vm.yaml", "NetworkAttachmentDefinition"))
    stage.put("network", one("nic-hotplug.yaml", "NetworkAttachmentDefinition"))
    vm = patched(one("vm.yaml", "VirtualMachine"), documents("nic-hotplug.patch.yaml")[0])
    pod = run(stage, vm, on="n1")
    await stage.settle()
    given = stage.annotations[f"machines/{pod['metadata']['name']}"]
    assert set(given) == {"default", "machines/fast", "machines/backup"}
    assert given["machines/backup"]["ips"][0].startswith("10.51.0.")


def pools() -> Iterator[str]:
    """The device plugin's settings that a comment shows."""
    found = False
    for line in (DIRECTORY / "devices.yaml").read_text().splitlines():
        found = found or line == "#   pools:"
        if found and not line.startswith("#   "):
            return
        if found:
            yield re.sub("^#   ", "", line)


def test_the_pools_are_settings_of_the_device_plugin_and_kubevirt_permits_them() -> None:
    config = msgspec.convert(yaml.safe_load("\n".join(pools())), DevicePluginConfig)
    offered = {f"{config.resource_domain}/{pool.name}" for pool in config.pools}
    kubevirt = one("devices.yaml", "KubeVirt")["spec"]["configuration"]["permittedHostDevices"]["pciHostDevices"]
    assert {each["resourceName"] for each in kubevirt} == offered
    assert all(pool.use == "vfio" for pool in config.pools)
    machine = one("devices.yaml", "VirtualMachine")["spec"]["template"]["spec"]["domain"]["devices"]
    assert {each["deviceName"] for each in machine["hostDevices"]} <= offered
    nad = one("vm.yaml", "NetworkAttachmentDefinition")["metadata"]["annotations"]
    assert set(nad.values()) <= offered


def test_passthrough_excludes_live_migration_and_says_so() -> None:
    given = one("passthrough.yaml", "StorageClass")["parameters"]
    common, _ = parameters.parse(given, msgspec.defstruct("None_", []))
    context = volume_context.VolumeContext(passthrough=common.passthrough)
    modes = {
        "ReadWriteOncePod": Mode.SINGLE_NODE_SINGLE_WRITER,
        "ReadWriteMany": Mode.MULTI_NODE_MULTI_WRITER,
        "ReadOnlyMany": Mode.MULTI_NODE_READER_ONLY,
    }

    def said(mode: str) -> str:
        capability = csi_pb2.VolumeCapability(
            block=csi_pb2.VolumeCapability.BlockVolume(),
            access_mode=csi_pb2.VolumeCapability.AccessMode(mode=modes[mode]),
        )
        return volume_context.refusal(capability, context)

    (mode,) = one("passthrough.yaml", "PersistentVolumeClaim")["spec"]["accessModes"]
    assert said(mode) == ""
    for shared in ("ReadWriteMany", "ReadOnlyMany"):
        assert "excludes live migration" in said(shared)
