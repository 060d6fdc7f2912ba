"""The opi-bridge daemon: the OPI storage API for this DPU's card."""

import uuid
from pathlib import Path

from dpu_offload_stubs.card.v1 import card_pb2_grpc
from foundation.daemon.configuration import ConfigurationError
from foundation.daemon.errors import ErrorTable
from foundation.daemon.running import Daemon, run
from foundation.daemon.serving import TlsFiles, listen_tls, listen_unix, make_server
from foundation.spdk.client import SpdkClient
from opi_bridge.card_service import CardService
from opi_bridge.cards.choice import make_card
from opi_bridge.config import OpiBridgeConfig
from opi_bridge.errors import CODES
from opi_bridge.keys import Keys
from opi_bridge.ledger import Ledger
from opi_bridge.monitor import Monitor
from opi_bridge.remote_controllers import Timeouts
from opi_bridge.resources import Creation, Locks, Removal, handlers
from opi_bridge.session import Session
from opi_bridge.table import kinds, stores


async def start(config: OpiBridgeConfig, daemon: Daemon) -> None:
    """Serve; ready as soon as the card's process answers."""
    if not config.socket and not config.listen:
        raise ConfigurationError("nothing to serve on: set `socket` or `listen`")
    timeouts = Timeouts(config.timeouts.ctrlr_loss, config.timeouts.reconnect_delay, config.timeouts.fast_io_fail)
    timeouts.check()
    client = SpdkClient(config.spdk, password_file=config.spdk_password_file)
    daemon.on_stop(client.close)
    session = Session(client, address=config.spdk, deadline=config.spdk_seconds)
    ledger = Ledger(session)
    keys = Keys(session, Path(config.keys) if config.keys else None)
    card = make_card(config.card, session, ledger)
    for step in (ledger.load, keys.load, card.prepare):
        session.prepare_with(step)

    daemon.health.set("card", False, "not connected yet")
    session.subscribe(lambda ready: daemon.health.set("card", ready, session.why))
    monitor = Monitor(
        session, instance=uuid.uuid4().hex[:8], short=config.path_beat_seconds, long=config.state_beat_seconds
    )
    made = stores(session, card, ledger, keys, timeouts)
    locks = Locks()
    server = make_server(errors=ErrorTable(CODES), service="opi-bridge")
    table = kinds(made)
    server.add_generic_rpc_handlers(tuple(handlers(table, locks)))
    card_pb2_grpc.add_CardServicer_to_server(
        CardService(
            session=session,
            card=card,
            ledger=ledger,
            frontend=made.frontend,
            namespaces=made.namespaces,
            controllers=made.remote_controllers,
            paths=made.paths,
            volumes=made.remote_namespaces,
            monitor=monitor,
            locks=locks,
            transports=config.card.transports,
            creation=Creation(table, locks),
            removal=Removal(table, locks),
        ),
        server,
    )
    if config.socket:
        listen_unix(server, config.socket)
    if config.listen:
        if config.tls is None:
            raise ConfigurationError("`listen` needs `tls`: the API is not served in clear text")
        listen_tls(server, config.listen, TlsFiles(config.tls.ca, config.tls.certificate, config.tls.key))
    await server.start()
    # Streams of events never end by themselves, and all calls may be repeated.
    daemon.on_stop(lambda: server.stop(grace=0.3))
    daemon.spawn(session.run(), name="session")
    daemon.spawn(monitor.run(), name="monitor")


def main() -> None:
    run("opi-bridge", OpiBridgeConfig, start)
