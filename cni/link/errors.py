"""What a host can hear from its DPU, or about it."""

from dpu_offload_stubs.link.v1 import link_pb2


class LinkError(Exception):
    """Root of the tree; the message says what, which object, why and what to do."""


class PeerAway(LinkError):
    """The DPU's cni-node cannot be reached, or stopped answering."""


class PlugFailed(LinkError):
    """The DPU cannot plug an attachment; nothing of it is left there."""

    def __init__(self, reason: link_pb2.Reason.ValueType, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SwitchAway(LinkError):
    """The DPU's switch does not answer."""


class NotThisHost(LinkError):
    """The caller's certificate is not that of the host which this DPU serves."""


class BadMessage(LinkError):
    """A message has a field that no host sends."""
