"""Alerts and dashboards speak of metrics and labels that the code has, and every alert leads to its runbook."""

import importlib
import json
import pkgutil
import re
from collections.abc import Iterator

import promql_parser
import pytest
import yaml

from foundation.daemon.metrics import REGISTRY
from tests.deploy.shipped import CHART, KUSTOMIZE, ROOT, Body

PACKAGES = ("certificates", "cni", "csi", "foundation", "opi_bridge", "volume_attacher")
# What Prometheus itself puts on a series of a pod, and the relabelling of our PodMonitor.
TARGET_LABELS = {"pod", "container", "namespace", "node", "le"}
NOT_OURS = {"up"}


@pytest.fixture(scope="session")
def metrics() -> dict[str, set[str]]:
    """Labels by series name, of every metric that any daemon registers."""
    for package in PACKAGES:
        for module in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            # Plug-ins of pytest, and a program that runs when it is imported.
            if ".conformance" not in module.name and not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    found: dict[str, set[str]] = {}
    endings = {"counter": ("_total",), "histogram": ("_bucket", "_count", "_sum")}
    for family in REGISTRY.collect():
        labels = set(getattr(REGISTRY._names_to_collectors.get(family.name), "_labelnames", ()))
        for ending in endings.get(family.type, ("",)):
            found[family.name + ending] = labels
    return found


def alerts() -> list[Body]:
    groups = yaml.safe_load((CHART / "files/alerts.yaml").read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def expressions() -> Iterator[tuple[str, str]]:
    for rule in alerts():
        yield rule["alert"], rule["expr"]
    for path in sorted((CHART / "files/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel["targets"]:
                text = target["expr"].replace("$__rate_interval", "5m").replace("$node", ".*")
                yield f"{path.stem}: {panel['title']}", text


def selectors(text: str) -> list[tuple[str, set[str]]]:
    """Series and the labels that their matchers name. The parser's tree is printed and read again in its one form."""
    pretty = promql_parser.parse(text).prettify()
    found = []
    for name, matchers in re.findall(r"\b([a-z_]+[a-z0-9_]*)(?:\{([^}]*)\})?(?=[\s\[)]|$)", pretty):
        if name.startswith("dpu_offload_") or name in NOT_OURS:
            found.append((name, set(re.findall(r"(\w+)(?:=~|!~|!=|=)", matchers))))
    return found


def test_every_expression_is_of_metrics_that_exist(metrics: dict[str, set[str]]) -> None:
    for where, text in expressions():
        used = selectors(text)
        assert used, f"{where}: no series in {text}"
        for name, labels in used:
            if name in NOT_OURS:
                continue
            assert name in metrics, f"{where}: no daemon has {name}"
            assert labels <= metrics[name] | TARGET_LABELS, f"{where}: {name} has no {labels - metrics[name]}"


def test_every_grouping_is_by_labels_that_exist(metrics: dict[str, set[str]]) -> None:
    for where, text in expressions():
        labels = set().union(*(metrics.get(name, set()) for name, _ in selectors(text))) | TARGET_LABELS
        for group in re.findall(r"\b(?:by|on) \(([^)]*)\)", text):
            assert set(re.split(r",\s*", group)) <= labels, f"{where}: {group}"


def test_legends_and_texts_name_labels_that_are_left(metrics: dict[str, set[str]]) -> None:
    for rule in alerts():
        grouped = re.findall(r"\bby \(([^)]*)\)", rule["expr"])
        left = {label for group in grouped for label in re.split(r",\s*", group)}
        if not grouped:
            left = set().union(*(metrics.get(name, set()) for name, _ in selectors(rule["expr"]))) | TARGET_LABELS
        named = set(re.findall(r"\$labels\.(\w+)", json.dumps(rule["annotations"])))
        assert named <= left, f"{rule['alert']}: {named - left}"


def test_a_wrong_expression_is_found() -> None:
    with pytest.raises(ValueError):
        promql_parser.parse("sum by (pod (rate(dpu_offload_cni_seconds_count[5m]))")
    assert selectors('rate(dpu_offload_no_such_thing_total{verb="ADD"}[5m])') == [
        ("dpu_offload_no_such_thing_total", {"verb"})
    ]


def test_every_alert_leads_to_its_runbook(everything: list[Body]) -> None:
    (shipped,) = [one for one in everything if one["kind"] == "PrometheusRule"]
    rules = [rule for group in shipped["spec"]["groups"] for rule in group["rules"]]
    assert [rule["alert"] for rule in rules] == [rule["alert"] for rule in alerts()]
    headings = re.findall(r"^#+ (.*)$", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}
    for rule in rules:
        base, _, anchor = rule["annotations"]["runbook_url"].partition("#")
        assert base.endswith("/troubleshooting/")
        assert anchor == rule["alert"].lower()
        assert anchor in anchors, f"docs/troubleshooting.md has no section {rule['alert']}"
        assert rule["labels"]["severity"] in ("critical", "warning", "info")
        assert rule["annotations"]["summary"]
        assert rule["annotations"]["description"]


def test_every_port_with_metrics_is_scraped(everything: list[Body]) -> None:
    (monitor,) = [one for one in everything if one["kind"] == "PodMonitor"]
    scraped = {endpoint["port"] for endpoint in monitor["spec"]["podMetricsEndpoints"]}
    named = {
        port["name"]
        for one in everything
        if one["kind"] in ("Deployment", "DaemonSet")
        for container in one["spec"]["template"]["spec"]["containers"]
        for port in container.get("ports", ())
    }
    assert scraped == named


def test_dashboards_are_shipped_as_they_are_written() -> None:
    shipped = list(yaml.safe_load_all((KUSTOMIZE / "components/monitoring/monitoring.yaml").read_text()))
    boards = {name: text for one in shipped if one["kind"] == "ConfigMap" for name, text in one["data"].items()}
    assert set(boards) == {"network.json", "storage.json", "pairs.json"}
    for name, text in boards.items():
        board = json.loads(text)
        assert board == json.loads((CHART / "files/dashboards" / name).read_text())
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        for panel in board["panels"]:
            place = panel["gridPos"]
            assert place["x"] + place["w"] <= 24
