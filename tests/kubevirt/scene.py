"""Machines on a controller's core: run and stopped by hand, looked at in the northbound database."""

from __future__ import annotations

import json
from typing import Any

from foundation.ovsdb import Row
from tests.controller.stage import Stage
from tests.kubevirt.objects import interface, launcher, spec, vmi


def network(name: str, **config: str) -> dict[str, Any]:
    text = json.dumps({"type": "dpu-offload", "name": name, **config})
    return {"metadata": {"name": name, "namespace": "ns"}, "spec": {"config": text}}


LAN = network("lan", topology="layer2", subnets="10.9.0.0/24")
ROUTED = network("routed", topology="layer3", subnets="10.8.0.0/16/24")
TWO = spec(interface("default"), interface("blue", "sriov"), networks={"blue": "lan"})


def port(stage: Stage, name: str = "ns_vm_m") -> Row:
    return stage.named("Logical_Switch_Port")[name]


def addresses(stage: Stage, name: str = "ns_vm_m") -> str:
    (text,) = port(stage, name)["addresses"]
    return str(text)


def run(stage: Stage, name: str, *, on: str, template: dict[str, Any] | None = None, **more: Any) -> None:
    stage.put("vmi", vmi("m", template, on=on))
    stage.put("pod", launcher("m", name, on=on, **more))


def stop(stage: Stage, name: str) -> None:
    stage.remove("pod", f"ns/{name}")
    stage.remove("vmi", "ns/m")
