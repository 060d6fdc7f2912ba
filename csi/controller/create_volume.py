"""CreateVolume: everything about the request is checked before the backend is asked for anything."""

from typing import Any

from csi import capabilities, identity
from csi.controller import volume_context
from csi.controller.parts import Parts
from csi.errors import InvalidArgument, NotFound
from csi.framework import naming, parameters
from csi.framework.backend import Backend, SizeRange, Source, Volume, VolumeSpec
from dpu_offload_stubs.csi import csi_pb2

MAX_NAME_BYTES = 4096


def check(
    parts: Parts, request: csi_pb2.CreateVolumeRequest
) -> tuple[Backend[Any], VolumeSpec[Any], parameters.ClassParameters]:
    """Raises InvalidArgument, NotFound (for a source of another driver), OutOfRange."""
    if not request.name:
        raise InvalidArgument("name is missing")
    if len(request.name.encode()) > MAX_NAME_BYTES:
        raise InvalidArgument(f"name is longer than {MAX_NAME_BYTES} bytes")
    capabilities.check(request.volume_capabilities)
    backend_name = parameters.backend_name(request.parameters) or parts.registry.default
    backend = parts.registry.backends.get(backend_name)
    if backend is None:
        known = ", ".join(sorted(parts.registry.backends))
        raise InvalidArgument(f"StorageClass parameter backend={backend_name!r}: configured are {known}")
    common, special = parameters.parse(request.parameters, parts.registry.kinds[backend_name].parameters)
    if common.authentication and not backend.capabilities.authentication:
        raise InvalidArgument(f"StorageClass parameter authentication: backend {backend_name} has no place for keys")
    if common.encryption_in_transit and not backend.capabilities.encryption_in_transit:
        raise InvalidArgument(
            f"StorageClass parameter encryptionInTransit: backend {backend_name} has no place for keys"
        )
    for capability in request.volume_capabilities:
        if reason := volume_context.refusal(capability, common):
            raise InvalidArgument(reason)
    qos = parameters.parse_qos(request.mutable_parameters)
    if request.mutable_parameters and not backend.capabilities.qos:
        raise InvalidArgument(f"backend {backend_name} has no quality of service, so no VolumeAttributesClass")
    size = size_range(request.capacity_range)
    requirement = request.accessibility_requirements
    spec = VolumeSpec(
        token=identity.hashed(request.name),
        size=size,
        parameters=special,
        qos=qos,
        source=_source(backend, request),
        requisite=tuple(dict(term.segments) for term in requirement.requisite),
        preferred=tuple(dict(term.segments) for term in requirement.preferred),
    )
    return backend, spec, common


async def create(parts: Parts, request: csi_pb2.CreateVolumeRequest) -> csi_pb2.CreateVolumeResponse:
    backend, spec, common = check(parts, request)
    await parts.lists.wait()
    lock = lock_of_name(request.name)
    parts.classes.compare(lock, volume_context.of_new_volume(None, common), name=request.name)
    volume = await backend.create(spec)
    message = as_message(backend, volume)
    context = volume_context.of_new_volume(volume, common)
    parts.classes.note(lock, context)
    message.volume_context.update(context.as_text())
    if request.HasField("volume_content_source"):
        message.content_source.CopyFrom(request.volume_content_source)
    return csi_pb2.CreateVolumeResponse(volume=message)


def lock_of_name(name: str) -> str:
    """What `calls.lock_of` makes of the id of the volume that has this name, or will have it."""
    return naming.volume(identity.hashed(name))


def as_message(backend: Backend[Any], volume: Volume) -> csi_pb2.Volume:
    return csi_pb2.Volume(
        volume_id=str(identity.VolumeId(backend.name, volume.key)),
        capacity_bytes=volume.size,
        accessible_topology=[csi_pb2.Topology(segments=segments) for segments in volume.topology],
    )


def size_range(capacity: csi_pb2.CapacityRange) -> SizeRange:
    required, limit = capacity.required_bytes, capacity.limit_bytes
    if required < 0 or limit < 0:
        raise InvalidArgument(f"capacity_range {required}..{limit}: bytes cannot be negative")
    if limit and required > limit:
        raise InvalidArgument(f"capacity_range: required_bytes {required} is more than limit_bytes {limit}")
    return SizeRange(required, limit)


def _source(backend: Backend[Any], request: csi_pb2.CreateVolumeRequest) -> Source | None:
    if not request.HasField("volume_content_source"):
        return None
    given = request.volume_content_source
    kind = given.WhichOneof("type")
    if kind is None:
        raise InvalidArgument("volume_content_source is empty: say snapshot or volume")
    text = given.snapshot.snapshot_id if kind == "snapshot" else given.volume.volume_id
    if not text:
        raise InvalidArgument(f"volume_content_source.{kind}: its id is missing")
    able = backend.capabilities.snapshots if kind == "snapshot" else backend.capabilities.clones
    if not able:
        raise InvalidArgument(f"backend {backend.name} cannot make a volume from a {kind}")
    try:
        parsed = identity.parse_volume_id(text)
    except identity.MalformedId as error:
        raise NotFound(f"volume_content_source.{kind}: {error}") from error
    if parsed.backend != backend.name:
        raise InvalidArgument(
            f"volume_content_source.{kind} {text} is of backend {parsed.backend}, the new volume of {backend.name}: "
            "data cannot be cloned across backends"
        )
    return Source("snapshot" if kind == "snapshot" else "volume", parsed.key)
