"""PersistentVolumes, fetched when an attachment names one: a DPU needs a few of a cluster's many."""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from csi.controller import secrets, volume_context
from csi.errors import InvalidArgument
from csi.node_dpu.desired import needs_keys
from dpu_offload_stubs.attacher.v1 import attacher_pb2
from foundation.kube.client import KubeClient
from foundation.kube.errors import NotFound
from foundation.kube.models.core import PersistentVolume
from foundation.kube.resources import PERSISTENT_VOLUMES, SECRETS


class Volumes:
    """What is kept of a volume never changes in Kubernetes: its CSI source is immutable."""

    def __init__(self, kube: KubeClient) -> None:
        self._kube = kube
        self._known: dict[str, PersistentVolume] = {}
        self._view = MappingProxyType(self._known)

    @property
    def known(self) -> Mapping[str, PersistentVolume]:
        return self._view

    async def fetch(self, names: Iterable[str]) -> None:
        """Learn those of `names` that are not known, forget all others. Raises KubeError."""
        wanted = set(names)
        for name in set(self._known) - wanted:
            del self._known[name]
        for name in wanted - set(self._known):
            try:
                self._known[name] = await self._kube.get(PERSISTENT_VOLUMES, name)
            except NotFound:
                continue

    async def add_secrets(self, request: attacher_pb2.AttachRequest, volume: PersistentVolume) -> None:
        """Put the volume's keys into `request`, if it has any. Raises KubeError, InvalidArgument."""
        source = volume.spec.csi
        if source is None:
            return
        if not needs_keys(volume):
            return
        context = volume_context.parse(source.volume_attributes or {})
        reference = source.controller_publish_secret_ref
        if reference is None:
            raise InvalidArgument(
                f"PersistentVolume {volume.metadata.name} needs keys, but has no controllerPublishSecretRef"
            )
        secret = await self._kube.get(SECRETS, reference.name, reference.namespace)
        values = {key: value.decode() for key, value in (secret.data or {}).items()}
        secrets.hide(values)
        keys = secrets.host_keys(
            values, authentication=context.authentication, encryption_in_transit=context.encryption_in_transit
        )
        if keys:
            request.credentials.dhchap_key = keys.dhchap_key
            request.credentials.dhchap_ctrlr_key = keys.dhchap_ctrlr_key
            request.credentials.tls_psk = keys.tls_psk
        if context.encryption:
            encryption = secrets.encryption_keys(values)
            request.encryption.key = encryption.key
            request.encryption.tweak_key = encryption.tweak_key
