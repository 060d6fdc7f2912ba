"""Brings the pods of one node to life and buries them, in kubelet's order.

Up: devices, volumes, sandbox. Down: sandbox, volumes, devices, then the pod's last delete. A failed sandbox is torn
down with DEL and tried again under a new sandbox id. What was done is on disk before the next step, so that a
stand-in which was killed goes on where it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import logging
import shutil
from pathlib import Path
from typing import Any

import msgspec

from foundation.daemon.work import KeyedQueue
from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import NotFound
from foundation.kube.models.core import Pod
from foundation.kube.reflector import Change, Reflector
from lab.kubelet.devices import DeviceManager
from lab.kubelet.sandbox import CniPlugin, Sandbox
from lab.kubelet.volumes import MountedVolume, VolumeMounter, VolumeToMount
from lab.network import namespaces

log = logging.getLogger(__name__)


class Waiting(RuntimeError):
    """Something that another component has to do first; the pod is looked at again when it has."""


class PodRecord(msgspec.Struct, kw_only=True):
    """What this node did for one pod so far."""

    uid: str
    namespace: str
    name: str
    resource: str = ""
    device: str = ""
    in_use: list[str] = []
    volumes: list[MountedVolume] = []
    sandbox: Sandbox | None = None


def load_record(file: Path) -> PodRecord | None:
    """A record as it stands on disk; None when it is gone."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=PodRecord)
    except FileNotFoundError:
        return None


