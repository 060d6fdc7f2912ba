"""What can go wrong in a call to SPDK.

``SpdkError`` is an answer: SPDK ran the request and refused it. The others say that there is no answer.
Codes are either JSON-RPC's own (-32700..-32600) or a plain negative errno, with strerror's text as message.
"""

from __future__ import annotations

import errno

METHOD_NOT_FOUND = -32601
INVALID_PARAMETERS = -32602
INTERNAL_ERROR = -32603


class SpdkClientError(Exception):
    """Root of everything that the SPDK client raises."""


class SpdkError(SpdkClientError):
    """SPDK's own refusal: ``code`` and ``message`` as received, and the ``method`` that was called.

    The predicates look at code and text, because the same fact comes as an errno from one method (-17)
    and as -32602 with strerror's text from another.
    """

    def __init__(self, code: int, message: str, method: str) -> None:
        super().__init__(f"SPDK refused {method}: {message} ({code})")
        self.code = code
        self.message = message
        self.method = method

    def _is(self, number: int, text: str) -> bool:
        return self.code == -number or (self.code <= -32600 and text in self.message)

    @property
    def missing(self) -> bool:
        """The named object does not exist (-19, -2, or a method's own words for it)."""
        return (
            self._is(errno.ENODEV, "No such device")
            or self._is(errno.ENOENT, "No such file or directory")
            or self.message.endswith("does not exist")
            or self.message in ("No key object found", "key was not found", "Key was not found")
        )

    @property
    def exists(self) -> bool:
        """An object of that name is there already (-17, -114, or a text that says so)."""
        return (
            self._is(errno.EEXIST, "File exists")
            or self.code == -errno.EALREADY
            or self.message.endswith("already exists")
            or self.message.endswith("rc -17")
        )

    @property
    def busy(self) -> bool:
        """The object is in use or being deleted (-16), or the work has to be tried again (-11)."""
        return self._is(errno.EBUSY, "Device or resource busy") or self._is(
            errno.EAGAIN, "Resource temporarily unavailable"
        )

    @property
    def no_space(self) -> bool:
        """The lvstore has no clusters left, or there is no memory (-28, -12)."""
        return self._is(errno.ENOSPC, "No space left on device") or self.code == -errno.ENOMEM

    @property
    def timed_out(self) -> bool:
        """SPDK itself waited in vain (-110), as bdev_get_bdevs does when it is given a time."""
        return self.code == -errno.ETIMEDOUT

    @property
    def unreachable(self) -> bool:
        """An NVMe controller could not be connected (-5): SPDK gives the reason only to its log."""
        return self.code == -errno.EIO

    @property
    def invalid_parameters(self) -> bool:
        """-32602. From nvmf methods it may mean anything: a missing subsystem, a claimed bdev, a duplicate."""
        return self.code == INVALID_PARAMETERS

    @property
    def method_not_found(self) -> bool:
        return self.code == METHOD_NOT_FOUND


class SpdkUnavailable(SpdkClientError):
    """Nobody answers at the address, or the connection broke while the call was under way.

    The request may or may not have been carried out: SPDK executes what it has read even when the client has gone.
    """


class SpdkTimeout(SpdkUnavailable):
    """The call's deadline passed. A late answer is dropped; the request may still be carried out."""


class SpdkRequestTooLarge(SpdkClientError, ValueError):
    """The request is over SPDK's receive buffer (256 KiB); it was not sent, nothing has changed."""


class SpdkMalformedReply(SpdkUnavailable):
    """What came back is not JSON-RPC, or the result does not have the shape that the method promises."""
