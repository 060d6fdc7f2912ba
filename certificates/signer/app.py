"""The certificate-signer daemon."""

import os
import socket

from certificates.signer.config import CertificateSignerConfig
from certificates.signer.signing import Signing
from foundation.daemon.running import Daemon, StartError, run
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError
from foundation.kube.leader import LeaderElection


async def start(config: CertificateSignerConfig, daemon: Daemon) -> None:
    """Campaign; the leader signs."""
    try:
        client = await KubeClient.connect(config.kubeconfig)
    except KubeError as error:
        raise StartError(str(error)) from error
    daemon.on_stop(client.close)
    candidate = LeaderElection(
        client,
        namespace=config.namespace,
        name="certificate-signer",
        identity=f"{socket.gethostname()}-{os.getpid()}",
        on_started=lambda: Signing(client, config).run(),
    )
    daemon.spawn(candidate.run(), name="leader election")


def main() -> None:
    """Entry point of the console script."""
    run("certificate-signer", CertificateSignerConfig, start)
