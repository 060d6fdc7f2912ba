"""What the shipped roles allow each service account."""

from __future__ import annotations

from collections.abc import Iterator

from tests.deploy.shipped import Body

Grant = tuple[str, str, str, str]
"""Account, verb, API group, resource."""

# What upstream's side-cars ask for under csi-controller's account is theirs to say, not our code's; what the renewer in
# a pod asks for is looked at in test_roles_of_certificates.py.
OTHERS = ("dpu-offload-csi-sidecars", "csi-sidecars", "dpu-offload-certificate-holder")


def grants(objects: list[Body]) -> Iterator[Grant]:
    roles = {
        (one["kind"], one["metadata"].get("namespace", ""), one["metadata"]["name"]): one["rules"]
        for one in objects
        if one["kind"] in ("Role", "ClusterRole")
    }
    for one in objects:
        if one["kind"] not in ("RoleBinding", "ClusterRoleBinding") or one["roleRef"]["name"] in OTHERS:
            continue
        kind, name = one["roleRef"]["kind"], one["roleRef"]["name"]
        namespace = one["metadata"].get("namespace", "") if kind == "Role" else ""
        for subject in one["subjects"]:
            for rule in roles[kind, namespace, name]:
                for group in rule["apiGroups"]:
                    for resource in rule["resources"]:
                        for verb in rule["verbs"]:
                            yield subject["name"], verb, group, resource
