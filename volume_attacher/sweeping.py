"""Removing objects of ours that no record accounts for, the host's side first."""

import logging
from typing import Final

from volume_attacher import naming
from volume_attacher.actual import Parts
from volume_attacher.bridge import Bridge

log: Final = logging.getLogger(__name__)


async def sweep(bridge: Bridge, identifier: str, parts: Parts) -> None:
    """Remove all that is under one id. Raises BridgeError at the first refusal; a later sweep goes on."""
    log.info("removing what is left under %s", identifier)
    delete = bridge.single.delete
    if parts.limited:
        await delete(naming.qos_name(identifier))
    for shown in parts.namespaces:
        await delete(naming.namespace_name(identifier, shown.nsid))
    for place in parts.places:
        await delete(naming.controller_name(identifier, *place.key))
    if parts.subsystem:
        await delete(naming.subsystem_name(identifier))
    if parts.encrypted:
        await delete(naming.encrypted_name(identifier))
    if parts.remote:
        for path in await bridge.path_names(identifier):
            await delete(path)
        await delete(naming.remote_name(identifier))
