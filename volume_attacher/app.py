"""The volume-attacher daemon: one volume on this DPU, connected and shown to the host, or neither."""

import asyncio
import logging
from pathlib import Path
from typing import Final

from dpu_offload_stubs.attacher.v1 import attacher_pb2_grpc
from foundation.daemon.backoff import Backoff
from foundation.daemon.configuration import ConfigurationError
from foundation.daemon.errors import ErrorTable
from foundation.daemon.running import Daemon, run
from foundation.daemon.serving import TlsFiles, dial, listen_unix, make_server
from volume_attacher.attacher import Attacher
from volume_attacher.bridge import Bridge
from volume_attacher.config import VolumeAttacherConfig
from volume_attacher.errors import CODES, BridgeError
from volume_attacher.host_identity import load_or_make
from volume_attacher.model import Place, Policy
from volume_attacher.naming import is_nqn
from volume_attacher.records import Records
from volume_attacher.service import CardFacts, VolumeAttacherService

log: Final = logging.getLogger(__name__)


async def start(config: VolumeAttacherConfig, daemon: Daemon) -> None:
    """Serve; ready as soon as the bridge and its card answer."""
    check_shared_nqn(config.shared_nqn)
    state = Path(config.state_directory)
    identity = await asyncio.to_thread(load_or_make, state / "host.json", nqn=config.host_nqn)
    records = Records(state / "attachments.jsonl")
    await asyncio.to_thread(records.load)
    daemon.on_stop(records.close)
    tls = config.bridge_tls
    channel = dial(
        config.bridge,
        name="opi-bridge",
        tls=TlsFiles(tls.ca, tls.certificate, tls.key) if tls is not None else None,
        server_name=tls.server_name if tls is not None else "",
    )
    daemon.on_stop(channel.close)
    functions = [
        Place(one.port, one.physical_function, one.virtual_function, one.vuid, one.pci_address)
        for one in config.functions
    ]
    bridge = Bridge(channel, functions=functions, poll=config.poll_seconds)
    attacher = Attacher(bridge, records, host_nqn=identity.nqn, shared_nqn=config.shared_nqn, workers=config.workers)
    card = CardFacts()
    daemon.health.set("bridge", False, "not asked yet")

    server = make_server(errors=ErrorTable(CODES), service="volume-attacher")
    service = VolumeAttacherService(attacher, identity, default_policy=Policy(config.default_policy), card=card)
    attacher_pb2_grpc.add_VolumeAttacherServicer_to_server(service, server)
    listen_unix(server, config.socket)
    await server.start()
    # Streams of events never end by themselves, and all calls may be repeated.
    daemon.on_stop(lambda: server.stop(grace=0.3))
    daemon.on_stop(attacher.stop)
    daemon.spawn(attacher.run(), name="attacher")
    daemon.spawn(_follow(bridge, attacher, card, daemon), name="bridge events")


def check_shared_nqn(template: str) -> None:
    """Raise ConfigurationError for a template that makes no NQN."""
    try:
        nqn = template.format(port=0, pf=0, vf=0)
    except (LookupError, ValueError) as error:
        raise ConfigurationError(
            f"shared_nqn {template!r} is a template of {{port}}, {{pf}} and {{vf}} only: {error}"
        ) from error
    if not is_nqn(nqn):
        raise ConfigurationError(f"shared_nqn makes {nqn!r}, which is not an NQN")


async def _follow(bridge: Bridge, attacher: Attacher, card: CardFacts, daemon: Daemon) -> None:
    """Have the attacher look whenever the bridge reports something."""
    pauses = Backoff(0.1, 1.0)
    failures = 0
    while True:
        try:
            async for event in bridge.watch():
                failures = 0
                daemon.health.set("bridge", event.connected, event.reason)
                if not event.connected:
                    attacher.went_away(event.reason, card=True)
                    continue
                facts = await bridge.capabilities()
                card.name, card.transports = facts.card, tuple(facts.transports)
                attacher.look_soon()
        except BridgeError as error:
            failures += 1
            daemon.health.set("bridge", False, str(error))
            attacher.went_away(str(error))
            await asyncio.sleep(pauses.delay(failures))


def main() -> None:
    run("volume-attacher", VolumeAttacherConfig, start)
