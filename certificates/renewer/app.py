"""The certificate-renewer daemon."""

import asyncio
import datetime
import logging
import random
from pathlib import Path

from certificates.errors import CertificatesError
from certificates.renewer import files
from certificates.renewer.asking import ask, new_key
from certificates.renewer.config import CertificateRenewerConfig
from certificates.renewer.files import Held
from certificates.renewer.timing import renewal
from foundation.daemon.backoff import Backoff, Pauses
from foundation.daemon.identity import Identity, parse_identity
from foundation.daemon.running import Daemon, StartError, run
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError

_log = logging.getLogger(__name__)


async def start(config: CertificateRenewerConfig, daemon: Daemon) -> None:
    """Keep the files from now on; ready once there is a certificate."""
    identity = Identity(config.node_name.lower(), config.component)
    if parse_identity(identity.server_name) != identity:
        raise StartError(f"{identity.server_name} is no DNS name: check node_name and component")
    try:
        client = await KubeClient.connect(config.kubeconfig)
    except KubeError as error:
        raise StartError(str(error)) from error
    daemon.on_stop(client.close)
    daemon.health.set("certificate", False, "there is none yet")
    daemon.spawn(_keep(config, identity.server_name, client, daemon), name="certificate")


async def _keep(config: CertificateRenewerConfig, name: str, client: KubeClient, daemon: Daemon) -> None:
    directory, authority = Path(config.directory), Path(config.authority)
    early = random.random()
    pauses = Pauses(Backoff(1.0, 60.0, jitter=0.5))
    # One for all requests until a certificate is there: each is a secret that the log has to know from then on.
    key = b""
    while True:
        pause = config.look_seconds
        try:
            held = await asyncio.to_thread(files.read, directory)
            trusted = await asyncio.to_thread(files.read_authority, authority)
            if held is not None and held.authority != trusted:
                held = Held(trusted, held.certificate, held.key)
                await asyncio.to_thread(files.write, directory, held)
                _log.info("the authorities that are trusted have changed")
            if datetime.datetime.now(datetime.UTC) >= renewal(held, name=name, early=early):
                key = key or new_key()
                certificate = await ask(
                    client, key, name=name, component=config.component, wait_seconds=config.wait_seconds
                )
                await asyncio.to_thread(files.write, directory, Held(trusted, certificate, key))
                key = b""
                _log.info("a new certificate is in place", extra={"certificate": name})
            daemon.health.set("certificate", True)
            pauses.reset()
        except (KubeError, CertificatesError, OSError) as error:
            _log.warning("no new certificate: %s", error)
            daemon.health.set("certificate", False, str(error))
            pause = pauses.next()
        await asyncio.sleep(pause)


def main() -> None:
    """Entry point of the console script."""
    run("certificate-renewer", CertificateRenewerConfig, start)