class PodWorker:
    """One pod at a time per key, all of a node's pods side by side."""

    def __init__(
        self,
        *,
        node: str,
        client: KubeClient,
        root: Path,
        plugin: CniPlugin,
        devices: DeviceManager | None,
        mounter: VolumeMounter | None,
        leave_disks: bool = False,
        netns_prefix: str = "cni-",
    ) -> None:
        self._node = node
        self._client = client
        self._root = root
        self._plugin = plugin
        self._devices = devices
        self._mounter = mounter
        self._leave_disks = leave_disks
        self._netns_prefix = netns_prefix
        self._records: dict[str, PodRecord] = {}
        self._pods: Reflector[Pod] = Reflector(client, resources.PODS, field_selector=f"spec.nodeName={node}")
        self._claims = Reflector(client, resources.PERSISTENT_VOLUME_CLAIMS)
        self._attachments = Reflector(client, resources.VOLUME_ATTACHMENTS)
        self._queue: KeyedQueue[str] = KeyedQueue(self._sync)

    async def run(self) -> None:
        """Until cancelled."""
        self._restore()
        self._pods.subscribe(self._pod_changed)
        self._claims.subscribe(lambda _change: self._look_again())
        self._attachments.subscribe(lambda _change: self._look_again())
        async with asyncio.TaskGroup() as group:
            reflectors: tuple[Reflector[Any], ...] = (self._pods, self._claims, self._attachments)
            for reflector in reflectors:
                group.create_task(reflector.run())
            for reflector in reflectors:
                await reflector.synced()
            for record in list(self._records.values()):
                self._queue.add(f"{record.namespace}/{record.name}")
            if self._devices is not None:
                group.create_task(self._report_devices(self._devices))
            group.create_task(self._queue.run())

    # -- what is on disk ---------------------------------------------------------------------------------------

    def _restore(self) -> None:
        for file in (self._root / "pods").glob("*/record.json"):
            record = load_record(file)
            if record is None:
                continue
            self._records[record.uid] = record
            if record.device and self._devices is not None:
                self._devices.hold(record.resource, record.device, record.uid)

    def _save(self, record: PodRecord) -> None:
        directory = self._root / "pods" / record.uid
        directory.mkdir(parents=True, exist_ok=True)
        temporary = directory / "record.new"
        temporary.write_bytes(msgspec.json.encode(record))
        temporary.replace(directory / "record.json")
        self._records[record.uid] = record

    # -- the loop ----------------------------------------------------------------------------------------------

    def _pod_changed(self, change: Change[Pod]) -> None:
        self._queue.add(change.key)

    def _look_again(self) -> None:
        for key in self._pods.store:
            self._queue.add(key)

    async def _sync(self, key: str) -> None:
        pod = self._pods.store.get(key)
        namespace, _, name = key.partition("/")
        for record in list(self._records.values()):
            replaced = pod is None or record.uid != pod.metadata.uid
            if (record.namespace, record.name) == (namespace, name) and replaced:
                await self._tear_down(record)
        if pod is None:
            return
        if pod.metadata.deletion_timestamp:
            known = self._records.get(pod.metadata.uid)
            if known is not None:
                await self._tear_down(known)
            with contextlib.suppress(NotFound):
                await self._client.delete(resources.PODS, name, namespace, uid=pod.metadata.uid, grace_seconds=0)
            return
        try:
            await self._bring_up(pod)
        except Waiting as reason:
            log.info("pod %s waits: %s", key, reason)

    async def _bring_up(self, pod: Pod) -> None:
        record = self._records.get(pod.metadata.uid) or PodRecord(
            uid=pod.metadata.uid, namespace=pod.metadata.namespace, name=pod.metadata.name
        )
        if record.sandbox is not None and record.sandbox.result:
            return
        await self._devices_of(pod, record)
        await self._volumes_of(pod, record)
        if record.sandbox is not None:  # a stand-in that was killed in mid-ADD
            await self._remove_sandbox(record)
        record.sandbox = Sandbox.fresh(
            uid=record.uid,
            namespace=record.namespace,
            name=record.name,
            device_id=record.device,
            netns_prefix=self._netns_prefix,
        )
        self._save(record)
        try:
            await namespaces.create(Path(record.sandbox.netns).name)
            record.sandbox = await self._plugin.add(record.sandbox)
        except Exception as error:
            await self._remove_sandbox(record)
            await self._report(record, phase="Pending", ready=False, message=str(error))
            raise
        self._save(record)
        await self._report(record, phase="Running", ready=True, message="")

    async def _devices_of(self, pod: Pod, record: PodRecord) -> None:
        wanted = {
            name
            for container in pod.spec.containers
            for name, amount in ((container.resources.limits if container.resources else None) or {}).items()
            if "/" in name and str(amount) != "0"
        }
        for resource in sorted(wanted):
            if record.device:
                return
            if self._devices is None:
                raise RuntimeError(f"pod asks for {resource}, but node {self._node} has no device manager")
            record.device = await self._devices.allocate(resource, record.uid)
            record.resource = resource
            self._save(record)

    async def _volumes_of(self, pod: Pod, record: PodRecord) -> None:
        done = {volume.persistent_volume for volume in record.volumes}
        for volume in pod.spec.volumes or ():
            source = volume.persistent_volume_claim
            if source is None:
                continue
            claim = self._claims.store.get(f"{record.namespace}/{source.claim_name}")
            if claim is None or not claim.spec.volume_name or claim.status.phase != "Bound":
                raise Waiting(f"claim {source.claim_name} is not bound")
            if claim.spec.volume_name in done:
                continue
            if self._mounter is None:
                raise RuntimeError(f"pod has volume {volume.name}, but node {self._node} has no CSI driver")
            pv = await self._client.get(resources.PERSISTENT_VOLUMES, claim.spec.volume_name)
            csi = pv.spec.csi
            if csi is None:
                raise RuntimeError(f"PersistentVolume {pv.metadata.name} is not a CSI volume")
            unique = f"kubernetes.io/csi/{csi.driver}^{csi.volume_handle}"
            if unique not in record.in_use:
                record.in_use = [*record.in_use, unique]
                self._save(record)
            await self._in_use(add=unique)
            context = self._publish_context(pv.metadata.name)
            if context is None:
                raise Waiting(f"volume {pv.metadata.name} is not attached to {self._node}")
            if self._leave_disks:
                raise Waiting(f"volume {pv.metadata.name} is attached, and nothing here can take its disk")
            to_mount = VolumeToMount(
                driver=csi.driver,
                handle=csi.volume_handle,
                persistent_volume=pv.metadata.name,
                block=pv.spec.volume_mode == "Block",
                fs_type=csi.fs_type,
                mount_options=pv.spec.mount_options or (),
                access_mode=(pv.spec.access_modes or ("ReadWriteOnce",))[0],
                read_only=source.read_only,
                attributes=csi.volume_attributes or {},
                publish_context=context,
            )
            # On disk first: what is written here is unmounted again, whatever happens from now on.
            record.volumes = [*record.volumes, self._mounter.plan(to_mount, pod_uid=record.uid)]
            self._save(record)
            try:
                await self._mounter.mount(to_mount, pod_uid=record.uid)
            except BaseException:
                record.volumes = record.volumes[:-1]  # asked again by the next try; a retry is idempotent
                raise

    def _publish_context(self, volume: str) -> dict[str, str] | None:
        for attachment in self._attachments.store.values():
            source = attachment.spec.source.persistent_volume_name
            if source == volume and attachment.spec.node_name == self._node and attachment.status.attached:
                return dict(attachment.status.attachment_metadata or {})
        return None

    # -- down --------------------------------------------------------------------------------------------------

    async def _tear_down(self, record: PodRecord) -> None:
        if record.sandbox is not None:
            await self._remove_sandbox(record)
        for mounted in reversed(list(record.volumes)):
            if self._mounter is None:
                raise RuntimeError(f"node {self._node} has lost its CSI driver with {mounted.handle} mounted")
            others = [
                other
                for other in self._records.values()
                if other.uid != record.uid and any(volume.handle == mounted.handle for volume in other.volumes)
            ]
            await self._mounter.unmount(mounted, last=not others)
            record.volumes = [volume for volume in record.volumes if volume != mounted]
            self._save(record)
        for unique in record.in_use:
            if not any(unique in other.in_use for other in self._records.values() if other.uid != record.uid):
                await self._in_use(remove=unique)
        if self._devices is not None:
            self._devices.release(record.uid)
        self._records.pop(record.uid, None)
        directory = self._root / "pods" / record.uid
        (directory / "record.json").unlink(missing_ok=True)
        if not any(path.is_mount() for path in directory.rglob("mount")):
            shutil.rmtree(directory, ignore_errors=True)

    async def _remove_sandbox(self, record: PodRecord) -> None:
        sandbox = record.sandbox
        if sandbox is None:
            return
        await self._plugin.delete(sandbox)
        await namespaces.remove(Path(sandbox.netns).name)
        record.sandbox = None
        self._save(record)

    # -- status ------------------------------------------------------------------------------------------------

    async def _in_use(self, *, add: str = "", remove: str = "") -> None:
        """Keep ``node.status.volumesInUse``: the attach-detach controller waits for it before it detaches."""
        node = await self._client.get(resources.NODES, self._node)
        current = set(node.status.volumes_in_use or ())
        wanted = (current | ({add} if add else set())) - {remove}
        if wanted != current:
            body = {"status": {"volumesInUse": sorted(wanted)}}
            await self._client.merge_patch(resources.NODES, self._node, "", body, subresource="status")

    async def _report(self, record: PodRecord, *, phase: str, ready: bool, message: str) -> None:
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        addresses = record.sandbox.addresses if record.sandbox is not None else []
        status: dict[str, Any] = {
            "phase": phase,
            "message": message or None,
            "podIP": addresses[0] if addresses else None,
            "podIPs": [{"ip": address} for address in addresses],
            "conditions": [
                {"type": "Ready", "status": "True" if ready else "False", "lastTransitionTime": now},
            ],
        }
        with contextlib.suppress(NotFound):
            await self._client.merge_patch(
                resources.PODS, record.name, record.namespace, {"status": status}, subresource="status"
            )

    async def _report_devices(self, devices: DeviceManager) -> None:
        while True:
            await devices.changed.wait()
            devices.changed.clear()
            numbers = {resource: str(amount) for resource, amount in devices.capacity().items()}
            body = {"status": {"capacity": numbers, "allocatable": numbers}}
            await self._client.merge_patch(resources.NODES, self._node, "", body, subresource="status")
            self._look_again()
