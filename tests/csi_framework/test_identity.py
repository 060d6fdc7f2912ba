"""Names derived from ids: inverse, stable, and never longer than NVMe or CSI allow."""

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from csi import identity

backends = st.from_regex(r"[a-z][a-z0-9-]{0,30}", fullmatch=True)
keys = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,90}", fullmatch=True)
ids = st.builds(identity.VolumeId, backend=backends, key=keys)


@given(ids)
def test_text_and_nqn_lead_back_to_the_id(volume: identity.VolumeId) -> None:
    assert identity.parse_volume_id(str(volume)) == volume
    assert identity.volume_of_nqn(identity.subsystem_nqn(volume)) == volume
    assert len(str(volume).encode()) <= 128
    assert len(identity.subsystem_nqn(volume).encode()) <= 223
    assert identity.is_ours(identity.subsystem_nqn(volume))


@given(ids)
def test_nguid_carries_the_bits_of_the_uuid(volume: identity.VolumeId) -> None:
    text = identity.namespace_uuid(volume)
    assert uuid.UUID(text).hex.upper() == identity.nguid(volume)
    assert text == text.lower()
    assert text == identity.namespace_uuid(str(volume))
    assert len(identity.serial_number(volume)) == 20


@given(st.text())
def test_every_csi_name_gives_a_key_of_one_length(name: str) -> None:
    assert len(identity.hashed(name)) == 20
    assert identity.parse_volume_id(f"spdk:v{identity.hashed(name)}").key == f"v{identity.hashed(name)}"


def test_ids_are_frozen_for_ever() -> None:
    """Volumes outlive releases: a change of any of these loses every existing disk."""
    assert identity.hashed("pvc-1") == "6kdi4gvhzk3gsul43h22"
    assert identity.namespace_uuid("spdk:pool.v1") == "dda963b1-26c9-5746-ae17-f08efd7574f5"
    assert identity.subsystem_nqn("spdk:pool.v1") == "nqn.2026-11.io.dpu-offload:volume.spdk.pool.v1"
    assert identity.host_nqn("dpu-1") == "nqn.2026-11.io.dpu-offload:host.dpu-1"
    assert identity.host_id("dpu-1") == "5bfc735d-c969-5fb2-aafa-19a570a5c951"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "spdk",
        "spdk:",
        ":key",
        "Spdk:key",
        "spdk:KEY",
        "spdk:a/b",
        "spdk:a b",
        "spdk:ключ",
        "spdk:" + "k" * 96,
        "x" * 40 + ":k",
    ],
)
def test_ids_of_others_are_refused(text: str) -> None:
    with pytest.raises(identity.MalformedId):
        identity.parse_volume_id(text)


@pytest.mark.parametrize(
    "nqn", ["nqn.2016-06.io.spdk:cnode1", "nqn.2026-11.io.dpu-offload:volume.", identity.NQN_PREFIX + "volume.UP.x"]
)
def test_subsystems_of_others_are_not_volumes(nqn: str) -> None:
    assert identity.volume_of_nqn(nqn) is None


def test_host_nqn_names_its_node() -> None:
    assert identity.node_of_host_nqn(identity.host_nqn("dpu-1.example.org")) == "dpu-1.example.org"
    assert identity.node_of_host_nqn("nqn.2014-08.org.nvmexpress:uuid:1") is None
    with pytest.raises(identity.MalformedId):
        identity.host_nqn("Übel")
