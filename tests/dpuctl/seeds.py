"""How faults are seeded into the healthy installation, each undone at the end of its block."""

from __future__ import annotations

import datetime
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from cni.node.ovn_controller import OvnController
from foundation.kube import resources
from foundation.ovsdb import operations as op
from lab import objects
from lab.layout import DPU_NODE, HOST_NODE
from lab.network import namespaces
from lab.network.commands import ip
from tests.dpuctl.cluster_objects import PF, REPRESENTOR, VOLUME
from tests.dpuctl.installation import Installation, disk

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
