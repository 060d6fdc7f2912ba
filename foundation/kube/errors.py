"""What can go wrong with the Kubernetes API: one exception tree, told apart by the server's status code."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from foundation.kube.models.meta import Status


class KubeError(Exception):
    """A request that the API server refused, or that never reached it.

    `code` is the HTTP status (0 when there was no answer), `reason` the server's machine-readable word for it
    (`NotFound`, `AlreadyExists`, `Expired`, ...), `causes` the fields it complains about.
    """

    def __init__(self, message: str, *, code: int = 0, reason: str = "", causes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.causes = causes


class BadRequest(KubeError):
    """400, 405, 406, 413, 415: the request can't be understood; trying again won't help."""


class Unauthorized(KubeError):
    """401: the credentials are missing, wrong or expired."""


class Forbidden(KubeError):
    """403: the credentials don't allow it, or admission refused."""


class NotFound(KubeError):
    """404: no such object, or no such resource on this server."""


class Conflict(KubeError):
    """409: the object has changed since it was read, or a precondition or a field manager stands against it."""


class AlreadyExists(KubeError):
    """409 with reason AlreadyExists: an object of that name is there."""


class Gone(KubeError):
    """410: the version, or the page token, is older than what the server remembers; list again."""


class Unprocessable(KubeError):
    """422: the object is invalid; `causes` names the fields."""


class Unavailable(KubeError):
    """429, 5xx, or no answer at all: trying again later may help. `retry_after`: seconds, as far as the server said."""

    def __init__(
        self, message: str, *, code: int = 0, reason: str = "", causes: tuple[str, ...] = (), retry_after: float = 0.0
    ) -> None:
        super().__init__(message, code=code, reason=reason, causes=causes)
        self.retry_after = retry_after


class VersionTooLarge(Unavailable):
    """504 with cause ResourceVersionTooLarge: this server has not yet seen the version which another one gave out."""


class Malformed(KubeError):
    """The server's answer is not what the API promises (broken JSON, or a field of another type)."""


class ConfigurationInvalid(KubeError):
    """The kubeconfig or the in-cluster files can't be used; nothing was sent."""


_BY_CODE: Mapping[int, type[KubeError]] = {
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    410: Gone,
    422: Unprocessable,
}

_status_decoder = msgspec.json.Decoder(Status)


def decode_status(body: bytes) -> Status:
    """The Status in `body`; one that carries the text itself when a proxy answered with something else."""
    try:
        return _status_decoder.decode(body)
    except msgspec.DecodeError:
        return Status(message=body[:200].decode("utf-8", "replace").strip())


def from_status(status: Status, *, request: str, code: int = 0, retry_after: float = 0.0) -> KubeError:
    """The exception for a refusal. `request` (verb and path) goes in front of the server's own words."""
    code = code or status.code
    details = status.details
    causes = tuple(f"{cause.field}: {cause.message}" for cause in details.causes) if details else ()
    message = f"{request}: {status.message or status.reason or 'refused'} ({code} {status.reason})".replace(" )", ")")
    if code == 429 or code >= 500:
        wait = max(retry_after, details.retry_after_seconds if details else 0.0)
        kind = Unavailable
        if details and any(cause.reason == "ResourceVersionTooLarge" for cause in details.causes):
            kind = VersionTooLarge
        return kind(message, code=code, reason=status.reason, causes=causes, retry_after=wait)
    error = _BY_CODE.get(code, BadRequest if 400 <= code < 500 else KubeError)
    if status.reason == "AlreadyExists":
        error = AlreadyExists
    return error(message, code=code, reason=status.reason, causes=causes)
