"""Preparing whole cards on a laid-out machine whose kernel acts on what is written."""

import asyncio
import errno
import itertools
import os
import shutil
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg

from cni.device_plugin.config import PhysicalFunction
from cni.device_plugin.errors import NetdevGone, PreparationError
from cni.device_plugin.preparation.attributes import Attributes
from cni.device_plugin.preparation.eswitch import DevlinkEswitch, attributes, mode_in
from cni.device_plugin.preparation.generic_netlink import Refused, ask, decode, encode
from cni.device_plugin.preparation.keeper import Keeper
from cni.device_plugin.preparation.links import NetlinkLinks, macs_in
from cni.device_plugin.preparation.preparer import Preparer
from cni.device_plugin.preparation.state import Mode
from cni.device_plugin.preparation.users import evidence
from dpu_offload_stubs.kubelet.podresources.v1 import api_pb2, api_pb2_grpc
from foundation.pci import PciFunction
from foundation.pci.uevents import Uevents

PF = "0000:03:00.0"
SWITCH = "b8cef6ffff0a1b2c"

pytestmark = pytest.mark.root


class Killed(BaseException):
    """The process ends here."""


class Kernel(Attributes):
    """Acts on writes as the kernel does: refuses what it refuses, binds when it probes.

    `survive` counts the actions until the process is killed, right before the next one.
    """

    def __init__(self, machine: Any, *, family: str = "mlx5") -> None:
        self.machine = machine
        self.family = family
        self.current: Mode | None = "legacy" if family != "igb" else None
        self.assigned: dict[int, str] = {}
        self.done: list[str] = []
        self.survive = -1
        self.busy = 0
        machine.function(PF, device="101d", driver={"mlx5": "mlx5_core", "ice": "ice", "igb": "igb"}[family])
        directory = machine.device(PF)
        for name, value in {"sriov_totalvfs": 8, "sriov_numvfs": 0, "sriov_drivers_autoprobe": 1}.items():
            (directory / name).write_text(f"{value}\n")
        (machine.sysfs_root / "bus/pci/drivers_probe").write_text("")
        machine.netdev("p0", PF)

    def act(self, what: str) -> None:
        if self.survive == 0:
            raise Killed
        self.survive -= 1
        self.done.append(what)

    @property
    def vfs(self) -> list[Path]:
        return sorted(self.machine.device(PF).glob("virtfn*"), key=lambda path: int(path.name[6:]))

    def drivers(self) -> list[str]:
        return [os.path.basename(os.readlink(vf / "driver")) if (vf / "driver").exists() else "" for vf in self.vfs]

    # --- attributes ----------------------------------------------------------------------------------------------

    def write(self, path: Path, text: str) -> None:
        self.act(f"{path.name}={text.strip()}")
        directory, value = path.parent, text.strip()
        if path.name == "sriov_numvfs":
            if self.busy:
                self.busy -= 1
                raise PreparationError(os.strerror(errno.EBUSY))
            self._set_vfs(int(value))
        elif path.name == "unbind":
            self._bind(value, "")
        elif path.name == "drivers_probe":
            self._probe(value)
        else:
            assert path.exists(), f"{path} does not exist on such a machine"
            (directory / path.name).write_text(f"{value or '(null)'}\n")

    def _set_vfs(self, count: int) -> None:
        if count and self.vfs:
            raise PreparationError(os.strerror(errno.EBUSY))
        for link in self.vfs:
            self.machine.remove(os.path.basename(os.readlink(link)))
            link.unlink()
        (self.machine.device(PF) / "sriov_numvfs").write_text(f"{count}\n")
        self.assigned = dict.fromkeys(range(count), "00:00:00:00:00:00")
        autoprobe = (self.machine.device(PF) / "sriov_drivers_autoprobe").read_text().strip() == "1"
        for index in range(count):
            address = f"0000:03:01.{index}"
            self.machine.function(address, driver="", group=20 + index)
            self.machine.link(self.machine.device(address) / "physfn", self.machine.device(PF))
            self.machine.link(self.machine.device(PF) / f"virtfn{index}", self.machine.device(address))
            if autoprobe:
                self._probe(address)

    def _probe(self, address: str) -> None:
        override = (self.machine.device(address) / "driver_override").read_text().strip()
        if not (self.machine.device(address) / "driver").exists():
            driver = (
                override if override != "(null)" else {"mlx5": "mlx5_core", "ice": "iavf", "igb": "igbvf"}[self.family]
            )
            self._bind(address, driver if driver != "no-such-driver" else "")

    def _bind(self, address: str, driver: str) -> None:
        directory = self.machine.device(address)
        shutil.rmtree(directory / "net", ignore_errors=True)
        for entry in (self.machine.sysfs_root / "class/net").iterdir():
            if not entry.exists():
                entry.unlink()
        self.machine.bind(address, driver)
        if driver and driver != "vfio-pci":
            self.machine.netdev(f"vf{address[-1]}", address)

    # --- eswitch -------------------------------------------------------------------------------------------------

    def mode(self, address: str) -> Mode | None:
        return self.current

    def set_mode(self, address: str, mode: Mode) -> None:
        self.act(f"eswitch={mode}")
        if self.family == "ice" and self.vfs:
            raise PreparationError("Changing eswitch mode is allowed only if there is no VFs created")
        if self.family == "mlx5" and (not self.vfs or any(self.drivers())):
            raise PreparationError("an old mlx5: VFs must exist, and have no driver")
        self.current = mode
        self.machine.remove_netdev("p0")
        self.machine.netdev("p0", PF, **({"port": "p0", "switch": SWITCH} if mode == "switchdev" else {}))

    # --- links ---------------------------------------------------------------------------------------------------

    def vf_macs(self, netdev: str) -> Mapping[int, str]:
        return dict(self.assigned)

    def set_vf_mac(self, netdev: str, vf: int, mac: str) -> None:
        self.act(f"mac{vf}={mac}")
        assert not self.drivers()[vf], "a driver that runs does not see its new MAC"
        self.assigned[vf] = mac

    def set_mtu(self, netdev: str, mtu: int) -> None:
        self.act(f"mtu={mtu}")
        (self.machine.sysfs_root / f"class/net/{netdev}/mtu").write_text(f"{mtu}\n")


