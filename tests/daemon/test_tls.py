"""Mutual TLS: who gets in, who does not, and certificates that change under way."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio
import pytest
from cryptography.hazmat.primitives import serialization

from foundation.daemon.errors import ErrorTable
from foundation.daemon.renewing import RenewingChannel
from foundation.daemon.serving import (
    Identity,
    TlsError,
    TlsFiles,
    dial,
    listen_tls,
    listen_unix,
    make_server,
    peer_identity,
)
from foundation.daemon.tls import WatchedFiles

if TYPE_CHECKING:
    from .conftest import Authority, Service

ASK = "/test.Service/Ask"
SERVER = "dpu-1.cni-node.dpu-offload.io"
CLIENT = "host-1.example.com.cni-node.dpu-offload.io"


@contextlib.asynccontextmanager
async def serving(service: Service, tls: TlsFiles, **options: Any) -> AsyncIterator[str]:
    server = make_server(errors=ErrorTable({}), service="sample", **options)
    service.add_to(server)
    port = listen_tls(server, "127.0.0.1:0", tls)
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


@pytest.fixture
def who(service: Service) -> Service:
    """A service that answers with its caller's identity."""

    async def ask(request: bytes, context: Any) -> bytes:
        return str(peer_identity(context)).encode()

    service.ask = ask
    return service


async def failure(call: Any) -> grpc.aio.AioRpcError:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value


async def asked(target: str, tls: TlsFiles, server_name: str = SERVER) -> bytes:
    async with dial(target, name="sample", tls=tls, server_name=server_name) as channel:
        answer: bytes = await channel.unary_unary(ASK)(b"", timeout=30)
        return answer


async def test_both_sides_prove_who_they_are(who: Service, authority: Authority) -> None:
    async with serving(who, authority.issue(SERVER, files="server")) as target:
        client = authority.issue(CLIENT, "localhost", files="client")
        assert await asked(target, client) == b"cni-node on host-1.example.com"


@pytest.mark.parametrize(
    "names", [("localhost",), (CLIENT, "host-2.cni-node.dpu-offload.io"), (f"{CLIENT}.example.com",)]
)
async def test_certificate_without_one_identity_of_ours_is_nobody(
    who: Service, authority: Authority, names: tuple[str, ...]
) -> None:
    async with serving(who, authority.issue(SERVER, files="server")) as target:
        assert await asked(target, authority.issue(*names, files="client")) == b"None"


async def test_client_of_another_ca_is_refused(who: Service, authority: Authority, stranger: Authority) -> None:
    async with serving(who, authority.issue(SERVER, files="server")) as target:
        theirs = stranger.issue(CLIENT, files="client")
        # It trusts our server, so only the server's check is left to refuse it.
        mixed = TlsFiles(ca=str(authority.path), certificate=theirs.certificate, key=theirs.key)
        error = await failure(asked(target, mixed))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_client_without_certificate_is_refused(who: Service, authority: Authority) -> None:
    async with serving(who, authority.issue(SERVER, files="server")) as target:
        credentials = grpc.ssl_channel_credentials(authority.path.read_bytes())
        options = [("grpc.ssl_target_name_override", SERVER)]
        async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
            error = await failure(channel.unary_unary(ASK)(b"", timeout=30))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_client_without_tls_is_refused(who: Service, authority: Authority) -> None:
    async with (
        serving(who, authority.issue(SERVER, files="server")) as target,
        grpc.aio.insecure_channel(target) as channel,
    ):
        error = await failure(channel.unary_unary(ASK)(b"", timeout=30))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_server_of_another_ca_is_refused(who: Service, authority: Authority, stranger: Authority) -> None:
    theirs = stranger.issue(SERVER, files="server")
    accepting = TlsFiles(ca=str(authority.path), certificate=theirs.certificate, key=theirs.key)
    async with serving(who, accepting) as target:
        error = await failure(asked(target, authority.issue(CLIENT, files="client")))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


async def test_server_with_another_name_is_refused(who: Service, authority: Authority) -> None:
    async with serving(who, authority.issue("dpu-2.cni-node.dpu-offload.io", files="server")) as target:
        error = await failure(asked(target, authority.issue(CLIENT, files="client")))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("name", "code", "details"),
    [
        (CLIENT, grpc.StatusCode.OK, ""),
        ("n1.csi-node-dpu.dpu-offload.io", grpc.StatusCode.PERMISSION_DENIED,
         "sample: csi-node-dpu on n1 may not call this; callers are cni-node, dpuctl"),
        ("localhost", grpc.StatusCode.PERMISSION_DENIED,
         "sample: the caller's certificate names no component of this suite"),
    ],
)  # fmt: skip
async def test_only_the_components_named_may_call(
    service: Service, authority: Authority, name: str, code: grpc.StatusCode, details: str
) -> None:
    reached: list[Identity | None] = []

    async def ask(request: bytes, context: Any) -> bytes:
        reached.append(peer_identity(context))
        return b""

    service.ask = ask
    tls = authority.issue(SERVER, files="server")
    async with serving(service, tls, callers=("dpuctl", "cni-node")) as target:
        call = asked(target, authority.issue(name, files="client"))
        if code is grpc.StatusCode.OK:
            await call
            assert reached == [Identity("host-1.example.com", "cni-node")]
        else:
            error = await failure(call)
            assert (error.code(), error.details()) == (code, details)
            assert reached == []


