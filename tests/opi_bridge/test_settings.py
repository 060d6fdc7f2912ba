"""Settings of a card that cannot work are refused at the start, in words."""

from pathlib import Path
from typing import Any

import pytest

from foundation.daemon.configuration import ConfigurationError
from foundation.spdk.client import SpdkClient
from opi_bridge.cards.choice import make_card
from opi_bridge.config import CardConfig, PhysicalFunction, QmpConfig
from opi_bridge.ledger import Ledger
from opi_bridge.session import Session

ONE = [PhysicalFunction(virtual_functions=1)]
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("twice", {"functions": ONE * 2}),
    ("port", {"functions": [PhysicalFunction(virtual_functions=1, port=1)]}),
    ("vuid", {"functions": [PhysicalFunction(virtual_functions=1, vuid="MT{bus}")]}),
    ("vuid", {"functions": [PhysicalFunction(virtual_functions=1, vuid="MT{pf")]}),
    ("needs card.qmp", {"kind": "qemu", "functions": ONE}),
    ("pf0vf7", {"kind": "qemu", "functions": ONE, "qmp": QmpConfig(socket="/q", buses={"pf0vf7": "slot1"})}),
]


@pytest.mark.parametrize(("words", "settings"), WRONG, ids=range(len(WRONG)))
def test_what_is_wrong_is_said(words: str, settings: dict[str, Any], tmp_path: Path) -> None:
    session = Session(SpdkClient(f"unix:{tmp_path}/spdk.sock"), address="nowhere")
    with pytest.raises(ConfigurationError, match=words):
        make_card(CardConfig(**settings), session, Ledger(session))
