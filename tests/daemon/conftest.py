"""What the daemon tests share: certificates, a clock that jumps, a service without a proto file."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import selectors
from collections.abc import AsyncIterator, Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from foundation.daemon import logs
from foundation.daemon.tls import TlsFiles

T = TypeVar("T")


class Authority:
    """A certificate authority that writes its leaves' PEM files into a directory."""

    def __init__(self, directory: Path, name: str) -> None:
        self._directory = directory
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        certificate = self._builder(self._name, self._key).add_extension(
            x509.BasicConstraints(ca=True, path_length=0), critical=True
        )
        self.path = directory / f"{name}.ca.pem"
        self.path.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))

    def _builder(self, subject: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(hours=1))
        )

    def issue(self, *names: str, files: str) -> TlsFiles:
        """Write `<files>.pem` and `<files>.key` for a certificate with these DNS names; the paths, with this CA's."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, files)])
        alternative = x509.SubjectAlternativeName([x509.DNSName(name) for name in names])
        certificate = self._builder(subject, key).add_extension(alternative, critical=False)
        paths = TlsFiles(
            ca=str(self.path),
            certificate=str(self._directory / f"{files}.pem"),
            key=str(self._directory / f"{files}.key"),
        )
        pem = certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        plain = serialization.NoEncryption()
        form = serialization.PrivateFormat.PKCS8
        Path(paths.certificate).write_bytes(pem)
        Path(paths.key).write_bytes(key.private_bytes(serialization.Encoding.PEM, form, plain))
        return paths


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "lab")


@pytest.fixture
def stranger(tmp_path: Path) -> Authority:
    return Authority(tmp_path, "stranger")


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for nothing: where the loop would sleep, its clock jumps."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events:
            assert timeout is not None, "every task waits, and no timer is set: this would hang for ever"
            self.now += max(timeout, 0)
        return events


class JumpingLoop(asyncio.SelectorEventLoop):
    """An event loop whose `time()` starts at 0 and passes only in waits, at once."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_jumping(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    with asyncio.Runner(loop_factory=JumpingLoop) as runner:
        return runner.run(main())


@pytest.fixture(scope="session")
def jumping() -> Callable[[Callable[[], Coroutine[Any, Any, Any]]], Any]:
    """Runs a coroutine function on a clock that jumps."""
    return run_jumping


@pytest.fixture(autouse=True)
def _own_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Secrets that one test registers are unknown to the next."""
    monkeypatch.setattr(logs, "_known", {})
    monkeypatch.setattr(logs, "_pattern", None)


class Service:
    """`test.Service`, whose messages are plain bytes; each method does what the test says."""

    def __init__(self) -> None:
        self.ask: Callable[..., Any] | None = None
        self.stream: Callable[..., Any] | None = None

    def add_to(self, server: grpc.aio.Server) -> None:
        async def ask(request: bytes, context: Any) -> bytes:
            assert self.ask is not None
            result: bytes = await self.ask(request, context)
            return result

        async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
            assert self.stream is not None
            async with contextlib.aclosing(self.stream(request, context)) as answers:
                async for answer in answers:
                    yield answer

        async def gather(requests: AsyncIterator[bytes], context: Any) -> bytes:
            return b"".join([request async for request in requests])

        async def talk(requests: AsyncIterator[bytes], context: Any) -> AsyncIterator[bytes]:
            async for request in requests:
                yield request.upper()

        def unwritten(request: bytes, context: Any) -> bytes:
            # As the generated base classes have it.
            context.set_code(grpc.StatusCode.UNIMPLEMENTED)
            context.set_details("Method not implemented!")
            raise NotImplementedError("Method not implemented!")

        async def writes(request: bytes, context: Any) -> None:
            for number in range(3):
                await context.write(b"%d" % number)

        handlers: dict[str, Any] = {
            "Ask": grpc.unary_unary_rpc_method_handler(ask),
            "GetThing": grpc.unary_unary_rpc_method_handler(ask),
            "Unwritten": grpc.unary_unary_rpc_method_handler(unwritten),
            "Stream": grpc.unary_stream_rpc_method_handler(stream),
            "Writes": grpc.unary_stream_rpc_method_handler(writes),
            "Gather": grpc.stream_unary_rpc_method_handler(gather),
            "Talk": grpc.stream_stream_rpc_method_handler(talk),
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Service", handlers),))


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Reports travel between processes as UTF-8, which some of the odd texts logged here are not."""
    report = yield
    report.sections = [(name, text.encode(errors="backslashreplace").decode()) for name, text in report.sections]
    return report