async def test_unix_caller_has_no_identity_and_is_let_in(who: Service, tmp_path: Path) -> None:
    server = make_server(errors=ErrorTable({}), service="sample", callers=("cni-node",))
    who.add_to(server)
    listen_unix(server, tmp_path / "s.sock")
    await server.start()
    async with dial(f"unix:{tmp_path}/s.sock", name="sample") as channel:
        assert await channel.unary_unary(ASK)(b"") == b"None"
    await server.stop(0)


async def test_server_takes_a_renewed_certificate_with_the_next_connection(
    who: Service, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    client = authority.issue(CLIENT, files="client")
    async with serving(who, authority.issue("old.cni-node.dpu-offload.io", files="server")) as target:
        assert (await failure(asked(target, client))).code() is grpc.StatusCode.UNAVAILABLE
        authority.issue(SERVER, files="server")
        assert await asked(target, client) == b"cni-node on host-1.example.com"


async def test_server_takes_a_renewed_ca(who: Service, authority: Authority, stranger: Authority) -> None:
    server = authority.issue(SERVER, files="server")
    trusted = authority.path.read_bytes()
    client = stranger.issue(CLIENT, files="client")
    mixed = TlsFiles(str(authority.path), client.certificate, client.key)
    # The client keeps to the first CA, whatever the server's file says later.
    first_ca = authority.path.with_name("first.pem")
    first_ca.write_bytes(trusted)
    mixed = TlsFiles(str(first_ca), client.certificate, client.key)
    async with serving(who, server) as target:
        assert (await failure(asked(target, mixed))).code() is grpc.StatusCode.UNAVAILABLE
        authority.path.write_bytes(trusted + stranger.path.read_bytes())
        assert await asked(target, mixed) == b"cni-node on host-1.example.com"


async def test_server_keeps_what_it_has_when_the_new_files_are_no_good(
    who: Service, authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    client = authority.issue(CLIENT, files="client")
    server = authority.issue(SERVER, files="server")
    async with serving(who, server) as target:
        other = authority.issue(SERVER, files="other")
        # As when only one of two files has been replaced so far.
        shutil.copy(other.key, server.key)
        with caplog.at_level(logging.WARNING, "foundation.daemon.tls"):
            assert await asked(target, client) == b"cni-node on host-1.example.com"
        assert "keeping the certificate in use: TLS certificate" in caplog.text
        shutil.copy(other.certificate, server.certificate)
        caplog.clear()
        assert await asked(target, client) == b"cni-node on host-1.example.com"
        assert "keeping" not in caplog.text
        os.unlink(server.key)
        assert await asked(target, client) == b"cni-node on host-1.example.com"
        assert f"TLS private key file {server.key}: No such file or directory" in caplog.text


async def test_client_takes_a_renewed_certificate_with_the_next_call_and_cancels_none(
    who: Service, authority: Authority
) -> None:
    finish = asyncio.Event()

    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield str(peer_identity(context)).encode()
        await finish.wait()
        yield b"still here"

    who.stream = stream
    client = authority.issue("old.cni-node.dpu-offload.io", files="client")
    async with (
        serving(who, authority.issue(SERVER, files="server")) as target,
        dial(target, name="sample", tls=client, server_name=SERVER) as channel,
    ):
        assert isinstance(channel, RenewingChannel)
        call = channel.unary_unary(ASK)
        assert await call(b"") == b"cni-node on old"
        running: Any = channel.unary_stream("/test.Service/Stream")(b"")
        assert await running.read() == b"cni-node on old"
        authority.issue("new.cni-node.dpu-offload.io", files="client")
        async with asyncio.timeout(30):
            # The files are looked at once a second.
            while await call(b"") != b"cni-node on new":
                await asyncio.sleep(0.1)
        old = channel._replaced.copy()
        finish.set()
        assert await running.read() == b"still here"
        assert await running.read() is grpc.aio.EOF
        assert len(old) == 1
        async with asyncio.timeout(30):
            while channel._replaced:
                await asyncio.sleep(0.01)


async def test_closing_a_renewed_channel_closes_those_it_replaced(who: Service, authority: Authority) -> None:
    async def stream(request: bytes, context: Any) -> AsyncIterator[bytes]:
        yield b"x"
        await asyncio.sleep(55)

    who.stream = stream
    client = authority.issue("old.cni-node.dpu-offload.io", files="client")
    async with serving(who, authority.issue(SERVER, files="server")) as target:
        channel = dial(target, name="sample", tls=client, server_name=SERVER)
        running: Any = channel.unary_stream("/test.Service/Stream")(b"")
        await running.read()
        authority.issue("new.cni-node.dpu-offload.io", files="client")
        async with asyncio.timeout(30):
            while await channel.unary_unary(ASK)(b"") != b"cni-node on new":
                await asyncio.sleep(0.1)
        await asyncio.wait_for(channel.close(), 30)
        assert running.done(), "the stream on the replaced channel is cancelled too"
        with pytest.raises(asyncio.CancelledError):
            await running.read()
        with pytest.raises((grpc.aio.UsageError, asyncio.CancelledError)):
            await channel.unary_unary(ASK)(b"")


def spoil(files: TlsFiles, what: str) -> TlsFiles:
    if what == "no CA file":
        return TlsFiles("/nowhere/ca.pem", files.certificate, files.key)
    if what == "no key":
        os.unlink(files.key)
    if what == "CA is no PEM":
        Path(files.ca).write_text("hello")
    if what == "certificate is no PEM":
        Path(files.certificate).write_text("hello")
    if what == "key of another":
        shutil.copy(files.key + ".other", files.key)
    return files


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("no CA file", "TLS CA file /nowhere/ca.pem: No such file or directory"),
        ("no key", "TLS private key file {files.key}: No such file or directory"),
        ("CA is no PEM", "TLS CA file {files.ca}: holds no usable PEM certificate"),
        ("certificate is no PEM", "TLS certificate {files.certificate}: not a PEM certificate for the key {files.key}"),
        ("key of another", "TLS certificate {files.certificate}: not a PEM certificate for the key {files.key}"),
    ],
)
async def test_unusable_files_are_told_before_anything_listens(
    service: Service, authority: Authority, what: str, message: str
) -> None:
    files = authority.issue(SERVER, files="server")
    shutil.copy(authority.issue(SERVER, files="other").key, files.key + ".other")
    spoilt = spoil(files, what)
    server = make_server(errors=ErrorTable({}), service="sample")
    for attempt in (
        lambda: listen_tls(server, "127.0.0.1:0", spoilt),
        lambda: dial("127.0.0.1:1", name="x", tls=spoilt),
    ):
        with pytest.raises(TlsError) as caught:
            attempt()
        assert str(caught.value) == message.format(files=files)
    await server.stop(0)


