"""Machines as KubeVirt's API has them while they live: what may happen next, and what it does to their objects."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from cni.controller.model.annotations import VM_NETWORKS
from tests.controller.stage import Stage, node, pod
from tests.kubevirt.conftest import FAMILIES
from tests.kubevirt.objects import READY, interface, launcher, spec, vm, vmi
from tests.kubevirt.scene import network

LANS = {
    "layer2": network("lan", topology="layer2", subnets="10.9.0.0/24"),
    "layer3": network("lan", topology="layer3", subnets="10.9.0.0/16/24"),
}
MACHINES = ("m", "o")
NODES: dict[str, dict[str, str]] = {"n1": {}, "n2": {}, "n3": {"dpu-offload.io/mode": "host"}}
MACS = ("", "02:00:00:00:00:07", "02:00:00:00:00:08")
DPU = {"dpu-offload.io/mode": "dpu", "dpu-offload.io/host-node": "n3"}


@dataclass
class Move:
    """A migration: how KubeVirt sees it, and its target's pod."""

    uid: str
    target: str
    phase: str = "Running"


@dataclass
class Life:
    """One machine as the API has it."""

    name: str
    exists: bool = True
    mac: str = ""
    claimed: bool = False
    era: int = 0
    """Its address on the other network is one as long as this is."""
    spec: dict[str, Any] | None = None
    """Of the instance, while there is one."""
    on: str = ""
    pods: dict[str, dict[str, Any]] = field(default_factory=dict)
    guest: str = ""
    move: Move | None = None
    last: dict[str, Any] | None = None


