"""Answers requests while it leads: judge, approve or deny, sign; and sees to the authorities' succession."""

from __future__ import annotations

import asyncio
import base64
import datetime
import logging

import msgspec

from certificates.contract import SIGNER
from certificates.errors import AuthorityUnusable, Refused
from certificates.signer.authorities import Authority, Succession, succession
from certificates.signer.config import CertificateSignerConfig
from certificates.signer.judging import judge
from certificates.signer.keeping import Keeping
from foundation.daemon import metrics
from foundation.daemon.backoff import Backoff
from foundation.daemon.keyed_queue import KeyedQueue
from foundation.kube.client import KubeClient
from foundation.kube.errors import KubeError, NotFound
from foundation.kube.models.certificates import CertificateSigningRequest
from foundation.kube.reflector import Change, Reflector
from foundation.kube.resources import CERTIFICATE_SIGNING_REQUESTS

_log = logging.getLogger(__name__)
_ANSWERED = metrics.counter("certificate_requests", "Requests that were answered.", ("outcome",))
_AUTHORITY_ENDS = metrics.gauge(
    "certificate_authority_expiry_timestamp_seconds", "When the authority that signs expires (Unix time)."
)
_BEAT_SECONDS = 600.0
_RETRY = Backoff(1.0, 30.0)


class Signing:
    """One leader's work."""

    def __init__(self, client: KubeClient, config: CertificateSignerConfig) -> None:
        self._client = client
        self._config = config
        self._keeping = Keeping(client, namespace=config.namespace, name=config.authority)
        self._reflector = Reflector(client, CERTIFICATE_SIGNING_REQUESTS, field_selector=f"spec.signerName={SIGNER}")
        self._queue = KeyedQueue(self._answer, workers=4, deadline=30.0, name="certificate requests")
        self._signing: Authority | None = None
        # By uid: the watch may show a request without its certificate for a moment after we have signed it.
        self._answered: set[str] = set()

    async def run(self) -> None:
        """Until cancelled; the authority comes first."""
        await self._succeed_or_wait()
        self._reflector.subscribe(self._noticed)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._reflector.run())
            group.create_task(self._queue.run())
            group.create_task(self._keep())

    def _noticed(self, change: Change[CertificateSigningRequest]) -> None:
        if change.new is not None:
            self._queue.add(change.key)
        elif change.old is not None:
            self._answered.discard(change.old.metadata.uid)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(_BEAT_SECONDS)
            await self._succeed_or_wait()
            for name in list(self._reflector.store):
                self._queue.add(name)

    async def _succeed_or_wait(self) -> None:
        for pause in _RETRY:
            try:
                self._signing = await self.succeed(_now())
                return
            except (KubeError, AuthorityUnusable) as error:
                _log.error("the authority cannot be had: %s", error)
                if self._signing is not None:
                    return
                await asyncio.sleep(pause)

    async def succeed(self, now: datetime.datetime) -> Authority:
        """Make, trust and drop authorities as their time comes; the one that signs now."""
        config = self._config
        spread = datetime.timedelta(hours=config.spread_hours)
        before = await self._keeping.read()
        plan: Succession = succession(before, now=now, spread=spread)
        if plan.due:
            fresh = Authority.make(now, lifetime=datetime.timedelta(days=config.authority_days))
            plan = succession([*plan.trusted, fresh], now=now, spread=spread)
            _log.info("a new authority was made", extra={"authorities": len(plan.trusted)})
        if plan.trusted != before:
            await self._keeping.write(plan.trusted, before=before)
        await self._keeping.publish(plan.trusted)
        assert plan.signing is not None
        _AUTHORITY_ENDS.set(plan.signing.ends.timestamp())
        return plan.signing

    async def _answer(self, name: str) -> None:
        request = self._reflector.store.get(name)
        if request is None or await self._removed(request) or request.metadata.uid in self._answered:
            return
        decided = request.decided()
        if decided in ("Denied", "Failed") or request.status.certificate:
            return
        try:
            asked, identity = judge(request.spec, namespace=self._config.namespace, accounts=self._config.accounts)
        except Refused as refusal:
            # Approved by somebody else: what we would not give, we do not sign either.
            kind = "Failed" if decided else "Denied"
            await self._decide(request, kind, str(refusal))
            self._answered.add(request.metadata.uid)
            _ANSWERED.labels(outcome="refused").inc()
            _log.warning("request %s was refused: %s", name, refusal)
            return
        if not decided:
            await self._decide(request, "Approved", f"{identity} asks for itself")
        assert self._signing is not None
        chain = self._signing.issue(
            asked,
            name=identity.server_name,
            now=_now(),
            lifetime=datetime.timedelta(hours=self._config.lifetime_hours),
        )
        body = {"status": {"certificate": base64.b64encode(chain).decode()}}
        await self._client.merge_patch(CERTIFICATE_SIGNING_REQUESTS, name, "", body, "status")
        self._answered.add(request.metadata.uid)
        _ANSWERED.labels(outcome="signed").inc()
        _log.info("signed for %s", identity, extra={"request": name})

    async def _decide(self, request: CertificateSigningRequest, kind: str, message: str) -> None:
        condition = {"type": kind, "status": "True", "reason": "DpuOffload", "message": message}
        # A list is replaced as a whole, and the API server lets nobody take an approval away.
        before = [msgspec.to_builtins(one) for one in request.status.conditions or ()]
        body = {
            "metadata": {"resourceVersion": request.metadata.resource_version},
            "status": {"conditions": [*before, condition]},
        }
        # A failure is of the signing, not of the approval; each has a part of the API of its own.
        part = "status" if kind == "Failed" else "approval"
        await self._client.merge_patch(CERTIFICATE_SIGNING_REQUESTS, request.metadata.name, "", body, part)

    async def _removed(self, request: CertificateSigningRequest) -> bool:
        """Old requests go: their answers were read long ago."""
        made = datetime.datetime.fromisoformat(request.metadata.creation_timestamp or _now().isoformat())
        if _now() - made < datetime.timedelta(hours=self._config.keep_requests_hours):
            return False
        try:
            await self._client.delete(CERTIFICATE_SIGNING_REQUESTS, request.metadata.name, uid=request.metadata.uid)
        except NotFound:
            pass
        return True


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
