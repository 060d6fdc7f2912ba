"""The documentation builds without a warning, and its reference says what the code says."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from dpuctl.doctor.checks import ALL
from foundation.daemon.schema import rows
from tests.docs.blocks import ROOT, fits


@pytest.fixture(scope="module")
def reference() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "tools/reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


async def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")),
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    page = (tmp_path / "site/reference/configuration/index.html").read_text()
    assert "status_page.listen" in page
    # Nothing is fetched from elsewhere when somebody reads it.
    assert 'src="http' not in page


def test_every_key_of_every_daemon_is_in_the_reference(reference: ModuleType) -> None:
    text = reference.configuration()
    assert "## csi-node-dpu" in text
    for package, kind in reference.DAEMONS.values():
        module = importlib.import_module(f"{package}.config")
        for key, *_ in rows(getattr(module, kind)):
            assert f"| `{key}` |" in text


def test_every_daemon_of_the_distribution_is_in_the_reference(reference: ModuleType) -> None:
    from importlib.metadata import entry_points

    scripts = {one.name for one in entry_points(group="console_scripts") if one.dist and one.dist.name == "dpu-offload"}
    assert scripts - {"dpuctl", "kubectl-dpu", "dpu-lab"} == set(reference.DAEMONS)


def test_metrics_and_checks_and_names_are_in_the_reference(reference: ModuleType) -> None:
    assert "| `dpu_offload_cni_seconds` | histogram | `verb`, `code` | cni-node |" in reference.metrics()
    text = reference.dpuctl()
    assert all(f"| `{check.name}` | {check.about} |" in text for check in ALL)
    names = reference.names()
    assert "| `dpu-offload.io/pod-networks` | On a pod, written here:" in names
    assert "| `dpu-offload.io/egress-ips` | On a namespace:" in names
    # A description without its name would be of something that is gone.
    assert all(f"| `{name}` | {text}" in names for name, text in reference.NAMES.items())


def test_figures_are_measured_or_missing_never_made_up(reference: ModuleType, tmp_path: Path) -> None:
    assert "Nothing was measured" in reference.figures(tmp_path / "none.json")
    report = tmp_path / "bench.json"
    report.write_text(
        '{"a": {"value": 2.0, "unit": "ms", "floor": 1.0, "ratio": 2.0, "goal": {"of": "ratio", "max": 3}}}'
    )
    assert "| a | 2 ms | 1 | 2 | ratio max 3 |" in reference.figures(report)


@pytest.mark.parametrize(
    ("output", "shown", "fit"),
    [
        ("a  b\n", ("a b",), True),
        ("a\nx\ny\nb\n", ("a", "...", "b"), True),
        ("a c\n", ("a ... c",), True),
        ("a\n", ("b",), False),
        ("a\nb\n", ("a",), False),
        ("anything", (), True),
    ],
)
def test_what_is_shown_is_compared(output: str, shown: tuple[str, ...], fit: bool) -> None:
    assert fits(output, shown) is fit
