"""The roles of certificate-signer and of those who hold certificates are what these daemons ask for."""

import asyncio
import datetime

from certificates.errors import NotGranted
from certificates.renewer.asking import ask, new_key
from certificates.signer.config import CertificateSignerConfig
from certificates.signer.judging import NODE_NAME
from certificates.signer.signing import Signing
from foundation.kube.client import KubeClient
from foundation.kube.configuration import Connection
from foundation.kube.credentials import FixedCredentials
from foundation.kube.leader import LeaderElection
from foundation.kube.resources import CERTIFICATE_SIGNING_REQUESTS, NAMESPACES
from lab.apiserver.access import Tokens, User
from lab.apiserver.server import ApiServer
from tests.deploy.granted import grants
from tests.deploy.shipped import Body

PREFIX = "system:serviceaccount:dpu-offload:"
# No requests: the API server looks for these rights when a request is approved and signed.
CHECKED = {("approve", "signers"), ("sign", "signers")}


async def test_every_right_is_used_and_every_use_is_a_right(everything: list[Body]) -> None:
    users = {
        "signer": User(f"{PREFIX}certificate-signer"),
        "holder": User(f"{PREFIX}cni-node", extra={NODE_NAME: ["node-a"]}),
        "admin": User("admin"),
    }
    async with ApiServer(tokens=Tokens(users)) as server:
        clients = {
            name: KubeClient(Connection(server=server.url, credentials=FixedCredentials.token(name))) for name in users
        }
        await clients["admin"].create(NAMESPACES, {"metadata": {"name": "dpu-offload"}})
        await _walk(clients["signer"], clients["holder"])
        seen = {(user, verb, part if not sub else f"{part}/{sub}") for user, verb, _, part, sub in server.recorder.seen}
        for client in clients.values():
            await client.close()
    signer = {(verb, part) for user, verb, part in seen if user == f"{PREFIX}certificate-signer"}
    granted = {(verb, part) for account, verb, _, part in grants(everything) if account == "certificate-signer"}
    assert granted == signer | CHECKED
    (role,) = [one for one in everything if one["metadata"]["name"] == "dpu-offload-certificate-holder"]
    holder = {(verb, part) for user, verb, part in seen if user == f"{PREFIX}cni-node"}
    assert {(verb, part) for rule in role["rules"] for part in rule["resources"] for verb in rule["verbs"]} == holder


async def _walk(signer: KubeClient, holder: KubeClient) -> None:
    """Lead, sign, refuse, fail, renew the authority, and clear up."""
    config = CertificateSignerConfig(accounts={"cni-node": ["cni-node"]}, authority_days=10)
    candidate = LeaderElection(
        signer,
        namespace="dpu-offload",
        name="certificate-signer",
        identity="one",
        on_started=lambda: Signing(signer, config).run(),
        lease_seconds=3.0,
        renew_seconds=0.5,
        retry_seconds=0.1,
    )
    leading = asyncio.create_task(candidate.run())
    await ask(holder, new_key(), name="node-a.cni-node.dpu-offload.io", component="cni-node", wait_seconds=30)
    try:
        await ask(holder, new_key(), name="node-b.cni-node.dpu-offload.io", component="cni-node", wait_seconds=30)
    except NotGranted:
        pass
    leading.cancel()
    await asyncio.wait({leading})
    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=6)
    await Signing(signer, config).succeed(later)
    clearing = CertificateSignerConfig(accounts={}, keep_requests_hours=1e-9)
    task = asyncio.create_task(Signing(signer, clearing).run())
    async with asyncio.timeout(30):
        while await signer.list(CERTIFICATE_SIGNING_REQUESTS):
            await asyncio.sleep(0.05)
    task.cancel()
    await asyncio.wait({task})
