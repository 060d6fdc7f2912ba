"""Who a certificate's name stands for."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from foundation.daemon.identity import Identity, identity_of, parse_identity


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("n1.cni-node.dpu-offload.io", Identity("n1", "cni-node")),
        ("host-1.example.com.csi-node-dpu.dpu-offload.io", Identity("host-1.example.com", "csi-node-dpu")),
        ("N1.CNI-Node.DPU-Offload.io", Identity("n1", "cni-node")),
        ("cni-node.dpu-offload.io", None),
        ("n1.cni-node.dpu-offload.io.evil.com", None),
        ("n1.cni-node.dpu-offload.example", None),
        ("n1.cni-nodedpu-offload.io", None),
        ("n1.cni-node.xdpu-offload.io", None),
        ("n1.cni-node.dpu-offloadxio", None),
        (".cni-node.dpu-offload.io", None),
        ("n1..cni-node.dpu-offload.io", None),
        ("*.cni-node.dpu-offload.io", None),
        ("n1.cni-node.dpu-offload.io\n", None),
        ("-n1.cni-node.dpu-offload.io", None),
        ("", None),
    ],
)
def test_name_and_identity(name: str, expected: Identity | None) -> None:
    assert parse_identity(name) == expected


def test_names_of_others_do_not_hide_ours_but_two_of_ours_are_none() -> None:
    ours, other = "n1.cni-node.dpu-offload.io", "n2.cni-node.dpu-offload.io"
    assert identity_of(["localhost", ours, "10.0.0.1"]) == Identity("n1", "cni-node")
    assert identity_of([ours, ours.upper()]) == Identity("n1", "cni-node")
    assert identity_of([ours, other]) is None
    assert identity_of([]) is None


label = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)


@given(node=st.lists(label, min_size=1, max_size=4).map(".".join), component=label)
def test_server_name_parses_back(node: str, component: str) -> None:
    identity = Identity(node, component)
    assert parse_identity(identity.server_name) == identity
