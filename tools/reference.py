"""The reference pages of the documentation, made from the code when the site is built (a hook of mkdocs).

By itself: `python tools/reference.py DIRECTORY` writes them there.
"""

from __future__ import annotations

import ast
import importlib
import itertools
import json
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import click

ROOT = Path(__file__).resolve().parent.parent
DAEMONS = {
    "cni-controller": ("cni.controller", "ControllerConfig"),
    "cni-node": ("cni.node", "CniNodeConfig"),
    "sriov-device-plugin": ("cni.device_plugin", "DevicePluginConfig"),
    "csi-controller": ("csi.controller", "CsiControllerConfig"),
    "csi-node-host": ("csi.node_host", "CsiNodeHostConfig"),
    "csi-node-dpu": ("csi.node_dpu", "CsiNodeDpuConfig"),
    "volume-attacher": ("volume_attacher", "VolumeAttacherConfig"),
    "opi-bridge": ("opi_bridge", "OpiBridgeConfig"),
    "certificate-signer": ("certificates.signer", "CertificateSignerConfig"),
    "certificate-renewer": ("certificates.renewer", "CertificateRenewerConfig"),
}
COMPONENTS = ("foundation", "cni", "csi", "volume_attacher", "opi_bridge", "certificates")
GENERATED = "*Made from the code when this site is built; do not edit.*\n"

GROUP = "dpu-offload.io"
# What a name means where the code that uses it has no docstring for it.
NAMES = {
    "dpu-offload.io/mode": "On a node, by the operator: `default`, `host` (its OVS side is a DPU's) or `dpu`.",
    "dpu-offload.io/host-node": "On a DPU's node, by the operator: the Kubernetes node name of its host.",
    "dpu-offload.io/link": "On a DPU's node, by its cni-node: where the host's cni-node finds it.",
    "dpu-offload.io/storage": "On a DPU's node, by csi-node-dpu: endpoint, host NQN, free functions.",
    "dpu-offload.io/offload": "On a node, by cni-node: flows and bytes in hardware and in software.",
    "dpu-offload.io/node": "Signer name of certificates that the suite's own signer gives out (Kubernetes' CSR API).",
    "dpu-offload.io/passthrough": "StorageClass parameter: the volume's PCI function goes to a VM by VFIO.",
}


def pages() -> Iterator[tuple[str, str]]:
    """(path below docs/, Markdown) of every generated page."""
    yield "reference/configuration.md", configuration()
    yield "reference/metrics.md", metrics()
    yield "reference/names.md", names()
    yield "reference/dpuctl.md", dpuctl()
    yield "reference/figures.md", figures(ROOT / "build/reports/bench.json")


def configuration() -> str:
    """Every key of every daemon and of every storage backend's section."""
    from foundation.daemon import schema

    lines = [
        "# Configuration",
        "",
        GENERATED,
        "A daemon takes its settings from a YAML file (`--config PATH` or `$DPU_OFFLOAD_<NAME>_CONFIG`), then from",
        "the environment (`DPU_OFFLOAD_<NAME>__FIELD__SUBFIELD=value`), then from `--set key=value`: later wins.",
        "Unknown keys are refused. `*.` stands for any key of a mapping, `#.` for each entry of a list.",
        "",
    ]
    for name, (package, kind) in DAEMONS.items():
        lines += ["", f"## {name}", ""]
        lines += _settings(schema, getattr(importlib.import_module(f"{package}.config"), kind))
    from csi.framework.registry import discover

    for name, backend in sorted(discover().items()):
        lines += [
            "",
            f"## Backend {name}",
            "",
            f"Keys below `backends.<name>` of csi-controller with `kind: {name}`.",
            "",
        ]
        lines += _settings(schema, backend.configuration)
        lines += ["", f"Parameters of a StorageClass for backend {name}:", ""]
        lines += _settings(schema, backend.parameters)
    return "\n".join(lines) + "\n"


def _settings(schema: Any, kind: type) -> list[str]:
    lines = ["| key | type | default | meaning |", "|---|---|---|---|"]
    for key, its_type, default, text in schema.rows(kind):
        value = default.removeprefix("default ")
        lines.append(f"| `{key}` | {_cell(its_type)} | {_code(value)} | {_cell(text)} |")
    return lines


def metrics() -> str:
    """Every metric that any daemon registers."""
    from foundation.daemon import metrics as registered

    found: dict[str, tuple[str, str, str, set[str]]] = {}
    importlib.import_module("foundation.daemon.running")
    importlib.import_module("foundation.daemon.serving")
    before = set(_collectors(registered))
    for name in before:
        found[name] = (*_collectors(registered)[name], {"every daemon"})
    for daemon, (package, _) in DAEMONS.items():
        importlib.import_module(f"{package}.app")
        now = _collectors(registered)
        for name in set(now) - before:
            found.setdefault(name, (*now[name], set()))[3].add(daemon)
        before = set(now)
    lines = [
        "# Metrics",
        "",
        GENERATED,
        "Served at `/metrics` of each daemon's `http` listener, in Prometheus' text form. A metric that several",
        "daemons share is listed with the first of them. Times are in seconds.",
        "",
        "| metric | type | labels | daemon | meaning |",
        "|---|---|---|---|---|",
    ]
    for name, (kind, labels, text, daemons) in sorted(found.items()):
        lines.append(f"| `{name}` | {kind} | {_cell(labels)} | {', '.join(sorted(daemons))} | {_cell(text)} |")
    return "\n".join(lines) + "\n"


