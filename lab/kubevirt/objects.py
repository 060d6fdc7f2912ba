"""What KubeVirt makes of a machine: its instance, its virt-launcher pods, as far as networks and disks go. Pure.

Labels, annotations and shapes are those of KubeVirt 1.x (staging/src/kubevirt.io/api/core/v1, pkg/virt-controller).
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any

Body = dict[str, Any]
GROUP = "kubevirt.io/v1"


def instance(vm: Mapping[str, Any]) -> Body:
    """The VirtualMachineInstance of a VirtualMachine: its template, with the machine's name."""
    template = vm["spec"]["template"]
    metadata = template.get("metadata", {})
    return {
        "apiVersion": GROUP,
        "kind": "VirtualMachineInstance",
        "metadata": {
            "name": vm["metadata"]["name"],
            "namespace": vm["metadata"]["namespace"],
            "labels": dict(metadata.get("labels", {})),
            "annotations": dict(metadata.get("annotations", {})),
        },
        "spec": copy.deepcopy(dict(template["spec"])),
    }


def launcher(vmi: Mapping[str, Any], *, suffix: str, node: str, job: str = "") -> Body:
    """A virt-launcher pod on `node`; `job`: the uid of the migration whose target it is."""
    metadata, spec = vmi["metadata"], vmi["spec"]
    networks = selection(spec)
    labels = {
        **metadata.get("labels", {}),
        "kubevirt.io": "virt-launcher",
        "kubevirt.io/created-by": metadata["uid"],
        "vm.kubevirt.io/name": metadata["name"],
        **({"kubevirt.io/migrationJobUID": job} if job else {}),
    }
    annotations = {
        **metadata.get("annotations", {}),
        "kubevirt.io/domain": metadata["name"],
        **({"k8s.v1.cni.cncf.io/networks": json.dumps(networks)} if networks else {}),
    }
    container: Body = {"name": "compute", "image": "quay.io/kubevirt/virt-launcher", "volumeDevices": []}
    volumes = []
    for volume in spec.get("volumes", ()):
        claim = volume.get("persistentVolumeClaim", {}).get("claimName") or volume.get("dataVolume", {}).get("name")
        if claim:
            volumes.append({"name": volume["name"], "persistentVolumeClaim": {"claimName": claim}})
            container["volumeDevices"].append({"name": volume["name"], "devicePath": f"/dev/{volume['name']}"})
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"virt-launcher-{metadata['name']}-{suffix}",
            "namespace": metadata["namespace"],
            "labels": labels,
            "annotations": annotations,
        },
        "spec": {
            "nodeName": node,
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": 0,
            "automountServiceAccountToken": False,
            "containers": [container],
            "volumes": volumes,
        },
    }


def selection(spec: Mapping[str, Any]) -> list[Body]:
    """The networks annotation of a launcher: what Multus attaches beside the pod network."""
    interfaces = {each["name"]: each for each in spec["domain"]["devices"].get("interfaces", ())}
    found = []
    for network in spec.get("networks", ()):
        multus = network.get("multus")
        interface = interfaces.get(network["name"])
        if multus is None or multus.get("default") or interface is None or interface.get("state") == "absent":
            continue
        namespace, _, name = multus["networkName"].rpartition("/")
        entry = {"name": name, "interface": "pod" + hashlib.sha256(network["name"].encode()).hexdigest()[:11]}
        if namespace:
            entry["namespace"] = namespace
        if interface.get("macAddress"):
            entry["mac"] = interface["macAddress"]
        found.append(entry)
    return found
