"""Admission policies on a real API server: each account changes what is its own, and nothing of anybody else."""

import asyncio
import json
import os
import secrets
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import aiohttp
import pytest
import pytest_asyncio

from foundation.kube.configuration import connection
from lab.apiserver.kinds import BUILT_IN
from tests.deploy.shipped import KUSTOMIZE, Body, documents

KUBECONFIG = os.environ.get("KUBECONFIG", "")
pytestmark = [
    pytest.mark.real_api_server,
    pytest.mark.asyncio(loop_scope="module"),
    pytest.mark.skipif(not KUBECONFIG, reason="the stand-in has no admission policies: KUBECONFIG=... make test-real"),
]
ACCOUNTS = "system:serviceaccount:dpu-offload:"
NODE_NAME = "authentication.kubernetes.io/node-name"
GROUP = "dpu-offload.io"
REFUSED = 403


@dataclass
class Server:
    """The API server, with our policies for objects whose names begin with `prefix` only."""

    session: aiohttp.ClientSession
    url: str
    prefix: str

    async def ask(self, method: str, path: str, body: Any, *, user: str = "", node: str = "") -> int:
        """As another user, by impersonation; the HTTP status, and a 403 only for a policy's refusal."""
        headers = {"Content-Type": "application/merge-patch+json" if method == "PATCH" else "application/json"}
        if user:
            headers |= {"Impersonate-User": user, "Impersonate-Group": "system:masters"}
        if node:
            headers[f"Impersonate-Extra-{quote(NODE_NAME, safe='')}"] = node
        async with self.session.request(method, self.url + path, data=json.dumps(body), headers=headers) as answer:
            text = await answer.text()
            assert answer.status != REFUSED or "ValidatingAdmissionPolicy" in text, text
            assert answer.status in (200, 201, REFUSED), text
            return answer.status

    async def annotate(self, path: str, annotations: Mapping[str, str | None], *, user: str, node: str = "") -> int:
        return await self.ask("PATCH", path, {"metadata": {"annotations": annotations}}, user=user, node=node)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server() -> AsyncIterator[Server]:
    settings = await connection(KUBECONFIG)
    header = await settings.credentials.header()
    prefix = f"dpu-test-{secrets.token_hex(3)}-"
    kinds = {kind.kind: kind for kind in BUILT_IN}
    async with aiohttp.ClientSession(
        headers={"Authorization": header}, connector=aiohttp.TCPConnector(ssl=settings.ssl_context or True)
    ) as session:
        made = Server(session, settings.server, prefix)
        paths: list[str] = []
        try:
            for body in documents(KUSTOMIZE / "overlays/kubevirt"):
                if not body["kind"].startswith("ValidatingAdmissionPolicy"):
                    continue
                path = f"/apis/admissionregistration.k8s.io/v1/{kinds[body['kind']].plural}"
                body = _narrowed(body, prefix)
                assert await made.ask("POST", path, body) == 201
                paths.append(f"{path}/{body['metadata']['name']}")
            for name in ("dpu", "other"):
                node = {"metadata": {"name": prefix + name, "labels": {f"{GROUP}/mode": "dpu"}}}
                assert await made.ask("POST", "/api/v1/nodes", node) == 201
                paths.append(f"/api/v1/nodes/{prefix}{name}")
            await _in_force(made)
            yield made
        finally:
            for path in paths:
                await session.delete(settings.server + path)


def _narrowed(body: Body, prefix: str) -> Body:
    """The shipped object under another name, for our objects only: others use this server too."""
    body["metadata"]["name"] = prefix + body["metadata"]["name"]
    if body["kind"] == "ValidatingAdmissionPolicyBinding":
        body["spec"]["policyName"] = prefix + body["spec"]["policyName"]
    else:
        only = {"name": "ours", "expression": f"object.metadata.name.startsWith('{prefix}')"}
        body["spec"]["matchConditions"] = [only]
    return body


async def _in_force(server: Server) -> None:
    """A policy takes a moment to be seen by the server that made it."""
    path, link = f"/api/v1/nodes/{server.prefix}other", f"{GROUP}/link"
    async with asyncio.timeout(50):
        while await server.annotate(path, {link: "x"}, user="somebody") != REFUSED:
            await server.annotate(path, {link: None}, user="somebody")
            await asyncio.sleep(0.1)


