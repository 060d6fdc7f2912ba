"""Where the lab keeps its files: one run directory, everything below it, nothing elsewhere.

The directory's name must be short: a unix socket's path has at most 107 bytes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

DEFAULT_RUN_DIRECTORY = Path("/run/dpu-lab")
LONGEST_RUN_DIRECTORY = 40

DRIVER = "csi.dpu-offload.io"
VF_RESOURCE = "dpu-offload.io/vf"

DEFAULT_NODE = "node-default"
HOST_NODE = "node-host"
DPU_NODE = "node-dpu"


@dataclasses.dataclass(frozen=True)
class Layout:
    """Paths of one lab. ``prefix`` names its network namespaces, so that two labs can run side by side."""

    run: Path
    prefix: str = "lab"

    def __post_init__(self) -> None:
        if len(str(self.run)) > LONGEST_RUN_DIRECTORY:
            raise ValueError(
                f"run directory {self.run} is too long: unix sockets below it need a name of at most "
                f"{LONGEST_RUN_DIRECTORY} characters; choose a shorter one with --run-dir"
            )

    def netns(self, node: str) -> str:
        """Name of a node's network namespace."""
        return f"{self.prefix}-{node.removeprefix('node-')}"

    @property
    def sandbox_prefix(self) -> str:
        """First part of the names of pods' network namespaces."""
        return f"{self.prefix}-cni-"

    def netns_path(self, node: str) -> Path:
        return Path("/run/netns") / self.netns(node)

    @property
    def state(self) -> Path:
        return self.run / "state.json"

    @property
    def logs(self) -> Path:
        return self.run / "log"

    @property
    def pki(self) -> Path:
        return self.run / "pki"

    @property
    def kubeconfig(self) -> Path:
        return self.run / "kubeconfig"

    def account(self, name: str) -> Path:
        """A daemon's own kubeconfig, by its service account."""
        return self.run / "accounts" / name

    @property
    def requests(self) -> Path:
        """Who asked the API server for what: one line for each sort of request."""
        return self.run / "requests.jsonl"

    @property
    def config(self) -> Path:
        return self.run / "config"

    @property
    def network(self) -> Path:
        return self.run / "net"

    @property
    def target_socket(self) -> Path:
        return self.run / "target.sock"

    @property
    def target_file(self) -> Path:
        return self.run / "target" / "disk.img"

    @property
    def dpu_spdk_socket(self) -> Path:
        return self.run / "dpu.sock"

    @property
    def functions(self) -> Path:
        """Directory of the DPU's vfio-user listeners, one sub-directory a function."""
        return self.run / "vfu"

    def sysfs(self, node: str) -> Path:
        return self.run / "sys" / node

    @property
    def devices(self) -> Path:
        """The host's /dev, as far as the card's disks go."""
        return self.run / "dev"

    def cni_socket(self, node: str) -> Path:
        return self.run / "cni" / f"{node}.sock"

    def cni_binary(self, node: str) -> Path:
        return self.run / "bin" / node / "dpu-offload"

    @property
    def csi_controller_socket(self) -> Path:
        return self.run / "csi" / "controller.sock"

    @property
    def csi_host_socket(self) -> Path:
        return self.run / "csi" / "host.sock"

    @property
    def attacher_socket(self) -> Path:
        return self.run / "attacher.sock"

    @property
    def opi_socket(self) -> Path:
        return self.run / "opi.sock"

    def kubelet(self, node: str) -> Path:
        return self.run / "kubelet" / node

    def daemon_state(self, daemon: str) -> Path:
        return self.run / "lib" / daemon
