"""The HTTP door: TLS, proxies, limits, and that it costs nothing until it is used."""

import asyncio
import datetime
import ipaddress
import ssl
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall
from loomgate.providers.transport import Limits, Timeouts, Transport
from tests.support.upstream import Fault, ModelEndpoint
from tests.support.waiting import until

pytestmark = pytest.mark.anyio

BODY = b'{"model": "m", "stream": true, "messages": [{"role": "user", "content": "/say hello"}]}'


def call(base_url: str, body: bytes = BODY) -> HttpCall:
    return HttpCall(f"{base_url}/chat/completions", {"Content-Type": "application/json"}, body)


async def fetch(transport: Transport, to: HttpCall, timeouts: Timeouts | None = None) -> bytes:
    async with await transport.send(to, timeouts or Timeouts()) as reply:
        assert reply.status == 200
        return await reply.read(1_000_000)


async def test_status_headers_and_bounded_body() -> None:
    transport = Transport()
    async with ModelEndpoint() as endpoint:
        endpoint.faults.append(Fault(status=500, body={"long": "x" * 100_000}))
        async with await transport.send(call(endpoint.base_url), Timeouts()) as reply:
            assert reply.status == 500
            assert reply.headers["x-request-id"] == "req_standin"
            assert len(await reply.read(1000)) == 1000
        assert b"hello" in await fetch(transport, call(endpoint.base_url))
        assert endpoint.requests[0].headers["user-agent"] == "loomgate"
        await transport.close()


async def test_it_waits_for_a_free_connection_only_so_long() -> None:
    transport = Transport(Limits(connections=1))
    async with ModelEndpoint() as endpoint:
        endpoint.faults.append(Fault(wait=1000))
        first = asyncio.create_task(fetch(transport, call(endpoint.base_url)))
        await until(lambda: endpoint.requests)
        with pytest.raises(ProviderError) as caught:
            await fetch(transport, call(endpoint.base_url), Timeouts(connect=0.05))
        assert caught.value.kind == "connect"
        assert "within 0.05 seconds" in caught.value.message
        first.cancel()
        assert b"hello" in await fetch(transport, call(endpoint.base_url))
        await transport.close()


async def test_what_is_not_http() -> None:
    async def nonsense(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH_9.2\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(nonsense, "127.0.0.1", 0)
    transport = Transport()
    port = server.sockets[0].getsockname()[1]
    cases = ((f"http://127.0.0.1:{port}", "malformed"), ("ftp://127.0.0.1", "connect"), ("http://[::1", "connect"))
    for url, kind in cases:
        with pytest.raises(ProviderError) as caught:
            await fetch(transport, call(url))
        assert caught.value.kind == kind
    await transport.close()
    server.close()
    await server.wait_closed()


async def test_the_environments_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    async with ModelEndpoint() as proxy, ModelEndpoint() as direct:
        monkeypatch.setenv("http_proxy", proxy.base_url.removesuffix("/v1"))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        transport = Transport()
        assert b"hello" in await fetch(transport, call("http://model.invalid/v1"))
        assert proxy.requests[0].path == "http://model.invalid/v1/chat/completions"
        assert proxy.requests[0].headers["host"] == "model.invalid"
        assert b"hello" in await fetch(transport, call(direct.base_url))
        assert len(direct.requests) == 1
        await transport.close()


def _certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "stand-in")])
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2020, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2099, 1, 1, tzinfo=datetime.UTC))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    public, private = folder / "cert.pem", folder / "key.pem"
    public.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(public, private)
    return context, public


async def test_tls_is_verified(tmp_path: Path) -> None:
    context, public = _certificate(tmp_path)
    async with ModelEndpoint(tls=context) as endpoint:
        assert endpoint.base_url.startswith("https://")
        strict = Transport()
        with pytest.raises(ProviderError) as caught:
            await fetch(strict, call(endpoint.base_url))
        assert caught.value.kind == "connect"
        assert "certificate" in caught.value.message
        await strict.close()
        trusting = Transport(Limits(ca_file=str(public)))
        assert b"hello" in await fetch(trusting, call(endpoint.base_url))
        await trusting.close()


async def test_what_is_heavy_is_not_loaded_until_the_first_call() -> None:
    code = "import sys, loomgate.gateway; print(bool({'aiohttp', 'urllib.request', 'http.client'} & set(sys.modules)))"
    done = await asyncio.to_thread(subprocess.run, [sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
