"""dpuctl doctor finds seeded faults, one at a time, and names the cure of each."""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from cni.node.ovn_controller import OvnController
from dpuctl.doctor.checks import ALL
from dpuctl.inspection import machine, switch
from foundation.kube import resources
from foundation.ovsdb import operations as op
from lab import objects
from lab.layout import DPU_NODE, HOST_NODE
from lab.network import namespaces
from lab.network.commands import ip
from tests.dpuctl.installation import PF, POD, REPRESENTOR, VOLUME, Installation, disk

in_one_loop = pytest.mark.asyncio(loop_scope="session")
Seeded = AsyncIterator[dict[str, Any]]
ORPHAN = "nqn.2026-11.io.dpu-offload:volume.main.p0.vbbbbbbbbbbbbbbbbbbbb"


@dataclass(frozen=True)
class Fault:
    """What is done, which check must find it, and words of its problem and its cure."""

    seed: Callable[[Installation], AbstractAsyncContextManager[dict[str, Any]]]
    check: str
    problem: str
    cure: str


def undone(
    act: Callable[[Installation], Awaitable[object]], undo: Callable[[Installation], Awaitable[object]]
) -> Callable[[Installation], AbstractAsyncContextManager[dict[str, Any]]]:
    @asynccontextmanager
    async def seed(one: Installation) -> Seeded:
        await act(one)
        try:
            yield {}
        finally:
            await undo(one)

    return seed


def configured(daemon: str, **changes: Any) -> Callable[[Installation], AbstractAsyncContextManager[dict[str, Any]]]:
    @asynccontextmanager
    async def seed(one: Installation) -> Seeded:
        before = one.settings[daemon]
        one.settings[daemon] = {
            key: str(value).format(directory=one.directory) if isinstance(value, str) else value
            for key, value in {**before, **changes}.items()
        }
        try:
            yield {}
        finally:
            one.settings[daemon] = before

    return seed


def seen(**changes: Any) -> Callable[[Installation], AbstractAsyncContextManager[dict[str, Any]]]:
    @asynccontextmanager
    async def seed(one: Installation) -> Seeded:
        yield changes

    return seed


def listening(directory: Path, name: str) -> str:
    """A socket file without a process, as a killed SPDK leaves it."""
    path = directory / name
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    return f"unix:{path}"


def interface(**columns: Any) -> Callable[[Installation], Awaitable[object]]:
    return lambda one: one.set_interface(REPRESENTOR, **columns)


def root(column: str, key: str, value: str) -> Callable[[Installation], Awaitable[object]]:
    def act(one: Installation) -> Awaitable[object]:
        return one.ovs.transact(
            op.mutate("Open_vSwitch", [], [(column, "delete", frozenset({key}))]),
            *([op.mutate("Open_vSwitch", [], [(column, "insert", {key: value})])] if value else []),
        )

    return act


