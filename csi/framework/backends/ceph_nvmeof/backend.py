"""The verbs of backend kind `ceph-nvmeof`: the gateways keep all state, each verb asks for it first."""

import asyncio
import errno
from collections.abc import Mapping, Sequence

from csi import identity
from csi.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, OutOfRange
from csi.framework import naming
from csi.framework.backend import (
    NO_LIMITS,
    Capabilities,
    Finding,
    HostKeys,
    Portal,
    Qos,
    SizeRange,
    Volume,
    VolumeSpec,
)
from csi.framework.backends.ceph_nvmeof.config import CephConfig, CephParameters, Listener
from csi.framework.backends.ceph_nvmeof.gateway import Gateways
from csi.framework.locks import Locks
from csi.framework.minimal import MinimalBackend
from csi.framework.sizes import MIB, rounded
from dpu_offload_stubs.ceph_nvmeof import gateway_pb2 as pb

# RBD images end at 2^63 bytes; beyond this no cluster is, and the gateway's own error would say less.
_LARGEST = 1 << 50
_BLOCK = 512


class CephBackend(MinimalBackend[CephParameters]):
    """A volume's key is its RBD image's name."""

    def __init__(self, name: str, config: CephConfig) -> None:
        if not config.gateways or all(each.secure for each in config.listeners):
            raise ValueError("gateways and listeners: at least one of each is needed, a listener without `secure`")
        if config.tls is None and any(not address.startswith("unix:") for address in config.gateways):
            raise ValueError("tls: gateways over the network are called with mutual TLS only")
        self.name = name
        self._config = config
        self._gateways = Gateways(config)
        self._locks = Locks()
        self._portals = tuple(_portal(each) for each in config.listeners if not each.secure)
        self._secure_portals = tuple(_portal(each) for each in config.listeners if each.secure)

    @property
    def capabilities(self) -> Capabilities:
        """Snapshots are RBD's own, which the gateways' interface does not reach."""
        secure = bool(self._secure_portals)
        return Capabilities(expand=True, qos=True, authentication=True, encryption_in_transit=secure)

    async def close(self) -> None:
        await self._gateways.close()

    # --- volumes ----------------------------------------------------------------------------------------------------

    async def create(self, spec: VolumeSpec[CephParameters]) -> Volume:
        if spec.source is not None:
            raise InvalidArgument("the gateways make no volumes from snapshots or volumes")
        _refuse_unsupported_limits(spec.qos)
        key = naming.volume(spec.token)
        size = rounded(spec.size, cluster=MIB, default=self._config.default_size)
        if size > _LARGEST:
            raise OutOfRange(f"{size} bytes are more than an RBD image may have here ({_LARGEST})")
        pool = spec.parameters.rbd_pool or self._config.rbd_pool
        async with self._locks.hold(key):
            nqn = self._nqn(key)
            subsystem = pb.CreateSubsystem(
                subsystem_nqn=nqn,
                serial_number=identity.serial_number(self._id(key)),
                max_namespaces=1,
                enable_ha=True,
                no_group_append=True,
            )
            present = await self._namespace(key)
            if present is None:
                # The subsystem first: it carries the name by which a broken-off creation is found again.
                await self._gateways.call(f"create {nqn}", "create_subsystem", subsystem, accept=(errno.EEXIST,))
                await self._add_namespace(key, pool, size)
            elif present.rbd_image_size < spec.size.required or (
                spec.size.limit and present.rbd_image_size > spec.size.limit
            ):
                raise AlreadyExists(f"volume {self._id(key)} exists with {present.rbd_image_size} bytes")
            elif present.rbd_pool_name != pool:
                raise AlreadyExists(f"volume {self._id(key)} exists in RBD pool {present.rbd_pool_name}, not in {pool}")
            await self._listen(key)
            if spec.qos != NO_LIMITS:
                await self._limit(key, spec.qos)
            return await self.get(key)

    async def delete(self, key: str) -> None:
        if not naming.VOLUME.fullmatch(key):
            return
        async with self._locks.hold(key):
            hosts = await self._hosts(key)
            if hosts:
                raise FailedPrecondition(
                    f"volume {self._id(key)} is published to {', '.join(hosts)}: unpublish it first"
                )
            await self._remove(key)

    async def get(self, key: str) -> Volume:
        namespace = await self._namespace(key)
        if namespace is None:
            raise NotFound(f"volume {self._id(key)} does not exist on the gateways")
        hosts, listening = await asyncio.gather(self._hosts(key), self._listening(key))
        return Volume(
            key=key,
            size=namespace.rbd_image_size,
            portals=self._portals,
            secure_portals=self._secure_portals,
            hosts=hosts,
            exported=listening >= {*self._portals, *self._secure_portals},
        )

    async def volumes(self) -> Sequence[Volume]:
        found = []
        for key in await self._keys():
            try:
                found.append(await self.get(key))
            except NotFound:
                # A subsystem without its namespace: garbage, or just being made.
                continue
        return found

    async def grant(self, key: str, host_nqn: str, *, keys: HostKeys, shared: bool) -> Volume:
        async with self._locks.hold(key):
            volume = await self.get(key)
            others = [host for host in volume.hosts if host != host_nqn]
            if others and not shared:
                raise FailedPrecondition(
                    f"volume {self._id(key)} is in use by {', '.join(others)}; unpublish it there first"
                )
            if not volume.exported:
                await self._listen(key)
            if host_nqn not in volume.hosts:
                await self._admit(key, host_nqn, keys)
            elif keys.dhchap_key:
                change = pb.ChangeHostKey(
                    subsystem_nqn=self._nqn(key),
                    host_nqn=host_nqn,
                    dhchap_key=keys.dhchap_key,
                    dhchap_ctrlr_key=keys.dhchap_ctrlr_key or None,
                )
                await self._gateways.call(self._letting(key, host_nqn), "change_host_key", change)
            return volume

    async def revoke(self, key: str, host_nqn: str) -> None:
        if not naming.VOLUME.fullmatch(key):
            return
        async with self._locks.hold(key):
            request = pb.RemoveHost(subsystem_nqn=self._nqn(key), host_nqn=host_nqn, force=True)
            what = f"cut {host_nqn} off {self._id(key)}"
            await self._gateways.call(what, "remove_host", request, accept=(errno.ENOENT, errno.ENODEV))

    async def expand(self, key: str, size: SizeRange) -> Volume:
        async with self._locks.hold(key):
            volume = await self.get(key)
            if size.limit and volume.size > size.limit:
                raise OutOfRange(f"volume {self._id(key)} has {volume.size} bytes already; volumes never shrink")
            if volume.size >= size.required:
                return volume
            wanted = rounded(size, cluster=MIB, default=self._config.default_size)
            if wanted > _LARGEST:
                raise OutOfRange(f"{wanted} bytes are more than an RBD image may have here ({_LARGEST})")
            request = pb.ResizeNamespace(
                subsystem_nqn=self._nqn(key), nsid=identity.REMOTE_NSID, new_size=wanted // MIB
            )
            await self._gateways.call(f"grow {self._id(key)}", "namespace_resize", request)
            return await self.get(key)

    async def set_qos(self, key: str, qos: Qos) -> None:
        _refuse_unsupported_limits(qos)
        async with self._locks.hold(key):
            await self.get(key)
            await self._limit(key, qos)

    # --- the storage as a whole -------------------------------------------------------------------------------------

    async def converge(self, wanted: Mapping[str, Mapping[str, HostKeys]], qos: Mapping[str, Qos]) -> None:
        for volume in await self.volumes():
            async with self._locks.hold(volume.key):
                if not volume.exported:
                    await self._listen(volume.key)
                for host, keys in wanted.get(volume.key, {}).items():
                    if host not in volume.hosts:
                        await self._admit(volume.key, host, keys)

    async def garbage(self) -> Sequence[Finding]:
        return [
            Finding(kind="subsystem", name=self._nqn(key), reason="its namespace does not exist", volume_key=key)
            for key in await self._keys()
            if await self._namespace(key) is None
        ]

    async def remove(self, finding: Finding) -> None:
        async with self._locks.hold(finding.volume_key):
            if await self._namespace(finding.volume_key) is None:
                await self._remove(finding.volume_key)

    # --- inner ------------------------------------------------------------------------------------------------------

    async def _admit(self, key: str, host_nqn: str, keys: HostKeys) -> None:
        request = pb.AddHost(
            subsystem_nqn=self._nqn(key),
            host_nqn=host_nqn,
            psk=keys.tls_psk or None,
            dhchap_key=keys.dhchap_key or None,
            dhchap_ctrlr_key=keys.dhchap_ctrlr_key or None,
        )
        await self._gateways.call(self._letting(key, host_nqn), "add_host", request, accept=(errno.EEXIST,))

    def _letting(self, key: str, host_nqn: str) -> str:
        return f"let {host_nqn} into {self._id(key)}"

    def _id(self, key: str) -> identity.VolumeId:
        return identity.VolumeId(self.name, key)

    def _nqn(self, key: str) -> str:
        return identity.subsystem_nqn(self._id(key))

    async def _keys(self) -> list[str]:
        answer: pb.Subsystems = await self._gateways.call("list subsystems", "list_subsystems", pb.ListSubsystems())
        volumes = (identity.volume_of_nqn(each.nqn) for each in answer.subsystems)
        return sorted(volume.key for volume in volumes if volume is not None and volume.backend == self.name)

    async def _namespace(self, key: str) -> pb.GatewayNamespace | None:
        if not naming.VOLUME.fullmatch(key):
            return None
        request = pb.ListNamespaces(subsystem=self._nqn(key))
        accept = (errno.ENOENT, errno.ENODEV)
        answer: pb.Namespaces = await self._gateways.call(f"look at {key}", "list_namespaces", request, accept=accept)
        return next((each for each in answer.namespaces if each.nsid == identity.REMOTE_NSID), None)

    async def _add_namespace(self, key: str, pool: str, size: int) -> None:
        request = pb.AddNamespace(
            rbd_pool_name=pool,
            rbd_image_name=key,
            subsystem_nqn=self._nqn(key),
            nsid=identity.REMOTE_NSID,
            block_size=_BLOCK,
            uuid=identity.namespace_uuid(self._id(key)),
            create_image=True,
            size=size,
            trash_image=True,
        )
        await self._gateways.call(f"create volume {self._id(key)}", "namespace_add", request)

    async def _listen(self, key: str) -> None:
        listening = await self._listening(key)
        for listener in self._config.listeners:
            if _portal(listener) not in listening:
                request = pb.CreateListener(
                    nqn=self._nqn(key),
                    host_name=listener.host_name,
                    traddr=listener.address,
                    trsvcid=listener.port,
                    adrfam=pb.ipv6 if ":" in listener.address else pb.ipv4,
                    secure=listener.secure,
                )
                what = f"listen for {self._id(key)} at {listener.address}"
                await self._gateways.call(what, "create_listener", request, accept=(errno.EEXIST,))

    async def _listening(self, key: str) -> set[Portal]:
        request = pb.ListListeners(subsystem=self._nqn(key))
        accept = (errno.ENOENT, errno.ENODEV)
        answer: pb.Listeners = await self._gateways.call("list listeners", "list_listeners", request, accept=accept)
        return {Portal("tcp", each.traddr, each.trsvcid) for each in answer.listeners}

    async def _hosts(self, key: str) -> tuple[str, ...]:
        request = pb.ListHosts(subsystem=self._nqn(key))
        accept = (errno.ENOENT, errno.ENODEV)
        answer: pb.Hosts = await self._gateways.call("list hosts", "list_hosts", request, accept=accept)
        return tuple(sorted(host.nqn for host in answer.hosts))

    async def _limit(self, key: str, qos: Qos) -> None:
        request = pb.SetLimits(
            subsystem_nqn=self._nqn(key),
            nsid=identity.REMOTE_NSID,
            rw_ios_per_second=qos.read_write_iops,
            rw_mbytes_per_second=qos.read_write_mb_per_second,
            r_mbytes_per_second=qos.read_mb_per_second,
            w_mbytes_per_second=qos.write_mb_per_second,
            force=True,
        )
        await self._gateways.call(f"set limits of {self._id(key)}", "namespace_set_qos_limits", request)

    async def _remove(self, key: str) -> None:
        gone = (errno.ENOENT, errno.ENODEV)
        space = pb.DeleteNamespace(subsystem_nqn=self._nqn(key), nsid=identity.REMOTE_NSID, i_am_sure=True)
        await self._gateways.call(f"delete volume {self._id(key)}", "namespace_delete", space, accept=gone)
        subsystem = pb.DeleteSubsystem(subsystem_nqn=self._nqn(key), force=True)
        await self._gateways.call(f"delete {self._nqn(key)}", "delete_subsystem", subsystem, accept=gone)


def _portal(listener: Listener) -> Portal:
    return Portal("tcp", listener.address, listener.port)


def _refuse_unsupported_limits(qos: Qos) -> None:
    if qos.read_iops or qos.write_iops:
        raise InvalidArgument("readIops, writeIops: the gateways limit reads and writes together; use readWriteIops")
