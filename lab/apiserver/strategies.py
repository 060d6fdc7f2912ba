"""What a create or an update does to an object of each kind before it is stored."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

from lab.apiserver import custom, metadata, pods, policies, services, typed
from lab.apiserver.kinds import Kind
from lab.apiserver.services import Allocator
from lab.apiserver.status import (
    Json,
    bad_request,
    field_forbidden,
    invalid,
    invalid_value,
    modified,
    not_supported,
    required,
)

_KEPT_METADATA = (
    "uid",
    "creationTimestamp",
    "deletionTimestamp",
    "deletionGracePeriodSeconds",
    "generation",
    "managedFields",
    "selfLink",
)
_IMMUTABLE_METADATA = ("uid", "deletionTimestamp", "deletionGracePeriodSeconds")
_STATUS_METADATA = ("labels", "annotations", "finalizers", "ownerReferences")


class Strategies:
    """Defaults, checks, immutable fields and the split of status, kind by kind."""

    def __init__(self, allocator: Allocator, now: Callable[[], str]) -> None:
        self.allocator = allocator
        self._now = now

    def decode(self, kind: Kind, obj: Json, validation: str) -> tuple[Json, list[str]]:
        """The object as this kind's fields allow it, and the names of those that were dropped.

        Raises StatusError (400) for wrong types, and for unknown fields when `validation` is Strict.
        """
        unknown: list[str] = []
        if kind.custom:
            fitted = custom.prune(obj, kind.schema, unknown, top=True) if kind.schema else obj
        else:
            fitted = typed.fit(typed.shape_of(kind.model), obj, kind.kind, kind.version, unknown)
        if unknown and validation == "Strict":
            fields = ", ".join(f'unknown field "{field}"' for field in unknown)
            what = f'{kind.kind} in version "{kind.version}" cannot be handled as a {kind.kind}'
            raise bad_request(f"{what}: strict decoding error: {fields}")
        fitted.setdefault("metadata", {})
        if not isinstance(fitted["metadata"], dict):
            raise bad_request("metadata must be an object")
        return fitted, unknown

    def create(self, kind: Kind, obj: Json) -> None:
        """Make `obj` ready to be stored for the first time, in place. Raises StatusError (422)."""
        if kind.status and not kind.status_on_create:
            obj.pop("status", None)
        if kind.generation:
            obj["metadata"]["generation"] = 1
        self._default(kind, obj)
        self._refuse(kind, obj, self._problems(kind, obj, None))
        match kind.kind if not kind.custom else "":
            case "Pod":
                pods.created(obj)
            case "Service":
                services.allocate(obj, None, self.allocator)
                obj["status"] = {"loadBalancer": {}}
            case "Namespace":
                obj["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = obj["metadata"]["name"]
                obj.setdefault("spec", {})["finalizers"] = ["kubernetes"]
                obj["status"] = {"phase": "Active"}
            case "PersistentVolume" | "PersistentVolumeClaim":
                obj["status"] = {"phase": "Pending"}
            case "CustomResourceDefinition":
                custom.definition_default(obj, self._now())
            case "VolumeAttachment":
                obj["status"] = {"attached": False}
            case _:
                pass

    def update(self, kind: Kind, old: Json, new: Json, subresource: str) -> None:
        """Make `new` ready to take the place of `old`, in place. Raises StatusError (409, 422)."""
        before, after = old["metadata"], new["metadata"]
        version = after.get("resourceVersion")
        if version and version != before["resourceVersion"]:
            raise modified(kind.plural, kind.group, before["name"])
        found = [
            invalid_value(f"metadata.{name}", after[name], "field is immutable")
            for name in _IMMUTABLE_METADATA
            if after.get(name) is not None and after[name] != before.get(name)
        ]
        for name in _KEPT_METADATA:
            after.pop(name, None)
            if name in before:
                after[name] = before[name]
        self._split(kind, old, new, subresource)
        self._default(kind, new)
        found += self._problems(kind, new, old)
        added = [each for each in after.get("finalizers") or [] if each not in (before.get("finalizers") or [])]
        if "deletionTimestamp" in before and added:
            why = f"no new finalizers can be added if the object is being deleted, found new finalizers {added}"
            found.append(field_forbidden("metadata.finalizers", why))
        self._refuse(kind, new, found)
        if kind.kind == "Service" and not kind.custom and not subresource:
            services.allocate(new, old, self.allocator)
        if kind.generation and _spec(kind, old) != _spec(kind, new):
            after["generation"] = before.get("generation", 1) + 1

    def removed(self, kind: Kind, obj: Json) -> None:
        """Give back what a removed object held."""
        if kind.kind == "Service" and not kind.custom:
            self.allocator.release(obj)

    def _split(self, kind: Kind, old: Json, new: Json, subresource: str) -> None:
        if subresource in ("status", "approval"):
            status = new.get("status")
            meta = dict(new["metadata"])
            if not kind.status_metadata:
                for name in _STATUS_METADATA:
                    meta.pop(name, None)
                    if name in old["metadata"]:
                        meta[name] = old["metadata"][name]
            new.clear()
            new.update({name: value for name, value in old.items() if name != "status"})
            new["metadata"] = meta
            if status is not None:
                new["status"] = status
        elif kind.status:
            new.pop("status", None)
            if "status" in old:
                new["status"] = old["status"]
        if kind.kind == "Namespace" and not kind.custom and subresource != "finalize":
            new["spec"] = old.get("spec", {})
            new["metadata"].setdefault("labels", {})["kubernetes.io/metadata.name"] = new["metadata"]["name"]
        if kind.kind == "Service" and not kind.custom and not subresource and new.get("spec"):
            # a client that never saw the addresses need not repeat them
            for name in ("clusterIP", "clusterIPs"):
                if not new["spec"].get(name) and new["spec"].get("type", "ClusterIP") != "ExternalName":
                    kept = old["spec"].get(name)
                    if kept is not None:
                        new["spec"][name] = kept

    def _default(self, kind: Kind, obj: Json) -> None:
        if kind.custom:
            if kind.schema:
                custom.fill(obj, kind.schema)
            return
        match kind.kind:
            case "Pod":
                pods.default(obj)
            case "Service":
                services.default(obj)
            case "NetworkPolicy":
                policies.default(obj)
            case "Secret":
                obj.setdefault("type", "Opaque")
                for name, value in (obj.pop("stringData", None) or {}).items():
                    obj.setdefault("data", {})[name] = _base64(value)
            case "StorageClass":
                obj.setdefault("reclaimPolicy", "Delete")
                obj.setdefault("volumeBindingMode", "Immediate")
            case "PersistentVolume":
                obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
                obj["spec"].setdefault("persistentVolumeReclaimPolicy", "Retain")
            case "PersistentVolumeClaim":
                obj.setdefault("spec", {}).setdefault("volumeMode", "Filesystem")
            case "Node":
                obj.setdefault("spec", {})
                if obj["spec"].get("podCIDRs"):
                    obj["spec"].setdefault("podCIDR", obj["spec"]["podCIDRs"][0])
                elif obj["spec"].get("podCIDR"):
                    obj["spec"]["podCIDRs"] = [obj["spec"]["podCIDR"]]
            case "CSIDriver":
                spec = obj.setdefault("spec", {})
                spec.setdefault("attachRequired", True)
                spec.setdefault("podInfoOnMount", False)
                spec.setdefault("storageCapacity", False)
                spec.setdefault("fsGroupPolicy", "ReadWriteOnceWithFSType")
                spec.setdefault("requiresRepublish", False)
                spec.setdefault("volumeLifecycleModes", ["Persistent"])
            case _:
                pass

    def _problems(self, kind: Kind, obj: Json, old: Json | None) -> list[Json]:
        found = metadata.problems(obj["metadata"], kind.plural)
        if kind.custom:
            return found + (custom.problems(obj, kind.schema, top=True) if kind.schema else [])
        match kind.kind:
            case "Pod":
                found += pods.problems(obj) + (pods.update_problems(old, obj) if old else [])
            case "Service":
                found += services.problems(obj, old, self.allocator)
            case "NetworkPolicy":
                found += policies.problems(obj)
            case "CustomResourceDefinition":
                found += custom.definition_problems(obj)
            case "Lease":
                found += _lease(obj.get("spec") or {})
            case "Node" if old:
                cidrs = (old.get("spec") or {}).get("podCIDRs")
                if cidrs and obj["spec"].get("podCIDRs") != cidrs:
                    found.append(
                        field_forbidden("spec.podCIDRs", 'node updates may not change podCIDR except from "" to valid')
                    )
            case "VolumeAttachment":
                found += _attachment(obj, old)
            case "StorageClass":
                found += [] if obj.get("provisioner") else [required("provisioner")]
                if old:
                    fixed = ("provisioner", "parameters", "reclaimPolicy", "volumeBindingMode")
                    found += [
                        field_forbidden(name, f"updates to {name} are forbidden.")
                        for name in fixed
                        if obj.get(name) != old.get(name)
                    ]
            case "EndpointSlice":
                allowed = ["IPv4", "IPv6", "FQDN"]
                if obj.get("addressType") not in allowed:
                    found.append(not_supported("addressType", obj.get("addressType", ""), allowed))
                elif old and old["addressType"] != obj["addressType"]:
                    found.append(invalid_value("addressType", obj["addressType"], "field is immutable"))
            case "Secret" if old and old.get("type") != obj.get("type"):
                found.append(invalid_value("type", obj.get("type"), "field is immutable"))
            case _:
                pass
        return found

    def _refuse(self, kind: Kind, obj: Json, found: list[Json]) -> None:
        if found:
            raise invalid(kind.kind, kind.group, obj["metadata"].get("name") or "", found)


def _spec(kind: Kind, obj: Json) -> Json:
    """What the generation counts changes of."""
    left_out = {"metadata", "status"} if kind.status or not kind.custom else {"metadata"}
    return {name: value for name, value in obj.items() if name not in left_out}


def _lease(spec: Json) -> list[Json]:
    found = []
    if spec.get("leaseDurationSeconds") is not None and spec["leaseDurationSeconds"] <= 0:
        found.append(invalid_value("spec.leaseDurationSeconds", spec["leaseDurationSeconds"], "must be greater than 0"))
    if (spec.get("leaseTransitions") or 0) < 0:
        found.append(
            invalid_value("spec.leaseTransitions", spec["leaseTransitions"], "must be greater than or equal to 0")
        )
    return found


def _attachment(obj: Json, old: Json | None) -> list[Json]:
    spec: dict[str, Any] = obj.get("spec") or {}
    found = [required(f"spec.{name}") for name in ("attacher", "nodeName") if not spec.get(name)]
    if not (spec.get("source") or {}):
        found.append(required("spec.source", "must specify exactly one of inlineVolumeSpec and persistentVolumeName"))
    if old and old["spec"] != spec:
        found.append(invalid_value("spec", "{...}", "field is immutable"))
    return found


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
