"""Reading requests, and naming objects after volumes: pure code by tables and by hypothesis."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpu_offload_stubs.attacher.v1 import attacher_pb2 as pb
from volume_attacher import naming
from volume_attacher.errors import InvalidRequest
from volume_attacher.model import Policy, Portal
from volume_attacher.request import secrets, specification

NQN = "nqn.2026-11.io.dpu-offload:volume.main.a"
UUID = "11111111-2222-4333-8444-555555555555"
KEY, TWEAK = "0" * 32, "f" * 32


def _request(**changes: Any) -> pb.AttachRequest:
    path = {"transport": pb.TRANSPORT_TCP, "address": "10.0.0.1", "port": 4420} | changes.pop("path", {})
    remote = {"subsystem_nqn": NQN, "namespace_uuid": UUID, "paths": [pb.Path(**path)]} | changes.pop("remote", {})
    return pb.AttachRequest(**({"volume_id": "main:a", "remote": pb.RemoteVolume(**remote)} | changes))


BAD: list[tuple[str, dict[str, Any]]] = [
    ("volume_id", {"volume_id": ""}),
    ("volume_id", {"volume_id": "x" * 129}),
    ("volume_id", {"volume_id": "a\nb"}),
    ("remote is required", {"remote": None}),
    ("subsystem_nqn", {"remote": {"subsystem_nqn": ""}}),
    ("subsystem_nqn", {"remote": {"subsystem_nqn": "not-an-nqn"}}),
    ("subsystem_nqn", {"remote": {"subsystem_nqn": NQN + "x" * 200}}),
    ("namespace_uuid", {"remote": {"namespace_uuid": ""}}),
    ("namespace_uuid", {"remote": {"namespace_uuid": "00000000-0000-0000-0000-000000000000"}}),
    ("at least one", {"remote": {"paths": []}}),
    ("twice", {"remote": {"paths": [pb.Path(transport=pb.TRANSPORT_TCP, address="10.0.0.1", port=1)] * 2}}),
    ("transport", {"path": {"transport": pb.TRANSPORT_UNSPECIFIED}}),
    ("address", {"path": {"address": ""}}),
    ("address", {"path": {"address": "10.0.0.256"}}),
    ("address", {"path": {"address": "under_score.example"}}),
    ("address", {"path": {"address": "/etc/passwd"}}),
    ("port", {"path": {"port": 0}}),
    ("port", {"path": {"port": 65536}}),
    ("function_policy", {"function_policy": 99}),
    ("read_iops", {"qos": pb.Qos(read_iops=1500)}),
    ("read_write_iops", {"qos": pb.Qos(read_write_iops=(2**64 - 1) // 1000 * 1000)}),
    ("read_write_mb_per_second", {"qos": pb.Qos(read_write_mb_per_second=2**64 - 1)}),
]
BAD_SECRETS: list[tuple[str, dict[str, Any]]] = [
    ("dhchap_key", {"credentials": pb.Credentials(dhchap_key="topsecret")}),
    ("dhchap_ctrlr_key", {"credentials": pb.Credentials(dhchap_ctrlr_key="DHHC-1:00:topsecret:")}),
    ("tls_psk", {"credentials": pb.Credentials(tls_psk="topsecret")}),
    ("encryption.key", {"encryption": pb.Encryption(key="topsecret", tweak_key=TWEAK)}),
    ("encryption.key", {"encryption": pb.Encryption(key=KEY)}),
    ("one length", {"encryption": pb.Encryption(key=KEY * 2, tweak_key=TWEAK)}),
    ("differ", {"encryption": pb.Encryption(key=TWEAK.upper(), tweak_key=TWEAK)}),
]


@pytest.mark.parametrize(("words", "changes"), BAD, ids=range(len(BAD)))
def test_what_is_wrong_is_said(words: str, changes: dict[str, Any]) -> None:
    request = pb.AttachRequest(volume_id="main:a") if changes == {"remote": None} else _request(**changes)
    with pytest.raises(InvalidRequest, match=words):
        specification(request, Policy.STATIC)


@pytest.mark.parametrize(("words", "changes"), BAD_SECRETS, ids=range(len(BAD_SECRETS)))
def test_wrong_secrets_are_refused_and_not_repeated(words: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        secrets(_request(**changes))
    assert "topsecret" not in str(caught.value)


def test_a_good_request_is_read_in_full() -> None:
    paths = [
        pb.Path(transport=pb.TRANSPORT_RDMA, address=address, port=4420) for address in ("FD00::1", "Target.Example")
    ]
    wanted = specification(
        _request(remote={"paths": paths}, function_policy=pb.FUNCTION_POLICY_HOTPLUG, read_only=True), Policy.STATIC
    )
    assert wanted.remote.portals == (Portal("rdma", "fd00::1", 4420), Portal("rdma", "target.example", 4420))
    assert (wanted.policy, wanted.read_only, wanted.encrypted) == (Policy.HOTPLUG, True, False)
    assert specification(_request(), Policy.SHARED).policy is Policy.SHARED


def test_the_order_of_paths_and_the_size_do_not_make_another_specification() -> None:
    one, two = (pb.Path(transport=pb.TRANSPORT_TCP, address=f"10.0.0.{n}", port=1) for n in (1, 2))
    first = specification(_request(remote={"paths": [one, two], "size_bytes": 1}), Policy.STATIC)
    assert first.same(specification(_request(remote={"paths": [two, one]}), Policy.STATIC))
    assert first.differences(specification(_request(read_only=True), Policy.STATIC)) == ["paths", "read_only"]


@given(st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=60))
def test_an_objects_id_is_valid_and_leads_back_to_its_volume(volume_id: str) -> None:
    identifier = naming.object_id(volume_id)
    assert len(identifier) <= 63
    assert identifier.strip("abcdefghijklmnopqrstuvwxyz0123456789-") == ""
    assert not identifier.endswith("-")
    assert naming.is_ours(identifier)
    assert naming.volume_of(identifier) in (volume_id, None)
    assert naming.volume_of(identifier) == volume_id or identifier.startswith("dpux-")


@given(st.text(), st.text())
def test_two_volumes_never_share_an_id(one: str, two: str) -> None:
    encodable = all(not 0xD800 <= ord(c) <= 0xDFFF for c in one + two)
    assert not encodable or (one == two) == (naming.object_id(one) == naming.object_id(two))


@pytest.mark.parametrize(
    "identifier", ["dpu-", "dpu-A", "dpu-x-", "dpu-x-zz", "dpu--ff", "other", "dpu-x-61", "dpux-12"]
)
def test_ids_of_others_lead_to_no_volume(identifier: str) -> None:
    assert naming.volume_of(identifier) is None
