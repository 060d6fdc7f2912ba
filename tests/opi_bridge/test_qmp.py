"""Hot-plugging into a guest over QMP, against a monitor that answers as QEMU does."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from opi_bridge.cards.model import Slot
from opi_bridge.cards.qmp import Qmp, QmpError, VfioUserPlug
from opi_bridge.errors import Unavailable
from tests.opi_bridge.fake_qemu import Monitor

SLOT = Slot(0, 0, 1)


@pytest.fixture
async def monitor(tmp_path: Path) -> AsyncIterator[Monitor]:
    monitor = Monitor()
    await monitor.start(tmp_path / "qmp")
    yield monitor
    await monitor.stop()


@pytest.fixture
async def plug(tmp_path: Path, monitor: Monitor) -> AsyncIterator[VfioUserPlug]:
    qmp = Qmp(tmp_path / "qmp")
    yield VfioUserPlug(qmp, {SLOT: "rp0"}, wait=20)
    await qmp.close()


async def test_a_device_is_plugged_behind_its_port_and_pulled(
    tmp_path: Path, plug: VfioUserPlug, monitor: Monitor
) -> None:
    socket = tmp_path / "cntrl"
    socket.touch()
    for _ in range(2):
        await plug.add(SLOT, socket)
    assert list(monitor.devices.values()) == [
        {
            "driver": "vfio-user-pci",
            "socket": {"path": str(socket), "type": "unix"},
            "id": "dpu-port0-pf0-vf1",
            "bus": "rp0",
        }
    ]
    for _ in range(2):
        await plug.remove(SLOT)
    assert monitor.devices == {}
    await plug.add(Slot(0, 0, 2), socket)
    assert monitor.devices == {}, "a function without a port is not this guest's"


async def test_a_guest_that_does_not_let_go_is_reported(tmp_path: Path, plug: VfioUserPlug, monitor: Monitor) -> None:
    socket = tmp_path / "cntrl"
    socket.touch()
    await plug.add(SLOT, socket)
    monitor.lets_go = False
    impatient = Qmp(tmp_path / "qmp")
    with pytest.raises(Unavailable, match="did not let go"):
        await VfioUserPlug(impatient, {SLOT: "rp0"}, wait=0.1).remove(SLOT)
    await impatient.close()
    monitor.lets_go = True
    await plug.remove(SLOT)
    assert monitor.devices == {}


async def test_a_refusal_and_a_missing_qemu_are_errors_of_their_own(
    tmp_path: Path, plug: VfioUserPlug, monitor: Monitor
) -> None:
    with pytest.raises(QmpError, match="Failed to connect"):
        await plug.add(SLOT, tmp_path / "no-such-socket")
    with pytest.raises(Unavailable):
        await Qmp(tmp_path / "no-qmp").execute("query-status")