@pytest.mark.parametrize(
    ("annotation", "account"),
    [
        ("link", "cni-node-dpu"),
        ("storage", "csi-node-dpu"),
        ("offload", "cni-node-dpu"),
        ("offload", "cni-node"),
    ],
)
async def test_a_node_speaks_for_itself_alone(server: Server, annotation: str, account: str) -> None:
    mine, other = (f"/api/v1/nodes/{server.prefix}{name}" for name in ("dpu", "other"))
    says = {f"{GROUP}/{annotation}": "x"}
    here = f"{server.prefix}dpu"
    assert await server.annotate(mine, says, user=ACCOUNTS + account, node=here) == 200
    assert await server.annotate(other, says, user=ACCOUNTS + account, node=here) == REFUSED
    assert await server.annotate(other, says, user=ACCOUNTS + account) == REFUSED, "a token of no pod"
    assert await server.annotate(mine, {f"{GROUP}/{annotation}": None}, user=ACCOUNTS + account, node=here) == 200
    for somebody in ("csi-node-host", "cni-controller", "certificate-signer"):
        changed = {f"{GROUP}/{annotation}": "y"}
        assert await server.annotate(mine, changed, user=ACCOUNTS + somebody, node=here) == REFUSED


@pytest.mark.parametrize("annotation", ["node-subnets", "management", "health-checks"])
async def test_what_the_controller_says_of_a_node_nobody_else_does(server: Server, annotation: str) -> None:
    path, says = f"/api/v1/nodes/{server.prefix}dpu", {f"{GROUP}/{annotation}": "[]"}
    here = f"{server.prefix}dpu"
    assert await server.annotate(path, says, user=ACCOUNTS + "cni-node-dpu", node=here) == REFUSED
    assert await server.annotate(path, says, user=f"system:node:{here}") == REFUSED
    assert await server.annotate(path, says, user=ACCOUNTS + "cni-controller") == 200


async def test_a_kubelet_does_not_say_what_its_node_is(server: Server) -> None:
    path, kubelet = f"/api/v1/nodes/{server.prefix}dpu", f"system:node:{server.prefix}dpu"
    for label in ("mode", "host-node", "ovn-central"):
        body = {"metadata": {"labels": {f"{GROUP}/{label}": "host"}}}
        assert await server.ask("PATCH", path, body, user=kubelet) == REFUSED
    assert await server.annotate(path, {f"{GROUP}/gateway": "{}"}, user=kubelet) == REFUSED
    assert await server.annotate(path, {"volumes.example.com/x": "its own business"}, user=kubelet) == 200
    assert await server.annotate(path, {f"{GROUP}/gateway": "{}"}, user="an-administrator") == 200


async def test_daemons_change_nothing_else_of_a_node(server: Server) -> None:
    path, here = f"/api/v1/nodes/{server.prefix}dpu", f"{server.prefix}dpu"
    changes: list[Body] = [
        {"spec": {"unschedulable": True}},
        {"metadata": {"labels": {"node-role.kubernetes.io/control-plane": ""}}},
        {"metadata": {"annotations": {"somebody.example.com/else": "x"}}},
    ]
    for account in ("cni-controller", "cni-node-dpu", "csi-node-dpu", "cni-node"):
        for change in changes:
            assert await server.ask("PATCH", path, change, user=ACCOUNTS + account, node=here) == REFUSED
    status = {"status": {"conditions": [{"type": "DpuDisksWell", "status": "True"}]}}
    assert await server.ask("PATCH", f"{path}/status", status, user=ACCOUNTS + "cni-node-dpu", node=here) == REFUSED
    assert await server.ask("PATCH", f"{path}/status", status, user=ACCOUNTS + "csi-node-dpu", node=here) == 200
    other = f"/api/v1/nodes/{server.prefix}other/status"
    assert await server.ask("PATCH", other, status, user=ACCOUNTS + "csi-node-dpu", node=here) == REFUSED


async def test_a_pods_addresses_are_the_controllers_to_write(server: Server) -> None:
    pods, name = "/api/v1/namespaces/default/pods", f"{server.prefix}pod"
    controller, says = ACCOUNTS + "cni-controller", {f"{GROUP}/pod-networks": "{}"}
    body = {
        "metadata": {"name": name, "annotations": dict(says)},
        "spec": {
            "containers": [{"name": "main", "image": "none"}],
            "automountServiceAccountToken": False,
            "nodeName": f"{server.prefix}dpu",
        },
    }
    assert await server.ask("POST", pods, body, user="an-author") == REFUSED, "nobody makes up addresses"
    body["metadata"]["annotations"] = {f"{GROUP}/addresses": "{}"}  # type: ignore[index]
    assert await server.ask("POST", pods, body, user="an-author") == 201
    path = f"{pods}/{name}"
    try:
        assert await server.annotate(path, says, user=ACCOUNTS + "cni-node") == REFUSED
        assert await server.annotate(path, says, user=controller) == 200
        assert await server.annotate(path, {"somebody.example.com/else": "x"}, user=controller) == REFUSED
        relabelled = {"metadata": {"labels": {"app": "another"}}}
        assert await server.ask("PATCH", path, relabelled, user=controller) == REFUSED
    finally:
        options = {"gracePeriodSeconds": 0}
        await server.session.delete(server.url + path, data=json.dumps(options))
