"""StorageClass and VolumeAttributesClass parameters, parsed once into typed values.

Kubernetes hands over texts only. Unknown keys are refused with the nearest known name, since a misspelt key that is
ignored gives a volume which nobody asked for.
"""

import difflib
from collections.abc import Mapping
from typing import Literal, TypeVar

import msgspec

from csi.errors import InvalidArgument
from csi.framework.backend import Qos

S = TypeVar("S", bound=msgspec.Struct)

TransportParameter = Literal["dpu", "kernel"]
FunctionPolicy = Literal["default", "hotplug", "static", "shared"]

# external-provisioner's --extra-create-metadata adds keys below this prefix; secrets and fstype it strips itself.
RESERVED_PREFIX = "csi.storage.k8s.io/"


class ClassParameters(
    msgspec.Struct, frozen=True, kw_only=True, rename="camel", forbid_unknown_fields=True, omit_defaults=True
):
    """Keys which every backend understands. `backend` empty: the controller's default one. `transport` kernel: for
    hosts without a DPU, whose own kernel connects to the target. `passthrough`: the volume's PCI function is bound to
    vfio-pci for a virtual machine, and the host sees no disk."""

    backend: str = ""
    transport: TransportParameter = "dpu"
    function_policy: FunctionPolicy = "default"
    encryption: bool = False
    authentication: bool = False
    encryption_in_transit: bool = False
    passthrough: bool = msgspec.field(default=False, name="dpu-offload.io/passthrough")


def known_keys(kind: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def parse(given: Mapping[str, str], backend_kind: type[S]) -> tuple[ClassParameters, S]:
    """A StorageClass's parameters as the part common to all and the backend's part. Raises InvalidArgument."""
    mine = {key: value for key, value in given.items() if not key.startswith(RESERVED_PREFIX)}
    common, special = known_keys(ClassParameters), known_keys(backend_kind)
    _refuse_unknown(mine, common | special, what="StorageClass parameter")
    return (
        _convert({k: v for k, v in mine.items() if k in common}, ClassParameters, what="StorageClass parameter"),
        _convert({k: v for k, v in mine.items() if k in special}, backend_kind, what="StorageClass parameter"),
    )


def parse_qos(given: Mapping[str, str]) -> Qos:
    """A VolumeAttributesClass's parameters. Raises InvalidArgument."""
    mine = {key: value for key, value in given.items() if not key.startswith(RESERVED_PREFIX)}
    _refuse_unknown(mine, known_keys(Qos), what="VolumeAttributesClass parameter")
    qos = _convert(mine, Qos, what="VolumeAttributesClass parameter")
    for field in msgspec.structs.fields(Qos):
        if not 0 <= getattr(qos, field.name) <= 2**40:
            raise InvalidArgument(
                f"VolumeAttributesClass parameter {field.encode_name}={mine[field.encode_name]!r}: "
                "expected a whole number from 0 (no limit) upwards"
            )
    return qos


def backend_name(given: Mapping[str, str]) -> str:
    """Which backend a StorageClass names; empty for the default one."""
    return given.get("backend", "")


def _refuse_unknown(given: Mapping[str, str], known: frozenset[str], *, what: str) -> None:
    for key in sorted(given):
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            folded = {name.lower(): name for name in known}
            nearest = folded.get(key.lower()) or (near[0] if near else "")
            advice = f"did you mean {nearest!r}?" if nearest else f"known: {', '.join(sorted(known))}"
            raise InvalidArgument(f"{what} {key[:80]!r} is unknown; {advice}")


def _convert(given: Mapping[str, str], kind: type[S], *, what: str) -> S:
    try:
        # strict=False: "true" and "42" are how Kubernetes writes a boolean and a number.
        return msgspec.convert(dict(given), kind, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidArgument(f"{what}: {error}") from error
