"""A client of the OPI storage API made of the protos alone: calls by name, messages as plain dictionaries."""

import asyncio
import itertools
from collections.abc import Mapping
from typing import Any, Final

import grpc
import grpc.aio
from google.protobuf import empty_pb2, json_format
from google.protobuf.message import Message

from dpu_offload_stubs.opi.storage import (
    backend_aio_pb2,
    backend_malloc_pb2,
    backend_null_pb2,
    backend_nvme_pb2,
    frontend_nvme_pb2,
    frontend_virtio_blk_pb2,
    middleend_encryption_pb2,
    middleend_qos_volume_pb2,
)

_MODULES: Final[tuple[Any, ...]] = (
    frontend_nvme_pb2,
    frontend_virtio_blk_pb2,
    backend_nvme_pb2,
    backend_null_pb2,
    backend_aio_pb2,
    backend_malloc_pb2,
    middleend_encryption_pb2,
    middleend_qos_volume_pb2,
)


class Refused(Exception):
    """The bridge answered with an error."""

    def __init__(self, method: str, error: grpc.aio.AioRpcError) -> None:
        super().__init__(f"{method}: {error.code().name}: {error.details()}")
        self.code = error.code()
        self.details = error.details() or ""


class OpiClient:
    """`await client("GetNvmeSubsystem", name="nvmeSubsystems/s0")` gives the answer with the proto's field names."""

    def __init__(self, channel: grpc.aio.Channel, *, seconds: float = 20.0) -> None:
        self._seconds = seconds
        self._channel = channel
        self._methods: dict[str, tuple[Any, type[Message]]] = {}
        for module in _MODULES:
            for service in module.DESCRIPTOR.services_by_name.values():
                for method in service.methods:
                    request = getattr(module, method.input_type.name)
                    answer = getattr(module, method.output_type.name, empty_pb2.Empty)
                    call: Any = channel.unary_unary(
                        f"/{service.full_name}/{method.name}",
                        request_serializer=lambda message: message.SerializeToString(),
                        response_deserializer=answer.FromString,
                    )
                    self._methods[method.name] = (call, request)

    @property
    def methods(self) -> list[str]:
        return sorted(self._methods)

    async def __call__(self, method: str, **fields: Any) -> dict[str, Any]:
        """Call with the request's fields as JSON would have them. Raises Refused; ParseError for a wrong field."""
        call, request = self._methods[method]
        message = json_format.ParseDict(fields, request())
        try:
            answer = await call(message, timeout=self._seconds)
        except grpc.aio.AioRpcError as error:
            raise Refused(method, error) from error
        return json_format.MessageToDict(answer, preserving_proto_field_name=True)

    async def code(self, method: str, **fields: Any) -> str:
        """The name of the call's status code."""
        try:
            await self(method, **fields)
        except Refused as refused:
            return refused.code.name
        return "OK"

    async def until_ready(self, *, seconds: float = 15.0) -> None:
        """Wait until the bridge's card answers."""
        async with asyncio.timeout(seconds):
            for pause in itertools.repeat(0.02):
                if await self.code("ListNvmeSubsystems") != "UNAVAILABLE":
                    return
                await asyncio.sleep(pause)


def pci(vf: int, *, pf: int = 0, port: int = 0) -> Mapping[str, int]:
    """A PciEndpoint; the wrappers are written as plain numbers in JSON."""
    return {"port_id": port, "physical_function": pf, "virtual_function": vf}
