"""OPI's words for where a controller sits, and the card's."""

import ipaddress

from dpu_offload_stubs.opi.storage import frontend_nvme_pb2, opicommon_pb2
from opi_bridge.cards.model import Endpoint, Fabric, Qos, Slot
from opi_bridge.errors import InvalidArgument, OutOfRange

_TRANSPORTS = {opicommon_pb2.NVME_TRANSPORT_TYPE_TCP: "TCP", opicommon_pb2.NVME_TRANSPORT_TYPE_RDMA: "RDMA"}
FAMILIES = {
    opicommon_pb2.NVME_ADDRESS_FAMILY_IPV4: "IPv4",
    opicommon_pb2.NVME_ADDRESS_FAMILY_IPV6: "IPv6",
}
# More than any counter of a card holds, in thousands of operations and in MiB a second.
_KIOPS_LIMIT = 2**63 // 1000
_MIB_LIMIT = 2**63 >> 20
_PCI_FIELDS = ("port_id", "physical_function", "virtual_function")


def slot_of(endpoint: opicommon_pb2.PciEndpoint, field: str) -> Slot:
    """Read a PciEndpoint; all of its numbers are required, because 0 is a function too."""
    missing = [name for name in _PCI_FIELDS if not endpoint.HasField(name)]  # type: ignore[arg-type]  # a plain name
    if missing:
        raise InvalidArgument(f"{field}.{missing[0]} is required (0 is a value: set it)")
    numbers = [getattr(endpoint, name).value for name in _PCI_FIELDS]
    if any(number < 0 for number in numbers):
        raise InvalidArgument(f"{field} has a negative number")
    return Slot(*numbers)


def pci_of(slot: Slot) -> opicommon_pb2.PciEndpoint:
    result = opicommon_pb2.PciEndpoint()
    result.port_id.value = slot.port
    result.physical_function.value = slot.pf
    result.virtual_function.value = slot.vf
    return result


def family_of(address: str) -> str:
    """IPv4 or IPv6; raises InvalidArgument for what is no address."""
    try:
        return "IPv6" if ipaddress.ip_address(address).version == 6 else "IPv4"
    except ValueError:
        raise InvalidArgument(f"{address[:80]!r} is not an IP address") from None


def endpoint_of(spec: frontend_nvme_pb2.NvmeControllerSpec) -> Endpoint:
    """Where a controller's spec wants it. Raises InvalidArgument."""
    which = spec.WhichOneof("endpoint")
    if spec.trtype == opicommon_pb2.NVME_TRANSPORT_TYPE_PCIE:
        if which != "pcie_id":
            raise InvalidArgument("spec.pcie_id is required for a controller of transport PCIE")
        return slot_of(spec.pcie_id, "spec.pcie_id")
    transport = _TRANSPORTS.get(spec.trtype)
    if transport is None:
        raise InvalidArgument("spec.trtype is PCIE, TCP or RDMA")
    if which != "fabrics_id":
        raise InvalidArgument(f"spec.fabrics_id is required for a controller of transport {transport}")
    fabrics = spec.fabrics_id
    if not fabrics.trsvcid.isdecimal() or not 0 < int(fabrics.trsvcid) < 65536:
        raise InvalidArgument(f"spec.fabrics_id.trsvcid {fabrics.trsvcid[:20]!r} is not a port number")
    family = family_of(fabrics.traddr)
    if fabrics.adrfam and FAMILIES.get(fabrics.adrfam) != family:
        raise InvalidArgument(f"spec.fabrics_id.adrfam does not fit the address {fabrics.traddr}")
    return Fabric(transport, family, fabrics.traddr, str(int(fabrics.trsvcid)))


def put_endpoint(endpoint: Endpoint, spec: frontend_nvme_pb2.NvmeControllerSpec) -> None:
    """Write `endpoint` into a controller's spec."""
    if isinstance(endpoint, Slot):
        spec.trtype = opicommon_pb2.NVME_TRANSPORT_TYPE_PCIE
        spec.pcie_id.CopyFrom(pci_of(endpoint))
        return
    spec.trtype = next(number for number, word in _TRANSPORTS.items() if word == endpoint.transport)
    spec.fabrics_id.traddr = endpoint.address
    spec.fabrics_id.trsvcid = endpoint.service
    spec.fabrics_id.adrfam = next((number for number, word in FAMILIES.items() if word == endpoint.family), 0)  # type: ignore[assignment]  # 0 is UNSPECIFIED


def qos_of(limit: opicommon_pb2.QosLimit, field: str) -> Qos:
    """Read a QosLimit, whose IOPS count in thousands."""
    for descriptor, value in limit.ListFields():
        if value < 0:
            raise InvalidArgument(f"{field}.{descriptor.name} {value} is negative")
        if value >= (_KIOPS_LIMIT if descriptor.name.endswith("_kiops") else _MIB_LIMIT):
            raise OutOfRange(f"{field}.{descriptor.name} {value} is more than any card counts: use 0 for no limit")
    return Qos(
        read_iops=limit.rd_iops_kiops * 1000,
        write_iops=limit.wr_iops_kiops * 1000,
        read_write_iops=limit.rw_iops_kiops * 1000,
        read_mb=limit.rd_bandwidth_mbs,
        write_mb=limit.wr_bandwidth_mbs,
        read_write_mb=limit.rw_bandwidth_mbs,
    )
