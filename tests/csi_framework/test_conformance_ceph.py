"""Backend kind `ceph-nvmeof` under the conformance suite, against a stand-in of the gateways' gRPC interface."""

import errno
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest

from csi import identity
from csi.errors import Unavailable
from csi.framework.backend import HostKeys, Qos, SizeRange, VolumeSpec
from csi.framework.backends.ceph_nvmeof import CephBackend
from csi.framework.backends.ceph_nvmeof.config import CephConfig, CephParameters, Listener
from csi.framework.conformance.storage import Storage
from csi.framework.conformance.suite import BackendConformance
from dpu_offload_stubs.ceph_nvmeof import gateway_pb2 as pb
from dpu_offload_stubs.ceph_nvmeof import gateway_pb2_grpc
from foundation.daemon.serving import ErrorTable, listen_unix, make_server

MIB = 1 << 20
Context = grpc.aio.ServicerContext[Any, Any]
OK = pb.Status()


class Subsystem:
    def __init__(self) -> None:
        self.space: pb.GatewayNamespace | None = None
        self.hosts: dict[str, pb.AddHost] = {}
        self.listeners: list[pb.CreateListener] = []
        self.limits: pb.SetLimits | None = None


class Gateway(gateway_pb2_grpc.GatewayServicer):
    """Refuses what the gateway refuses, with the same errno; `group` is what a group of gateways shares."""

    def __init__(self, group: dict[str, Subsystem], images: dict[str, int]) -> None:
        self.group = group
        self.images = images

    async def create_subsystem(self, request: pb.CreateSubsystem, context: Context) -> pb.SubsystemStatus:
        assert request.no_group_append
        assert request.enable_ha
        if request.subsystem_nqn in self.group:
            return pb.SubsystemStatus(status=errno.EEXIST, error_message="Subsystem already exists")
        self.group[request.subsystem_nqn] = Subsystem()
        return pb.SubsystemStatus(nqn=request.subsystem_nqn)

    async def delete_subsystem(self, request: pb.DeleteSubsystem, context: Context) -> pb.Status:
        if request.subsystem_nqn not in self.group:
            return pb.Status(status=errno.ENOENT, error_message="No such subsystem")
        del self.group[request.subsystem_nqn]
        return OK

    async def list_subsystems(self, request: pb.ListSubsystems, context: Context) -> pb.Subsystems:
        return pb.Subsystems(subsystems=[pb.GatewaySubsystem(nqn=nqn) for nqn in self.group])

    async def namespace_add(self, request: pb.AddNamespace, context: Context) -> pb.NamespaceStatus:
        subsystem = self.group.get(request.subsystem_nqn)
        if subsystem is None:
            return pb.NamespaceStatus(status=errno.ENOENT, error_message="No such subsystem")
        if subsystem.space is not None:
            return pb.NamespaceStatus(status=errno.EEXIST, error_message="NSID is in use")
        if request.size % MIB or not request.size:
            return pb.NamespaceStatus(status=errno.EINVAL, error_message="size must be aligned to MiBs")
        have = self.images.get(request.rbd_image_name)
        if have is not None and have != request.size:
            return pb.NamespaceStatus(status=errno.EEXIST, error_message="Image exists with another size")
        self.images[request.rbd_image_name] = request.size
        subsystem.space = pb.GatewayNamespace(
            nsid=request.nsid,
            rbd_image_name=request.rbd_image_name,
            rbd_pool_name=request.rbd_pool_name,
            rbd_image_size=request.size,
            uuid=request.uuid,
        )
        return pb.NamespaceStatus(nsid=request.nsid)

    async def namespace_delete(self, request: pb.DeleteNamespace, context: Context) -> pb.Status:
        subsystem = self.group.get(request.subsystem_nqn)
        if subsystem is None or subsystem.space is None:
            return pb.Status(status=errno.ENODEV, error_message="Can't find namespace")
        del self.images[subsystem.space.rbd_image_name]
        subsystem.space = None
        return OK

    async def namespace_resize(self, request: pb.ResizeNamespace, context: Context) -> pb.Status:
        space = self.group[request.subsystem_nqn].space
        assert space is not None
        if request.new_size * MIB < space.rbd_image_size:
            return pb.Status(status=errno.EINVAL, error_message="new size is smaller than current size")
        space.rbd_image_size = request.new_size * MIB
        return OK

    async def namespace_set_qos_limits(self, request: pb.SetLimits, context: Context) -> pb.Status:
        self.group[request.subsystem_nqn].limits = request
        return OK

    async def list_namespaces(self, request: pb.ListNamespaces, context: Context) -> pb.Namespaces:
        subsystem = self.group.get(request.subsystem)
        if subsystem is None:
            return pb.Namespaces(status=errno.ENOENT, error_message="No such subsystem")
        return pb.Namespaces(namespaces=[subsystem.space] if subsystem.space else [])

    async def create_listener(self, request: pb.CreateListener, context: Context) -> pb.Status:
        listeners = self.group[request.nqn].listeners
        if any(each.traddr == request.traddr and each.trsvcid == request.trsvcid for each in listeners):
            return pb.Status(status=errno.EEXIST, error_message="Listener already exists")
        listeners.append(request)
        return OK

    async def list_listeners(self, request: pb.ListListeners, context: Context) -> pb.Listeners:
        subsystem = self.group.get(request.subsystem)
        if subsystem is None:
            return pb.Listeners(status=errno.ENOENT, error_message="No such subsystem")
        return pb.Listeners(
            listeners=[
                pb.GatewayListener(host_name=each.host_name, traddr=each.traddr, trsvcid=each.trsvcid)
                for each in subsystem.listeners
            ]
        )

    async def add_host(self, request: pb.AddHost, context: Context) -> pb.Status:
        hosts = self.group[request.subsystem_nqn].hosts
        if request.host_nqn in hosts:
            return pb.Status(status=errno.EEXIST, error_message="Host is already added")
        hosts[request.host_nqn] = request
        return OK

    async def change_host_key(self, request: pb.ChangeHostKey, context: Context) -> pb.Status:
        self.group[request.subsystem_nqn].hosts[request.host_nqn].dhchap_key = request.dhchap_key
        return OK

    async def remove_host(self, request: pb.RemoveHost, context: Context) -> pb.Status:
        subsystem = self.group.get(request.subsystem_nqn)
        if subsystem is None or subsystem.hosts.pop(request.host_nqn, None) is None:
            return pb.Status(status=errno.ENOENT, error_message="Host is not found")
        return OK

    async def list_hosts(self, request: pb.ListHosts, context: Context) -> pb.Hosts:
        subsystem = self.group.get(request.subsystem)
        if subsystem is None:
            return pb.Hosts(status=errno.ENOENT, error_message="No such subsystem")
        return pb.Hosts(hosts=[pb.GatewayHost(nqn=nqn) for nqn in subsystem.hosts])


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="ceph-", dir="/tmp") as name:
        yield Path(name)


