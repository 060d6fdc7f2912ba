"""A refresh sees what a full scan would, whatever happened to the machine."""

import tempfile
from pathlib import Path
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from cni.device_plugin.inventory import Inventory

PF = "0000:41:00.0"
VFS = [f"0000:41:00.{index + 1}" for index in range(4)]
OTHER = "0000:61:00.0"
SWITCH = "b8cef6ffff0a1b2c"


def build(machine: Any) -> None:
    machine.pf(PF, vfs=VFS, group=30)
    machine.netdev("p0", PF, port="p0", switch=SWITCH)
    for index in range(4):
        machine.netdev(f"pf0vf{index}", PF, port=f"pf0vf{index}", switch=SWITCH)
    machine.function(OTHER, vendor="8086", driver="ice", group=30)  # shares the group of VF 0
    machine.netdev("ens9", OTHER)


# An action, and the function that its event would name.
vf = st.sampled_from(VFS)
actions = st.one_of(
    st.tuples(st.just("bind"), st.one_of(vf, st.just(OTHER)), st.sampled_from(["", "vfio-pci", "mlx5_core"])),
    st.tuples(st.just("remove"), st.one_of(vf, st.just(OTHER)), st.just("")),
    st.tuples(st.just("representor"), st.just(PF), st.sampled_from(["0", "1", "2", "3"])),
    st.tuples(st.just("link"), st.just(PF), st.sampled_from(["up", "down"])),
)


@settings(max_examples=20, deadline=None)
@given(st.lists(actions, min_size=1, max_size=8))
def test_refresh_equals_scan(machine_type: type[Any], history: list[tuple[str, str, str]]) -> None:
    with tempfile.TemporaryDirectory() as scratch:
        machine = machine_type(Path(scratch) / "m")
        build(machine)
        followed = Inventory(machine.sysfs, procfs=machine.procfs)
        followed.scan()
        for action, address, value in history:
            exists = machine.device(address).exists()
            if action == "bind" and exists:
                machine.bind(address, value)
            elif action == "remove" and exists:
                for name in list((machine.sysfs_root / "class/net").iterdir()):
                    if address in str(name.resolve()):
                        machine.remove_netdev(name.name)
                for link in machine.device(PF).glob("virtfn*"):
                    if link.resolve().name == address:
                        link.unlink()
                machine.remove(address)
            elif action == "representor" and (machine.sysfs_root / f"class/net/pf0vf{value}").exists():
                machine.remove_netdev(f"pf0vf{value}")
            elif action == "link":
                machine.set_operstate("p0", value)
            followed.refresh({address})
            fresh = Inventory(machine.sysfs, procfs=machine.procfs)
            fresh.scan()
            assert dict(followed.candidates) == dict(fresh.candidates), action


def test_what_stands_on_a_function_is_seen(machine: Any) -> None:
    machine.pf(PF, vfs=VFS[:1])
    machine.netdev("ens1", PF)
    machine.netdev("ens1v0", VFS[0])
    for link in ("upper_bond0", "master", "upper_ens1.7"):
        (machine.sysfs_root / "class/net/ens1" / link).mkdir()
    inventory = Inventory(machine.sysfs, procfs=machine.procfs)
    inventory.scan()
    assert inventory.candidates[PF].carries == ("bond0", "ens1.7")
    assert inventory.candidates[VFS[0]].carries == ()