@asynccontextmanager
async def expired(one: Installation) -> Seeded:
    """The DPU's certificate, issued again with the same key by the same authority, but for the past."""
    path = Path(one.settings["cni-node"]["link"]["tls"]["certificate"])
    before = path.read_bytes()
    old = x509.load_pem_x509_certificate(before)
    key = one.authority._key
    moment = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(old.subject)
        .issuer_name(old.issuer)
        .public_key(old.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(moment - datetime.timedelta(days=2))
        .not_valid_after(moment - datetime.timedelta(days=1))
    )
    for extension in old.extensions:
        builder = builder.add_extension(extension.value, critical=extension.critical)
    path.write_bytes(builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    try:
        yield {}
    finally:
        path.write_bytes(before)


@asynccontextmanager
async def misnamed(one: Installation) -> Seeded:
    path = Path(one.settings["cni-node"]["link"]["tls"]["certificate"])
    key = path.with_suffix(".key")
    before = (path.read_bytes(), key.read_bytes())
    other = one.authority.issue(node="elsewhere", component="cni-node")
    path.write_bytes(other.certificate.read_bytes())
    key.write_bytes(other.key.read_bytes())
    try:
        yield {}
    finally:
        path.write_bytes(before[0])
        key.write_bytes(before[1])


@asynccontextmanager
async def no_spdk(one: Installation) -> Seeded:
    before = one.settings["opi-bridge"]
    one.settings["opi-bridge"] = {**before, "spdk": listening(one.directory, "card.sock")}
    try:
        yield {}
    finally:
        one.settings["opi-bridge"] = before


@asynccontextmanager
async def no_target(one: Installation) -> Seeded:
    pool = one.settings["csi-controller"]["backends"]["main"]["pools"]["p0"]
    before = pool["address"]
    pool["address"] = listening(one.directory, "storage.sock")
    try:
        yield {}
    finally:
        pool["address"] = before


@asynccontextmanager
async def chassis_lost(one: Installation) -> Seeded:
    """Somebody has deleted the row, and ovn-controller is not there to write it again."""
    await one.stop_controller()
    await one.sb.transact(op.delete("Chassis", [("name", "==", DPU_NODE)]))
    try:
        yield {}
    finally:
        one.start_controller()
        await one.sb.until("Chassis", lambda row: bool(row["name"] == DPU_NODE), deadline=30)


@asynccontextmanager
async def legacy(one: Installation) -> Seeded:
    one.tree.add_netdev("p0", pci=PF, port_name="p0", switch_id="")
    one.tree.remove_netdev(REPRESENTOR, pci=PF)
    try:
        yield {}
    finally:
        one.tree.add_netdev("p0", pci=PF, port_name="p0", switch_id="aa01")
        one.tree.add_netdev(REPRESENTOR, pci=PF, port_name="c1pf0vf0", switch_id="aa01")


@asynccontextmanager
async def representor_lost(one: Installation) -> Seeded:
    one.keep_attachment(vf=3)
    try:
        yield {}
    finally:
        one.keep_attachment()


@asynccontextmanager
async def exhausted(one: Installation) -> Seeded:
    """A range of four addresses for pods (the node keeps two of a /29's six), all held."""
    name = "node-small"
    body = objects.node(HOST_NODE)
    body["metadata"] = {"name": name, "labels": {"dpu-offload.io/mode": "default"}}
    body["spec"] = {"podCIDR": "10.250.0.0/29", "podCIDRs": ["10.250.0.0/29"]}
    await one.client.create(resources.NODES, body)
    ready = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
    await one.client.merge_patch(resources.NODES, name, "", ready, subresource="status")
    for last in range(3, 7):
        await one.pod(f"p{last}", address=f"10.250.0.{last}", node=name)
    try:
        yield {}
    finally:
        for last in range(3, 7):
            await one.remove_pod(f"p{last}")
        await one.client.delete(resources.NODES, name)


@asynccontextmanager
async def two_without_election(one: Installation) -> Seeded:
    first = one.settings["cni-controller"]
    one.settings["cni-controller"] = {**first, "leader_election": {"enabled": False}}
    one.settings["cni-controller@2"] = first
    try:
        yield {}
    finally:
        one.settings["cni-controller"] = first
        del one.settings["cni-controller@2"]


@asynccontextmanager
async def narrow_underlay(one: Installation) -> Seeded:
    """The node's links in a namespace of their own, tunnels on a device of 1450 bytes: eight too few."""
    name = f"{one.directory.name}-u"
    before = one.settings["cni-node"]
    await namespaces.create(name)
    try:
        await ip(
            "link add under mtu 1450 type veth peer name wire",
            "link set under up",
            "addr add 192.0.2.77/24 dev under",
            namespace=name,
        )
        await root("external_ids", "ovn-encap-ip", "192.0.2.77")(one)
        one.settings["cni-node"] = {**before, "node_netns": f"/run/netns/{name}"}
        yield {}
    finally:
        one.settings["cni-node"] = before
        await root("external_ids", "ovn-encap-ip", "127.0.0.1")(one)
        await namespaces.remove(name)


def pod_named(name: str, **given: Any) -> Callable[[Installation], AbstractAsyncContextManager[dict[str, Any]]]:
    return undone(lambda one: one.pod(name, **given), lambda one: one.remove_pod(name))


def volumes(change: Callable[[Installation], None]) -> Callable[[Installation], Any]:
    @asynccontextmanager
    async def seed(one: Installation) -> Seeded:
        change(one)
        try:
            yield {}
        finally:
            one.attacher.volumes = {VOLUME: disk()}

    return seed


def host(method: str) -> Callable[[Installation], Awaitable[None]]:
    return lambda one: one.spdk(method, nqn=one.nqn, host=one.host_nqn)


GATEWAY = f"csi-node-host-{HOST_NODE}"
FAULTS = {
    "DPU without host label": Fault(
        undone(lambda one: one.label_dpu(None), lambda one: one.label_dpu(HOST_NODE)),
        "labels",
        "names no host",
        f"kubectl label node {DPU_NODE} dpu-offload.io/host-node=",
    ),
    "host without DPU": Fault(
        undone(lambda one: one.label_dpu("node-gone"), lambda one: one.label_dpu(HOST_NODE)),
        "pairs",
        "no DPU's node names it",
        f"dpu-offload.io/host-node={HOST_NODE}",
    ),
    "all functions in use": Fault(
        undone(
            lambda one: one.annotate_dpu(storage={"functions": {"total": 8, "free": 0}}),
            lambda one: one.annotate_dpu(),
        ),
        "free-functions",
        "all 8 emulated functions are in use",
        "hotplug_functions",
    ),
    "expired certificate": Fault(expired, "certificates", "certificate has expired", "renew it"),
    "certificate of another node": Fault(misnamed, "certificates", "peers expect node-dpu.cni-node", "renew it"),
    "clock skew": Fault(seen(skew=-7.5), "clocks", "7.5 s behind", "chrony"),
    "node's heartbeat from the future": Fault(
        undone(
            lambda one: one.lease(namespace="kube-node-lease", name=HOST_NODE, offset=90.0),
            lambda one: one.client.delete(resources.LEASES, HOST_NODE, "kube-node-lease"),
        ),
        "clocks",
        "comes from the future",
        "chrony",
    ),
    "DPU unreachable": Fault(
        undone(
            lambda one: one.annotate_dpu(link={"endpoint": "127.0.0.1:1"}),
            lambda one: one.annotate_dpu(),
        ),
        "reachability",
        "node-dpu.cni-node.dpu-offload.io at 127.0.0.1:1",
        "firewall",
    ),
    "OVS gone": Fault(
        configured("cni-node", ovsdb="unix:{directory}/nobody.sock"), "switches", "OVS does not answer", "openvswitch"
    ),
    "OVN disconnected": Fault(
        undone(
            root("external_ids", "ovn-remote", "unix:/nowhere/sb.sock"),
            lambda one: restored_remote(one),
        ),
        "ovn-controllers",
        "southbound database",
        "ovn-remote",
    ),
    "ovn-controller gone": Fault(
        undone(lambda one: one.stop_controller(), lambda one: started(one)),
        "ovn-controllers",
        "ovn-controller does not run",
        "ovn-controller's log",
    ),
    "chassis missing": Fault(chassis_lost, "chassis", f"no chassis '{DPU_NODE}'", "system-id"),
    "northbound database gone": Fault(
        configured("cni-controller", northbound={"remotes": "unix:/nowhere/nb.sock"}),
        "northbound",
        "/nowhere/nb.sock",
        "northbound.remotes",
    ),
    "wrong hw-offload": Fault(
        undone(root("other_config", "hw-offload", "false"), root("other_config", "hw-offload", "true")),
        "hardware-offload",
        "hardware offload off",
        "other_config:hw-offload=true, then restart ovs-vswitchd",
    ),
    "no switchdev": Fault(legacy, "switchdev", f"{PF} is not in switchdev mode", f"pci/{PF} mode switchdev"),
    "missing representor": Fault(representor_lost, "representors", "pf0vf3 of pod dpu-lab/web", "delete the pod"),
    "stale port": Fault(
        undone(
            lambda one: one.add_port("pf0vf9", attachment="feed", port="dpu-lab_gone", uid="u"),
            lambda one: one.remove_port("pf0vf9"),
        ),
        "ports",
        "stale: it is port dpu-lab_gone",
        "dpuctl gc --yes",
    ),
    "device under a port gone": Fault(
        undone(interface(error="could not open network device pf0vf0"), interface(error=None)),
        "ports",
        "could not open network device",
        "delete the pod",
    ),
    "flows missing": Fault(
        undone(
            interface(external_ids={"iface-id": f"dpu-lab_{POD}", "dpu-offload/attachment": "0123456789abcdef"}),
            interface(
                external_ids={
                    "iface-id": f"dpu-lab_{POD}",
                    "dpu-offload/attachment": "0123456789abcdef",
                    "ovn-installed": "true",
                }
            ),
        ),
        "ports",
        "has not installed the flows",
        "cni-controller leads",
    ),
    "wrong MTU of a representor": Fault(
        undone(interface(mtu=1280), interface(mtu=1400)), "mtu", "its MTU is 1280, the pod's is 1400", "mtu 1400"
    ),
    "wrong MTU of the underlay": Fault(
        narrow_underlay, "mtu", "(192.0.2.77) is 1450, but pods' 1400 needs 1458", "cluster.mtu to 1392"
    ),
    "IP pool exhausted": Fault(exhausted, "addresses", "10.250.0.0/29 has no free address", "podCIDR"),
    "no address given": Fault(
        pod_named("lonely", address="", phase="Pending"), "assignments", "has given it no address", "Event"
    ),
    "missing NAD": Fault(
        pod_named("picky", address="10.244.1.20", networks="blue@net1"),
        "networks",
        "selects network dpu-lab/blue",
        "get network-attachment-definitions",
    ),
    "CSIDriver missing": Fault(
        undone(
            lambda one: one.client.delete(resources.CSI_DRIVERS, "csi.dpu-offload.io"),
            lambda one: one.client.create(resources.CSI_DRIVERS, objects.csi_driver()),
        ),
        "csi-driver",
        "no CSIDriver",
        "manifests",
    ),
    "driver not registered on a host": Fault(
        undone(
            lambda one: one.client.merge_patch(resources.CSI_NODES, HOST_NODE, "", {"spec": {"drivers": []}}),
            lambda one: one.client.merge_patch(
                resources.CSI_NODES,
                HOST_NODE,
                "",
                {"spec": {"drivers": [{"name": "csi.dpu-offload.io", "nodeID": HOST_NODE, "topologyKeys": None}]}},
            ),
        ),
        "csi-nodes",
        "kubelet does not know the driver",
        "node-driver-registrar",
    ),
    "sidecar missing": Fault(
        undone(
            lambda one: one.suite_pod("csi-controller", node="node-default", sidecars=False),
            lambda one: one.suite_pod("csi-controller", node="node-default"),
        ),
        "side-cars",
        "runs without csi-attacher: no volume is attached",
        "add the container csi-attacher",
    ),
    "a daemon that crashes": Fault(
        undone(
            lambda one: one.suite_pod_status(GATEWAY, waiting="CrashLoopBackOff"),
            lambda one: one.suite_pod_status(GATEWAY),
        ),
        "pods",
        "CrashLoopBackOff, 7 restarts",
        "--previous",
    ),
    "unmatched versions": Fault(
        undone(
            lambda one: one.suite_pod("csi-node-host", node=HOST_NODE, version="0.0.9"),
            lambda one: one.suite_pod("csi-node-host", node=HOST_NODE),
        ),
        "versions",
        "0.0.9: pod dpu-offload/csi-node-host",
        "finish the upgrade",
    ),
    "unusable configuration": Fault(
        configured("csi-controller", backend="main"), "configurations", "unknown key backend", "csi-controller --help"
    ),
    "controller lease stale": Fault(
        undone(lambda one: one.lease(offset=-100_000.0), lambda one: one.lease()),
        "leader",
        "not renewed for 100",
        "northbound database",
    ),
    "two leaders": Fault(
        undone(
            lambda one: one.lease(namespace="abandoned"),
            lambda one: one.client.delete(resources.LEASES, "cni-controller", "abandoned"),
        ),
        "single-writer",
        "two leaders at once",
        "leader_election.enabled: true",
    ),
    "two writers": Fault(two_without_election, "single-writer", "without leader election", "leader_election.enabled"),
    "SPDK of the card gone": Fault(no_spdk, "cards", "SPDK process does not answer", "SNAP"),
    "volume-attacher gone": Fault(
        configured("csi-node-dpu", attacher="unix:/nowhere/attacher.sock"),
        "cards",
        "volume-attacher does not answer",
        "attacher",
    ),
    "storage target gone": Fault(no_target, "targets", "storage does not answer", "start the target"),
    "target ACL missing": Fault(
        undone(host("nvmf_subsystem_remove_host"), host("nvmf_subsystem_add_host")),
        "target-access",
        "access list lacks the DPU's",
        "nvmf_subsystem_add_host",
    ),
    "orphan subsystem": Fault(
        undone(
            lambda one: one.spdk("nvmf_create_subsystem", nqn=ORPHAN, allow_any_host=False),
            lambda one: one.spdk("nvmf_delete_subsystem", nqn=ORPHAN),
        ),
        "leftovers",
        f"orphan subsystem {ORPHAN}",
        "dpuctl gc --yes",
    ),
    "orphan disk on a DPU": Fault(
        volumes(lambda one: one.attacher.volumes.update({"main:p0.vcccc": disk("main:p0.vcccc")})),
        "leftovers",
        "holds volume main:p0.vcccc",
        "dpuctl gc --yes",
    ),
    "disk lost on a DPU": Fault(
        volumes(lambda one: one.attacher.volumes.clear()), "disks", f"does not hold volume {VOLUME}", "csi-node-dpu"
    ),
    "path down": Fault(
        volumes(lambda one: one.attacher.volumes.update({VOLUME: disk(connected=False)})),
        "disks",
        "192.0.2.10:4420 (down)",
        "network between DPU and storage",
    ),
    "attach refused": Fault(
        undone(
            lambda one: one.attachment_status(attached=False, attachError={"message": "no function is free"}),
            lambda one: one.attachment_status(attached=True),
        ),
        "attachments",
        "no function is free",
        "tries again",
    ),
}


async def restored_remote(one: Installation) -> None:
    await root("external_ids", "ovn-remote", one.database)(one)
    await settled(one)


async def started(one: Installation) -> None:
    one.start_controller()
    await settled(one)


async def settled(one: Installation) -> None:
    """Until ovn-controller says that it is connected again."""
    end = time.monotonic() + 30
    while problem := await OvnController(one.directory).problem():
        assert time.monotonic() < end, problem


@in_one_loop
async def test_a_healthy_installation_has_no_findings(installation: Installation) -> None:
    verdicts = await installation.examine()
    found = [(verdict.check.name, one.where, one.problem) for verdict in verdicts for one in verdict.findings]
    assert found == []
    assert len(verdicts) == len(ALL)


@in_one_loop
@pytest.mark.root
@pytest.mark.parametrize("name", FAULTS)
async def test_a_seeded_fault_is_found_with_its_cure(
    installation: Installation, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = FAULTS[name]
    if fault.check in ("switches", "ovn-controllers", "northbound"):
        # A database that is away is waited for; here it is known to stay away.
        for module in (switch, machine):
            monkeypatch.setattr(module, "SECONDS", 0.5)
    async with fault.seed(installation) as changed:
        verdicts = await installation.examine(changed)
    findings = [one for verdict in verdicts for one in verdict.findings if verdict.check.name == fault.check]
    told = [(one.where, one.problem, one.cure) for one in findings]
    assert any(fault.problem in one.problem and fault.cure in one.cure for one in findings), told


@in_one_loop
async def test_the_installation_is_healthy_again_after_all_faults(installation: Installation) -> None:
    verdicts = await installation.examine()
    assert [one for verdict in verdicts for one in verdict.findings] == []


def test_every_check_has_a_seeded_fault() -> None:
    without = {check.name for check in ALL} - {fault.check for fault in FAULTS.values()}
    assert without == {"nodes-ready", "announcements", "storage-classes"}, "each of these has a test of its own"