def test_nobody_is_asked_for_the_password_of_a_key(authority: Authority) -> None:
    """Below a terminal OpenSSL would ask there, and the daemon would wait for an answer."""
    files = authority.issue(SERVER, files="server")
    key = serialization.load_pem_private_key(Path(files.key).read_bytes(), None)
    sealed = serialization.BestAvailableEncryption(b"secret")
    form = serialization.PrivateFormat.PKCS8
    Path(files.key).write_bytes(key.private_bytes(serialization.Encoding.PEM, form, sealed))
    code = f"from foundation.daemon.tls import *; WatchedFiles(TlsFiles{(files.ca, files.certificate, files.key)!r})"
    # script(1) gives the process a terminal of its own.
    command = ["script", "--quiet", "--command", shlex.join([sys.executable, "-c", code]), "/dev/null"]
    said = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, timeout=50, check=False).stdout
    assert b"not a PEM certificate for the key" in said
    assert b"pass phrase" not in said


async def test_address_that_is_taken_or_not_ours(service: Service, authority: Authority) -> None:
    tls = authority.issue(SERVER, files="server")
    server = make_server(errors=ErrorTable({}), service="sample")
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = f"127.0.0.1:{other.getsockname()[1]}"
        with pytest.raises(OSError, match=f"cannot listen on {address}; see that"):
            listen_tls(server, address, tls)
    with pytest.raises(OSError, match=r"cannot listen on 192\.0\.2\.1:0"):
        listen_tls(server, "192.0.2.1:0", tls)
    await server.stop(0)


async def test_two_servers_do_not_share_one_port(who: Service, authority: Authority) -> None:
    tls = authority.issue(SERVER, files="server")
    async with serving(who, tls) as target:
        second = make_server(errors=ErrorTable({}), service="second")
        with pytest.raises(OSError, match="cannot listen on"):
            listen_tls(second, target, tls)
        await second.stop(0)


def test_unchanged_files_are_not_read_again(authority: Authority) -> None:
    files = authority.issue(SERVER, files="server")
    watched = WatchedFiles(files)
    assert watched.refresh() is False
    os.utime(files.key, (1, 1))
    assert watched.refresh() is False, "touched, and yet the same"
    authority.issue(SERVER, files="server")
    assert watched.refresh() is True
    assert watched.material.certificate == Path(files.certificate).read_bytes()
    assert watched.refresh() is False
