"""Google service accounts: a key file is exchanged for a token over real HTTP, kept, and replaced in time."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import parse_qs

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.hashes import SHA256

from loomgate import clock
from loomgate.app import provider_config
from loomgate.errors import ProviderError, SettingError
from loomgate.gateway import Gateway, GatewayConfig, ProviderConfig, Retries, Stored, StoredKey
from loomgate.providers.service_account import project_for, service_account
from loomgate.settings import Provider
from loomgate.wire.chat import Chat, ChatMessage, Finish, Upstream
from loomgate.wire.policy import Naming
from tests.providers.conformance.replay import Asked, Canned, Replay
from tests.providers.conformance.suite import Answer
from tests.providers.conformance.wire_gemini import WIRES

pytestmark = pytest.mark.anyio

EMAIL = "loomgate@the-project.iam.gserviceaccount.com"
GOOGLES = "https://oauth2.googleapis.com/token"
TOKEN = "ya29.c.c0ASRK0Gb-first"
SECOND = "ya29.c.c0ASRK0Gb-second"
PRIVATE = rsa.generate_private_key(public_exponent=65537, key_size=2048)
ANSWER = Canned(headers={"Content-Type": "text/event-stream"}, body=WIRES[0].stream(Answer(text=["Yes"])))
DENIED = b'{"error":"invalid_grant","error_description":"Invalid JWT Signature."}'


def pem(key: Any) -> str:
    kind = serialization.PrivateFormat.PKCS8
    return key.private_bytes(serialization.Encoding.PEM, kind, serialization.NoEncryption()).decode()


PEM = pem(PRIVATE)


def key_file(token_uri: str = GOOGLES, **changes: Any) -> str:
    """As the console of Google Cloud writes it."""
    given = {
        "type": "service_account",
        "project_id": "the-project",
        "private_key_id": "0f1e2d3c",
        "private_key": PEM,
        "client_email": EMAIL,
        "client_id": "1234",
        "auth_uri": "https://accounts.google.com/o/oauth2/auth",
        "token_uri": token_uri,
        "universe_domain": "googleapis.com",
    }
    return json.dumps({**given, **changes}, indent=2)


def granted(token: str = TOKEN, expires_in: int = 3599) -> Canned:
    body = {"access_token": token, "expires_in": expires_in, "token_type": "Bearer"}
    return Canned(headers={"Content-Type": "application/json"}, body=json.dumps(body).encode())


@asynccontextmanager
async def gateway(google: Replay, key: str, resolved: StoredKey | None = None, **more: Any) -> AsyncIterator[Gateway]:
    provider = ProviderConfig(vendor="vertex-ai", base_url=google.base_url, api_key=key, **more)
    retries = Retries(attempts=2, base=0.001, cap=0.001)
    config = GatewayConfig(providers={"vertex-ai": provider}, default="vertex-ai", retries=retries)

    async def find(_workspace: str, _slug: str) -> StoredKey | None:
        return resolved

    async def opened(_workspace: str, _credential: str) -> Naming | None:
        return None if resolved is None else Naming(provider="vertex-ai", api_key=resolved.api_key)

    made = Gateway(config, stored=Stored(key=find, naming=opened))
    try:
        yield made
    finally:
        await made.close()


async def ask(made: Gateway, upstream: Upstream | None = None) -> None:
    call = Chat(model="gemini-2.5-flash", messages=[ChatMessage(role="user", content="Hi")])
    chunks = [chunk async for chunk in made.chat(call, upstream or Upstream(), "ws")]
    assert isinstance(chunks[-1], Finish)


async def failure(made: Gateway, upstream: Upstream | None = None) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        await ask(made, upstream)
    shown = repr(caught.value) + caught.value.message
    assert "PRIVATE KEY" not in shown
    assert not any(line in shown for line in PEM.splitlines()[1:-1])
    return caught.value


def bearers(google: Replay) -> list[str]:
    return [asked.headers["authorization"].removeprefix("Bearer ") for asked in google.asked]


def decoded(part: str) -> dict[str, Any]:
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))


def assertion(asked: Asked) -> tuple[dict[str, Any], dict[str, Any]]:
    """Head and claims of the signed request for a token; its signature has been verified."""
    assert asked.headers["content-type"] == "application/x-www-form-urlencoded"
    form = parse_qs(asked.body.decode(), strict_parsing=True)
    assert form["grant_type"] == ["urn:ietf:params:oauth:grant-type:jwt-bearer"]
    (jwt,) = form["assertion"]
    head, claims, signature = jwt.split(".")
    raw = base64.urlsafe_b64decode(signature + "=" * (-len(signature) % 4))
    PRIVATE.public_key().verify(raw, f"{head}.{claims}".encode(), PKCS1v15(), SHA256())
    return decoded(head), decoded(claims)


# --- the exchange ---


@pytest.mark.behaviour("PV-07")
async def test_a_key_file_is_exchanged_for_a_token() -> None:
    """RFC 7523 section 3; GATEWAY PV-07."""
    async with Replay(granted()) as tokens, Replay(ANSWER) as google:
        uri = f"{tokens.base_url}/token"
        async with gateway(google, key_file(uri), region="europe-west4") as made:
            before = clock.timestamp()
            await ask(made)
    (asked,) = tokens.asked
    assert asked.target == "/token"
    head, claims = assertion(asked)
    assert head == {"alg": "RS256", "typ": "JWT", "kid": "0f1e2d3c"}
    assert before <= claims["iat"] <= clock.timestamp()
    assert claims == {
        "iss": EMAIL,
        "scope": "https://www.googleapis.com/auth/cloud-platform",
        "aud": uri,
        "iat": claims["iat"],
        "exp": claims["iat"] + 3600,
    }
    place = "/v1beta1/projects/the-project/locations/europe-west4/publishers/google/models/gemini-2.5-flash"
    assert [asked.target for asked in google.asked] == [f"{place}:streamGenerateContent?alt=sse"]
    assert bearers(google) == [TOKEN]
    assert b"PRIVATE" not in google.asked[0].body


async def test_a_token_is_kept_and_replaced_before_its_end() -> None:
    async with (
        Replay(granted(), granted(SECOND)) as tokens,
        Replay(ANSWER) as google,
        gateway(google, key_file(tokens.base_url)) as made,
    ):
        for seconds in (0, 3200, 120, 0):  # 3,599 seconds, less five minutes
            clock.advance(seconds)
            await ask(made)
    assert bearers(google) == [TOKEN, TOKEN, SECOND, SECOND]
    assert assertion(tokens.asked[1])[1]["iat"] - assertion(tokens.asked[0])[1]["iat"] >= 3320


async def test_calls_at_the_same_time_share_one_exchange() -> None:
    async with (
        Replay(granted()) as tokens,
        Replay(ANSWER) as google,
        gateway(google, key_file(tokens.base_url)) as made,
    ):
        await asyncio.gather(*(ask(made) for _ in range(8)))
    assert len(tokens.asked) == 1
    assert bearers(google) == [TOKEN] * 8


async def test_a_token_that_is_refused_is_not_used_again() -> None:
    error = {"code": 401, "message": f"Request had invalid credentials: {TOKEN}", "status": "UNAUTHENTICATED"}
    refused = Canned(status=401, body=json.dumps({"error": error}).encode())
    async with (
        Replay(granted(), granted(SECOND)) as tokens,
        Replay(refused, ANSWER) as google,
        gateway(google, key_file(tokens.base_url)) as made,
    ):
        told = await failure(made)
        await ask(made)
    assert (told.kind, told.status) == ("auth", 401)
    assert TOKEN not in told.message
    assert bearers(google) == [TOKEN, SECOND]


# --- failures ---


async def test_an_account_that_is_refused() -> None:
    async with (
        Replay(Canned(status=400, body=DENIED)) as tokens,
        Replay(ANSWER) as google,
        gateway(google, key_file(tokens.base_url)) as made,
    ):
        error = await failure(made)
    assert (error.kind, error.status) == ("auth", 400)
    assert EMAIL in error.message
    assert "invalid_grant: Invalid JWT Signature." in error.message
    assert (len(tokens.asked), len(google.asked)) == (1, 0)


async def test_an_exchange_that_fails_is_tried_again() -> None:
    async with (
        Replay(Canned(status=503), granted()) as tokens,
        Replay(ANSWER) as google,
        gateway(google, key_file(tokens.base_url)) as made,
    ):
        await ask(made)
    assert len(tokens.asked) == 2
    assert bearers(google) == [TOKEN]


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id_token":"x"}', b"[]"])
async def test_an_answer_without_a_token(body: bytes) -> None:
    async with (
        Replay(Canned(body=body)) as tokens,
        Replay(ANSWER) as google,
        gateway(google, key_file(tokens.base_url)) as made,
    ):
        assert (await failure(made)).kind == "malformed"
    assert not google.asked


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"private_key": "none"}, "is not an RSA key"),
        ({"private_key": pem(ec.generate_private_key(ec.SECP256R1()))}, "is not an RSA key"),
        ({"type": "authorized_user"}, "not the key file of a Google service account"),
        ({"client_email": None}, "not the key file of a Google service account"),
        ({"project_id": "../x"}, "project_id"),
    ],
)
async def test_a_key_file_that_is_none(changes: dict[str, Any], words: str) -> None:
    async with (
        Replay(granted()) as tokens,
        Replay(ANSWER) as google,
        gateway(google, key_file(tokens.base_url, **changes)) as made,
    ):
        error = await failure(made)
    assert error.kind == "auth"
    assert words in error.message
    assert not google.asked
    assert not tokens.asked


def test_an_account_does_not_show_its_key() -> None:
    assert repr(service_account(key_file())) == f"ServiceAccount('{EMAIL}')"


# --- whose key ---


async def test_a_ready_token_is_used_as_it_is() -> None:
    async with Replay(ANSWER) as google, gateway(google, TOKEN, project="own") as made:
        await ask(made)
    assert bearers(google) == [TOKEN]
    assert google.asked[0].target.startswith("/v1beta1/projects/own/locations/global/")


async def test_a_virtual_key_works_in_the_providers_project() -> None:
    async with Replay(granted()) as tokens, Replay(ANSWER) as google:
        resolved = StoredKey(provider="vertex-ai", api_key=key_file(tokens.base_url), private=True)
        async with gateway(google, "operators-own", resolved, project="operators") as made:
            await ask(made, Upstream(kind="virtual_key", name="slug"))
    assert bearers(google) == [TOKEN]
    assert "/projects/operators/" in google.asked[0].target


@pytest.mark.parametrize(
    ("given", "in_file", "trusted", "chosen"),
    [
        ("operators", "own", True, "operators"),
        ("operators", "own", False, "own"),
        ("operators", None, False, "operators"),
        (None, "own", True, "own"),
        (None, None, True, None),
    ],
)
def test_a_client_with_its_own_key_file_works_in_its_own_project(
    given: str | None, in_file: str | None, trusted: bool, chosen: str | None
) -> None:
    account = service_account(key_file(project_id=in_file))
    assert account is not None
    assert project_for(account, given, trusted=trusted) == chosen


@pytest.mark.parametrize("kind", ["sealed", "virtual_key"])
@pytest.mark.parametrize(
    "host", ["http://127.0.0.1:{}", "http://oauth2.googleapis.com", "https://googleapis.com.evil.test"]
)
async def test_a_clients_own_key_file_cannot_choose_where_the_server_calls(host: str, kind: Any) -> None:
    async with Replay(granted()) as tokens, Replay(ANSWER) as google:
        address = host.format(tokens.base_url.rpartition(":")[2])
        resolved = StoredKey(provider="vertex-ai", api_key=key_file(address))
        async with gateway(google, "operators-own", resolved) as made:
            error = await failure(made, Upstream(kind=kind, name="vertex-ai"))
    assert error.kind == "auth"
    assert "token_uri" in error.message
    assert not tokens.asked
    assert not google.asked


# --- settings ---


def test_settings_that_a_vendor_does_not_have_are_refused() -> None:
    made = provider_config(Provider(name="v", vendor="vertex-ai", project="p", region="eu"))
    assert (made.project, made.region) == ("p", "eu")
    for name in ("project", "region"):
        with pytest.raises(SettingError) as caught:
            provider_config(Provider(name="o", vendor="openai", **{name: "eu"}))  # pyright: ignore[reportArgumentType]
        assert (
            str(caught.value)
            == f"providers.o.{name}: expected nothing, since the vendor `openai` has no {name}, found 'eu'"
        )
