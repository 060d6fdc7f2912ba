"""The lab's processes: what is started, in which order, when it counts as ready, and how all of it ends."""

from __future__ import annotations

import asyncio
import dataclasses
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import aiohttp
import yaml

from foundation.daemon.work import Backoff
from foundation.kube.client import KubeClient
from foundation.spdk.client import SpdkClient
from lab import clearing, configurations, processes, record, setting, threads
from lab.certificates import Authority
from lab.demo.steps import Recorder
from lab.hardware import plan
from lab.layout import DEFAULT_NODE, DPU_NODE, HOST_NODE, Layout
from lab.network import Network, NetworkSpec, NodeSpec, VirtualFunction
from lab.ports import free_port
from lab.processes import ProcessDied, ProcessRecord
from lab.requirements import CNI_BINARY

READY_SECONDS = 30.0
TARGET_BYTES = 1 << 30
TARGET_BDEV = "disk"
LVSTORE = "lvs0"
SPDK_TARGET = "spdk-target"
SPDK_DPU = "spdk-dpu"


@dataclasses.dataclass(frozen=True)
class Options:
    """``kubeconfig`` and ``spdk_tgt`` name real parts that take the place of the stand-ins; None: the stand-ins."""

    layout: Layout
    kubeconfig: Path | None = None
    spdk_tgt: Path | None = None
    keep: bool = False


class NotReady(RuntimeError):
    """A process did not become ready; the message has the end of its log."""


