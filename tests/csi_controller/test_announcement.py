"""What a DPU writes of itself: one that writes nonsense is as good as silent, and does no other any harm."""

import json
from collections.abc import Mapping

import pytest

from csi.controller.directory import Directory
from foundation.kube.models.core import Node
from foundation.kube.models.meta import ObjectMeta

GOOD = {"endpoint": "192.0.2.1:7443", "serverName": "n", "hostNqn": "nqn.x", "functions": {"total": 8, "free": 3}}
DEEP = "[" * 20000 + "]" * 20000


def node(name: str, host: str, text: str) -> Node:
    labels: Mapping[str, str] = {"dpu-offload.io/host-node": host} if host else {}
    annotations = {"dpu-offload.io/storage": text} if text else {}
    return Node(metadata=ObjectMeta(name=name, labels=labels, annotations=annotations))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "[]",
        DEEP,
        json.dumps(GOOD)[:-1] + f', "later": {DEEP}}}',
        json.dumps({**GOOD, "functions": {"total": -1}}),
        json.dumps({**GOOD, "functions": {"total": 1 << 70}}),
        json.dumps({**GOOD, "endpoint": 5}),
    ],
)
def test_nonsense_is_silence(text: str) -> None:
    nodes = [node("bad", "host1", text), node("good", "host2", json.dumps({**GOOD, "later": "unknown"}))]
    directory = Directory({each.metadata.name: each for each in nodes})
    assert [dpu.node for dpu in directory.dpus()] == ["good"]
    assert directory.plain_hosts() == set()
