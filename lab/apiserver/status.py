"""Refusals as the API server words them (meta/v1 Status)."""

from __future__ import annotations

from typing import Any

Json = dict[str, Any]


class StatusError(Exception):
    """A refusal: `body()` is the Status object that goes out with HTTP `code`."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        details: Json | None = None,
        *,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.reason = reason
        self.message = message
        self.details = details or {}
        self.headers = headers or {}
        self.continue_ = ""

    def body(self) -> Json:
        """The Status object."""
        metadata = {"continue": self.continue_} if self.continue_ else {}
        status: Json = {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": metadata,
            "status": "Failure",
            "message": self.message,
        }
        if self.reason:
            status["reason"] = self.reason
        if self.details:
            status["details"] = self.details
        status["code"] = self.code
        return status


def _details(resource: str, group: str, name: str, **more: Any) -> Json:
    details: Json = {"name": name} if name else {}
    if group:
        details["group"] = group
    details["kind"] = resource
    return details | more


def _qualified(resource: str, group: str) -> str:
    return f"{resource}.{group}" if group else resource


def bad_request(message: str) -> StatusError:
    """400."""
    return StatusError(400, "BadRequest", message)


def unauthorized() -> StatusError:
    """401."""
    return StatusError(401, "Unauthorized", "Unauthorized")


def forbidden(resource: str, group: str, name: str, why: str, causes: list[Json] | None = None) -> StatusError:
    """403."""
    details = _details(resource, group, name, **({"causes": causes} if causes else {}))
    return StatusError(403, "Forbidden", f'{_qualified(resource, group)} "{name}" is forbidden: {why}', details)


def no_such_resource() -> StatusError:
    """404 for a path that names no resource."""
    return StatusError(404, "NotFound", "the server could not find the requested resource")


def not_found(resource: str, group: str, name: str) -> StatusError:
    """404 for an object."""
    return StatusError(
        404, "NotFound", f'{_qualified(resource, group)} "{name}" not found', _details(resource, group, name)
    )


def method_not_allowed() -> StatusError:
    """405."""
    return StatusError(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")


def already_exists(resource: str, group: str, name: str) -> StatusError:
    """409 for a create."""
    return StatusError(
        409, "AlreadyExists", f'{_qualified(resource, group)} "{name}" already exists', _details(resource, group, name)
    )


def conflict(resource: str, group: str, name: str, why: str) -> StatusError:
    """409 for a write on stale knowledge."""
    message = f'Operation cannot be fulfilled on {_qualified(resource, group)} "{name}": {why}'
    return StatusError(409, "Conflict", message, _details(resource, group, name))


def modified(resource: str, group: str, name: str) -> StatusError:
    """409 for a stale resourceVersion."""
    return conflict(
        resource,
        group,
        name,
        "the object has been modified; please apply your changes to the latest version and try again",
    )


def apply_conflict(causes: list[Json]) -> StatusError:
    """409 for server-side apply of fields that others own."""
    lines = "\n".join(f"- {cause['field']}" for cause in causes)
    count = f"Apply failed with {len(causes)} conflict{'s' if len(causes) > 1 else ''}"
    return StatusError(409, "Conflict", f"{count}: {causes[0]['message']}:\n{lines}", {"causes": causes})


def expired(message: str, *, continue_: str = "") -> StatusError:
    """410."""
    error = StatusError(410, "Expired", message)
    error.continue_ = continue_
    return error


def too_old_version(asked: int, oldest: int) -> StatusError:
    """410 for a watch from a version that has been forgotten."""
    return expired(f"too old resource version: {asked} ({oldest})")


def too_large_version(asked: int, current: int) -> StatusError:
    """504 for a version which this server has not reached."""
    details = {
        "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
        "retryAfterSeconds": 1,
    }
    message = f"Timeout: Too large resource version: {asked}, current: {current}"
    return StatusError(504, "Timeout", message, details, headers={"Retry-After": "1"})


def unsupported_media_type(message: str) -> StatusError:
    """415."""
    return StatusError(415, "UnsupportedMediaType", message)


def cause(field: str, reason: str, message: str) -> Json:
    """One reason of a 422; `reason` is FieldValueRequired, FieldValueInvalid, ..."""
    return {"reason": reason, "message": message, "field": field}


def required(field: str, why: str = "") -> Json:
    """A missing value."""
    return cause(field, "FieldValueRequired", "Required value" + (f": {why}" if why else ""))


def invalid_value(field: str, value: Any, why: str) -> Json:
    """A value that can't be."""
    shown = f'"{value}"' if isinstance(value, str) else value
    return cause(field, "FieldValueInvalid", f"Invalid value: {shown}: {why}")


def not_supported(field: str, value: Any, allowed: list[str]) -> Json:
    """A value outside an enumeration."""
    names = ", ".join(f'"{name}"' for name in allowed)
    return cause(field, "FieldValueNotSupported", f'Unsupported value: "{value}": supported values: {names}')


def field_forbidden(field: str, why: str) -> Json:
    """A change that may not be."""
    return cause(field, "FieldValueForbidden", f"Forbidden: {why}")


def invalid(kind: str, group: str, name: str, causes: list[Json]) -> StatusError:
    """422."""
    texts = [f"{each['field']}: {each['message']}" for each in causes]
    said = texts[0] if len(texts) == 1 else "[" + ", ".join(texts) + "]"
    qualified = f"{kind}.{group}" if group else kind
    details = _details(kind, group, name, causes=causes)
    return StatusError(422, "Invalid", f'{qualified} "{name}" is invalid: {said}', details)