def _collectors(registered: Any) -> dict[str, tuple[str, str, str]]:
    """{name: (type, labels, documentation)} of what is registered now, values or none."""
    found = {}
    for collector in registered.REGISTRY._collector_to_names:
        for family in collector.describe() if hasattr(collector, "describe") else collector.collect():
            suffix = "_total" if family.type == "counter" and not family.name.endswith("_total") else ""
            labels = ", ".join(f"`{label}`" for label in getattr(collector, "_labelnames", ()))
            found[family.name + suffix] = (family.type, labels, family.documentation)
    return found


def names() -> str:
    """Labels, annotations, parameters; the kinds that are read or written; custom resources."""
    from foundation.kube import resources

    lines = [
        "# Labels, annotations, kinds",
        "",
        GENERATED,
        "| name | what it is | used in |",
        "|---|---|---|",
    ]
    for name, (text, files) in sorted(_described().items()):
        lines.append(f"| `{name}` | {_cell(text)} | {', '.join(f'`{file}`' for file in sorted(files)[:3])} |")
    lines += [
        "",
        "## Kinds",
        "",
        "The suite brings no custom resource of its own. It reads, and where the daemons' roles say so writes, these;",
        "those of other projects (Multus, the network policy and KubeVirt APIs) may be absent.",
        "",
        "| kind | group and version | scope |",
        "|---|---|---|",
    ]
    for one in sorted(resources.ALL, key=lambda each: (each.group, each.plural)):
        lines.append(f"| {one.kind} | `{one.api_version}` | {'namespaced' if one.namespaced else 'cluster'} |")
    return "\n".join(lines) + "\n"


def _described() -> Mapping[str, tuple[str, set[str]]]:
    """{name below `dpu-offload.io/`: (what the code says of it, files that use it)}."""
    said: dict[str, str] = {}
    files: dict[str, set[str]] = {}
    for component in COMPONENTS:
        for file in sorted((ROOT / component).rglob("*.py")):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if name := _name(node):
                    files.setdefault(name, set()).add(str(file.relative_to(ROOT)))
            for statement, following in itertools.pairwise(tree.body):
                name = _name(statement.value) if isinstance(statement, ast.Assign | ast.AnnAssign) else ""
                text = following.value if isinstance(following, ast.Expr) else None
                if name and isinstance(text, ast.Constant) and isinstance(text.value, str):
                    said[name] = text.value
    return {name: (said.get(name) or NAMES.get(name, ""), where) for name, where in files.items()}


def _name(node: ast.AST | None) -> str:
    """`dpu-offload.io/x` as a text, or as an f-string that begins with the group."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        group, _, rest = node.value.partition("/")
        return node.value if group == GROUP and rest.replace("-", "").isalpha() else ""
    if isinstance(node, ast.JoinedStr) and len(node.values) == 2:
        first, last = node.values
        group = first.value.id if isinstance(first, ast.FormattedValue) and isinstance(first.value, ast.Name) else ""
        if group == "GROUP" and isinstance(last, ast.Constant) and str(last.value).startswith("/"):
            return f"{GROUP}{last.value}"
    return ""


def dpuctl() -> str:
    """Every command with its options, every check of the doctor, the exit codes."""
    from dpuctl.app import main
    from dpuctl.doctor.checks import ALL

    context = click.Context(main, info_name="dpuctl")
    lines = ["# dpuctl", "", GENERATED, "```text", main.get_help(context), "```"]
    assert isinstance(main, click.Group)
    for name in main.list_commands(context):
        command = main.get_command(context, name)
        if command is None or name == "inspect":
            continue
        told = command.get_help(click.Context(command, info_name=name, parent=context))
        lines += ["", f"## dpuctl {name}", "", "```text", told, "```"]
    lines += ["", "## What doctor checks", "", "| check | it is checked that |", "|---|---|"]
    lines += [f"| `{check.name}` | {check.about} |" for check in ALL]
    return "\n".join(lines) + "\n"


def figures(report: Path) -> str:
    """What `make bench` has measured on the machine that builds the site; nothing is made up where it has not run."""
    lines = ["# Measured figures", "", GENERATED]
    try:
        measured = json.loads(report.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return "\n".join([*lines, "Nothing was measured where this site was built: run `make bench` first.", ""])
    lines += ["| figure | value | floor | ratio | goal |", "|---|---|---|---|---|"]
    for name, one in sorted(measured.items()):
        floor, ratio = (f"{one[key]:.3g}" if one.get(key) is not None else "" for key in ("floor", "ratio"))
        goal = one.get("goal") or {}
        wanted = " ".join(f"{key} {goal[key]:.3g}" for key in ("min", "max") if key in goal)
        wanted = f"{goal['of']} {wanted}" if wanted else ""
        lines.append(f"| {_cell(name)} | {one['value']:.3g} {one['unit']} | {floor} | {ratio} | {wanted} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _code(text: str) -> str:
    return text if text == "required" else f"`{_cell(text)}`"


def on_files(files: Any, config: Any) -> Any:
    """mkdocs' hook: adds the pages to those that lie in docs/."""
    from mkdocs.structure.files import File

    for path, text in pages():
        files.append(File.generated(config, path, content=text))
    return files


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    for path, text in pages():
        target = directory / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
