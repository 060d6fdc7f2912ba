"""Which function a deviceID means on this machine, and how a pod can have it."""

import msgspec

from cni.node.attachments import FunctionRef, Kind
from cni.node.errors import BadConfiguration
from foundation.pci import Sysfs
from foundation.pci.errors import PciError

_VFIO_DRIVERS = ("vfio-pci", "vfio_pci")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """`netdev` is the function's network device, "" when a pod has it now or when it is bound to vfio-pci."""

    kind: Kind
    function: FunctionRef
    netdev: str = ""
    pf_netdev: str = ""
    vfio: str = ""


def resolve(sysfs: Sysfs, device_id: str) -> Device:
    """Reads a handful of sysfs files. Raises BadConfiguration that names what is wrong with the deviceID."""
    try:
        if ".sf." in device_id:
            return _scalable(sysfs, device_id)
        return _virtual(sysfs, device_id)
    except PciError as error:
        raise BadConfiguration(
            f"deviceID {device_id} cannot be used: {error}; see what the device plugin allocated to the pod"
        ) from error


def usable(sysfs: Sysfs, device_id: str) -> bool:
    """Whether a deviceID means a function of this machine that a pod can have."""
    try:
        resolve(sysfs, device_id)
    except BadConfiguration:
        return False
    return True


def _virtual(sysfs: Sysfs, device_id: str) -> Device:
    found = sysfs.function(device_id, vpd=False)
    if not found.is_vf:
        raise BadConfiguration(
            f"deviceID {found.address} is a physical function, not a VF; give the pod one of its virtual functions"
        )
    pf_netdevs = sysfs.netdevs(found.pf)
    switch_id = next((one for name in pf_netdevs if (one := sysfs.netdev(name).switch_id)), "") if pf_netdevs else ""
    vfio = found.driver in _VFIO_DRIVERS
    return Device(
        kind="vfio" if vfio else "vf",
        function=FunctionRef(
            address=found.address,
            pf=found.pf_number,
            vf=found.vf_index,
            switch_id=switch_id,
            card=sysfs.vpd(found.pf).fields.get("SN", ""),
            pf_address=found.pf,
        ),
        netdev="" if vfio or not found.netdevs else found.netdevs[0],
        pf_netdev=pf_netdevs[0] if pf_netdevs else "",
        vfio=sysfs.vfio_device(found.address) if vfio else "",
    )


def _scalable(sysfs: Sysfs, device_id: str) -> Device:
    found = sysfs.scalable_function(device_id)
    pf_netdevs = sysfs.netdevs(found.pf) if found.pf else ()
    switch_id = next((one for name in pf_netdevs if (one := sysfs.netdev(name).switch_id)), "")
    return Device(
        kind="sf",
        function=FunctionRef(
            address=found.name,
            pf=found.pf_number,
            vf=found.number,
            switch_id=switch_id,
            card=sysfs.vpd(found.pf).fields.get("SN", "") if found.pf else "",
            pf_address=found.pf,
            scalable=True,
        ),
        netdev=found.netdevs[0] if found.netdevs else "",
        pf_netdev=pf_netdevs[0] if pf_netdevs else "",
    )
