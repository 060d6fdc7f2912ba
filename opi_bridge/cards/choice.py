"""Making the card that the settings name."""

from collections.abc import Sequence
from pathlib import Path

from foundation.daemon.configuration import ConfigurationError
from opi_bridge.cards.card import Card
from opi_bridge.cards.intel_npi import IntelNpiCard
from opi_bridge.cards.marvell import MarvellCard
from opi_bridge.cards.model import Function, Slot
from opi_bridge.cards.qemu import QemuCard
from opi_bridge.cards.qmp import Plug, Qmp, VfioUserPlug
from opi_bridge.cards.snap3 import Snap3Card
from opi_bridge.cards.snap4 import Snap4Card
from opi_bridge.cards.spdk_vfiouser import SpdkVfioUserCard
from opi_bridge.config import CardConfig, PhysicalFunction, QmpConfig
from opi_bridge.ledger import Ledger
from opi_bridge.session import Session


def functions_of(ranges: Sequence[PhysicalFunction]) -> list[Function]:
    """The functions that the settings list, in order. Raises ConfigurationError."""
    result: dict[Slot, Function] = {}
    for one in ranges:
        first = 0 if one.usable else 1
        for vf in range(first, one.virtual_functions + 1):
            slot = Slot(one.port, one.physical_function, vf)
            if slot in result:
                raise ConfigurationError(f"card.functions lists {slot} twice")
            result[slot] = Function(slot, _vuid(one.vuid, slot), one.pci_addresses.get(vf, ""), one.hotplug)
    return list(result.values())


def _vuid(template: str, slot: Slot) -> str:
    try:
        return template.format(port=slot.port, pf=slot.pf, vf=slot.vf)
    except (LookupError, ValueError) as error:
        raise ConfigurationError(
            f"card.functions: vuid {template!r} is a template of {{port}}, {{pf}} and {{vf}} only: {error}"
        ) from error


def make_card(config: CardConfig, session: Session, ledger: Ledger) -> Card:
    functions = functions_of(config.functions)
    if config.kind == "spdk_vfiouser":
        if any(function.slot.port for function in functions):
            raise ConfigurationError("card.functions: card spdk_vfiouser has no ports, leave port at 0")
        return SpdkVfioUserCard(
            session,
            functions,
            directory=Path(config.directory),
            settle=config.settle_seconds,
            plug=_plug(config, functions),
        )
    if config.kind == "intel_npi":
        return IntelNpiCard(session, functions)
    if config.kind == "marvell":
        return MarvellCard(session, functions)
    if config.kind == "qemu":
        return _qemu(config, session, ledger, functions)
    if config.kind == "snap4":
        return Snap4Card(session, hotplug=config.hotplug_functions)
    return Snap3Card(session, ledger, manager=config.emulation_manager)


def _plug(config: CardConfig, functions: Sequence[Function]) -> Plug | None:
    if config.qmp is None:
        return None
    return VfioUserPlug(Qmp(Path(config.qmp.socket)), _buses(config.qmp, functions), wait=config.qmp.wait_seconds)


def _qemu(config: CardConfig, session: Session, ledger: Ledger, functions: Sequence[Function]) -> QemuCard:
    if config.qmp is None:
        raise ConfigurationError("card qemu needs card.qmp: the guest's monitor, and the root port of each function")
    buses = _buses(config.qmp, functions)
    ports = {function.slot: (function, buses[function.slot]) for function in functions if function.slot in buses}
    return QemuCard(session, ledger, Qmp(Path(config.qmp.socket)), ports, wait=config.qmp.wait_seconds)


def _buses(config: QmpConfig, functions: Sequence[Function]) -> dict[Slot, str]:
    slots = {f"pf{f.slot.pf}vf{f.slot.vf}": f.slot for f in functions}
    unknown = sorted(set(config.buses) - set(slots))
    if unknown:
        raise ConfigurationError(f"card.qmp.buses names {unknown[0]}, which card.functions does not list")
    return {slots[word]: bus for word, bus in config.buses.items()}
