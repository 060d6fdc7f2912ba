"""opi-bridge and volume-attacher in one process that can be killed: python -m tests.dpu_rig.daemons DIRECTORY SPDK."""

import asyncio
import sys
from pathlib import Path

import opi_bridge.app
import volume_attacher.app
from foundation.daemon.running import Daemon
from opi_bridge.config import CardConfig, OpiBridgeConfig, PhysicalFunction
from tests.dpu_rig.rig import HOST_NQN
from volume_attacher.config import VolumeAttacherConfig


async def serve(directory: Path, spdk: str) -> None:
    bridge = OpiBridgeConfig(
        socket=str(directory / "bridge.sock"),
        spdk=spdk,
        path_beat_seconds=0.2,
        card=CardConfig(directory=str(directory / "f"), functions=[PhysicalFunction(virtual_functions=8)]),
        http="",
    )
    attacher = VolumeAttacherConfig(
        socket=str(directory / "attacher.sock"),
        bridge=f"unix:{directory / 'bridge.sock'}",
        state_directory=str(directory / "state"),
        host_nqn=HOST_NQN,
        http="",
    )
    async with Daemon("opi-bridge") as one, Daemon("volume-attacher") as two:
        await opi_bridge.app.start(bridge, one)
        await volume_attacher.app.start(attacher, two)
        sys.stdout.write("serving\n")
        sys.stdout.flush()
        await two.stopping.wait()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1]), sys.argv[2]))
