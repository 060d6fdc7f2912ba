"""How long a sidecar waits for a CSI answer, and before it asks again.

Facts of external-provisioner 6.3, external-attacher 4.12: time-outs of 10 and 15 s, first retry after 1 s, doubled up
to 5 min.
"""

from __future__ import annotations

import grpc
import grpc.aio

PROVISION_SECONDS = 10.0
ATTACH_SECONDS = 15.0
FIRST_RETRY_SECONDS = 1.0
LAST_RETRY_SECONDS = 300.0


def describe(error: grpc.aio.AioRpcError) -> str:
    return f"rpc error: code = {error.code().name} desc = {error.details()}"
