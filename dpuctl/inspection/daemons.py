"""The suite's daemons on this machine: found among its processes, or named with their configuration files."""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from cni.controller.config import ControllerConfig
from cni.device_plugin.config import DevicePluginConfig
from cni.node.config import CniNodeConfig
from csi.controller.config import CsiControllerConfig
from csi.node_dpu.config import CsiNodeDpuConfig
from csi.node_host.config import CsiNodeHostConfig
from foundation.daemon.configuration import ConfigurationError, DaemonConfig, load
from foundation.kube.configuration import connection
from foundation.kube.errors import KubeError
from opi_bridge.config import OpiBridgeConfig
from volume_attacher.config import VolumeAttacherConfig

CONFIGURATIONS: Final[Mapping[str, type[DaemonConfig]]] = {
    "cni-controller": ControllerConfig,
    "cni-node": CniNodeConfig,
    "sriov-device-plugin": DevicePluginConfig,
    "csi-controller": CsiControllerConfig,
    "csi-node-host": CsiNodeHostConfig,
    "csi-node-dpu": CsiNodeDpuConfig,
    "volume-attacher": VolumeAttacherConfig,
    "opi-bridge": OpiBridgeConfig,
}
# `python .../bin/cni-node --config x`, `cni-node --config x`, `python -m cni.node.app`: the script is among these.
_SCRIPT_WORDS: Final = 4
_PRINTING: Final = frozenset(("-h", "--help", "--version", "--print-config"))


@dataclasses.dataclass(frozen=True)
class Installed:
    """A daemon with its settings; without them, `problem` says why."""

    name: str
    config: DaemonConfig | None
    problem: str = ""
    pid: int = 0


def named(name: str, file: Path) -> Installed:
    """A daemon by its configuration file. Raises KeyError for a name which is none of the suite's daemons."""
    return _installed(name, ["--config", str(file)], {}, 0)


def running(proc: Path = Path("/proc")) -> Iterator[Installed]:
    """Daemons among this machine's processes, each with the settings it was started with."""
    for directory in sorted((one for one in proc.iterdir() if one.name.isdigit()), key=lambda one: int(one.name)):
        try:
            words = (directory / "cmdline").read_bytes().decode("utf-8", "replace").split("\0")[:-1]
            found = _script(words)
            if found is None or _PRINTING.intersection(found[1]):
                continue
            name, rest = found
            root = Path(os.readlink(directory / "cwd"))
            text = (directory / "environ").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue  # It ended, or it is another user's.
        environ = dict(entry.partition("=")[::2] for entry in text.split("\0") if "=" in entry)
        argv = [_absolute(word, root) for word in rest]
        # A daemon whose file has gone since it started is one that is being removed.
        if all(Path(file).exists() for file in _files(argv)):
            yield _installed(name, argv, environ, int(directory.name))


async def serving(server: str, found: Sequence[Installed]) -> list[Installed]:
    """Those of a cluster by its API server: a machine may be part of several, as one with two labs is.

    A daemon whose settings name no kubeconfig is kept; those that know no Kubernetes go with the one that calls them.
    One whose settings cannot be read is kept where nobody else's daemons run.
    """
    servers = [await _server(one) for one in found]
    alone = all(each in ("", server) for each in servers)
    kept = [
        one
        for one, its in zip(found, servers, strict=True)
        if its in ("", server) and (alone or one.config is not None)
    ]
    callers = {one.config.attacher for one in kept if isinstance(one.config, CsiNodeDpuConfig)}
    strangers = {one.config.attacher for one in found if isinstance(one.config, CsiNodeDpuConfig)} - callers
    kept = [
        one
        for one in kept
        if not (isinstance(one.config, VolumeAttacherConfig) and f"unix:{one.config.socket}" in strangers)
    ]
    bridges = {one.config.bridge for one in kept if isinstance(one.config, VolumeAttacherConfig)}
    strangers = {one.config.bridge for one in found if isinstance(one.config, VolumeAttacherConfig)} - bridges
    return [
        one
        for one in kept
        if not (isinstance(one.config, OpiBridgeConfig) and f"unix:{one.config.socket}" in strangers)
    ]


async def _server(one: Installed) -> str:
    """Of the API server that a daemon talks to; "" where that is not to be known."""
    file = getattr(one.config, "kubeconfig", "")
    if not file:
        return ""
    try:
        return (await connection(file, getattr(one.config, "context", ""))).server
    except KubeError:
        return ""


def _script(words: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    for at, word in enumerate(words[:_SCRIPT_WORDS]):
        name = word.rpartition("/")[2]
        if name in CONFIGURATIONS:
            return name, words[at + 1 :]
    return None


def _files(argv: Sequence[str]) -> Iterator[str]:
    for flag, value in itertools.pairwise([*argv, ""]):
        if flag == "--config":
            yield value
        elif flag.startswith("--config="):
            yield flag.partition("=")[2]


def _absolute(word: str, root: Path) -> str:
    """A relative file name means the daemon's directory, not ours."""
    flag, given, value = word.partition("=")
    if flag == "--config" and given:
        return f"--config={root / value}"
    return word if word.startswith(("-", "/")) or "=" in word else str(root / word)


def _installed(name: str, argv: Sequence[str], environ: Mapping[str, str], pid: int) -> Installed:
    try:
        return Installed(name, load(CONFIGURATIONS[name], name=name, argv=argv, environ=environ), pid=pid)
    except ConfigurationError as error:
        return Installed(name, None, problem=str(error), pid=pid)
