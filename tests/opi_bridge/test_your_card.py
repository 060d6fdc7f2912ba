"""The card of docs/your-card-in-60-lines.md, as it stands there, under the same calls as every other card."""

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from opi_bridge import app
from opi_bridge.cards.choice import functions_of
from opi_bridge.cards.model import Slot
from opi_bridge.config import CardConfig
from opi_bridge.ledger import Ledger
from opi_bridge.session import Session
from tests.opi_bridge.fake_cards import IntelNpi
from tests.opi_bridge.test_cards import CARDS, bridge, make, unmake

PAGE = Path(__file__).parents[2] / "docs/your-card-in-60-lines.md"


def _the_pages_card() -> tuple[str, type[Any]]:
    """The source in the page, and the class it makes."""
    (source,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    module = ModuleType("acme")
    exec(compile(source, str(PAGE), "exec"), module.__dict__)
    card: type[Any] = module.__dict__["AcmeCard"]
    return source, card


class Acme(IntelNpi):
    """Its process: SPDK's target with one more transport, which has to be made as SPDK's own have."""

    def __init__(self) -> None:
        super().__init__()
        self.transports: list[dict[str, str]] = []

    def rpc_nvmf_get_transports(self) -> Any:
        return self.transports

    def rpc_nvmf_create_transport(self, trtype: str) -> Any:
        self.transports.append({"trtype": trtype})
        return True


async def test_the_pages_card_does_what_every_card_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, acme = _the_pages_card()
    assert len(source.splitlines()) <= 60

    def make_card(config: CardConfig, session: Session, _ledger: Ledger) -> Any:
        return acme(session, functions_of(config.functions))

    monkeypatch.setattr(app, "make_card", make_card)
    process = Acme()
    async with bridge(tmp_path, "intel_npi", process) as (api, _):
        for controller_first in (False, True):
            process.log.clear()
            await make(api, 2, controller_first=controller_first)
            listener = next(params for method, params in process.log if method == "nvmf_subsystem_add_listener")
            assert listener["listen_address"] == {"trtype": "acme", "traddr": "0:2"}
            await unmake(api)
        assert await api("ListNvmeSubsystems") == {}
        assert process.transports == [{"trtype": "ACME"}]


def test_the_pages_card_reads_back_what_it_writes() -> None:
    _, acme = _the_pages_card()
    card = acme(None, functions_of(CARDS["intel_npi"][1]["functions"]))
    for slot in (Slot(0, 0, 0), Slot(0, 3, 17)):
        assert card.slot_of(card.listen_address(slot)) == slot
    assert card.slot_of({"trtype": "TCP", "traddr": "127.0.0.1"}) is None


def test_the_files_that_the_page_names_exist() -> None:
    root = PAGE.parents[1]
    text = PAGE.read_text()
    for path in re.findall(r"`((?:opi_bridge|tests)/[\w./]+\.py)`", text):
        assert (root / path).is_file(), path
    for name in re.findall(r"`(\w+\.py)`", text):
        assert (root / "opi_bridge/cards" / name).is_file(), name
