"""csi-controller as the program that is deployed: SIGKILL in a publish, and its words when it cannot start."""

import asyncio
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import msgspec
import pytest
import yaml

from csi import identity
from csi.controller.config import CsiControllerConfig
from dpu_offload_stubs.csi import csi_pb2, csi_pb2_grpc
from foundation.daemon.serving import dial
from foundation.spdk.client import SpdkClient
from tests.csi_rig.plant import MIB, Plant, mount_capability

pytestmark = pytest.mark.root


def spawn(config: CsiControllerConfig, directory: Path) -> subprocess.Popen[bytes]:
    path = directory / "controller.yaml"
    path.write_text(yaml.safe_dump(msgspec.to_builtins(config)))
    command = [str(Path(sys.executable).parent / "csi-controller"), "--config", str(path)]
    with (directory / "controller.log").open("ab") as log:
        return subprocess.Popen(command, stdout=log, stderr=log)


async def controller(config: CsiControllerConfig) -> tuple[grpc.aio.Channel, csi_pb2_grpc.ControllerStub]:
    channel = dial(f"unix:{config.socket}", name="csi-controller", deadline=15)
    identity_stub = csi_pb2_grpc.IdentityStub(channel)
    for _ in range(1500):
        try:
            if (await identity_stub.Probe(csi_pb2.ProbeRequest())).ready.value:
                return channel, csi_pb2_grpc.ControllerStub(channel)
        except grpc.aio.AioRpcError:
            await asyncio.sleep(0.02)
    raise AssertionError(Path(config.socket).with_name("controller.log").read_text()[-2000:])


async def test_sigkill_in_the_middle_of_a_publish(bare: Plant) -> None:
    dpu = await bare.add_host("host1")
    config = bare.controller_config()
    process = spawn(config, bare.directory)
    try:
        channel, stub = await controller(config)
        create = csi_pb2.CreateVolumeRequest(
            name="pvc",
            capacity_range=csi_pb2.CapacityRange(required_bytes=16 * MIB),
            volume_capabilities=[mount_capability()],
        )
        volume = (await stub.CreateVolume(create)).volume
        request = csi_pb2.ControllerPublishVolumeRequest(
            volume_id=volume.volume_id,
            node_id="host1",
            volume_capability=mount_capability(),
            volume_context=volume.volume_context,
        )
        gate = dpu.faults.gate = asyncio.Event()
        call = asyncio.ensure_future(_outcome(stub.ControllerPublishVolume(request)))
        while "Attach" not in dpu.calls:
            await asyncio.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        await asyncio.to_thread(process.wait, 10)
        assert isinstance(await call, grpc.aio.AioRpcError)
        await channel.close()
        gate.set()
        process = spawn(config, bare.directory)
        channel, stub = await controller(config)
        answer = await stub.ControllerPublishVolume(request)
        assert answer.publish_context["namespaceUuid"] == identity.namespace_uuid(volume.volume_id)
        assert list(dpu.attached) == [volume.volume_id]
        unpublish = csi_pb2.ControllerUnpublishVolumeRequest(volume_id=volume.volume_id, node_id="host1")
        await stub.ControllerUnpublishVolume(unpublish)
        await stub.DeleteVolume(csi_pb2.DeleteVolumeRequest(volume_id=volume.volume_id))
        await channel.close()
        async with SpdkClient(bare.target.address) as client:
            assert await client.call("bdev_lvol_get_lvols") == []
        assert not dpu.attached
    finally:
        process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(process.wait, 10) in (0, -signal.SIGKILL)


async def _outcome(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return error


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"backends": {"spkd": {}}}, "did you mean 'spdk'?"),
        ({"sokcet": "/x"}, "did you mean"),
        ({"tls": {"ca": "/none", "certificate": "/none", "key": "/none"}}, "/none"),
    ],
)
async def test_it_says_in_one_sentence_why_it_cannot_start(bare: Plant, changed: dict[str, Any], words: str) -> None:
    settings = {**msgspec.to_builtins(bare.controller_config()), **changed}
    path = bare.directory / "bad.yaml"
    path.write_text(yaml.safe_dump(settings))
    command = [str(Path(sys.executable).parent / "csi-controller"), "--config", str(path)]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, timeout=50, check=False)
    assert done.returncode == 1
    sentence = done.stderr.decode().strip().splitlines()[-1]
    assert words in sentence
    assert "Traceback" not in done.stderr.decode()
