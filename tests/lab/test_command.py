"""dpu-lab refuses what cannot work in one sentence, before anything is made."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from lab import app, requirements
from lab.layout import Layout


def run(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app.main, list(arguments))
    return result.exit_code, result.output


@pytest.mark.parametrize("command", ["demo", "up", "down"])
def test_without_root_one_sentence(command: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    code, output = run(command, "--run-dir", "/run/never")
    assert code == 1
    assert output.strip().splitlines() == [
        "Error: dpu-lab needs root, to make network namespaces, mounts and loop devices: run it with sudo, or as root"
    ]
    assert not Path("/run/never").exists()


@pytest.mark.root
def test_missing_packages_are_named_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    code, output = run("demo", "--run-dir", "/run/never")
    assert code == 1
    assert len(output.strip().splitlines()) == 1
    for package in ("ovn-central", "ovn-host", "openvswitch-switch", "e2fsprogs"):
        assert package in output
    assert not Path("/run/never").exists()


@pytest.mark.root
def test_a_run_directory_that_sockets_cannot_have_is_refused() -> None:
    code, output = run("up", "--run-dir", "/run/" + "x" * 60)
    assert code == 1
    assert "too long" in output


@pytest.mark.root
def test_a_missing_binary_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(requirements, "CNI_BINARY", tmp_path / "none")
    with pytest.raises(requirements.Missing, match="make proto"):
        requirements.check(Layout(run=Path("/run/never")))


def test_status_without_a_lab() -> None:
    code, output = run("status", "--run-dir", "/run/never")
    assert code == 3
    assert "dpu-lab up" in output


def test_an_unknown_kubeconfig_is_refused() -> None:
    code, output = run("demo", "--kubeconfig", "/run/never/kubeconfig")
    assert code == 2
    assert "does not exist" in output
