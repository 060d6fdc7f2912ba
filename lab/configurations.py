"""The daemons' configuration files: what an operator would write for these machines.

Pure but for the certificates and the kubeconfig, which are written below the run directory.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from lab.certificates import Authority, CertificateFiles
from lab.hardware import plan
from lab.layout import DEFAULT_NODE, DPU_NODE, DRIVER, HOST_NODE, Layout
from lab.network import Network
from lab.objects import NAMESPACE

CNI_CONFIGURATION = {"name": "dpu-offload", "type": "dpu-offload"}
TARGET_ADDRESS = "127.0.0.1"

# One leaf for each daemon that serves or calls over mTLS: (node, component).
_IDENTITIES = (
    (DEFAULT_NODE, "cni-node"),
    (HOST_NODE, "cni-node"),
    (DPU_NODE, "cni-node"),
    ("lab", "csi-controller"),
    (DPU_NODE, "csi-node-dpu"),
)


@dataclasses.dataclass(frozen=True)
class Ports:
    """TCP ports on loopback."""

    api_server: int
    link: int
    csi_node_dpu: int
    target: int
    status_page: int
    http: Mapping[str, int]

    @classmethod
    def choose(cls, free: Callable[[], int]) -> Ports:
        return cls(
            api_server=free(),
            link=free(),
            csi_node_dpu=free(),
            target=free(),
            status_page=free(),
            http={name: free() for name in SCRIPTS},
        )


Configuration = dict[str, Any]

# Every daemon of the lab, with its console script.
SCRIPTS = {
    "cni-controller": "cni-controller",
    "cni-node-default": "cni-node",
    "cni-node-dpu": "cni-node",
    "cni-node-host": "cni-node",
    "sriov-device-plugin": "sriov-device-plugin",
    "opi-bridge": "opi-bridge",
    "volume-attacher": "volume-attacher",
    "csi-node-dpu": "csi-node-dpu",
    "csi-controller": "csi-controller",
    "csi-node-host": "csi-node-host",
}


# Who talks to the API server, and as which service account of the shipped manifests.
ACCOUNTS = {
    "cni-controller": "cni-controller",
    "cni-node-default": "cni-node",
    "cni-node-dpu": "cni-node-dpu",
    "cni-node-host": "cni-node-host",
    "csi-node-dpu": "csi-node-dpu",
    "csi-controller": "csi-controller",
    "csi-node-host": "csi-node-host",
}
ACCOUNT_PREFIX = "system:serviceaccount:dpu-offload:"


def issue(authority: Authority) -> None:
    """Write every daemon's certificate."""
    for node, component in _IDENTITIES:
        authority.issue(node=node, component=component)


def write_kubeconfigs(layout: Layout, ports: Ports, authority: Authority) -> None:
    """Tokens for the stand-in API server, its certificate, and kubeconfigs: the lab's, and one for each daemon."""
    authority.issue_names("127.0.0.1", "localhost", file="apiserver")
    users = {layout.kubeconfig: "lab"}
    users |= {layout.account(name): ACCOUNT_PREFIX + account for name, account in ACCOUNTS.items()}
    layout.account("").mkdir(parents=True, exist_ok=True)
    lines = []
    for file, user in users.items():
        token = secrets.token_urlsafe(24)
        lines.append(f"{token},{user},{user}\n")
        _write_private(file, yaml.safe_dump(_kubeconfig(ports, authority, token), sort_keys=False))
    _write_private(layout.pki / "token", "".join(lines))


def _kubeconfig(ports: Ports, authority: Authority, token: str) -> Configuration:
    cluster = {"server": f"https://127.0.0.1:{ports.api_server}", "certificate-authority": str(authority.ca)}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "lab",
        "clusters": [{"name": "lab", "cluster": cluster}],
        "users": [{"name": "lab", "user": {"token": token}}],
        "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
    }


def daemons(
    layout: Layout, ports: Ports, *, network: Network, kubeconfig: Path | None, lvstore: str
) -> dict[str, Configuration]:
    """Every daemon by name, in no particular order: each waits for what it needs.

    ``kubeconfig``: for all of them; None: each has its own.
    """
    found = {
        "cni-controller": _cni_controller(network, ports),
        "cni-node-default": _cni_node(layout, ports, network, DEFAULT_NODE),
        "cni-node-dpu": _cni_node(layout, ports, network, DPU_NODE),
        "cni-node-host": _cni_node(layout, ports, network, HOST_NODE),
        "sriov-device-plugin": _device_plugin(layout),
        "opi-bridge": _opi_bridge(layout),
        "volume-attacher": _volume_attacher(layout),
        "csi-node-dpu": _csi_node_dpu(layout, ports),
        "csi-controller": _csi_controller(layout, ports, lvstore),
        "csi-node-host": _csi_node_host(layout),
    }
    for name in ACCOUNTS:
        found[name]["kubeconfig"] = str(kubeconfig or layout.account(name))
    return {name: {**found[name], "http": f"127.0.0.1:{ports.http[name]}"} for name in SCRIPTS}


def _tls(layout: Layout, *, node: str, component: str) -> dict[str, str]:
    files = CertificateFiles(
        ca=layout.pki / "ca.crt",
        certificate=layout.pki / f"{component}.{node}.crt",
        key=layout.pki / f"{component}.{node}.key",
    )
    return {"ca": str(files.ca), "certificate": str(files.certificate), "key": str(files.key)}