class Suite:
    """One running lab."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.layout = options.layout
        self.network: Network | None = None
        self._record = record.LabRecord(
            prefix=options.layout.prefix,
            owner=record.this_process(),
            keep=options.keep,
            kubeconfig=str(options.kubeconfig or ""),
            own_api_server=options.kubeconfig is None,
            own_spdk=options.spdk_tgt is None,
        )

    @property
    def kubeconfig(self) -> Path:
        return self.options.kubeconfig or self.layout.kubeconfig

    # -- up ----------------------------------------------------------------------------------------------------

    async def up(self, steps: Recorder) -> None:
        """Start everything; returns when every daemon is ready. Raises StepFailed."""
        steps.section("The lab")
        async with steps.step("clear what an earlier run left"):
            await clearing.claim_run_directory(self.layout)
            self._save()
        async with steps.step("OVN central, two chassis, a host without one") as notes:
            await self._build_network()
            notes.text = "real OVN and OVS in network namespaces"
        async with steps.step("certificates, sysfs trees, configuration files"):
            ports = configurations.Ports.choose(free_port)
            await threads.to_the_end(self._lay_out, ports)
        async with steps.step("API server" if self.options.kubeconfig is None else "API server: the given one"):
            await self._start_api_server(ports)
        async with steps.step("storage target and the DPU's SPDK"):
            await self._start_storage()
        async with steps.step("every daemon of the suite, ready") as notes:
            count = await self._start_daemons(ports)
            notes.text = f"{count} processes"

    async def _build_network(self) -> None:
        layout = self.layout
        self.network = await Network.up(
            NetworkSpec(
                directory=layout.network,
                prefix=layout.prefix,
                nodes=(NodeSpec(DEFAULT_NODE), NodeSpec(DPU_NODE), NodeSpec(HOST_NODE, "plain")),
            )
        )
        await self.network.add_virtual_functions(
            *(
                VirtualFunction(
                    host=HOST_NODE,
                    netdev=function.netdev,
                    dpu=DPU_NODE,
                    representor=function.representor,
                    mac=function.mac,
                    mtu=1500,
                )
                for function in plan.network_functions()
            )
        )

    def _lay_out(self, ports: configurations.Ports) -> None:
        layout = self.layout
        plan.lay_out(layout)
        for directory in (layout.config, layout.logs, layout.functions, layout.devices, layout.target_file.parent):
            directory.mkdir(parents=True, exist_ok=True)
        authority = Authority(layout.pki)
        configurations.issue(authority)
        for node in (DEFAULT_NODE, HOST_NODE):
            binary = layout.cni_binary(node)
            binary.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(CNI_BINARY, binary)
            binary.with_name(binary.name + ".socket").write_text(str(layout.cni_socket(node)))
        if self.options.kubeconfig is None:
            configurations.write_kubeconfigs(layout, ports, authority)
        for name, configuration in self._daemons(ports).items():
            (layout.config / f"{name}.yaml").write_text(yaml.safe_dump(configuration, sort_keys=False))

    async def _start_api_server(self, ports: configurations.Ports) -> None:
        if self.options.kubeconfig is not None:
            return
        layout = self.layout
        command: list[str | Path] = [
            sys.executable,
            *("-m", "lab.apiserver"),
            *("--address", f"127.0.0.1:{ports.api_server}"),
            *("--tls-cert", layout.pki / "apiserver.crt"),
            *("--tls-key", layout.pki / "apiserver.key"),
            *("--token-file", layout.pki / "token"),
            *("--record", layout.requests),
        ]
        process = self.start("apiserver", command)
        await self._connects(process, "127.0.0.1", ports.api_server)

    async def _start_storage(self) -> None:
        layout = self.layout
        with layout.target_file.open("wb") as file:
            file.truncate(TARGET_BYTES)
        self.start_spdk(SPDK_TARGET)
        self.start_spdk(SPDK_DPU)
        await self.spdk_answers(SPDK_DPU)
        await self.spdk_answers(SPDK_TARGET)
        await self.prepare_target()

    def start_spdk(self, name: str) -> ProcessRecord:
        socket_path = self.layout.target_socket if name == SPDK_TARGET else self.layout.dpu_spdk_socket
        mode = "target" if name == SPDK_TARGET else "dpu"
        if self.options.spdk_tgt is None:
            return self.start(name, [sys.executable, "-m", "lab.spdk", "--socket", socket_path, "--mode", mode])
        mask = ["-m", "0x1", "--interrupt-mode"] if mode == "target" else ["-m", "0x2"]
        fixed = ["-s", "1024", "--disable-cpumask-locks", "--no-huge", "--iova-mode", "va", "--no-pci"]
        return self.start(name, [self.options.spdk_tgt, "-r", socket_path, *mask, *fixed])

    async def spdk_answers(self, name: str) -> None:
        """Wait until the instance answers a call."""
        path = self.layout.target_socket if name == SPDK_TARGET else self.layout.dpu_spdk_socket
        client = SpdkClient(f"unix:{path}")
        try:
            await self._retry(name, lambda: client.call("spdk_get_version", deadline=2.0))
        finally:
            await client.close()

    async def prepare_target(self) -> None:
        """What a storage administrator does once: a disk with a store of logical volumes."""
        client = SpdkClient(f"unix:{self.layout.target_socket}")
        try:
            disk = {"name": TARGET_BDEV, "filename": str(self.layout.target_file), "block_size": 4096}
            await client.call("bdev_aio_create", disk)
            store = {"bdev_name": TARGET_BDEV, "lvs_name": LVSTORE, "clear_method": "none"}
            await client.call("bdev_lvol_create_lvstore", store)
        finally:
            await client.close()

    async def _start_daemons(self, ports: configurations.Ports) -> int:
        layout, configured = self.layout, self._daemons(ports)
        async with await KubeClient.connect(kubeconfig=str(self.kubeconfig)) as client:
            await setting.create_objects(client, class_parameters={})
        self.start(
            "hardware",
            [
                *(sys.executable, "-m", "lab.hardware", "--run-dir", layout.run, "--prefix", layout.prefix),
                *(["--no-disks"] if self.options.spdk_tgt is not None else []),
            ],
        )
        for name in configured:
            self.start_daemon(name)
        helpers = configurations.cluster_stand_ins(
            layout, kubeconfig=self.kubeconfig, disks=self.options.spdk_tgt is None
        )
        for name, command in helpers.items():
            self.start(name, command)
        await asyncio.gather(*(self.daemon_ready(name, ports.http[name]) for name in configured))
        return len(self._record.processes)

    def _daemons(self, ports: configurations.Ports) -> dict[str, configurations.Configuration]:
        if self.network is None:
            raise RuntimeError("the network is not up")
        return configurations.daemons(
            self.layout, ports, network=self.network, kubeconfig=self.options.kubeconfig, lvstore=LVSTORE
        )

    # -- processes ---------------------------------------------------------------------------------------------

    def start_daemon(self, name: str) -> ProcessRecord:
        """Start one of ``configurations.DAEMONS`` from the configuration file that `up` wrote."""
        script = Path(sys.executable).parent / configurations.SCRIPTS[name]
        return self.start(name, [script, "--config", self.layout.config / f"{name}.yaml"])

    def start(
        self, name: str, command: Sequence[str | Path], environment: Mapping[str, str] | None = None
    ) -> ProcessRecord:
        """Start a process under a name that is free, and write it down at once."""
        process = processes.start(name, command, logs=self.layout.logs, environment=environment)
        self._record.processes[name] = process
        self._save()
        return process

    def process(self, name: str) -> ProcessRecord:
        return self._record.processes[name]

    async def kill(self, name: str) -> None:
        """SIGKILL, as a crash does."""
        await processes.kill(self.process(name))

    async def daemon_ready(self, name: str, port: int) -> None:
        """Wait until the daemon's /readyz says 200."""
        async with aiohttp.ClientSession() as session:

            async def ask() -> None:
                async with session.get(f"http://127.0.0.1:{port}/readyz") as answer:
                    if answer.status != 200:
                        raise NotReady((await answer.text()).strip())

            await self._retry(name, ask)

    async def _connects(self, process: ProcessRecord, host: str, port: int) -> None:
        async def connect() -> None:
            _, writer = await asyncio.open_connection(host, port)
            writer.close()

        await self._retry(process.name, connect)

    async def _retry(self, name: str, attempt: Callable[[], Awaitable[object]]) -> None:
        """Ask again, with back-off, until it works, the process dies, or the time is up."""
        process, log = self.process(name), self.layout.logs / f"{name}.log"
        backoff, failures, last = Backoff(initial=0.02, maximum=0.3), 0, ""
        try:
            async with asyncio.timeout(READY_SECONDS):
                while True:
                    try:
                        await attempt()
                        return
                    except Exception as error:
                        last = str(error) or type(error).__name__
                    if not process.alive():
                        raise ProcessDied(f"{name} ended: {processes.last_lines(log)}")
                    failures += 1
                    await asyncio.sleep(backoff.delay(failures))
        except TimeoutError:
            raise NotReady(
                f"{name} is not ready after {READY_SECONDS:g} s ({last}); its log ends: {processes.last_lines(log)}"
            ) from None

    # -- down --------------------------------------------------------------------------------------------------

    async def down(self) -> None:
        """End and remove everything; safe at any moment and more than once."""
        await clearing.clear(self.layout)

    def _save(self) -> None:
        record.save(self._record, self.layout.state)
