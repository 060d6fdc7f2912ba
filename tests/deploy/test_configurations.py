"""Every configuration file, flag and environment variable of the manifests is one that the typed settings know."""

from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from certificates.renewer.config import CertificateRenewerConfig
from certificates.signer.config import CertificateSignerConfig
from cni.controller.config import ControllerConfig
from cni.device_plugin.config import DevicePluginConfig
from cni.device_plugin.pools import Pools
from cni.node.config import CniNodeConfig
from csi.controller.config import CsiControllerConfig
from csi.framework.registry import Registry
from csi.node_dpu.config import CsiNodeDpuConfig
from csi.node_host.config import CsiNodeHostConfig
from foundation.daemon.configuration import ConfigurationError, DaemonConfig, load, variable_prefix
from opi_bridge.config import OpiBridgeConfig
from tests.deploy.shipped import Body, containers, workloads
from volume_attacher.config import VolumeAttacherConfig

SETTINGS: dict[str, type[DaemonConfig]] = {
    "certificate-renewer": CertificateRenewerConfig,
    "certificate-signer": CertificateSignerConfig,
    "cni-controller": ControllerConfig,
    "cni-node": CniNodeConfig,
    "csi-controller": CsiControllerConfig,
    "csi-node-dpu": CsiNodeDpuConfig,
    "csi-node-host": CsiNodeHostConfig,
    "opi-bridge": OpiBridgeConfig,
    "sriov-device-plugin": DevicePluginConfig,
    "volume-attacher": VolumeAttacherConfig,
}


def environment(container: Body, maps: dict[str, Body]) -> dict[str, str]:
    found = {}
    for variable in container.get("env", ()):
        source = variable.get("valueFrom", {})
        if "configMapKeyRef" in source:
            found[variable["name"]] = maps[source["configMapKeyRef"]["name"]][source["configMapKeyRef"]["key"]]
        else:
            found[variable["name"]] = variable.get("value", "node-a")
    return found


def file_of(container: Body, pod: Body, path: str, maps: dict[str, Body]) -> str:
    """What a container sees at a path, from the ConfigMap that is mounted there."""
    mounts = [
        one for one in container["volumeMounts"] if path == one["mountPath"] or path.startswith(one["mountPath"] + "/")
    ]
    (mount,) = [one for one in mounts if "subPath" in one] or mounts
    (volume,) = [one for one in pod["volumes"] if one["name"] == mount["name"]]
    return str(maps[volume["configMap"]["name"]][Path(path).name])


def daemons(objects: list[Body], directory: Path) -> list[tuple[str, Body, DaemonConfig]]:
    """Every daemon as its container starts it: name, container, settings."""
    maps = {one["metadata"]["name"]: one["data"] for one in objects if one["kind"] == "ConfigMap"}
    found = []
    for one in workloads(objects):
        pod = one["spec"]["template"]["spec"]
        for container in containers(one):
            name, *argv = container.get("args", [""])
            if name not in SETTINGS:
                continue
            assert argv[0] == "--config", container["name"]
            file = directory / f"{one['metadata']['name']}.{name}.yaml"
            file.write_text(file_of(container, pod, argv[1], maps))
            argv[1] = str(file)
            found.append(
                (name, container, load(SETTINGS[name], name=name, argv=argv, environ=environment(container, maps)))
            )
    return found


def test_every_daemon_takes_its_configuration(everything: list[Body], tmp_path: Path) -> None:
    found = daemons(everything, tmp_path)
    assert {name for name, _, _ in found} == set(SETTINGS), "every daemon of the suite is in the manifests"


def test_a_misspelt_key_or_variable_would_be_seen(everything: list[Body], tmp_path: Path) -> None:
    (controller,) = [
        one for one in everything if one["kind"] == "Deployment" and one["metadata"]["name"] == "cni-controller"
    ]
    (container,) = controller["spec"]["template"]["spec"]["containers"]
    (variable,) = [one for one in container["env"] if one["name"].startswith(variable_prefix("cni-controller"))]
    misspelt = {variable["name"].replace("REMOTES", "REMOTE"): "x"}
    with pytest.raises(ConfigurationError, match=r"northbound\.remote"):
        load(ControllerConfig, name="cni-controller", argv=[], environ=misspelt)


def test_probes_and_ports_are_those_of_the_configuration(everything: list[Body], tmp_path: Path) -> None:
    for name, container, settings in daemons(everything, tmp_path):
        if not settings.http:
            assert name == "certificate-renewer"
            continue
        port = int(settings.http.rpartition(":")[2])
        probes = [container[kind]["httpGet"] for kind in ("startupProbe", "livenessProbe", "readinessProbe")]
        assert {(one["host"], one["port"]) for one in probes} == {("127.0.0.1", port)}, name
        assert [one["path"] for one in probes] == ["/healthz", "/healthz", "/readyz"]
        assert all(one["containerPort"] == port for one in container.get("ports", ())), name


def paths(settings: msgspec.Struct, above: str = "") -> Iterator[tuple[str, str]]:
    """Every setting that is a path on the node, with its name."""
    for field in settings.__struct_fields__:
        value = getattr(settings, field)
        if isinstance(value, msgspec.Struct):
            yield from paths(value, f"{above}{field}.")
        elif isinstance(value, str) and value.removeprefix("unix:").startswith("/"):
            yield above + field, value.removeprefix("unix:")


def test_paths_of_the_configuration_are_mounted(everything: list[Body], tmp_path: Path) -> None:
    """Sockets, states, keys: every path that a daemon writes or reads lies in a volume of its container."""
    own = {"/sys", "/dev", "/proc", "/run/netns"}
    seen = set()
    for name, container, settings in daemons(everything, tmp_path):
        mounts = {one["mountPath"] for one in container["volumeMounts"]} | own
        for field, path in paths(settings):
            if getattr(settings, "mode", "") == "host" and field in ("ovsdb", "ovs_run_dir", "ovn_run_dir"):
                continue  # a host has no switch
            if field == "card.directory":
                continue  # of emulated functions, which a real card has none of
            seen.add(field)
            under = any(path == one or path.startswith(f"{one}/") for one in mounts)
            assert under, f"{name}: {field} {path} is in no volume"
    assert {"tls.key", "link.tls.key", "northbound.key", "pod_resources.socket", "state_directory", "keys"} <= seen


def test_the_storage_backends_and_the_pools_can_be_built(everything: list[Body], tmp_path: Path) -> None:
    by_name = {name: settings for name, _, settings in daemons(everything, tmp_path)}
    controller, plugin = by_name["csi-controller"], by_name["sriov-device-plugin"]
    assert isinstance(controller, CsiControllerConfig)
    assert isinstance(plugin, DevicePluginConfig)
    registry = Registry.open(controller.backends, default=controller.default_backend)
    assert registry.default == "main"
    Pools(plugin.pools, domain=plugin.resource_domain)
