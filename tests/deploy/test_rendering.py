"""Chart and kustomize say the same, in each profile, as the programs that users run render them."""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from tests.deploy.shipped import CHART, KUSTOMIZE, ROOT, Body, documents, identity


def ordered(found: list[Body]) -> list[Body]:
    return sorted(found, key=identity)


@pytest.fixture(scope="session")
def manifests() -> ModuleType:
    spec = importlib.util.spec_from_file_location("manifests", ROOT / "tools/manifests.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_kustomize_holds_what_the_chart_renders(helm: Path, manifests: ModuleType) -> None:
    wanted = {str(path): text for path, text in manifests.files(helm).items()}
    there = {
        str(path.relative_to(KUSTOMIZE)): path.read_text()
        for directory in ("base", "components")
        for path in (KUSTOMIZE / directory).rglob("*.yaml")
    }
    assert there == wanted, "run `make manifests`"


def test_a_profile_is_the_same_by_helm_and_by_kustomize(
    profile: str, helm: Path, kustomize: Path, manifests: ModuleType
) -> None:
    chart = manifests.render(helm, ["-f", str(CHART / "profiles" / f"{profile}.yaml")])
    built = subprocess.run(
        [kustomize, "build", KUSTOMIZE / "overlays" / profile], capture_output=True, text=True, check=True
    ).stdout
    by_helm = ordered([one for one in yaml.safe_load_all(chart) if one])
    by_kustomize = ordered(list(yaml.safe_load_all(built)))
    assert by_helm == by_kustomize
    assert by_kustomize == ordered(documents(KUSTOMIZE / "overlays" / profile)), "the tests see what users get"


def test_every_value_can_be_set(helm: Path, manifests: ModuleType) -> None:
    """A registry, an API server's address, pull secrets: all of them reach every pod."""
    values = [
        *("-f", str(CHART / "profiles/kubevirt.yaml")),
        *("--set", "images.registry=registry.test/,images.tag=9.9,images.pullSecrets[0].name=pull"),
        *("--set", "apiServer.host=192.0.2.9,namespace=elsewhere,http.address=127.0.0.1"),
        *("--set", "config.cniNode.flows_seconds=7,config.csiController.converge_seconds=5"),
    ]
    found = [one for one in yaml.safe_load_all(manifests.render(helm, values)) if one]
    pods = [one["spec"]["template"]["spec"] for one in found if "template" in one.get("spec", {})]
    assert pods
    for pod in pods:
        assert pod["imagePullSecrets"] == [{"name": "pull"}]
        ours = [one for one in pod["containers"] if "sig-storage" not in one["image"]]
        assert all(one["image"].startswith("registry.test/dpu-offload/") for one in ours)
        assert all(one["image"].endswith(":9.9") for one in ours)
    texts = {one["metadata"]["name"]: one["data"] for one in found if one["kind"] == "ConfigMap"}
    assert "flows_seconds: 7" in texts["cni-node-dpu"]["cni-node.yaml"]
    assert "http: 127.0.0.1:9471" in texts["cni-node"]["cni-node.yaml"]
    assert "converge_seconds: 5" in texts["csi-controller"]["csi-controller.yaml"]
    namespaced = {one["metadata"].get("namespace") for one in found} - {None}
    assert namespaced == {"elsewhere", "dpu-offload-secrets"}


ODD = [
    ("unknownKey=5", "unknownKey"),
    ("parts.ovn=banana", "/parts/ovn"),
    ("namespace=1234", "/namespace"),
    ("images.registry=registry.test", "/images/registry"),
    ("config.csiController=null", "csiController"),
    ("http.address=::1", "/http/address"),
    ("storageClasses.dpu.encryption=true", "/storageClasses/dpu/encryption"),
]


@pytest.mark.parametrize(("value", "words"), ODD)
def test_an_odd_value_is_refused_by_its_name(helm: Path, manifests: ModuleType, value: str, words: str) -> None:
    """A misspelt key would be ignored, and an odd value found out by pods that do not start."""
    with pytest.raises(RuntimeError, match="schema") as caught:
        manifests.render(helm, ["--set", value])
    assert words in str(caught.value)


def test_the_page_asks_for_the_kubernetes_that_the_chart_asks_for() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    wanted = re.fullmatch(r">=(1\.\d+)\.0-0", chart["kubeVersion"])
    assert wanted is not None
    assert f"Kubernetes {wanted[1]} or later" in (ROOT / "docs/install.md").read_text()


def test_an_alert_looks_where_the_suite_is(helm: Path, manifests: ModuleType) -> None:
    values = ["--set", "namespace=elsewhere,parts.monitoring=true"]
    found = [one for one in yaml.safe_load_all(manifests.render(helm, values)) if one]
    (rules,) = (one["spec"]["groups"] for one in found if one["kind"] == "PrometheusRule")
    looked = {rule["alert"]: rule["expr"] for group in rules for rule in group["rules"]}
    assert looked["DpuOffloadDaemonDown"] == 'up{namespace="elsewhere"} == 0'
    assert not [name for name, text in looked.items() if 'namespace="dpu-offload"' in text]