class Renaming(Kernel):
    """udev gives the network device its name a moment after somebody has read the old one."""

    def set_mtu(self, netdev: str, mtu: int) -> None:
        if netdev == "p0":
            self.machine.remove_netdev("p0")
            self.machine.netdev("ens1f0np0", PF)
            raise NetdevGone("network device p0 has gone")
        super().set_mtu(netdev, mtu)


@pytest.fixture
def events() -> Uevents:
    return Uevents()


def preparer(kernel: Kernel, events: Uevents, *, pod_resources: Path | None = None) -> Preparer:
    return Preparer(
        kernel.machine.sysfs,
        devfs=kernel.machine.devfs,
        pod_resources=pod_resources,
        attributes=kernel,
        eswitch=kernel,
        links=kernel,
        events=events,
    )


FULL = PhysicalFunction(pf=PF, vfs=3, eswitch="switchdev", mtu=9000, mac_prefix="02:aa:bb:cc", vf_driver="vfio-pci")


def assert_prepared(kernel: Kernel) -> None:
    assert kernel.drivers() == ["vfio-pci"] * 3
    assert kernel.current == "switchdev"
    assert kernel.assigned == {index: f"02:aa:bb:cc:00:{index:02x}" for index in range(3)}
    assert (kernel.machine.sysfs_root / "class/net/p0/mtu").read_text() == "9000\n"
    assert (kernel.machine.device(PF) / "sriov_drivers_autoprobe").read_text() == "1\n"


@pytest.mark.parametrize("family", ["mlx5", "ice"])
async def test_everything_at_once_then_nothing(machine: Any, events: Uevents, family: str) -> None:
    kernel = Kernel(machine, family=family)
    assert await preparer(kernel, events).prepare(FULL) > 0
    assert_prepared(kernel)
    before = len(kernel.done)
    assert await preparer(kernel, events).prepare(FULL) == 0
    assert len(kernel.done) == before, "a second run must change nothing"


