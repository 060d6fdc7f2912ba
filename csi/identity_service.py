"""CSI Identity, which both csi-controller and csi-node-host serve."""

from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import grpc.aio
from google.protobuf.wrappers_pb2 import BoolValue

from csi.identity import DRIVER_NAME
from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]
_Service = csi_pb2.PluginCapability.Service
_Expansion = csi_pb2.PluginCapability.VolumeExpansion

ALL_SERVICES = (
    _Service.CONTROLLER_SERVICE,
    _Service.VOLUME_ACCESSIBILITY_CONSTRAINTS,
    _Service.GROUP_CONTROLLER_SERVICE,
)


class IdentityService(csi_pb2_grpc.IdentityServicer):
    """Both sockets tell the same: the specification wants one driver with one set of capabilities."""

    def __init__(self, ready: Callable[[], bool], services: Sequence[Any] = ALL_SERVICES) -> None:
        self._ready = ready
        self._services = services

    async def GetPluginInfo(
        self, request: csi_pb2.GetPluginInfoRequest, context: Context
    ) -> csi_pb2.GetPluginInfoResponse:
        return csi_pb2.GetPluginInfoResponse(name=DRIVER_NAME, vendor_version=release())

    async def GetPluginCapabilities(
        self, request: csi_pb2.GetPluginCapabilitiesRequest, context: Context
    ) -> csi_pb2.GetPluginCapabilitiesResponse:
        answer = csi_pb2.GetPluginCapabilitiesResponse()
        for service in self._services:
            answer.capabilities.add(service=_Service(type=service))
        answer.capabilities.add(volume_expansion=_Expansion(type=_Expansion.ONLINE))
        return answer

    async def Probe(self, request: csi_pb2.ProbeRequest, context: Context) -> csi_pb2.ProbeResponse:
        return csi_pb2.ProbeResponse(ready=BoolValue(value=self._ready()))


def release() -> str:
    try:
        return version("dpu-offload")
    except PackageNotFoundError:
        return "0+unknown"
