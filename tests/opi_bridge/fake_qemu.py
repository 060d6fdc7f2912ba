"""QEMU's monitor as a card sees it, and the SPDK beside it whose volumes become block devices of the machine."""

import asyncio
import json
from pathlib import Path
from typing import Any

from tests.opi_bridge.fake_cards import FakeCard, Refusal


class Monitor:
    """One QEMU; a deleted device is gone when the guest lets go: `lets_go` says whether it does."""

    def __init__(self) -> None:
        self.devices: dict[str, dict[str, Any]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.lets_go = True
        self._server: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []

    async def start(self, path: Path) -> None:
        self._server = await asyncio.start_unix_server(self._serve, str(path))

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
            for writer in self._writers:
                writer.close()
            await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.append(writer)

        def say(**message: Any) -> None:
            writer.write(json.dumps(message).encode() + b"\r\n")

        say(QMP={"version": {}, "capabilities": []})
        while line := await reader.readline():
            message = json.loads(line)
            number, arguments = message["id"], message.get("arguments", {})
            refusal = self._refusal(message["execute"], arguments)
            if refusal is not None:
                say(id=number, error={"class": refusal[0], "desc": refusal[1]})
                continue
            say(id=number, **{"return": self._execute(message["execute"], arguments)})
            if message["execute"] == "device_del" and self.lets_go:
                del self.devices[arguments["id"]]
                say(event="DEVICE_DELETED", data={"device": arguments["id"], "path": "/machine"})
        writer.close()

    def _refusal(self, command: str, arguments: dict[str, Any]) -> tuple[str, str] | None:
        match command:
            case "device_add" if arguments["id"] in self.devices:
                return "GenericError", f"Duplicate device ID '{arguments['id']}'"
            case "device_add" if "socket" in arguments and not Path(arguments["socket"]["path"]).exists():
                return "GenericError", "Failed to connect"
            case "device_add" if "drive" in arguments and arguments["drive"] not in self.nodes:
                return "GenericError", f"Property 'nvme.drive' can't find value '{arguments['drive']}'"
            case "device_del" if arguments["id"] not in self.devices:
                return "DeviceNotFound", f"Device '{arguments['id']}' not found"
            case "blockdev-add" if arguments["node-name"] in self.nodes:
                return "GenericError", "Duplicate nodes with node-name"
            case "blockdev-del" if arguments["node-name"] not in self.nodes:
                return "GenericError", f"Failed to find node with node-name='{arguments['node-name']}'"
            case "blockdev-del" if any(d.get("drive") == arguments["node-name"] for d in self.devices.values()):
                return "GenericError", f"Node {arguments['node-name']} is in use"
        return None

    def _execute(self, command: str, arguments: dict[str, Any]) -> Any:
        match command:
            case "device_add":
                self.devices[arguments["id"]] = arguments
            case "blockdev-add":
                self.nodes[arguments["node-name"]] = arguments
            case "blockdev-del":
                del self.nodes[arguments["node-name"]]
            case "qom-list":
                return [{"name": name, "type": "child<nvme>"} for name in self.devices]
        return {}


class Qemu(FakeCard):
    """SPDK with a file for each exported volume, and a guest whose monitor is beside its socket."""

    def __init__(self) -> None:
        super().__init__()
        self.monitor = Monitor()
        self.disks: dict[str, str] = {}
        self._directory = Path()

    async def start(self, path: Path) -> None:
        self._directory = path.parent
        await self.monitor.start(path.with_name("qmp"))
        await super().start(path)

    async def stop(self) -> None:
        await super().stop()
        await self.monitor.stop()

    def rpc_nbd_get_disks(self, nbd_device: str = "") -> Any:
        return [{"bdev_name": bdev, "nbd_device": device} for bdev, device in self.disks.items()]

    def rpc_nbd_start_disk(self, bdev_name: str, nbd_device: str = "") -> Any:
        if bdev_name == "refused":
            raise Refusal("No such device")
        path = self._directory / f"{bdev_name}.img"
        with path.open("wb") as file:
            file.truncate(1 << 20)
        self.disks[bdev_name] = str(path)
        return str(path)

    def rpc_nbd_stop_disk(self, nbd_device: str) -> Any:
        self.disks = {bdev: device for bdev, device in self.disks.items() if device != nbd_device}
        return True
