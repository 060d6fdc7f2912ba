"""What a volume's PersistentVolume carries for ever: the volume context, written at creation, read at publish."""

from collections.abc import Mapping

import msgspec

from csi import capabilities
from csi.errors import InvalidArgument
from csi.framework.backend import Portal, Volume
from csi.framework.parameters import ClassParameters, FunctionPolicy, TransportParameter
from dpu_offload_stubs.csi import csi_pb2


class VolumeContext(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """All values travel as text; `portals` is a JSON list of {transport, address, port}.

    With it and the volume id alone a DPU can work out the whole attachment.
    """

    portals: str = "[]"
    transport: TransportParameter = "dpu"
    function_policy: FunctionPolicy = "default"
    encryption: bool = False
    authentication: bool = False
    encryption_in_transit: bool = False
    passthrough: bool = msgspec.field(default=False, name="dpu-offload.io/passthrough")

    def as_text(self) -> dict[str, str]:
        return {key: str(value).lower() if isinstance(value, bool) else value for key, value in _items(self)}


def _items(context: VolumeContext) -> list[tuple[str, str | bool]]:
    return list(msgspec.to_builtins(context).items())


def of_new_volume(volume: Volume | None, parameters: ClassParameters) -> VolumeContext:
    policy = parameters.function_policy
    portals: tuple[Portal, ...] = ()
    if volume is not None:
        portals = volume.secure_portals if parameters.encryption_in_transit else volume.portals
    return VolumeContext(
        portals=msgspec.json.encode(portals).decode(),
        transport=parameters.transport,
        # A function that a virtual machine has cannot be shared with the host's other volumes.
        function_policy="static" if parameters.passthrough and policy == "default" else policy,
        encryption=parameters.encryption,
        authentication=parameters.authentication,
        encryption_in_transit=parameters.encryption_in_transit,
        passthrough=parameters.passthrough,
    )


def parse(given: Mapping[str, str]) -> VolumeContext:
    """Keys of other writers (external-provisioner's storage.kubernetes.io/…) are left out. Raises InvalidArgument."""
    known = {field.encode_name for field in msgspec.structs.fields(VolumeContext)}
    try:
        return msgspec.convert({k: v for k, v in given.items() if k in known}, VolumeContext, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"volume_context: {error}; it must be what CreateVolume returned") from error


def refusal(capability: csi_pb2.VolumeCapability, context: VolumeContext | ClassParameters) -> str:
    """Why a volume of this class or with this context cannot be used so; empty when it can."""
    if context.transport == "kernel":
        for wanted, name in (
            (context.encryption, "encryption"),
            (context.authentication, "authentication"),
            (context.encryption_in_transit, "encryptionInTransit"),
        ):
            if wanted:
                return f"{name} needs a DPU: with transport=kernel the host connects by itself, and is given no secrets"
    if not context.passthrough:
        return ""
    name = "dpu-offload.io/passthrough"
    if capabilities.shared(capability):
        return (
            f"{name} excludes live migration: a PCI function cannot be on two nodes at once; use ReadWriteOnce, or "
            "leave passthrough away"
        )
    if capabilities.read_only(capability):
        return f"{name} cannot be read-only: nobody would keep a machine that has the PCI function from writing"
    if context.transport == "kernel":
        return f"{name} needs a DPU: with transport=kernel there is no PCI function to pass through"
    if context.function_policy == "shared":
        return f"{name} needs a function of the volume's own: functionPolicy static or hotplug, not shared"
    return ""
