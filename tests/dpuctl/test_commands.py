"""dpuctl as an operator runs it: a process with a kubeconfig, its output, its exit codes, its way into containers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from dpuctl.app import main
from foundation.kube import resources
from foundation.spdk.client import SpdkClient
from lab import objects
from lab.layout import DPU_NODE
from tests.dpuctl.cluster_objects import NAMESPACE, VOLUME
from tests.dpuctl.installation import Installation

in_one_loop = pytest.mark.asyncio(loop_scope="session")
DPUCTL = Path(sys.executable).with_name("dpuctl")
ORPHAN = "nqn.2026-11.io.dpu-offload:volume.main.p0.vdddddddddddddddddddd"
SECRET = "hunter2-of-the-bundle"


async def dpuctl(*words: str, environ: Mapping[str, str] | None = None) -> Result:
    """In a thread, since the command runs an event loop of its own."""
    return await asyncio.to_thread(CliRunner().invoke, main, words, env=environ)


@pytest.fixture
def kubectl(installation: Installation, tmp_path: Path) -> dict[str, str]:
    """An environment in which `kubectl exec` into two of the pods runs the command here, on the daemon of that pod."""
    files = installation.files()
    script = tmp_path / "kubectl"
    script.write_text(
        "#!/bin/bash\n"
        'all="$*"\n'
        'while [ "$1" != -- ]; do shift; done; shift 3\n'
        'case "$all" in\n'
        f'  *" cni-node-{DPU_NODE} "*) exec {DPUCTL} inspect --daemon cni-node={files["cni-node"]} "$@";;\n'
        f'  *" csi-controller-"*) exec {DPUCTL} inspect --daemon csi-controller={files["csi-controller"]} "$@";;\n'
        "esac\n"
        'echo "error: container not found" >&2; exit 1\n'
    )
    script.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}", "KUBECONFIG": str(installation.kubeconfig)}


@in_one_loop
async def test_doctor_finds_in_a_container_what_the_api_server_does_not_know(
    installation: Installation, kubectl: dict[str, str]
) -> None:
    await installation.add_port("pf0vf8", attachment="beef", port="dpu-lab_left", uid="u")
    try:
        ended = await dpuctl("doctor", "-o", "json", environ=kubectl)
        found = [finding for verdict in json.loads(ended.stdout) for finding in verdict["findings"]]
        (stale,) = (one for one in found if one["where"] == f"node {DPU_NODE}, interface pf0vf8")
        assert (stale["severity"], "dpuctl gc" in stale["cure"]) == ("warning", True)
        assert "not looked at: dpu-offload/opi-bridge-node-dpu" in ended.stderr
        assert "container not found" in ended.stderr
        # A warning alone is no failure.
        assert ended.exit_code == int(any(one["severity"] == "error" for one in found))
        blind = await dpuctl("doctor", "--no-machines", environ=kubectl)
        assert "pf0vf8" not in blind.output
    finally:
        await installation.remove_port("pf0vf8")


@in_one_loop
async def test_gc_shows_first_and_removes_only_when_told(installation: Installation, kubectl: dict[str, str]) -> None:
    await installation.add_port("pf0vf7", attachment="cafe", port="dpu-lab_left", uid="u")
    await installation.spdk("nvmf_create_subsystem", nqn=ORPHAN, allow_any_host=False)
    shown = await dpuctl("gc", "-o", "json", environ=kubectl)
    assert shown.exit_code == 1
    found = [(one["kind"], one["place"], one["name"], one["done"]) for one in json.loads(shown.stdout)]
    assert found == [("port", DPU_NODE, "cafe", "found"), ("subsystem", "main", ORPHAN, "found")]
    removed = await dpuctl("gc", "--yes", "-o", "json", environ=kubectl)
    assert [one["done"] for one in json.loads(removed.stdout)] == ["removed", "removed"]
    assert removed.exit_code == 0
    async with SpdkClient(installation.target.address) as client:
        left = [one["nqn"] for one in await client.call("nvmf_get_subsystems")]
    assert (ORPHAN in left, installation.nqn in left) == (False, True)
    assert all(row["name"] != "pf0vf7" for row in installation.ovs.rows("Interface").values())
    assert VOLUME in installation.attacher.volumes


@in_one_loop
async def test_tables_are_plain_on_a_pipe_and_say_by_their_code_whether_all_is_well(installation: Installation) -> None:
    environ = {"KUBECONFIG": str(installation.kubeconfig)}
    ended = await dpuctl("status", environ=environ)
    assert (ended.exit_code, "\x1b" in ended.output) == (0, False)
    assert ended.output.splitlines()[0].split() == ["NODE", "MODE", "PAIR", "DISKS", "OFFLOAD", "VERSION", "WHY"]
    before = await dpuctl("-o", "json", "volumes", environ=environ)
    behind = await dpuctl("volumes", "-o", "json", environ=environ)
    assert json.loads(before.stdout) == json.loads(behind.stdout)
    await installation.label_dpu(None)
    try:
        assert (await dpuctl("status", environ=environ)).exit_code == 1
    finally:
        await installation.label_dpu("node-host")


@in_one_loop
async def test_events_are_the_suites_own(installation: Installation) -> None:
    for component, reason in (("cni-controller", "AddressesExhausted"), ("kubelet", "Pulled")):
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"e.{reason.lower()}", "namespace": objects.NAMESPACE},
            "involvedObject": {"kind": "Pod", "namespace": objects.NAMESPACE, "name": "web"},
            "type": "Warning",
            "reason": reason,
            "message": "words",
            "reportingComponent": component,
            "firstTimestamp": "2026-11-22T00:00:00Z",
        }
        await installation.client.create(resources.EVENTS, body)
    ended = await dpuctl("events", "-o", "json", environ={"KUBECONFIG": str(installation.kubeconfig)})
    assert [(one["reason"], one["object"]) for one in json.loads(ended.stdout)] == [
        ("AddressesExhausted", "Pod dpu-lab/web")
    ]


@in_one_loop
async def test_events_are_followed_as_they_come(installation: Installation) -> None:
    process = await asyncio.create_subprocess_exec(
        *(DPUCTL, "events", "-w", "-o", "json"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "KUBECONFIG": str(installation.kubeconfig)},
    )
    assert process.stdout is not None
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "e.followed", "namespace": objects.NAMESPACE},
        "involvedObject": {"kind": "Pod", "namespace": objects.NAMESPACE, "name": "web"},
        "reason": "Followed",
        "reportingComponent": "cni-node",
    }
    try:
        async with asyncio.timeout(50):
            first = json.loads(await process.stdout.readline())
            assert first["reason"] == "AddressesExhausted"
            await installation.client.create(resources.EVENTS, body)
            assert json.loads(await process.stdout.readline())["reason"] == "Followed"
    finally:
        process.terminate()
        await process.wait()


@in_one_loop
async def test_a_bundle_holds_what_was_found_and_no_secret(
    installation: Installation, kubectl: dict[str, str], tmp_path: Path
) -> None:
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "keys", "namespace": NAMESPACE},
        "stringData": {"dhchapKey": SECRET},
    }
    await installation.client.create(resources.SECRETS, secret)
    annotations = {"vendor.example/api-token": SECRET, "kubectl.kubernetes.io/last-applied-configuration": SECRET}
    await installation.client.merge_patch(resources.NODES, DPU_NODE, "", {"metadata": {"annotations": annotations}})
    file = tmp_path / "support.tar.gz"
    ended = await dpuctl("bundle", "-f", str(file), environ=kubectl)
    assert ended.exit_code == 0, ended.stderr
    assert file.stat().st_mode & 0o777 == 0o600
    with tarfile.open(file) as archive:
        contents = {each.name: archive.extractfile(each).read().decode() for each in archive}  # type: ignore[union-attr]
    assert {"dpu-offload/machines.json", "dpu-offload/doctor.json", "dpu-offload/cluster/nodes.json"} <= set(contents)
    assert any(name.startswith(f"dpu-offload/logs/{NAMESPACE}/") for name in contents)
    assert "pf0vf0" in contents["dpu-offload/machines.json"]
    assert [name for name, text in contents.items() if SECRET in text] == []


async def test_a_cluster_that_is_away_ends_with_three(tmp_path: Path) -> None:
    ended = await dpuctl("status", "--kubeconfig", str(tmp_path / "none"))
    assert (ended.exit_code, ended.stdout) == (3, "")
    assert ended.stderr.startswith("dpuctl: cannot read the cluster of ")


async def test_wrong_usage_ends_with_two() -> None:
    assert (await dpuctl("trace", "one")).exit_code == 2
    assert (await dpuctl("inspect", "--daemon", "sshd=/x")).exit_code == 2


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
async def test_a_shell_is_given_its_completion(shell: str) -> None:
    ended = await dpuctl("completion", shell)
    assert "_DPUCTL_COMPLETE" in ended.output


def test_the_list_of_commands_is_what_there_is() -> None:
    context = click.Context(main)
    names = main.list_commands(context)  # type: ignore[attr-defined]
    assert all(main.get_command(context, name) is not None for name in names)  # type: ignore[attr-defined]
    assert main.get_command(context, "nothing") is None  # type: ignore[attr-defined]
