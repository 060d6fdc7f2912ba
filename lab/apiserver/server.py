"""The stand-in over HTTP."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import msgspec
from aiohttp import web

from lab.apiserver import discovery, status
from lab.apiserver.access import Recorder, Request, Tokens, User
from lab.apiserver.controllers import Controllers
from lab.apiserver.faults import Faults, Rule
from lab.apiserver.kinds import Kinds, from_definition
from lab.apiserver.listing import Lists
from lab.apiserver.operations import Call, Operations
from lab.apiserver.persistence import Journal
from lab.apiserver.registry import Registry, Write
from lab.apiserver.routing import target, verb
from lab.apiserver.services import Allocator
from lab.apiserver.storage import HISTORY, Json, Store
from lab.apiserver.watching import Watch, WatchCut, WatchQuery

logger = logging.getLogger(__name__)

LARGEST_BODY = 3 << 20
HEALTH = ("/healthz", "/livez", "/readyz")
NAMESPACES = ("default", "kube-system", "kube-public", "kube-node-lease")


class ApiServer:
    """One API server. `start()` serves, `stop()` ends it; `faults` and the methods below make trouble."""

    def __init__(
        self,
        address: str = "127.0.0.1:0",
        *,
        tls: ssl.SSLContext | None = None,
        tokens: Tokens | None = None,
        record: Path | None = None,
        data: Path | None = None,
        fault_endpoint: bool = False,
        bookmark_seconds: float = 60.0,
        history: int = HISTORY,
        service_networks: Sequence[str] = ("10.96.0.0/16", "fd00:10:96::/112"),
        node_ports: range = range(30000, 32768),
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`tokens` None: everybody is admin. `record`: file for the distinct requests (see `access.Recorder`)."""
        host, _, port = address.rpartition(":")
        self._host, self._port = host.strip("[]"), int(port)
        self._tls = tls
        self._tokens = tokens or Tokens(None)
        self._data = data
        self._fault_endpoint = fault_endpoint
        self._bookmark_seconds = bookmark_seconds
        self.recorder = Recorder(record)
        self.faults = Faults()
        self.kinds = Kinds()
        self.store = Store(history=history)
        self.registry = Registry(self.store, self.kinds, allocator=Allocator(service_networks, node_ports), clock=clock)
        self._lists = Lists(self.store)
        self._operations = Operations(self.registry, self._lists)
        self._controllers = Controllers(self.registry)
        self._journal: Journal | None = None
        self._server: web.Server | None = None
        self._listening: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def url(self) -> str:
        """Where it is served."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{'https' if self._tls else 'http'}://{host}:{self._port}"

    async def start(self) -> None:
        """Serve. Raises OSError if the address is taken."""
        if self._data is not None:
            self._journal = Journal(self._data, self.store)
            self._restore()
        self._bootstrap()
        self.store.begin()
        self._server = web.Server(self._handle, handler_cancellation=True, request_factory=_request)
        await self._listen()
        self._spawn(self._controllers.run())

    async def stop(self) -> None:
        """Cut all connections and end."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stop_listening()
        self._abort_connections()
        if self._server is not None:
            await self._server.shutdown(0.1)
        if self._journal is not None:
            self._journal.close()

    async def __aenter__(self) -> ApiServer:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.stop()

    async def _listen(self) -> None:
        assert self._server is not None
        self._listening = await asyncio.get_running_loop().create_server(
            self._server, self._host, self._port, ssl=self._tls
        )
        self._port = self._listening.sockets[0].getsockname()[1]

    async def _stop_listening(self) -> None:
        """Take no more connections. Those accepted a moment ago get their transport first: asyncio would lose them."""
        if self._listening is None:
            return
        listening, self._listening = self._listening, None
        for each in listening.sockets:
            asyncio.get_running_loop().remove_reader(each.fileno())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        listening.close()

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _restore(self) -> None:
        for _, stored in self.store.all(("apiextensions.k8s.io", "customresourcedefinitions")):
            for kind in from_definition(stored.object):
                self.kinds.add(kind)
        for _, stored in self.store.all(("", "services")):
            self.registry.strategies.allocator.hold(stored.object)
        self._controllers.learn()

    def _bootstrap(self) -> None:
        namespaces = self.kinds.find("", "v1", "namespaces")
        services = self.kinds.find("", "v1", "services")
        assert namespaces is not None
        assert services is not None
        for name in NAMESPACES:
            if self.store.get(namespaces.table, ("", name)) is None:
                self.registry.create(namespaces, "", {"metadata": {"name": name}}, Write(manager="kube-apiserver"))
        if self.store.get(services.table, ("default", "kubernetes")) is None:
            network = next(iter(self.registry.strategies.allocator.networks.values()))
            spec: Json = {
                "clusterIP": str(network.network_address + 1),
                "ports": [{"name": "https", "port": 443, "targetPort": self._port or 6443}],
            }
            metadata = {"name": "kubernetes", "labels": {"component": "apiserver", "provider": "kubernetes"}}
            self.registry.create(
                services, "default", {"metadata": metadata, "spec": spec}, Write(manager="kube-apiserver")
            )

    # troubles

    def expire(self) -> None:
        """Forget all history and all begun lists: every older version and token answers 410 from now on."""
        self.store.compact()
        self._lists.expire()

    def gone(self) -> None:
        """Forget all history, and tell every open watch so by an ERROR event."""
        self.expire()
        error = status.too_old_version(1, self.store.version)
        line = b'{"type":"ERROR","object":' + msgspec.json.encode(error.body()) + b"}\n"
        self.faults.send_to_watches(line)
        self.faults.end_watches()

    async def refuse(self, seconds: float | None = None) -> None:
        """Cut all connections and refuse new ones, for a time or until `accept()`."""
        await self._stop_listening()
        self._abort_connections()
        if seconds is not None:
            self._spawn(self._accept_later(seconds))

    async def accept(self) -> None:
        """End `refuse()`."""
        if self._listening is None:
            await self._listen()

    async def _accept_later(self, seconds: float) -> None:
        await asyncio.sleep(seconds)
        await self.accept()

    def _abort_connections(self) -> None:
        for connection in self._server.connections if self._server is not None else ():
            if connection.transport is not None:
                connection.transport.abort()

    # requests

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        try:
            if request.path in HEALTH:
                return web.Response(text="ok")
            query = dict(parse_qsl(request.query_string, keep_blank_values=True))
            return await self._answer(request, query)
        except status.StatusError as error:
            return _refusal(error)
        except web.HTTPRequestEntityTooLarge:
            return _refusal(status.StatusError(413, "RequestEntityTooLarge", f"limit is {LARGEST_BODY}"))
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as failure:
            logger.exception("%s %s", request.method, request.path)
            return _refusal(status.StatusError(500, "InternalError", f"Internal error occurred: {failure!r}"))

    async def _answer(self, request: web.BaseRequest, query: Mapping[str, str]) -> web.StreamResponse:
        path = request.path
        body = await request.read() if request.can_read_body else b""
        if path == "/lab/faults" and self._fault_endpoint:
            return await self._trouble(body)
        user = self._tokens.user(request.headers.get("Authorization", ""))
        if request.method == "GET":
            found = discovery.answer(path, self.kinds)
            if found is not None:
                return _json(msgspec.json.encode(found))
        where = target(path, self.kinds)
        watching = query.get("watch") in ("true", "1")
        named = where.name and not (watching and request.method == "GET")
        action = verb(request.method, where.name if named else "", watch=watching)
        self._record(user, action, where)
        cut = await self.faults.before(request.method, path, action)
        if cut == -1:
            return _cut(request)
        agent = request.headers.get("User-Agent", "")
        call = Call(action, where, query, body, request.content_type, user, agent)
        if action == "watch":
            return await self._watch(request, call)
        answer = self._operations.do(call)
        if cut == -2:
            return _cut(request)
        headers = {"Warning": ", ".join(f'299 - "unknown field \\"{each}\\""' for each in answer.warnings)}
        return _json(answer.body, answer.code, headers if answer.warnings else None)

    def _record(self, user: User, action: str, where: Any) -> None:
        self.recorder.record(
            Request(
                user.name, action, where.kind.group, where.kind.plural, where.subresource, where.namespace, where.name
            )
        )

    async def _watch(self, request: web.BaseRequest, call: Call) -> web.StreamResponse:
        kind = call.target.kind
        watch = Watch(
            self.store,
            kind,
            call.target.namespace,
            self._operations.predicate(call),
            WatchQuery.of(call.query),
            self.faults,
            bookmark_seconds=self._bookmark_seconds,
            convert=self._operations.converter(kind),
        )
        response = web.StreamResponse(
            headers={"Content-Type": "application/json", "Cache-Control": "no-cache, private"}
        )
        response.enable_chunked_encoding()
        await response.prepare(request)
        try:
            await watch.serve(response.write)
        except WatchCut:
            _cut(request)
        except ConnectionError:
            logger.debug("a watch of %s has been left by its client", kind.plural)
        return response

    async def _trouble(self, body: bytes) -> web.Response:
        """POST /lab/faults: {"do": "drop" | "end" | "gone" | "expire" | "stall" | "resume" | "clear"}, or
        {"do": "raw", "text": ...}, {"do": "refuse", "seconds": n}, {"do": "rule", "rule": {fields of faults.Rule}}."""
        wish = msgspec.json.decode(body)
        match wish.get("do"):
            case "drop":
                self.faults.drop_watches()
            case "end":
                self.faults.end_watches()
            case "gone":
                self.gone()
            case "expire":
                self.expire()
            case "stall":
                self.faults.stall_watches()
            case "resume":
                self.faults.resume_watches()
            case "clear":
                self.faults.clear()
            case "raw":
                self.faults.send_to_watches(str(wish["text"]).encode())
            case "refuse":
                self._spawn(self._refuse_soon(float(wish["seconds"])))
            case "rule":
                self.faults.add(msgspec.convert(wish["rule"], Rule))
            case other:
                raise status.bad_request(f"no such trouble: {other!r}")
        return _json(b"{}")

    async def _refuse_soon(self, seconds: float) -> None:
        await asyncio.sleep(0.05)  # let the answer to the wish go out first
        await self.refuse(seconds)

    def kubeconfig(self, path: Path, *, authority: Path | None = None, token: str = "") -> Path:
        """Write a kubeconfig for this server, readable by its owner only; returns `path`."""
        cluster: Json = {"server": self.url}
        if authority is not None:
            cluster["certificate-authority"] = str(authority.absolute())
        document: Json = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "lab", "cluster": cluster}],
            "users": [{"name": "lab", "user": {"token": token} if token else {}}],
            "contexts": [{"name": "lab", "context": {"cluster": "lab", "user": "lab"}}],
            "current-context": "lab",
        }
        path.touch(mode=0o600)
        path.write_bytes(msgspec.yaml.encode(document))
        return path


def _request(message: Any, payload: Any, protocol: Any, writer: Any, task: Any) -> web.BaseRequest:
    loop = asyncio.get_running_loop()
    return web.BaseRequest(message, payload, protocol, writer, task, loop, client_max_size=LARGEST_BODY)


def _json(body: bytes, code: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.Response(body=body, status=code, headers=headers, content_type="application/json")


def _refusal(error: status.StatusError) -> web.Response:
    return _json(msgspec.json.encode(error.body()), error.code, error.headers)


def _cut(request: web.BaseRequest) -> web.Response:
    if request.transport is not None:
        request.transport.abort()
    return web.Response(status=500)
