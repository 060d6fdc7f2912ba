"""Intel IPU E2000: SPDK's NVMe-oF target with listeners of transport npi, one address "<pf>.<vf>" a function."""

from collections.abc import Mapping
from typing import Any, Final

from foundation.spdk.errors import SpdkError
from opi_bridge.cards.model import Capabilities, Controller, Endpoint, Limits, Qos, Slot
from opi_bridge.cards.spdk_nvmf import SpdkNvmfCard
from opi_bridge.errors import FailedPrecondition, InvalidArgument, Unimplemented

_TRANSPORT: Final = "npi"
# How the card makes the tweak of a block: of its address and that address's complement.
_TWEAK: Final = "JOIN_NEG_LBA_WITH_LBA"


class IntelNpiCard(SpdkNvmfCard):
    """The host finds a volume after it has bound its NVMe driver to the virtual function."""

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(card="intel_npi", fabrics=True)

    @property
    def _pci_transport(self) -> str:
        # The transport is part of Intel's process and cannot be made by an RPC.
        return ""

    def listen_address(self, slot: Slot) -> dict[str, str]:
        return {"trtype": _TRANSPORT, "traddr": f"{slot.pf}.{slot.vf}"}

    def slot_of(self, address: Mapping[str, str]) -> Slot | None:
        if address["trtype"].lower() != _TRANSPORT:
            return None
        pf, _, vf = address["traddr"].partition(".")
        return Slot(0, int(pf), int(vf)) if pf.isdecimal() and vf.isdecimal() else None

    def listener_options(self, limits: Limits) -> dict[str, Any]:
        # One more for the admin queue.
        return {"max_qpairs": limits.queues + 1} if limits.queues else {}

    async def create_controller(self, nqn: str, endpoint: Endpoint, limits: Limits) -> Controller:
        if limits.completion_queues and limits.completion_queues != limits.queues:
            raise InvalidArgument("this card has one completion queue for each submission queue: max_ncq = max_nsq")
        return await super().create_controller(nqn, endpoint, limits)

    async def set_keys(self, uuid: str, *, key: str, tweak_key: str) -> None:
        """Have the card encrypt the volume with this uuid."""
        keys = {"uuid": uuid, "key": key, "key2": tweak_key, "cipher": "AES_XTS", "tweak": _TWEAK}
        await self._session.call("npi_bdev_set_keys", keys)

    async def clear_keys(self, uuid: str) -> None:
        await self._session.call("npi_bdev_clear_keys", {"uuid": uuid})

    async def limit_controller(self, controller: Controller, least: Qos, most: Qos) -> None:
        if most.read_write_iops or most.read_write_mb or least.read_write_mb or least.read_write_iops:
            raise Unimplemented("this card limits reads and writes apart: use the rd_ and wr_ limits")
        if least.read_iops or least.write_iops:
            raise Unimplemented("this card guarantees bandwidth only: use min_limit's rd_ and wr_bandwidth_mbs")
        params = {
            "nqn": controller.nqn,
            "max_read_iops": most.read_iops,
            "max_write_iops": most.write_iops,
            "max_read_bw": most.read_mb,
            "max_write_bw": most.write_mb,
            "min_read_bw": least.read_mb,
            "min_write_bw": least.write_mb,
        }
        try:
            await self._session.call("npi_qos_bw_iops_limit", params)
        except SpdkError as error:
            raise FailedPrecondition(f"the card refuses these limits: {error.message}") from error
