"""Defaults, checks and life cycle of pods (pure)."""

from __future__ import annotations

from typing import Any

from lab.apiserver.metadata import LABEL
from lab.apiserver.status import Json, cause, field_forbidden, invalid_value, not_supported, required

GRACE_SECONDS = 30

_SPEC_DEFAULTS: Json = {
    "restartPolicy": "Always",
    "terminationGracePeriodSeconds": GRACE_SECONDS,
    "dnsPolicy": "ClusterFirst",
    "schedulerName": "default-scheduler",
    "enableServiceLinks": True,
    "preemptionPolicy": "PreemptLowerPriority",
    "priority": 0,
}
_CONTAINER_DEFAULTS: Json = {
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}
_MUTABLE = ("activeDeadlineSeconds", "tolerations", "terminationGracePeriodSeconds", "schedulingGates")
_TOLERATED = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


def default(pod: Json) -> None:
    """Fill in what a pod does not say, in place."""
    spec = pod.setdefault("spec", {})
    for name, value in _SPEC_DEFAULTS.items():
        spec.setdefault(name, value)
    spec.setdefault("securityContext", {})
    if spec.get("serviceAccountName"):
        spec.setdefault("serviceAccount", spec["serviceAccountName"])
    tolerations = spec.setdefault("tolerations", [])
    for key in _TOLERATED:
        if not any(
            each.get("key") in (key, None) and each.get("effect") in ("NoExecute", None) for each in tolerations
        ):
            tolerations.append({"key": key, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300})
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        for name, value in _CONTAINER_DEFAULTS.items():
            container.setdefault(name, value)
        tag = str(container.get("image", "")).rpartition("/")[2].partition(":")[2]
        container.setdefault("imagePullPolicy", "Always" if tag in ("", "latest") else "IfNotPresent")
        resources = container.setdefault("resources", {})
        for name, value in (resources.get("limits") or {}).items():
            resources.setdefault("requests", {}).setdefault(name, value)
        for port in container.get("ports") or []:
            port.setdefault("protocol", "TCP")
            if spec.get("hostNetwork"):
                port.setdefault("hostPort", port.get("containerPort"))


def created(pod: Json) -> None:
    """State of a new pod."""
    pod["status"] = {"phase": "Pending", "qosClass": _quality(pod["spec"])}


def _quality(spec: Json) -> str:
    guaranteed, burstable = True, False
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        resources = container.get("resources") or {}
        requests, limits = resources.get("requests") or {}, resources.get("limits") or {}
        used = {name for name in (*requests, *limits) if name in ("cpu", "memory")}
        burstable = burstable or bool(used)
        guaranteed = guaranteed and used == {"cpu", "memory"} and all(limits.get(n) == requests.get(n) for n in used)
    return "Guaranteed" if guaranteed and burstable else "Burstable" if burstable else "BestEffort"


def problems(pod: Json) -> list[Json]:
    """What is wrong with a pod, as causes of a 422."""
    spec = pod.get("spec") or {}
    found: list[Json] = []
    containers = spec.get("containers") or []
    if not containers:
        found.append(required("spec.containers"))
    names: set[str] = set()
    for field, group in (("containers", containers), ("initContainers", spec.get("initContainers") or [])):
        for index, container in enumerate(group):
            found += _container(container, f"spec.{field}[{index}]", names)
    if spec.get("restartPolicy") not in ("Always", "OnFailure", "Never"):
        found.append(not_supported("spec.restartPolicy", spec.get("restartPolicy"), ["Always", "OnFailure", "Never"]))
    volumes: set[str] = set()
    for index, volume in enumerate(spec.get("volumes") or []):
        field = f"spec.volumes[{index}].name"
        if not volume.get("name"):
            found.append(required(field))
        elif volume["name"] in volumes:
            found.append(cause(field, "FieldValueDuplicate", f'Duplicate value: "{volume["name"]}"'))
        volumes.add(volume.get("name", ""))
    return found


def _container(container: Json, field: str, names: set[str]) -> list[Json]:
    found: list[Json] = []
    name = container.get("name") or ""
    if not name:
        found.append(required(f"{field}.name"))
    elif not LABEL.match(name):
        found.append(invalid_value(f"{field}.name", name, "a lowercase RFC 1123 label is needed"))
    elif name in names:
        found.append(cause(f"{field}.name", "FieldValueDuplicate", f'Duplicate value: "{name}"'))
    names.add(name)
    if not container.get("image"):
        found.append(required(f"{field}.image"))
    for index, port in enumerate(container.get("ports") or []):
        place = f"{field}.ports[{index}]"
        number = port.get("containerPort")
        if not number:
            found.append(required(f"{place}.containerPort"))
        elif not 0 < number < 65536:
            found.append(invalid_value(f"{place}.containerPort", number, "must be between 1 and 65535, inclusive"))
        if port.get("protocol") not in ("TCP", "UDP", "SCTP"):
            found.append(not_supported(f"{place}.protocol", port.get("protocol"), ["SCTP", "TCP", "UDP"]))
    return found


def update_problems(old: Json, new: Json) -> list[Json]:
    """What may not change in a pod."""
    before, after = _frozen(old["spec"]), _frozen(new["spec"])
    if before == after:
        return []
    return [
        field_forbidden(
            "spec",
            "pod updates may not change fields other than `spec.containers[*].image`, `spec.initContainers[*].image`, "
            "`spec.activeDeadlineSeconds`, `spec.tolerations` (only additions to existing tolerations), "
            "`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)",
        )
    ]


def _frozen(spec: Json) -> Json:
    rest: dict[str, Any] = {name: value for name, value in spec.items() if name not in _MUTABLE}
    for group in ("containers", "initContainers"):
        if group in rest:
            rest[group] = [{k: v for k, v in each.items() if k != "image"} for each in rest[group] or []]
    return rest


def grace_seconds(pod: Json, asked: int | None) -> int:
    """How long a deleted pod stays until its kubelet has stopped it; 0 when no kubelet has it."""
    spec, status = pod["spec"], pod.get("status") or {}
    if not spec.get("nodeName") or status.get("phase") in ("Succeeded", "Failed"):
        return 0
    if asked is not None:
        return max(asked, 0)
    return int(spec.get("terminationGracePeriodSeconds", GRACE_SECONDS))
