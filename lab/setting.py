"""The objects a lab needs in its cluster before any daemon runs, and their removal."""

from __future__ import annotations

import contextlib

from foundation.kube import resources
from foundation.kube.client import KubeClient
from foundation.kube.errors import AlreadyExists, NotFound
from lab import objects
from lab.layout import DEFAULT_NODE, DPU_NODE, DRIVER, HOST_NODE

NODES = (DEFAULT_NODE, HOST_NODE, DPU_NODE)


async def create_objects(client: KubeClient, *, class_parameters: dict[str, str]) -> None:
    """Nodes, a namespace, the CSIDriver and a StorageClass. What exists already is left as it is."""
    for name in NODES:
        with contextlib.suppress(AlreadyExists):
            await client.create(resources.NODES, objects.node(name))
        await client.merge_patch(resources.NODES, name, "", objects.node_addresses(name), subresource="status")
    with contextlib.suppress(AlreadyExists):
        await client.create(resources.NAMESPACES, objects.namespace(objects.NAMESPACE))
    with contextlib.suppress(AlreadyExists):
        await client.create(resources.SERVICE_ACCOUNTS, objects.service_account())
    with contextlib.suppress(AlreadyExists):
        await client.create(resources.CSI_DRIVERS, objects.csi_driver())
    with contextlib.suppress(AlreadyExists):
        await client.create(resources.STORAGE_CLASSES, objects.storage_class(class_parameters))


async def remove_objects(client: KubeClient) -> None:
    """Undo ``create_objects``, for a cluster that outlives the lab."""
    with contextlib.suppress(NotFound):
        await client.delete(resources.NAMESPACES, objects.NAMESPACE)
    with contextlib.suppress(NotFound):
        await client.delete(resources.STORAGE_CLASSES, objects.STORAGE_CLASS)
    with contextlib.suppress(NotFound):
        await client.delete(resources.CSI_DRIVERS, DRIVER)
    for name in NODES:
        with contextlib.suppress(NotFound):
            await client.delete(resources.CSI_NODES, name)
        with contextlib.suppress(NotFound):
            await client.delete(resources.NODES, name)
