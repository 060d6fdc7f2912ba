"""The Kubernetes objects of the lab and of the demo, as they are sent to the API server."""

from __future__ import annotations

from typing import Any

from lab.layout import DEFAULT_NODE, DPU_NODE, DRIVER, HOST_NODE, VF_RESOURCE

NAMESPACE = "dpu-lab"
STORAGE_CLASS = "dpu-lab"
MODE_LABEL = "dpu-offload.io/mode"
HOST_LABEL = "dpu-offload.io/host-node"

POD_CIDRS = {DEFAULT_NODE: "10.244.0.0/24", HOST_NODE: "10.244.1.0/24", DPU_NODE: "10.244.2.0/24"}
NODE_ADDRESSES = {DEFAULT_NODE: "192.0.2.1", HOST_NODE: "192.0.2.2", DPU_NODE: "192.0.2.2"}
_MODES = {DEFAULT_NODE: "default", HOST_NODE: "host", DPU_NODE: "dpu"}

Body = dict[str, Any]


def node(name: str) -> Body:
    labels = {"kubernetes.io/hostname": name, MODE_LABEL: _MODES[name]}
    if name == DPU_NODE:
        labels[HOST_LABEL] = HOST_NODE
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": labels},
        "spec": {"podCIDR": POD_CIDRS[name], "podCIDRs": [POD_CIDRS[name]]},
    }


def node_addresses(name: str) -> Body:
    """The status that a node's kubelet writes first."""
    return {
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": NODE_ADDRESSES[name]},
                {"type": "Hostname", "address": name},
            ]
        }
    }


def namespace(name: str) -> Body:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def service_account() -> Body:
    """``default``: a real API server admits no pod before its namespace has one."""
    return {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": NAMESPACE}}


def csi_driver() -> Body:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "CSIDriver",
        "metadata": {"name": DRIVER},
        "spec": {"attachRequired": True, "podInfoOnMount": False, "fsGroupPolicy": "File"},
    }


def storage_class(parameters: dict[str, str]) -> Body:
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": STORAGE_CLASS},
        "provisioner": DRIVER,
        "reclaimPolicy": "Delete",
        "volumeBindingMode": "Immediate",
        "allowVolumeExpansion": True,
        "parameters": {"csi.storage.k8s.io/fstype": "ext4", **parameters},
    }


def claim(name: str, *, size: str = "64Mi") -> Body:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "accessModes": ["ReadWriteOnce"],
            "storageClassName": STORAGE_CLASS,
            "resources": {"requests": {"storage": size}},
        },
    }


def pod(name: str, *, node_name: str, claim_name: str = "") -> Body:
    """A pod that is scheduled already; on the host it asks for a VF."""
    container: Body = {"name": "main", "image": "pause"}
    if node_name == HOST_NODE:
        container["resources"] = {"limits": {VF_RESOURCE: "1"}, "requests": {VF_RESOURCE: "1"}}
    spec: Body = {
        "nodeName": node_name,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 0,
        "containers": [container],
        "tolerations": [{"operator": "Exists"}],
    }
    if claim_name:
        spec["volumes"] = [{"name": "disk", "persistentVolumeClaim": {"claimName": claim_name}}]
        container["volumeMounts"] = [{"name": "disk", "mountPath": "/data"}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"app": name}},
        "spec": spec,
    }
