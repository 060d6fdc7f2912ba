"""Which steps lead from what is found to what is declared.

In two halves, since virtual functions are known only when they exist: first the card, then, looked at again, its
virtual functions. No step is planned for what is right already, so that a second run changes nothing.
"""

from __future__ import annotations

from cni.device_plugin.config import PhysicalFunction
from cni.device_plugin.errors import PreparationError
from cni.device_plugin.preparation.state import (
    Bind,
    PfState,
    SetAutoprobe,
    SetEswitch,
    SetMac,
    SetMtu,
    SetVfs,
    Step,
    Unbind,
)

# mlx5 of older kernels enters switchdev mode only when VFs exist; ice refuses it while any exists.
_VFS_FIRST = frozenset({"mlx5_core"})


def plan_card(state: PfState, wanted: PhysicalFunction) -> tuple[Step, ...]:
    """VF count, eswitch mode, autoprobe, MTU. Raises PreparationError, also when a VF that would suffer is in use."""
    _check(state, wanted)
    count = len(state.vfs) if wanted.vfs is None else wanted.vfs
    new_count = count != len(state.vfs)
    new_mode = wanted.eswitch is not None and (state.eswitch or "legacy") != wanted.eswitch
    steps: list[Step] = []
    if new_count or new_mode:
        _refuse_if_used(state, _change(state, wanted, count))
        # Nothing may bind to VFs before their MACs are set, or while the mode changes.
        if state.autoprobe and count:
            steps.append(SetAutoprobe(False))
        steps += _rebuild(state, wanted, count, new_count=new_count, new_mode=new_mode)
    # Also when nothing else is to do: an earlier run may have been killed before this step.
    autoprobe = _autoprobe(state, wanted)
    if autoprobe != (state.autoprobe and SetAutoprobe(False) not in steps):
        steps.append(SetAutoprobe(autoprobe))
    # After the mode: changing it makes the network device anew.
    if wanted.mtu is not None and (state.mtu != wanted.mtu or new_mode):
        steps.append(SetMtu(wanted.mtu))
    return tuple(steps)


def plan_functions(state: PfState, wanted: PhysicalFunction) -> tuple[Step, ...]:
    """MACs and drivers of the VFs that exist. Raises PreparationError when one that would suffer is in use."""
    steps: list[Step] = []
    for vf in state.vfs:
        mac = vf_mac(wanted.mac_prefix, vf.index)
        new_mac = bool(mac) and vf.mac != mac
        probe = not vf.driver and wanted.autoprobe is not False
        driver = wanted.vf_driver or vf.driver
        if not new_mac and not probe and driver == vf.driver:
            continue
        if vf.user:
            raise PreparationError(
                f"{state.address}: VF {vf.index} ({vf.address}) is in use by {vf.user}; it keeps its driver and MAC "
                "until it is free"
            )
        if new_mac:
            # A VF's driver reads its MAC when it starts.
            if vf.driver:
                steps.append(Unbind(vf.index))
            steps.append(SetMac(vf.index, mac))
        if driver or probe:
            steps.append(Bind(vf.index, driver))
    return tuple(steps)


def vf_mac(prefix: str, index: int) -> str:
    """`02:aa:bb:cc`, 258 -> `02:aa:bb:cc:01:02`; "" without a prefix."""
    return f"{prefix.lower()}:{index >> 8:02x}:{index & 0xFF:02x}" if prefix else ""


def _autoprobe(state: PfState, wanted: PhysicalFunction) -> bool:
    if wanted.autoprobe is not None:
        return wanted.autoprobe
    declared = wanted.vfs is not None or wanted.eswitch is not None
    return declared or state.autoprobe


def _rebuild(state: PfState, wanted: PhysicalFunction, count: int, *, new_count: bool, new_mode: bool) -> list[Step]:
    mode: list[Step] = [SetEswitch(wanted.eswitch)] if new_mode and wanted.eswitch is not None else []
    vfs_first = wanted.vfs_first if wanted.vfs_first is not None else state.driver in _VFS_FIRST
    if new_mode and vfs_first and not new_count:
        return [*(Unbind(vf.index) for vf in state.vfs if vf.driver), *mode]
    # The kernel takes no other count than 0 while VFs exist.
    away: list[Step] = [SetVfs(0)] if state.vfs else []
    made: list[Step] = [SetVfs(count)] if count else []
    return [*away, *made, *mode] if vfs_first else [*away, *mode, *made]


def _check(state: PfState, wanted: PhysicalFunction) -> None:
    if wanted.vfs is not None and wanted.vfs > state.total_vfs:
        raise PreparationError(
            f"{state.address}: {wanted.vfs} VFs are declared, the card has at most {state.total_vfs}; raise it in the "
            "card's firmware configuration or declare fewer"
        )
    if wanted.eswitch == "switchdev" and state.eswitch is None:
        raise PreparationError(
            f"{state.address}: switchdev mode is declared, but driver {state.driver or 'none'} offers no eswitch "
            "through devlink"
        )
    if wanted.mtu is not None and not state.netdev:
        raise PreparationError(f"{state.address}: an MTU is declared, but the function has no network device here")


def _change(state: PfState, wanted: PhysicalFunction, count: int) -> str:
    changes = []
    if count != len(state.vfs):
        changes.append(f"VFs {len(state.vfs)} -> {count}")
    if wanted.eswitch is not None and (state.eswitch or "legacy") != wanted.eswitch:
        changes.append(f"eswitch {state.eswitch} -> {wanted.eswitch}")
    return ", ".join(changes)


def _refuse_if_used(state: PfState, change: str) -> None:
    used = [f"VF {vf.index} ({vf.address}) by {vf.user}" for vf in state.vfs if vf.user]
    if used:
        raise PreparationError(
            f"{state.address} stays as it is, though {change} is declared: in use are {'; '.join(used)}; drain the "
            "node first"
        )