class Cluster:
    """What stands in the API, put on a stage as it changes."""

    def __init__(self, families: str, topology: str) -> None:
        self.families = families
        self.lan = LANS[topology]
        self.lives = {name: Life(name) for name in MACHINES}
        self.nodes = set(NODES)
        self.claims: dict[str, dict[str, Any]] = {}
        self.migrations: dict[str, dict[str, Any]] = {}
        self.kept: dict[str, str] = {}
        self.strangers: dict[str, dict[str, Any]] = {}
        self.count = 0
        self.stage: Stage | None = None

    def put(self, kind: str, obj: dict[str, Any]) -> None:
        assert self.stage is not None
        self.stage.put(kind, obj)

    def gone(self, kind: str, key: str) -> None:
        assert self.stage is not None
        self.stage.remove(kind, key)

    # Objects

    def node(self, name: str) -> dict[str, Any]:
        index = name[1:]
        return node(name, *(each.format(index) for each in FAMILIES[self.families]), labels=NODES[name])

    def vm(self, life: Life) -> dict[str, Any]:
        kept = self.kept.get(life.name)
        return vm(life.name, self.template(life), **({VM_NETWORKS: kept} if kept else {}))

    def template(self, life: Life) -> dict[str, Any]:
        return spec(interface("default", mac=life.mac), interface("blue"), networks={"blue": "lan"})

    def vmi(self, life: Life) -> dict[str, Any]:
        return vmi(life.name, life.spec, on=life.on, migration=life.last)

    def pod(self, life: Life, name: str, on: str, job: str = "") -> dict[str, Any]:
        self.count += 1
        asked = [{"name": "lan", **({"ipam-claim-reference": life.name} if life.claimed else {})}]
        return launcher(life.name, name, on=on, created=self.count, networks=json.dumps(asked), annotations={}, job=job)

    def everything(self) -> None:
        """All first lists."""
        for name in sorted(self.nodes):
            self.put("node", self.node(name))
        self.put("node", node("d3", *(each.format(4) for each in FAMILIES[self.families]), labels=DPU))
        self.put("network", self.lan)
        for claim in self.claims.values():
            self.put("ipamclaim", claim)
        for life in self.lives.values():
            if life.exists:
                self.put("vm", self.vm(life))
            if life.spec is not None:
                self.put("vmi", self.vmi(life))
        for migration in self.migrations.values():
            self.put("vmmigration", migration)
        for life in self.lives.values():
            for each in life.pods.values():
                self.put("pod", each)
        for each in self.strangers.values():
            self.put("pod", each)

    def learn(self) -> None:
        """What the controller wrote, as the API would have it then."""
        assert self.stage is not None
        for key, written in self.stage.annotations.items():
            for pods in (self.strangers, *(life.pods for life in self.lives.values())):
                if key.partition("/")[2] in pods:
                    found = pods[key.partition("/")[2]]["metadata"]["annotations"]
                    found["dpu-offload.io/pod-networks"] = json.dumps(written)
        for key, kept in self.stage.machines.items():
            self.kept[key.partition("/")[2]] = json.dumps(kept)
        self.stage.machines.clear()
        for key, ips in self.stage.claims.items():
            if key.partition("/")[2] in self.claims:
                self.claims[key.partition("/")[2]]["status"] = {"ips": list(ips)}
        self.stage.claims.clear()

    # Events

    def options(self) -> list[tuple[str, str, str]]:
        """What may happen now: event, machine, node. What often happens stands there several times."""
        found = [("stranger", "", on) for on in sorted(self.nodes)] + [("restart", "", "")] * 3
        found += [("node_gone", "", on) for on in sorted(self.nodes) if len(self.nodes) > 1]
        found += [("node_back", "", on) for on in NODES if on not in self.nodes] * 2
        found += [("forget", "", "")] * bool(self.migrations)
        for life in self.lives.values():
            found += [(event, life.name, on) for event, on in self._of(life)]
        return found

    def _of(self, life: Life) -> Iterator[tuple[str, str]]:
        others = sorted(self.nodes - {life.on})
        lingering = set(life.pods) - {life.guest, life.move.target if life.move is not None else ""}
        if not life.exists:
            yield from [("create", "")] * (not life.pods)
            return
        yield from [("mac", on) for on in NODES]
        yield from [("reap", "")] * bool(lingering)
        if life.spec is None:
            yield from [("start", on) for on in sorted(self.nodes)] * 3
            yield from (("claim", ""), ("delete", ""))
            yield from [("claim_gone", "")] * (life.name in self.claims)
            return
        yield from (("stop", ""), ("delete", ""))
        if life.move is None:
            yield from [(event, on) for event in ("begin", "begin", "kill") for on in others]
        elif life.move.target in life.pods:
            yield from (("copy", ""), ("succeed", "n1"), ("succeed", "n2"))
            if life.move.phase == "Running":
                yield from (("ready", ""), ("fail", "n1"), ("fail", "n2"), ("target_lost", ""))
        else:
            yield from (("fail", "n1"), ("fail", "n2"))

    def happen(self, event: str, name: str, on: str) -> None:
        getattr(self, event)(*([self.lives[name]] if name else []), *([on] if on else []))

    def start(self, life: Life, on: str) -> None:
        life.spec, life.on, life.last, life.move = self.template(life), on, None, None
        self.put("vmi", self.vmi(life))
        life.guest = f"{life.name}-{self.count + 1}"
        life.pods[life.guest] = self.pod(life, life.guest, on)
        self.put("pod", life.pods[life.guest])

    def stop(self, life: Life) -> None:
        for name in tuple(life.pods):
            self.lose(life, name)
        self.ended(life)

    def ended(self, life: Life) -> None:
        life.spec, life.guest, life.move = None, "", None
        self.gone("vmi", f"ns/{life.name}")

    def lose(self, life: Life, name: str) -> None:
        del life.pods[name]
        self.gone("pod", f"ns/{name}")

    def leave(self, life: Life, name: str) -> None:
        life.pods[name]["metadata"]["deletionTimestamp"] = "2026-11-22T04:00:00Z"
        self.put("pod", life.pods[name])

    def kill(self, life: Life, on: str) -> None:
        """Its node is lost: the pod stays, being deleted, while the machine starts elsewhere."""
        self.leave(life, life.guest)
        self.ended(life)
        self.start(life, on)

    def reap(self, life: Life) -> None:
        """What lingers of earlier pods goes."""
        for name in tuple(life.pods):
            if name != life.guest and (life.move is None or name != life.move.target):
                self.lose(life, name)

    def begin(self, life: Life, on: str) -> None:
        uid = f"uid-{self.count + 1}"
        life.move = Move(uid, f"{life.name}-{self.count + 1}")
        self.migrations[uid] = {
            "metadata": {"name": uid, "namespace": "ns", "uid": uid},
            "spec": {"vmiName": life.name},
            "status": {"phase": "Running"},
        }
        self.put("vmmigration", self.migrations[uid])
        made = self.pod(life, life.move.target, on)
        made["metadata"]["labels"]["kubevirt.io/migrationJobUID"] = uid
        life.pods[life.move.target] = made
        self.put("pod", made)

    def tell(self, life: Life, move: Move, **more: Any) -> None:
        life.last = {"migrationUid": move.uid, "targetPod": move.target, **more}
        self.put("vmi", self.vmi(life))

    def copy(self, life: Life) -> None:
        assert life.move is not None
        self.tell(life, life.move)

    def ready(self, life: Life) -> None:
        assert life.move is not None
        life.pods[life.move.target]["metadata"]["annotations"].update(READY)
        self.put("pod", life.pods[life.move.target])
        life.move.phase = "Ready"

    def succeed(self, life: Life, on: str) -> None:
        """`on`: whether the source's pod ends at once, or is found ended later."""
        move = life.move
        assert move is not None
        self.over(life, move, "Succeeded")
        if on == "n1":
            life.pods[life.guest]["status"]["phase"] = "Succeeded"
            self.put("pod", life.pods[life.guest])
        life.guest, life.on = move.target, life.pods[move.target]["spec"]["nodeName"]
        self.tell(life, move, completed=True)

    def fail(self, life: Life, on: str) -> None:
        """`on`: whether the target's pod is deleted at once, or later."""
        move = life.move
        assert move is not None
        self.over(life, move, "Failed")
        self.tell(life, move, completed=True, failed=True)
        if move.target in life.pods and on == "n1":
            self.leave(life, move.target)

    def target_lost(self, life: Life) -> None:
        assert life.move is not None
        self.lose(life, life.move.target)

    def over(self, life: Life, move: Move, phase: str) -> None:
        life.move = None
        self.migrations[move.uid]["status"]["phase"] = phase
        self.put("vmmigration", self.migrations[move.uid])

    def forget(self) -> None:
        """Migrations that are over are deleted, as KubeVirt does after some; of those whose pods are gone first."""
        jobs = {
            each["metadata"]["labels"].get("kubevirt.io/migrationJobUID", "")
            for life in self.lives.values()
            for name, each in life.pods.items()
            if name != life.guest
        }
        running = {each.move.uid for each in self.lives.values() if each.move is not None}
        for uid in [each for each in self.migrations if each not in running | jobs]:
            del self.migrations[uid]
            self.gone("vmmigration", f"ns/{uid}")

    def mac(self, life: Life, on: str) -> None:
        life.mac = MACS[list(NODES).index(on)]
        self.put("vm", self.vm(life))

    def claim(self, life: Life) -> None:
        """Taken up or given up with the next start. A new one takes over what the machine has; else the claim's address
        is the claim's, and the machine's its own."""
        life.claimed = not life.claimed
        life.era += life.name in self.claims
        if life.name not in self.claims:
            self.claims[life.name] = {
                "metadata": {"name": life.name, "namespace": "ns"},
                "spec": {"network": "lan", "interface": "blue"},
            }
        self.put("ipamclaim", self.claims[life.name])

    def claim_gone(self, life: Life) -> None:
        del self.claims[life.name]
        life.era += life.claimed
        life.claimed = False
        self.gone("ipamclaim", f"ns/{life.name}")

    def node_gone(self, on: str) -> None:
        self.nodes.discard(on)
        self.gone("node", on)

    def node_back(self, on: str) -> None:
        self.nodes.add(on)
        self.put("node", self.node(on))

    def delete(self, life: Life) -> None:
        life.exists = False
        self.gone("vm", f"ns/{life.name}")
        if life.spec is not None:
            self.stop(life)
        for name in tuple(life.pods):
            self.lose(life, name)
        self.kept.pop(life.name, None)

    def create(self, life: Life) -> None:
        life.exists = True
        self.put("vm", self.vm(life))

    def stranger(self, on: str) -> None:
        """A pod takes and leaves addresses; it gets nobody's."""
        for name in tuple(self.strangers)[2:]:
            del self.strangers[name]
            self.gone("pod", f"ns/{name}")
        self.count += 1
        made = pod(f"p{self.count}", on=on, annotations={"k8s.v1.cni.cncf.io/networks": "lan"})
        self.strangers[made["metadata"]["name"]] = made
        self.put("pod", made)
