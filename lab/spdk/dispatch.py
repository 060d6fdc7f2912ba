"""The table of methods: who answers, when, and in which words a bad parameter is refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from lab.spdk import schema
from lab.spdk.failures import INTERNAL_ERROR, INVALID_PARAMS, METHOD_NOT_FOUND, PARSE_ERROR, RpcFailure
from lab.spdk.json_text import Pairs

if TYPE_CHECKING:
    from lab.spdk.instance import Instance

Answer = Any
Handler = Callable[["Instance", dict[str, Any]], Answer | Awaitable[Answer]]

# How each family of methods refuses parameters that it can't decode.
BDEV = (INTERNAL_ERROR, "spdk_json_decode_object failed")
NVMF = (INVALID_PARAMS, "Invalid parameters")
VHOST = (INVALID_PARAMS, "Invalid argument")
ACCEL = (PARSE_ERROR, "spdk_json_decode_object failed")
CONFIG = (INVALID_PARAMS, "Invalid arguments")

STARTUP = "startup"
RUNTIME = "runtime"
ALWAYS = "always"

_TOO_LATE = (
    "Method may only be called before framework is initialized. Use --wait-for-rpc command line parameter "
    "and then issue this RPC before the framework_start_init RPC."
)
_TOO_EARLY = "Method may only be called after framework is initialized using framework_start_init RPC."


class Method:
    def __init__(self, name: str, handler: Handler, refusal: tuple[int, str] | None, optional: bool, when: str) -> None:
        self.name = name
        self.handler = handler
        self.refusal = refusal
        self.optional = optional
        self.when = when


METHODS: dict[str, Method] = {}


def method(
    name: str, *, refusal: tuple[int, str] | None = BDEV, optional: bool = False, when: str = RUNTIME
) -> Callable[[Handler], Handler]:
    """Registers a handler. ``optional``: the method may come without params.

    A method whose schema has no parameters refuses any, even ``{}``, with ``refusal``; None: it does not look at them.
    """
    assert name in schema.METHODS, name

    def register(handler: Handler) -> Handler:
        METHODS[name] = Method(name, handler, refusal, optional or not schema.METHODS[name], when)
        return handler

    return register


def invoke(instance: Instance, name: str, params: Any) -> Answer | Awaitable[Answer]:
    """Runs a method. Raises RpcFailure; an awaitable means that it finishes later, out of order."""
    found = METHODS.get(name)
    if found is None:
        raise RpcFailure(METHOD_NOT_FOUND, "Method not found")
    if found.when == STARTUP and instance.started:
        raise RpcFailure(-1, _TOO_LATE)
    if found.when == RUNTIME and not instance.started:
        raise RpcFailure(-1, _TOO_EARLY)
    if params is None or found.refusal is None:
        if not found.optional and found.refusal is not None:
            raise RpcFailure(*found.refusal)
        return found.handler(instance, {})
    if not schema.METHODS[name]:
        raise RpcFailure(*found.refusal)
    try:
        decoded = schema.decode(name, params)
    except schema.DecodeError as error:
        raise RpcFailure(*found.refusal) from error
    return found.handler(instance, decoded)


def as_params(params: dict[str, Any]) -> Pairs:
    """A Python dict as if it had been read: for configuration files."""
    import json

    from lab.spdk.json_text import read_value

    read = read_value(json.dumps(params), 0)
    assert read is not None
    value = read[0]
    assert isinstance(value, Pairs)
    return value
