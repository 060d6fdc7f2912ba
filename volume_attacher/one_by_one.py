"""OPI resources made and removed by a call each: what a bridge without our card service is asked."""

from __future__ import annotations

import itertools
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from types import ModuleType
from typing import Any, Final

from google.protobuf.message import Message

from dpu_offload_stubs.card.v1 import card_pb2
from dpu_offload_stubs.opi.storage import (
    backend_nvme_pb2,
    frontend_nvme_pb2,
    middleend_encryption_pb2,
    middleend_qos_volume_pb2,
)
from volume_attacher.errors import BridgeError

Ask = Callable[..., Awaitable[Any]]
_PACKAGE: Final = "opi_api.storage.v1"
# By the collections of a resource's name: the module with its requests, and the noun in their names.
_RESOURCES: Final[Mapping[tuple[str, ...], tuple[ModuleType, str]]] = {
    ("nvmeRemoteControllers",): (backend_nvme_pb2, "NvmeRemoteController"),
    ("nvmeRemoteControllers", "nvmePaths"): (backend_nvme_pb2, "NvmePath"),
    ("encryptedVolumes",): (middleend_encryption_pb2, "EncryptedVolume"),
    ("qosVolumes",): (middleend_qos_volume_pb2, "QosVolume"),
    ("nvmeSubsystems",): (frontend_nvme_pb2, "NvmeSubsystem"),
    ("nvmeSubsystems", "nvmeNamespaces"): (frontend_nvme_pb2, "NvmeNamespace"),
    ("nvmeSubsystems", "nvmeControllers"): (frontend_nvme_pb2, "NvmeController"),
}
_NOUNS: Final = {f"{_PACKAGE}.Create{noun}Request": (module, noun) for module, noun in _RESOURCES.values()}
# A path which the target refuses may take its time-outs to say so.
_CREATE_SECONDS: Final = 35.0


class OneByOne:
    """`ask(method, request)` is one call; `stubs` are found by the module of their requests."""

    def __init__(
        self,
        ask: Ask,
        stubs: Mapping[ModuleType, Any],
        *,
        set_options: Callable[[card_pb2.SetRemoteControllerOptionsRequest], Awaitable[None]],
        wait: Callable[[card_pb2.WaitRemoteNamespaceRequest], Awaitable[card_pb2.RemoteNamespace]],
    ) -> None:
        self._ask = ask
        self._stubs = stubs
        self._set_options = set_options
        self._wait = wait

    async def create_chain(self, chain: Iterable[card_pb2.Creation]) -> list[card_pb2.Created]:
        """As the card service makes a chain. Raises BridgeError."""
        result: list[card_pb2.Created] = []
        for any_of, group in itertools.groupby(chain, key=lambda creation: creation.any_of):
            if any_of:
                result += await self._create_any(group)
            else:
                result += [await self._create(creation) for creation in group]
        return result

    async def _create_any(self, group: Iterable[card_pb2.Creation]) -> list[card_pb2.Created]:
        result, refusals = [], []
        for creation in group:
            try:
                result.append(await self._create(creation))
            except BridgeError as error:
                refusals.append(error)
                result.append(card_pb2.Created(refused=str(error)))
        if len(refusals) == len(result):
            raise refusals[0]
        return result

    async def _create(self, creation: card_pb2.Creation) -> card_pb2.Created:
        started = time.monotonic()
        result = card_pb2.Created()
        match creation.WhichOneof("what"):
            case "options":
                await self._set_options(creation.options)
            case "wait":
                result.namespace.CopyFrom(await self._wait(creation.wait))
            case _:
                module, noun = _NOUNS[creation.create.TypeName()]
                await self.create(getattr(module, f"Create{noun}Request").FromString(creation.create.value))
        result.seconds = time.monotonic() - started
        return result

    async def create(self, request: Message) -> None:
        """Make one resource by its create request. Raises BridgeError."""
        module, noun = _NOUNS[request.DESCRIPTOR.full_name]
        await self._ask(getattr(self._stubs[module], f"Create{noun}"), request, seconds=_CREATE_SECONDS)

    async def delete(self, name: str) -> None:
        """Remove one resource by its name; that it is not there is no error. Raises BridgeError."""
        module, noun = _RESOURCES[tuple(name.split("/")[::2])]
        request = getattr(module, f"Delete{noun}Request")(name=name, allow_missing=True)
        await self._ask(getattr(self._stubs[module], f"Delete{noun}"), request)