async def serve(path: Path, gateway: Gateway) -> grpc.aio.Server:
    server = make_server(errors=ErrorTable({}), service="gateway")
    gateway_pb2_grpc.add_GatewayServicer_to_server(gateway, server)
    listen_unix(server, path)
    await server.start()
    return server


@pytest.fixture
async def gateway(directory: Path) -> AsyncIterator[Gateway]:
    gateway = Gateway({}, {})
    server = await serve(directory / "one.sock", gateway)
    yield gateway
    await server.stop(0)


@pytest.fixture
async def backend(directory: Path, gateway: Gateway) -> AsyncIterator[CephBackend]:
    config = CephConfig(
        gateways=(f"unix:{directory}/one.sock", f"unix:{directory}/two.sock"),
        listeners=(Listener(host_name="gw1", address="192.0.2.1"), Listener(host_name="gw2", address="2001:db8::2")),
        rbd_pool="rbd",
    )
    backend = CephBackend("ceph", config)
    await backend.start()
    yield backend
    await backend.close()


class TestCephNvmeof(BackendConformance):
    @pytest.fixture
    async def storage(self, backend: CephBackend, gateway: Gateway) -> Storage:
        return Storage(backend=backend, parameters=CephParameters(), limits=Qos(read_write_iops=500))


def spec(name: str) -> VolumeSpec[CephParameters]:
    return VolumeSpec(token=identity.hashed(name), size=SizeRange(4 * MIB), parameters=CephParameters())


async def test_keys_listeners_and_images(backend: CephBackend, gateway: Gateway) -> None:
    volume = await backend.create(spec("a"))
    (subsystem,) = gateway.group.values()
    assert [(each.host_name, each.traddr, each.adrfam) for each in subsystem.listeners] == [
        ("gw1", "192.0.2.1", pb.ipv4),
        ("gw2", "2001:db8::2", pb.ipv6),
    ]
    host = identity.host_nqn("one")
    await backend.grant(volume.key, host, keys=HostKeys(dhchap_key="first", tls_psk="psk"), shared=False)
    assert (subsystem.hosts[host].dhchap_key, subsystem.hosts[host].psk) == ("first", "psk")
    await backend.grant(volume.key, host, keys=HostKeys(dhchap_key="second"), shared=False)
    assert subsystem.hosts[host].dhchap_key == "second"
    assert gateway.images == {volume.key: 4 * MIB}
    await backend.revoke(volume.key, host)
    await backend.delete(volume.key)
    assert (gateway.images, gateway.group) == ({}, {})


async def test_a_broken_off_creation_is_ended_or_found(backend: CephBackend, gateway: Gateway) -> None:
    volume = await backend.create(spec("a"))
    (subsystem,) = gateway.group.values()
    subsystem.space = None
    subsystem.listeners.clear()
    (finding,) = await backend.garbage()
    assert finding.volume_key == volume.key
    assert (await backend.create(spec("a"))).exported
    assert await backend.garbage() == []
    await backend.remove(finding)
    assert (await backend.get(volume.key)).exported, "what belongs again is not removed"


async def test_another_gateway_of_the_group_takes_over(backend: CephBackend, gateway: Gateway, directory: Path) -> None:
    volume = await backend.create(spec("a"))
    second = await serve(directory / "two.sock", Gateway(gateway.group, gateway.images))
    (directory / "one.sock").unlink()
    await backend.close()
    backend = CephBackend("ceph", backend._config)
    try:
        assert (await backend.get(volume.key)).size == 4 * MIB
        await second.stop(0)
        with pytest.raises(Unavailable, match="no gateway"):
            await backend.get(volume.key)
    finally:
        await backend.close()
