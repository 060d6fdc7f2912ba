"""Removing objects of ours that no record accounts for, the host's side first."""

import logging
from typing import Final

from volume_attacher.actual import Parts
from volume_attacher.bridge import Bridge

log: Final = logging.getLogger(__name__)


async def sweep(bridge: Bridge, identifier: str, parts: Parts) -> None:
    """Remove all that is under one id. Raises BridgeError at the first refusal; a later sweep goes on."""
    log.info("removing what is left under %s", identifier)
    if parts.limited:
        await bridge.delete_qos(identifier)
    for shown in parts.namespaces:
        await bridge.delete_namespace(identifier, shown.nsid)
    for place in parts.places:
        await bridge.delete_controller(identifier, place)
    if parts.subsystem:
        await bridge.delete_subsystem(identifier)
    if parts.encrypted:
        await bridge.delete_encrypted(identifier)
    if parts.remote:
        for path in await bridge.path_names(identifier):
            await bridge.disconnect(path)
        await bridge.delete_remote(identifier)
