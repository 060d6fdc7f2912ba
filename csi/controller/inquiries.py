"""Questions that change nothing: how much room there is, and whether a volume can be used in a certain way."""

from google.protobuf.wrappers_pb2 import Int64Value

from csi import capabilities
from csi.controller import volume_context
from csi.controller.parts import Parts
from csi.errors import InvalidArgument
from csi.framework import parameters
from dpu_offload_stubs.csi import csi_pb2


async def capacity(parts: Parts, request: csi_pb2.GetCapacityRequest) -> csi_pb2.GetCapacityResponse:
    """No room at all for a way of use that is not served."""
    registry = parts.registry
    if any(capabilities.refusal(capability) for capability in request.volume_capabilities):
        return csi_pb2.GetCapacityResponse(available_capacity=0)
    name = parameters.backend_name(request.parameters) or registry.default
    if name not in registry.backends:
        raise InvalidArgument(f"StorageClass parameter backend={name!r} is not configured")
    _, special = parameters.parse(request.parameters, registry.kinds[name].parameters)
    topology = dict(request.accessible_topology.segments) if request.HasField("accessible_topology") else None
    room = await registry.backends[name].capacity(special, topology)
    return csi_pb2.GetCapacityResponse(
        available_capacity=room.available,
        maximum_volume_size=Int64Value(value=room.largest),
        minimum_volume_size=Int64Value(value=room.smallest),
    )


async def validate(
    parts: Parts, request: csi_pb2.ValidateVolumeCapabilitiesRequest
) -> csi_pb2.ValidateVolumeCapabilitiesResponse:
    """A no is an answer with its reason, not an error."""
    backend, volume_id = parts.volume(request.volume_id)
    if not request.volume_capabilities:
        raise InvalidArgument("volume_capabilities is missing: say how the volume shall be used")
    await backend.get(volume_id.key)
    try:
        parameters.parse(request.parameters, parts.registry.kinds[backend.name].parameters)
        parameters.parse_qos(request.mutable_parameters)
        context = volume_context.parse(request.volume_context)
        for capability in request.volume_capabilities:
            if reason := capabilities.refusal(capability) or volume_context.refusal(capability, context):
                raise InvalidArgument(reason)
    except InvalidArgument as error:
        return csi_pb2.ValidateVolumeCapabilitiesResponse(message=str(error))
    return csi_pb2.ValidateVolumeCapabilitiesResponse(
        confirmed=csi_pb2.ValidateVolumeCapabilitiesResponse.Confirmed(
            volume_context=request.volume_context,
            volume_capabilities=request.volume_capabilities,
            parameters=request.parameters,
            mutable_parameters=request.mutable_parameters,
        )
    )
