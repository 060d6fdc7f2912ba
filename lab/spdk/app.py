"""The command ``python -m lab.spdk``."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import sys
from pathlib import Path

import click

from lab.spdk.dispatch import as_params, invoke
from lab.spdk.failures import RpcFailure
from lab.spdk.faults import Faults
from lab.spdk.instance import Instance, Settings
from lab.spdk.methods import METHODS
from lab.spdk.server import RpcServer

_log = logging.getLogger("lab.spdk")


@click.command(context_settings={"ignore_unknown_options": False})
@click.option("-r", "--rpc-socket", "--socket", "sockets", multiple=True, default=("/var/tmp/spdk.sock",))
@click.option("-S", "--vhost-dir", default="", help="Where vhost sockets go; the first socket's directory by default.")
@click.option("--mode", type=click.Choice(("dpu", "target")), default="dpu", help="target: as in interrupt mode.")
@click.option("--interrupt-mode", is_flag=True, help="The same as --mode target.")
@click.option("--wait-for-rpc", is_flag=True)
@click.option("-c", "--config", default="", help="A saved configuration to load.")
@click.option("-f", "--pidfile", default="")
@click.option("-m", "--cpumask", default="0x1")
@click.option("--beat-ms", type=float, default=4.0, help="How often sockets are looked at.")
@click.option("--attach-ms", type=float, default=80.0, help="What connecting a controller costs.")
@click.option("--dhchap-ms", type=float, default=600.0, help="What DH-HMAC-CHAP costs with a large group.")
@click.option("--stall-ms", type=float, default=10000.0, help="How long a detach waits for stuck I/O.")
@click.option("--second-ms", type=float, default=1000.0, help="How long a second of the reconnect times lasts.")
@click.option("--faults", default="", help="A control socket that makes faults.")
@click.option("--disable-cpumask-locks", is_flag=True, hidden=True)
@click.option("--no-huge", is_flag=True, hidden=True)
@click.option("--no-pci", is_flag=True, hidden=True)
@click.option("-s", "memory", default="", hidden=True)
@click.option("--iova-mode", default="", hidden=True)
def main(
    sockets: tuple[str, ...], faults: str, pidfile: str, config: str, wait_for_rpc: bool, **options: object
) -> None:
    """A stand-in for spdk_tgt. Also takes the real one's options, where they mean nothing to it."""
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(name)s %(message)s")
    mode = "target" if options["interrupt_mode"] else str(options["mode"])
    settings = Settings(
        mode=mode,
        beat=float(str(options["beat_ms"])) / 1000,
        attach=float(str(options["attach_ms"])) / 1000,
        dhchap=float(str(options["dhchap_ms"])) / 1000,
        stall=float(str(options["stall_ms"])) / 1000,
        second=float(str(options["second_ms"])) / 1000,
        vhost_directory=str(options["vhost_dir"]) or os.path.dirname(os.path.abspath(sockets[0])),
        core_mask=int(str(options["cpumask"]), 16),
    )
    sys.exit(asyncio.run(_serve(settings, sockets, faults, pidfile, config, started=not wait_for_rpc)))


async def _serve(
    settings: Settings, sockets: tuple[str, ...], faults_path: str, pidfile: str, config: str, *, started: bool
) -> int:
    instance = Instance(settings, started=started)
    stopped = asyncio.Event()

    def stop(number: int) -> None:
        if number == signal.SIGKILL:
            os.kill(os.getpid(), number)
        stopped.set()

    instance.stop = stop
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop, number)
    if started:
        instance.initialized.set()
    if config:
        await _load(instance, Path(config))
    faults = Faults() if faults_path else None
    if faults is not None:
        await faults.listen(faults_path)
    server = RpcServer(instance, beat=settings.beat, faults=faults)
    for path in sockets:
        server.listen(path)
    if pidfile:
        Path(pidfile).write_text(f"{os.getpid()}\n")
    _log.info("stand-in for SPDK (%s, %d methods) on %s", settings.mode, len(METHODS), ", ".join(sockets))
    await stopped.wait()
    # The last replies leave with one more look.
    await asyncio.sleep(2 * settings.beat)
    server.close()
    for callback in instance.on_exit:
        callback()
    if pidfile:
        Path(pidfile).unlink(missing_ok=True)
    return 0


async def _load(instance: Instance, path: Path) -> None:
    """Makes the calls of a saved configuration; those that the stand-in leaves out are told and passed over."""
    for subsystem in json.loads(path.read_text())["subsystems"]:
        for entry in subsystem["config"] or []:
            params = entry.get("params")
            try:
                answer = invoke(instance, entry["method"], as_params(params) if params else None)
                if asyncio.iscoroutine(answer):
                    await answer
            except RpcFailure as failure:
                _log.info("configuration: %s: %s", entry["method"], failure.message)