@pytest.mark.parametrize("family", ["mlx5", "ice"])
async def test_killed_anywhere_the_next_run_finishes(
    machine_type: type[Any], tmp_path: Path, events: Uevents, family: str
) -> None:
    for actions in itertools.count():
        kernel = Kernel(machine_type(tmp_path / str(actions)), family=family)
        kernel.survive = actions
        try:
            await preparer(kernel, events).prepare(FULL)
            assert actions > 10, "nothing was ever interrupted"
            return
        except Killed:
            kernel.survive = -1
        await preparer(kernel, events).prepare(FULL)
        assert_prepared(kernel)


async def test_a_network_device_that_udev_renames_meanwhile(machine: Any, events: Uevents) -> None:
    kernel = Renaming(machine)
    with events:
        assert await preparer(kernel, events).prepare(PhysicalFunction(pf=PF, mtu=9000)) == 1
    assert (machine.sysfs_root / "class/net/ens1f0np0/mtu").read_text() == "9000\n"


async def test_no_vfio_group_is_touched_when_nothing_is_to_do(
    machine: Any, events: Uevents, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A group can be open once: a look at it would fail the VM that starts in that moment."""
    kernel = Kernel(machine)
    work = preparer(kernel, events)
    await work.prepare(FULL)
    looked: list[str] = []
    monkeypatch.setattr(
        "cni.device_plugin.preparation.preparer.evidence",
        lambda function, devfs: looked.append(function.address) or "",
    )
    assert await work.prepare(FULL) == 0
    assert looked == []
    assert await work.prepare(PhysicalFunction(pf=PF, vfs=3, mac_prefix="02:aa:bb:dd")) > 0
    assert looked


async def test_one_function_declared_twice_is_left_alone(machine: Any, events: Uevents) -> None:
    kernel = Kernel(machine)
    health: dict[str, tuple[bool, str]] = {}
    declared = [PhysicalFunction(pf=PF, vfs=2), PhysicalFunction(pf="p0", vfs=3)]
    keeper = Keeper(
        preparer(kernel, events),
        declared,
        set_health=lambda check, ok, reason: health.update({check: (ok, reason)}),
        beat_seconds=60,
    )
    assert not await keeper.once()
    assert kernel.done == []
    assert health == {
        f"pf:{PF}": (False, f"physical function {PF} is declared more than once, also as p0; it stays as it is"),
        "pf:p0": (False, f"physical function p0 is declared more than once, also as {PF}; it stays as it is"),
    }


async def test_what_is_busy_for_a_moment_is_done_soon(machine: Any, events: Uevents) -> None:
    kernel = Kernel(machine)
    wells: asyncio.Queue[bool] = asyncio.Queue()
    keeper = Keeper(
        preparer(kernel, events),
        [PhysicalFunction(pf=PF, vfs=2)],
        set_health=lambda check, ok, reason: wells.put_nowait(ok),
        beat_seconds=3600,
    )
    kernel.busy = 1
    assert not await keeper.once()
    running = asyncio.create_task(keeper.run())
    async with asyncio.timeout(60):
        assert [await wells.get(), await wells.get()] == [False, True]
    running.cancel()
    assert len(kernel.vfs) == 2


async def test_the_kernels_choice_by_name(machine: Any, events: Uevents) -> None:
    kernel = Kernel(machine, family="igb")
    await preparer(kernel, events).prepare(PhysicalFunction(pf="p0", vfs=2))
    assert kernel.drivers() == ["igbvf", "igbvf"]
    await preparer(kernel, events).prepare(PhysicalFunction(pf="p0", vfs=2, vf_driver="vfio-pci"))
    assert kernel.drivers() == ["vfio-pci", "vfio-pci"]
    await preparer(kernel, events).prepare(PhysicalFunction(pf="p0", vfs=2, vf_driver="igbvf"))
    assert kernel.drivers() == ["igbvf", "igbvf"]


async def test_a_driver_that_is_not_loaded(machine: Any, events: Uevents) -> None:
    kernel = Kernel(machine)
    with pytest.raises(PreparationError, match=r"bound to no driver after a probe for no-such-driver; is the driver's"):
        await preparer(kernel, events).prepare(PhysicalFunction(pf=PF, vfs=1, vf_driver="no-such-driver"))


async def test_a_function_that_is_not_there(machine: Any, events: Uevents) -> None:
    kernel = Kernel(machine)
    for pf in ("0000:99:00.0", "ens99", "zz:zz"):
        with pytest.raises(PreparationError, match=f"physical function {pf}"):
            await preparer(kernel, events).prepare(PhysicalFunction(pf=pf, vfs=1))
    assert kernel.done == []


class Lister(api_pb2_grpc.PodResourcesListerServicer):
    def __init__(self) -> None:
        self.held: dict[str, str] = {}

    async def List(self, request: Any, context: Any) -> api_pb2.ListPodResourcesResponse:
        answer = api_pb2.ListPodResourcesResponse()
        for device, pod in self.held.items():
            container = answer.pod_resources.add(namespace="ns", name=pod).containers.add(name="c")
            container.devices.add(resource_name="d/vf", device_ids=[device])
        return answer

    async def GetAllocatableResources(self, request: Any, context: Any) -> Any:
        raise NotImplementedError

    async def Get(self, request: Any, context: Any) -> Any:
        raise NotImplementedError


async def test_functions_in_use_are_left_and_done_when_free(machine: Any, events: Uevents, tmp_path: Path) -> None:
    lister, server = Lister(), grpc.aio.server()
    api_pb2_grpc.add_PodResourcesListerServicer_to_server(lister, server)
    server.add_insecure_port(f"unix:{tmp_path}/pr.sock")
    await server.start()
    kernel = Kernel(machine)
    work = preparer(kernel, events, pod_resources=tmp_path / "pr.sock")
    health: dict[str, tuple[bool, str]] = {}

    def set_health(check: str, ok: bool, reason: str) -> None:
        health[check] = (ok, reason)

    await Keeper(work, [PhysicalFunction(pf=PF, vfs=2)], set_health=set_health, beat_seconds=1).once()
    assert health == {f"pf:{PF}": (True, "")}
    lister.held["0000:03:01.1"] = "web"
    more = Keeper(work, [PhysicalFunction(pf=PF, vfs=4)], set_health=set_health, beat_seconds=1)
    await more.once()
    ok, reason = health[f"pf:{PF}"]
    assert not ok
    assert "VF 1 (0000:03:01.1) by pod ns/web" in reason
    assert len(kernel.vfs) == 2
    lister.held.clear()
    await more.once()
    assert health == {f"pf:{PF}": (True, "")}
    assert len(kernel.vfs) == 4
    await server.stop(None)


def test_a_function_in_another_namespace_is_in_use(tmp_path: Path) -> None:
    moved = PciFunction(address="0000:03:00.2", class_code=0x020000, driver="mlx5_core")
    assert "another network namespace" in evidence(moved, tmp_path)
    here = PciFunction(address="0000:03:00.2", class_code=0x020000, driver="mlx5_core", netdevs=("vf0",))
    assert evidence(here, tmp_path) == ""
    unbound = PciFunction(address="0000:03:00.2", class_code=0x020000)
    assert evidence(unbound, tmp_path) == ""
    idle = PciFunction(address="0000:03:00.2", class_code=0x020000, driver="vfio-pci", iommu_group=7)
    assert evidence(idle, tmp_path) == ""


def test_attributes_are_never_created(tmp_path: Path) -> None:
    attribute = tmp_path / "mtu"
    attribute.write_text("15")
    Attributes().write(attribute, "90")
    assert attribute.read_text() == "90"
    with pytest.raises(PreparationError, match=r"cannot write '1' to .*/missing: No such file"):
        Attributes().write(tmp_path / "missing", "1")
    assert not (tmp_path / "missing").exists()


# --- netlink ---------------------------------------------------------------------------------------------------------


def test_devlink_messages_are_the_kernels() -> None:
    """Laid out by hand after include/uapi/linux/devlink.h: ESWITCH_SET is 30, attributes 1, 2 and 25."""
    message = encode(27, 30, attributes("0000:03:00.0", "switchdev"), version=1, sequence=7)
    assert message == (
        bytes.fromhex("38000000" "1b00" "0500" "07000000" "00000000" "1e010000")
        + bytes.fromhex("08000100") + b"pci\0"
        + bytes.fromhex("11000200") + b"0000:03:00.0\0\0\0\0"
        + bytes.fromhex("06001900" "01000000")
    )  # fmt: skip


ANSWER = bytes.fromhex("2c0000001b00000007000000000000001d010000")
ACK = bytes.fromhex("2400000002000001070000000000000000000000") + bytes(16)


@pytest.mark.parametrize(("number", "mode"), [(0, "legacy"), (1, "switchdev"), (7, None)])
def test_the_mode_in_an_answer(number: int, mode: Mode | None) -> None:
    body = bytes.fromhex("08000100") + b"pci\0" + bytes.fromhex("06001900") + bytes([number, 0, 0, 0])
    answer = bytes([20 + len(body)]) + ANSWER[1:] + body
    messages = list(decode(answer + ACK))
    assert [kind for kind, _ in messages] == [27, 2]
    assert mode_in(messages[0][1]) == mode


@pytest.mark.parametrize(
    ("flags", "echoed", "says"),
    [("0003", b"", "VFs exist"), ("0002", b"\0" * 8, "VFs exist"), ("0001", b"", "Operation not supported")],
)
def test_a_refusal_in_the_drivers_words(flags: str, echoed: bytes, says: str) -> None:
    """The request's header is echoed in front of the text, with its body unless the kernel caps it."""
    words = struct.pack("=HH", 4 + 10, 1) + b"VFs exist\0\0\0" if flags != "0001" else b""
    body = struct.pack("=i", -errno.EOPNOTSUPP) + struct.pack("=IHHII", 16 + len(echoed), 27, 5, 7, 0) + echoed + words
    message = struct.pack("=IHHII", 16 + len(body), 2, int.from_bytes(bytes.fromhex(flags), "little"), 7, 0) + body
    with pytest.raises(Refused, match=says) as caught:
        list(decode(message))
    assert caught.value.errno == errno.EOPNOTSUPP


def test_a_real_family_answers() -> None:
    """The controller knows itself (family nlctrl, CTRL_CMD_GETFAMILY), and refuses what is not there."""
    assert ask("nlctrl", 3, [(2, b"nlctrl\0")])[1] == struct.pack("=H", 16)
    with pytest.raises(Refused) as caught:
        ask("no-such-family", 1, [])
    assert caught.value.errno == errno.ENOENT


def test_no_devlink_means_no_eswitch() -> None:
    """On a kernel without devlink as on one without this device."""
    assert DevlinkEswitch().mode("ffff:ff:1f.7") is None
    with pytest.raises(PreparationError, match="eswitch mode switchdev is refused"):
        DevlinkEswitch().set_mode("ffff:ff:1f.7", "switchdev")


def test_macs_of_vfs_in_a_link_message() -> None:
    link = ifinfmsg()
    info = [
        ("IFLA_VF_INFO", {"attrs": [("IFLA_VF_MAC", {"vf": vf, "mac": f"02:00:00:00:00:{vf:02x}"})]}) for vf in (0, 3)
    ]
    link["attrs"] = [("IFLA_IFNAME", "p0"), ("IFLA_VFINFO_LIST", {"attrs": info})]
    link.encode()
    decoded = ifinfmsg(bytes(link.data))
    decoded.decode()
    assert macs_in(decoded) == {0: "02:00:00:00:00:00", 3: "02:00:00:00:00:03"}


def test_links_of_the_kernel() -> None:
    links = NetlinkLinks()
    assert links.vf_macs("lo") == {}
    assert links.vf_macs("no-such-device") == {}
    with pytest.raises(PreparationError, match="no-such-device has gone"):
        links.set_mtu("no-such-device", 1500)
    with pytest.raises(PreparationError, match="lo does not take MAC"):
        links.set_vf_mac("lo", 0, "02:00:00:00:00:01")
