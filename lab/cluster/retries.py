"""Which CSI answers are final, and how long a sidecar waits before it asks again.

Facts of external-provisioner 6.3, external-attacher 4.12: time-outs of 10 and 15 s, first retry after 1 s, doubled up
to 5 min. CANCELLED, DEADLINE_EXCEEDED, UNAVAILABLE, ABORTED and RESOURCE_EXHAUSTED mean that work may go on.
"""

from __future__ import annotations

import grpc
import grpc.aio

PROVISION_SECONDS = 10.0
ATTACH_SECONDS = 15.0
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0

_MAY_GO_ON = {
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


def is_final(error: grpc.aio.AioRpcError) -> bool:
    """True when the call certainly left nothing in progress."""
    return error.code() not in _MAY_GO_ON


def describe(error: grpc.aio.AioRpcError) -> str:
    return f"rpc error: code = {error.code().name} desc = {error.details()}"
