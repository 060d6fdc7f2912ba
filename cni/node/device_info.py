"""The device-info file: how a Multus-aware runtime hands a function's details to a VM.

k8s.cni.cncf.io "Device Information Specification" 1.1.0.
"""

import contextlib
import json
import os
from pathlib import Path
from typing import Any

from cni.node.attachments import Attachment
from cni.node.devices import Device
from cni.node.errors import InputFailed


def device_info(attachment: Attachment, device: Device) -> dict[str, Any]:
    """Pure. A scalable function has no PCI address of its own; its parent's is given."""
    function = device.function
    pci: dict[str, Any] = {"pci-address": function.pf_address if function.scalable else function.address}
    if function.pf_address:
        pci["pf-pci-address"] = function.pf_address
    if attachment.link:
        pci["representor-device"] = attachment.link
    return {"type": "pci", "version": "1.1.0", "pci": pci}


def write_device_info(attachment: Attachment, device: Device) -> None:
    """Blocking, for an attachment with a file; does nothing where the device plugin has written it already.

    Raises InputFailed.
    """
    path = Path(attachment.device_info_file)
    try:
        if path.exists():
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = path.with_name(f".{path.name}.new")
        fresh.write_text(json.dumps(device_info(attachment, device)))
        os.replace(fresh, path)
    except OSError as error:
        raise InputFailed(
            f"cannot write the device-info file {path} that the runtime asks for: {error.strerror}; see whether "
            "cni-node may write there"
        ) from error


def remove_device_info(attachment: Attachment) -> None:
    if attachment.device_info_file:
        with contextlib.suppress(OSError):
            os.unlink(attachment.device_info_file)
