"""A stage for the controller's core: a real northbound database, Kubernetes objects put in by hand."""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from cni.controller.config import ClusterConfig
from cni.controller.core import Core
from cni.controller.errors import Refused
from cni.controller.model.annotations import POD_NETWORKS
from cni.controller.rows import Owner
from cni.controller.rows.tables import TABLES, identify
from foundation.ovsdb import OvsdbSession, Row, TransactionFailed

SCHEMA = "/usr/share/ovn/ovn-nb.ovsschema"
_uids = itertools.count(1)


@functools.cache
def _empty_database() -> bytes:
    with tempfile.TemporaryDirectory() as directory:
        subprocess.run(["ovsdb-tool", "create", f"{directory}/db", SCHEMA], check=True)
        return Path(f"{directory}/db").read_bytes()


class Northbound:
    """An ovsdb-server with an empty northbound database."""

    def __init__(self) -> None:
        # Not pytest's tmp_path: a unix socket's path has 108 bytes at most.
        self.directory = Path(tempfile.mkdtemp(prefix="nb", dir="/tmp"))
        self.remote = f"unix:{self.directory}/s"
        (self.directory / "db").write_bytes(_empty_database())
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            ["ovsdb-server", f"--remote=p{self.remote}", "--unixctl=none", "-vconsole:off", self.directory / "db"]
        )

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory)


class Stage:
    """The core on a northbound database. Objects are plain dictionaries, as the API would give them."""

    def __init__(self, remote: str, **cluster: Any) -> None:
        self.session = OvsdbSession(remote, "OVN_Northbound")
        self.problems: dict[Owner, Refused] = {}
        self.refused: list[tuple[Owner, TransactionFailed]] = []
        self.annotations: dict[str, dict[str, Any]] = {}
        self.claims: dict[str, tuple[str, ...]] = {}
        self.machines: dict[str, dict[str, Any]] = {}
        self.node_annotations: dict[str, dict[str, str]] = {}
        self.core = Core(
            self.session,
            ClusterConfig(**cluster),
            annotate=self._annotate,
            keep=self.claims.__setitem__,
            keep_machine=lambda key, text: self.machines.__setitem__(key, json.loads(text)),
            annotate_node=lambda name, texts: self.node_annotations.setdefault(name, {}).update(texts),
            on_problem=self._problem,
            on_refused=lambda owner, error: self.refused.append((owner, error)),
        )
        self._models = {kind: resource.model for kind, resource, _ in Core.SOURCES}
        self._task: asyncio.Task[None] | None = None

    def _annotate(self, key: str, uid: str, text: str) -> None:
        self.annotations[key] = json.loads(text)

    def _problem(self, owner: Owner, refused: Refused | None) -> None:
        if refused is None:
            self.problems.pop(owner, None)
        else:
            self.problems[owner] = refused

    async def __aenter__(self) -> Stage:
        await self.session.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        await self.session.stop()

    def put(self, kind: str, *objects: Mapping[str, Any]) -> None:
        for obj in objects:
            model = msgspec.convert(obj, self._models[kind])
            self.core.take(kind, model.metadata.key, model)

    def remove(self, kind: str, *keys: str) -> None:
        for key in keys:
            self.core.take(kind, key, None)

    async def settle(self) -> None:
        """Everything put in is in the database when this returns."""
        if self._task is None:
            self.core.first_pass()
            self._task = asyncio.create_task(self.core.run())
        idle = asyncio.create_task(self.core.idle())
        done, _ = await asyncio.wait({idle, self._task}, timeout=50, return_when=asyncio.FIRST_COMPLETED)
        if self._task in done:
            self._task.result()
        assert idle in done, "the core did not come to rest"

    def rows(self, table: str) -> Iterator[Row]:
        return iter(self.session.rows(table).values())

    def named(self, table: str) -> dict[str, Row]:
        return {row["name"]: row for row in self.rows(table)}


def contents(stage: Stage) -> dict[str, Any]:
    """Our rows with references as ids: what must be equal."""
    ids = {row.uuid: identify(table, row) for table in TABLES for row in stage.rows(table)}

    def plain(value: Any) -> Any:
        if isinstance(value, frozenset):
            return sorted(str(plain(each)) for each in value)
        return ids.get(value, value) if isinstance(value, str) else value

    return {
        str(identify(table, row)): {column: plain(value) for column, value in row.columns.items()}
        for table in TABLES
        for row in stage.rows(table)
    }


def node(name: str, *cidrs: str, labels: Mapping[str, str] | None = None, ip: str = "") -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "address": ip}] if ip else []
    return {
        "metadata": {"name": name, "uid": f"node-{name}", "labels": dict(labels or {})},
        "spec": {"podCIDRs": list(cidrs)},
        "status": {"addresses": addresses},
    }


def pod(
    name: str,
    *,
    on: str = "n1",
    namespace: str = "ns",
    uid: str = "",
    labels: Mapping[str, str] | None = None,
    annotations: Mapping[str, str] | None = None,
    networks: Mapping[str, Any] | None = None,
    phase: str = "Running",
    host_network: bool = False,
    ports: Mapping[str, tuple[str, int]] | None = None,
    ip: str = "",
) -> dict[str, Any]:
    """`networks`: what annotation pod-networks says already; `ports`: name -> (protocol, number)."""
    annotations = dict(annotations or {})
    if networks is not None:
        annotations[POD_NETWORKS] = json.dumps(networks)
    named = [{"name": n, "protocol": p, "containerPort": number} for n, (p, number) in (ports or {}).items()]
    return {
        "metadata": {
            "name": name,
            "namespace": namespace,
            "uid": uid or f"uid-{next(_uids)}",
            "labels": dict(labels or {}),
            "annotations": annotations,
        },
        "spec": {"nodeName": on, "hostNetwork": host_network, "containers": [{"name": "c", "ports": named}]},
        "status": {"phase": phase, "podIPs": [{"ip": ip}] if ip else []},
    }
