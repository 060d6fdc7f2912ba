"""What Kubernetes wants of a DPU, and how long an attachment nobody names is left alone: pure code."""

from typing import Any

import msgspec
import pytest

from csi import identity
from csi.errors import InvalidArgument
from csi.node_dpu import desired, health
from csi.node_dpu.calls import RecentCalls
from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from foundation.kube.models.core import PersistentVolume
from foundation.kube.models.storage import VolumeAttachment

TCP = {"transport": "tcp", "address": "10.0.0.1", "port": 4420}
RDMA = {"transport": "rdma", "address": "10.0.0.2", "port": 4421}


def _volume(
    handle: str = "main:a", *, portals: Any = (TCP,), modes: tuple[str, ...] = (), **more: Any
) -> PersistentVolume:
    attributes = {"portals": msgspec.json.encode(list(portals)).decode(), **more.pop("attributes", {})}
    csi = {"driver": identity.DRIVER_NAME, "volumeHandle": handle, "volumeAttributes": attributes, **more}
    body = {"metadata": {"name": "pv"}, "spec": {"csi": csi, "accessModes": list(modes)}}
    return msgspec.convert(body, PersistentVolume)


def _attachment(**changes: Any) -> VolumeAttachment:
    spec = {"attacher": identity.DRIVER_NAME, "nodeName": "host", "source": {"persistentVolumeName": "pv"}}
    spec |= changes.pop("spec", {})
    body = {"metadata": {"name": "va", **changes.pop("metadata", {})}, "spec": spec, "status": changes}
    return msgspec.convert(body, VolumeAttachment)


@pytest.mark.parametrize(
    ("attachment", "concerned"),
    [
        (_attachment(), True),
        (_attachment(attached=True, attachmentMetadata={"dpuNode": "dpu"}), True),
        (_attachment(attached=True, attachmentMetadata={"dpuNode": "other-dpu"}), False),
        (_attachment(spec={"nodeName": "other-host"}), False),
        (_attachment(spec={"attacher": "another.driver"}), False),
    ],
)
def test_which_attachments_concern_a_dpu(attachment: VolumeAttachment, concerned: bool) -> None:
    assert desired.concerns(attachment, node="dpu", hosts=frozenset({"host"})) is concerned


def test_only_what_is_attached_and_not_being_deleted_is_certain() -> None:
    volumes = {"pv": _volume()}
    deleted = {"deletionTimestamp": "2026-11-22T00:00:00Z"}
    assert desired.wanted(_attachment(attached=True), volumes).certain
    assert not desired.wanted(_attachment(), volumes).certain
    assert not desired.wanted(_attachment(attached=True, metadata=deleted), volumes).certain
    assert desired.wanted(_attachment(), {}).volume_id == ""


def test_missing_and_orphaned() -> None:
    certain = desired.Wanted("a", "pv-a", "main:a", True)
    coming = desired.Wanted("b", "pv-b", "main:b", False)
    unknown = desired.Wanted("c", "pv-c", "", True)
    assert desired.missing([certain, coming], ["main:c"]) == [certain]
    assert desired.missing([certain], ["main:a"]) == []
    there = ["main:a", "main:b", "main:c", "NOT OURS"]
    assert desired.orphans([certain, coming], there) == ["main:c"]
    assert desired.orphans([certain, unknown], there) == [], "the unknown one might be main:c"


def test_the_request_is_the_one_that_csi_controller_would_make() -> None:
    volume = _volume(portals=(TCP, RDMA), modes=("ReadOnlyMany",), attributes={"functionPolicy": "shared"})
    made = desired.request(volume, transports=frozenset({"tcp"}))
    assert made.remote.subsystem_nqn == identity.subsystem_nqn("main:a")
    assert made.remote.namespace_uuid == identity.namespace_uuid("main:a")
    assert [(path.address, path.port) for path in made.remote.paths] == [("10.0.0.1", 4420)]
    assert (made.function_policy, made.read_only) == (pb.FUNCTION_POLICY_SHARED_CONTROLLER, True)


# An unknown key is skipped, however deep it goes.
DEEP = '[{"x": ' + "[" * 100_000 + "]" * 100_000 + "}]"
LACKING = {
    "no id of ours": _volume("nonsense"),
    "no portal in reach": _volume(portals=(RDMA,)),
    "portals that are none": _volume(portals=("x",)),
    "portals nested too deep": _volume(attributes={"portals": DEEP}),
}


@pytest.mark.parametrize("volume", LACKING.values(), ids=LACKING)
def test_a_volume_that_says_too_little_is_refused(volume: PersistentVolume) -> None:
    with pytest.raises(InvalidArgument):
        desired.request(volume, transports=frozenset({"tcp"}))


def test_a_volume_being_published_is_left_alone_until_its_grace_is_over() -> None:
    now = [100.0]
    calls = RecentCalls(30, clock=lambda: now[0])
    with calls.attaching("v"):
        now[0] += 1000
        assert calls.running("v")
        assert calls.recent("v")
    now[0] += 29
    assert calls.recent("v")
    now[0] += 1
    assert not calls.recent("v")
    with calls.attaching("v"):
        pass
    calls.detached("v")
    assert not calls.recent("v")


@pytest.mark.parametrize(
    ("connected", "ana", "lost"),
    [(True, "", False), (True, "non_optimized", False), (True, "inaccessible", True), (False, "optimized", True)],
)
def test_a_path_that_takes_no_io_is_lost(connected: bool, ana: str, lost: bool) -> None:
    assert health.lost(pb.PathState(connected=connected, ana_state=ana)) is lost


def test_the_condition_names_the_worst() -> None:
    good = pb.Attachment(volume_id="a", state=pb.ATTACHMENT_STATE_ATTACHED)
    degraded = pb.Attachment(volume_id="b", state=pb.ATTACHMENT_STATE_DEGRADED, reason="a path is lost")
    failed = pb.Attachment(volume_id="c", state=pb.ATTACHMENT_STATE_FAILED, reason="gone")
    assert health.condition({"a": good})["status"] == "False"
    assert health.condition({"a": good, "b": degraded})["reason"] == "VolumeDegraded"
    assert health.condition({"b": degraded, "c": failed})["reason"] == "VolumeFailed"
    assert "b: a path is lost" in health.condition({"b": degraded, "c": failed})["message"]
