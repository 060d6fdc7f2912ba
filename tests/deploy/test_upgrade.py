"""State that an earlier commit's daemons wrote (state/README.md) is read by today's: nothing is lost by an upgrade."""

import json
import shutil
from pathlib import Path
from typing import TypeVar

import msgspec
import pytest

from cni.controller.model import pod as pod_model
from cni.node import assignment
from cni.node.attachments import AttachmentStore
from csi import identity
from csi.announcement import announced
from csi.controller import volume_context
from csi.node_host.records import Records as Staged
from csi.publication import PublishContext
from foundation.kube.models.core import Node, PersistentVolume, Pod
from foundation.kube.models.storage import VolumeAttachment
from volume_attacher.host_identity import load_or_make
from volume_attacher.records import Records

T = TypeVar("T")
STATE = Path(__file__).parent / "state"
VOLUME = "main:target.v4izbshunoxlrncd6dz2l"


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A copy, as reading may bring it up to date."""
    return Path(shutil.copytree(STATE, tmp_path / "state"))


def objects(file: str, kind: type[T]) -> list[T]:
    return [msgspec.convert(one, kind) for one in msgspec.json.decode((STATE / file).read_bytes())]


@pytest.mark.parametrize(
    ("mode", "pod", "kind"),
    [("default", "plain", "veth"), ("host", "offloaded", "vf"), ("dpu", "offloaded", "vf")],
)
async def test_cni_node_knows_its_attachments(state: Path, mode: str, pod: str, kind: str) -> None:
    directory = state / f"cni-node-{mode}/attachments"
    written = json.loads(next(directory.glob("*.json")).read_bytes().partition(b"\n")[2])
    before = {path.name for path in directory.iterdir()}
    store = AttachmentStore(directory)
    await store.open()
    (found,) = store
    assert (found.phase, found.kind, found.pod_name) == ("ready", kind, pod)
    assert found.assignment.ips == tuple(written["assignment"]["ips"])
    assert found.result == written["result"], "CHECK and DEL are answered as before"
    assert (found.function is None) == (kind == "veth")
    assert store.generation() > written["generation"]
    assert before <= {path.name for path in directory.iterdir()}, "nothing was set aside as damaged"


def test_the_attacher_knows_its_volumes_and_who_it_is(state: Path) -> None:
    directory = state / "volume-attacher"
    before = json.loads((directory / "host.json").read_bytes())
    assert load_or_make(directory / "host.json").nqn == before["nqn"]
    records = Records(directory / "attachments.jsonl")
    records.load()
    (found,) = records
    assert found.specification.volume_id == VOLUME
    assert found.place is not None
    assert (found.place.pf, found.place.vf, found.phase) == (0, 1, "attached")
    again = Records(directory / "attachments.jsonl")
    again.load()
    assert list(again) == [found], "in the one file, and only there"
    assert not (directory / "attachments").exists()


def test_the_host_knows_its_staged_volumes(state: Path) -> None:
    found = Staged(state / "csi-node-host").get(VOLUME)
    assert found is not None
    assert found.fs_type == "ext4"
    assert found.targets


def test_what_kubernetes_keeps_is_understood() -> None:
    pods = objects("pods.json", Pod)
    assert len(pods) == 2
    for pod in pods:
        assigned = assignment.parse(pod.metadata.annotations, "default")
        assert assigned is not None
        assert assigned.ips
        assert pod_model.parse(pod).name == pod.metadata.name
    found = [told for node in objects("nodes.json", Node) if (told := announced(node)) is not None]
    assert [told.functions.total for told in found] == [8]
    (volume,) = objects("persistentvolumes.json", PersistentVolume)
    assert volume.spec.csi is not None
    assert str(identity.parse_volume_id(volume.spec.csi.volume_handle)) == VOLUME
    context = volume_context.parse(volume.spec.csi.volume_attributes or {})
    assert json.loads(context.portals)[0]["transport"] == "tcp"
    (attachment,) = objects("volumeattachments.json", VolumeAttachment)
    published = PublishContext.parse(attachment.status.attachment_metadata or {})
    assert published.namespace_uuid == identity.namespace_uuid(identity.parse_volume_id(VOLUME))