def _cni_controller(network: Network, ports: Ports) -> Configuration:
    return {
        "northbound": {"remotes": network.central.nb},
        "status_page": {"listen": f"127.0.0.1:{ports.status_page}"},
        # The one replica keeps its identity through a restart, as a container does in its pod: no wait for the lease.
        "leader_election": {"namespace": NAMESPACE, "identity": "lab"},
    }


def _cni_node(layout: Layout, ports: Ports, network: Network, node: str) -> Configuration:
    mode = {DEFAULT_NODE: "default", HOST_NODE: "host", DPU_NODE: "dpu"}[node]
    configuration: dict[str, Any] = {
        "mode": mode,
        "node_name": node,
        "cni_socket": str(layout.cni_socket(node)),
        "state_dir": str(layout.daemon_state(f"cni-node-{mode}")),
        "node_netns": str(network.namespace_path(node)),
        "sysfs_root": str(layout.sysfs(node)),
    }
    if mode != "host":
        chassis = network.chassis[node]
        configuration |= {
            "ovsdb": chassis.ovs,
            "ovs_run_dir": str(chassis.directory),
            "ovn_run_dir": str(chassis.directory),
        }
    link: dict[str, Any] = {"tls": _tls(layout, node=node, component="cni-node")}
    if mode == "dpu":
        link |= {"listen": f"127.0.0.1:{ports.link}", "advertise": f"127.0.0.1:{ports.link}"}
    return {**configuration, "link": link}


def _device_plugin(layout: Layout) -> Configuration:
    return {
        "plugins_directory": str(layout.kubelet(HOST_NODE) / "device-plugins"),
        "pod_resources": "",
        "device_info_directory": str(layout.run / "devinfo"),
        "cdi_directory": str(layout.run / "cdi"),
        "sysfs": str(layout.sysfs(HOST_NODE)),
        "pools": [
            {
                "name": "vf",
                "selectors": [{"vendors": ["15b3"], "devices": ["101e"]}],
                # The representors are in the DPU; a host sees none.
                "representor": False,
                "link": False,
            }
        ],
    }


def _opi_bridge(layout: Layout) -> Configuration:
    return {
        "socket": str(layout.opi_socket),
        "spdk": f"unix:{layout.dpu_spdk_socket}",
        "card": {
            "kind": "spdk_vfiouser",
            "directory": str(layout.functions),
            "functions": [{"physical_function": 0, "virtual_functions": plan.STORAGE_FUNCTIONS}],
        },
        # A lab's target is away for a moment only, and somebody is watching.
        "timeouts": {"reconnect_delay": 1},
    }


def _volume_attacher(layout: Layout) -> Configuration:
    return {
        "socket": str(layout.attacher_socket),
        "bridge": f"unix:{layout.opi_socket}",
        "state_directory": str(layout.daemon_state("volume-attacher")),
        "host_nqn": f"nqn.2026-11.io.dpu-offload:host.{DPU_NODE}",
    }


def _csi_node_dpu(layout: Layout, ports: Ports) -> Configuration:
    address = f"127.0.0.1:{ports.csi_node_dpu}"
    return {
        "node_name": DPU_NODE,
        "listen": address,
        "advertise": address,
        "tls": _tls(layout, node=DPU_NODE, component="csi-node-dpu"),
        "attacher": f"unix:{layout.attacher_socket}",
        "orphan_grace_seconds": 5,
    }


def _csi_controller(layout: Layout, ports: Ports, lvstore: str) -> Configuration:
    return {
        "socket": str(layout.csi_controller_socket),
        "tls": _tls(layout, node="lab", component="csi-controller"),
        "backends": {
            "main": {
                "kind": "spdk",
                "pools": {
                    "target": {
                        "address": f"unix:{layout.target_socket}",
                        "lvstore": lvstore,
                        "portals": [{"transport": "tcp", "address": TARGET_ADDRESS, "port": ports.target}],
                    }
                },
            }
        },
    }


def _csi_node_host(layout: Layout) -> Configuration:
    return {
        "socket": str(layout.csi_host_socket),
        "node_name": HOST_NODE,
        "sysfs_root": str(layout.sysfs(HOST_NODE)),
        "dev_root": str(layout.devices),
        "physical_functions": {"0": plan.STORAGE_PF},
        "state_directory": str(layout.daemon_state("csi-node-host")),
    }


def cluster_stand_ins(layout: Layout, *, kubeconfig: Path, disks: bool) -> dict[str, list[str | Path]]:
    """Command lines of what a cluster runs around the suite. ``disks``: the host can take the DPU's disks."""
    cni = json.dumps(CNI_CONFIGURATION)
    commands: dict[str, list[str | Path]] = {
        "cluster": [
            *(sys.executable, "-m", "lab.cluster"),
            *("--kubeconfig", kubeconfig, "--csi-socket", layout.csi_controller_socket, "--driver", DRIVER),
        ]
    }
    for node in (DEFAULT_NODE, HOST_NODE):
        command: list[str | Path] = [
            *(sys.executable, "-m", "lab.kubelet"),
            *("--node", node, "--kubeconfig", kubeconfig, "--root", layout.kubelet(node)),
            *("--cni-binary", layout.cni_binary(node), "--cni-configuration", cni),
            *("--netns-prefix", layout.sandbox_prefix),
        ]
        if node == HOST_NODE:
            command += ["--csi-socket", layout.csi_host_socket, "--device-plugins", "--driver", DRIVER]
            if not disks:
                command.append("--leave-disks")
        commands[f"kubelet-{node.removeprefix('node-')}"] = command
    return commands


def _write_private(path: Path, content: str) -> None:
    path.touch(mode=0o600)
    os.chmod(path, 0o600)
    path.write_text(content)
