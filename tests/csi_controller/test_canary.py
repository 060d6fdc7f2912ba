"""A canary in every secret: it may be in the key file on the target and on the wire to the DPU, and nowhere else."""

import base64
import binascii
import logging
import os
from pathlib import Path
from typing import Any

import grpc
import pytest

from dpu_offload_stubs.csi import csi_pb2
from foundation.daemon import logs, metrics
from foundation.kube.resources import NODES, PERSISTENT_VOLUMES, VOLUME_ATTACHMENTS
from foundation.spdk.client import SpdkClient
from tests.csi_rig.plant import Plant, mount_capability
from tests.csi_rig.target import section

pytestmark = pytest.mark.root


def interchange(prefix: str, word: bytes) -> str:
    key = word.ljust(32, b"!")
    return f"{prefix}{base64.b64encode(key + binascii.crc32(key).to_bytes(4, 'little')).decode()}:"


SECRETS = {
    "dhchapKey": interchange("DHHC-1:00:", b"canary-one"),
    "dhchapCtrlrKey": interchange("DHHC-1:00:", b"canary-two"),
    "tlsPsk": interchange("NVMeTLSkey-1:01:", b"canary-three"),
    "encryptionKey": "c0ffee" * 5 + "11",
    "encryptionTweakKey": "decade" * 5 + "22",
}
OTHER = {**SECRETS, "dhchapKey": interchange("DHHC-1:00:", b"canary-four")}
CANARIES = {*SECRETS.values(), *OTHER.values()} | {
    value.split(":")[2] for value in (*SECRETS.values(), *OTHER.values()) if ":" in value
}


def birds_in(text: str) -> list[str]:
    return [bird for bird in CANARIES if bird in text]


async def test_no_canary_gets_out(
    bare: Plant, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    keys = bare.directory / "keys"
    caplog.set_level(logging.DEBUG)
    await bare.add_host("host1")
    await bare.start_controller(backends={"spdk": section(bare.target, key_directory=str(keys))})
    await bare.start_node("host1")
    parameters = {"authentication": "true", "encryptionInTransit": "true", "encryption": "true"}
    words: list[str] = []

    async def tried(call: Any) -> Any:
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            words.append(f"{error.details()} {error.debug_error_string()}")

    volume = await bare.create(parameters=parameters, secrets=SECRETS)
    for secrets in (
        {**SECRETS, "dhchapKey": SECRETS["dhchapKey"][:-1]},
        {**SECRETS, "tlsPsk": SECRETS["dhchapKey"]},
        {**SECRETS, "encryptionTweakKey": SECRETS["encryptionKey"]},
        {**SECRETS, "encryptionKey": SECRETS["encryptionKey"] + "x"},
    ):
        await tried(bare.publish(volume, "host1", secrets=secrets))
    assert len(words) == 4
    bare.dpus["host1"].faults.refuse = [grpc.StatusCode.UNAVAILABLE]
    await tried(bare.publish(volume, "host1", secrets=SECRETS))
    context = await bare.publish(volume, "host1", secrets=SECRETS)
    sent = bare.dpus["host1"].requests[-1]
    assert (sent.credentials.dhchap_key, sent.credentials.tls_psk) == (SECRETS["dhchapKey"], SECRETS["tlsPsk"])
    assert (sent.encryption.key, sent.encryption.tweak_key) == (
        SECRETS["encryptionKey"],
        SECRETS["encryptionTweakKey"],
    )
    await bare.publish(volume, "host1", secrets=OTHER)
    await bare.stage(volume, "host1", context, secrets=SECRETS)
    await bare.target.stop()
    await tried(bare.publish(volume, "host1", secrets=SECRETS))
    await bare.target.start()
    await tried(bare.controller.CreateVolume(csi_pb2.CreateVolumeRequest(name="x", secrets=SECRETS)))
    listed = await bare.controller.ListVolumes(csi_pb2.ListVolumesRequest())
    async with SpdkClient(bare.target.address) as client:
        wire = str([await client.call(method) for method in ("nvmf_get_subsystems", "keyring_get_keys")])
    objects = [await bare.kube.list(each) for each in (NODES, PERSISTENT_VOLUMES, VOLUME_ATTACHMENTS)]
    places = {
        "errors": "\n".join(words),
        "log": caplog.text + "".join(str(record.__dict__) for record in caplog.records),
        "standard output and error": "".join(capfd.readouterr()),
        "metrics": metrics.exposition()[1].decode(),
        "Kubernetes": str(objects),
        "publish context and volume context": f"{context} {volume} {listed}",
        "the target's own objects": wire,
        "argument lists": _arguments(),
        "files of the host": _files(bare.directory / "host1"),
        "names of key files": " ".join(path.name for path in keys.iterdir()),
    }
    assert places["log"], "the log was really captured"
    for place, text in places.items():
        assert not birds_in(text), place
    for bird in SECRETS.values():
        assert bird not in logs.redact(f"whatever else says {bird}")
    await bare.unstage(volume, "host1")
    await bare.unpublish(volume, "host1")
    assert list(keys.iterdir()) == []


def _arguments() -> str:
    """Of this process and of all that it started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found.append((entry / "cmdline").read_text(errors="replace"))
            except OSError:
                continue
    return "\n".join(found)


def _files(directory: Path) -> str:
    texts = []
    for root, _, names in os.walk(directory / "state"):
        texts += [Path(root, name).read_text(errors="replace") for name in names]
    return "\n".join(texts)


async def test_a_secret_given_where_none_is_asked_for_is_not_kept(one: Plant) -> None:
    volume = await one.create()
    await one.publish(volume, "host1", mount_capability(), secrets=SECRETS)
    sent = one.dpus["host1"].requests[-1]
    assert not sent.HasField("credentials")
    assert not sent.HasField("encryption")
