"""Calls to AWS through the gateway: each attempt is signed for what is sent, and whose keys are used."""

import json
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from loomgate.app import provider_config
from loomgate.errors import ProviderError, SettingError
from loomgate.gateway import Gateway, GatewayConfig, ProviderConfig, Retries, Stored, StoredKey
from loomgate.gateway.call import Request
from loomgate.gateway.resolve import target_of
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.sigv4 import AwsKeys, SigV4
from loomgate.settings import Provider, Secret
from loomgate.wire.chat import Chat, ChatMessage, Chunk, Finish, TextDelta, Upstream
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.policy import Naming
from tests.providers.conformance.replay import Asked, Canned, Replay
from tests.providers.conformance.suite import Answer
from tests.providers.conformance.wire_bedrock import WIRE

pytestmark = pytest.mark.anyio

KEYS = AwsKeys(access_key_id="AKIDEXAMPLE0000000", secret_access_key="hush/secret+key", session_token="hush-token/+=")
ARN = "arn:aws:bedrock:eu-west-1:123456789012:inference-profile/eu.amazon.nova-pro-v1:0"
GOOD = Canned(headers={"Content-Type": WIRE.content_type}, body=WIRE.stream(Answer(text=["Hi"])))


def gateway(server: Replay, resolved: StoredKey | None = None, **more: Any) -> Gateway:
    async def key(_workspace: str, _slug: str) -> StoredKey | None:
        return resolved

    provider = ProviderConfig(vendor="bedrock", base_url=server.base_url + "/through", region="eu-west-1", **more)
    retries = Retries(attempts=2, base=0.001, cap=0.001)
    config = GatewayConfig(providers={"aws": provider}, default="aws", retries=retries)
    return Gateway(config, stored=Stored(key=key))


async def ask(made: Gateway, upstream: Upstream | None = None, model: str = ARN) -> list[Chunk]:
    call = Chat(model=model, messages=[ChatMessage(role="user", content="Grüße")])
    try:
        return [chunk async for chunk in made.chat(call, upstream or Upstream(), "ws")]
    finally:
        await made.close()


def is_signed(asked: Asked, server: Replay) -> bool:
    """Does the signature fit what came over the wire? A server computes it from there."""
    headers = asked.headers
    named = headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    assert {"host", "x-amz-date", "x-amz-security-token", "content-type"} <= set(named)
    from datetime import UTC, datetime

    at = datetime.strptime(headers["x-amz-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC).timestamp()
    signed = {name: headers[name] for name in named if name not in ("host", "x-amz-date", "x-amz-security-token")}
    url = f"http://{headers['host']}{asked.target}"
    assert urlsplit(server.base_url).netloc == headers["host"]
    again = SigV4(keys=KEYS, region="eu-west-1", service="bedrock").signature("POST", url, signed, asked.body, at)
    return again["Authorization"] == headers["authorization"]


async def test_every_attempt_is_signed_as_it_is_sent() -> None:
    status, headers, body = WIRE.error("server")
    async with Replay(Canned(status=status, headers=headers, body=body), GOOD) as server:
        assert await ask(gateway(server, aws=KEYS)) == [TextDelta("Hi"), Finish("stop", raw="end_turn")]
        assert len(server.asked) == 2
        for asked in server.asked:
            assert is_signed(asked, server)
            assert asked.headers["x-amz-security-token"] == KEYS.session_token
            assert "/eu-west-1/bedrock/aws4_request" in asked.headers["authorization"]


async def test_no_secret_in_errors() -> None:
    said = {"message": f"Not with {KEYS.secret_access_key} and {KEYS.session_token} of {KEYS.access_key_id}!"}
    refusal = Canned(status=403, headers={"x-amzn-errortype": "AccessDeniedException"}, body=json.dumps(said).encode())
    async with Replay(refusal) as server:
        with pytest.raises(ProviderError) as caught:
            await ask(gateway(server, aws=KEYS))
    assert (caught.value.kind, caught.value.message) == ("auth", "Not with *** and *** of ***!")
    assert caught.value.__cause__ is None


async def test_a_workspaces_key_is_used_instead_of_the_operators() -> None:
    virtual = Upstream("virtual_key", "v")
    async with Replay(GOOD) as server:
        await ask(gateway(server, StoredKey(provider="aws", api_key="bedrock-key"), aws=KEYS), virtual)
        await ask(gateway(server, StoredKey(provider="aws", aws=KEYS), api_key="operators"), virtual)
        with pytest.raises(ProviderError) as caught:
            await ask(gateway(server, StoredKey(provider="aws"), aws=KEYS, api_key="operators"), virtual)
        assert caught.value.kind == "auth"
        bearer, signed = server.asked
    assert bearer.headers["authorization"] == "Bearer bedrock-key"
    assert "x-amz-date" not in bearer.headers
    assert is_signed(signed, server)


def test_the_settings_of_aws() -> None:
    secrets = {"aws_access_key_id": Secret("id"), "aws_secret_access_key": Secret("hush")}
    made = provider_config(
        Provider(name="a", vendor="bedrock", region="eu-west-1", aws_session_token=Secret("t"), **secrets)
    )
    assert made.aws == AwsKeys(access_key_id="id", secret_access_key="hush", session_token="t")
    assert (made.region, made.api_key) == ("eu-west-1", None)
    assert "hush" not in repr(made)
    assert provider_config(Provider(name="a", vendor="bedrock", api_key=Secret("k"))).aws is None


@pytest.mark.parametrize("name", ["region", "aws_access_key_id"])
def test_a_vendor_that_has_no_use_for_them_refuses_them(name: str) -> None:
    given: dict[str, Any] = {name: "eu-west-1" if name == "region" else Secret("hush")}
    with pytest.raises(SettingError) as caught:
        provider_config(Provider(name="a", vendor="openai", **given))
    assert f"providers.a.{name}: expected nothing, since the vendor `openai` has no {name}" in str(caught.value)
    assert "hush" not in str(caught.value)


def test_where_a_call_goes() -> None:
    row = CATALOGUE["bedrock"]

    def target(**config: Any) -> tuple[str, str | None]:
        made = ProviderConfig(vendor="bedrock", aws=KEYS, **config)
        found = target_of(row, made.base_url or row.base_url or "", made, KEYS, {}, public_only=False)
        assert isinstance(found.auth, SigV4)
        assert found.api_key is None
        return found.base_url, found.auth.region

    host = "https://bedrock-runtime.{}.amazonaws.com"
    assert target() == (host.format("us-east-1"), "us-east-1")
    assert target(region="eu-west-1") == (host.format("eu-west-1"), "eu-west-1")
    assert target(base_url=host.format("ap-south-1")) == (host.format("ap-south-1"), "ap-south-1")
    assert target(base_url="http://10.0.0.1", region="eu-west-1") == ("http://10.0.0.1", "eu-west-1")
    openai = target_of(
        CATALOGUE["openai"],
        "https://x",
        ProviderConfig(vendor="openai", api_key="k"),
        None,
        {},
        public_only=False,
    )
    assert openai.auth is None
    assert openai.secrets == ("k",)


async def of_files(made: Gateway, id: str, **options: str) -> Any:
    naming = Naming(provider="aws", options=options)
    path = f"/files/{quote(id, safe='')}/content"
    return await made.call(Request(ENDPOINTS["files"], naming, "ws", method="GET", path=path, content_type=""))


@pytest.mark.behaviour("TR-25")
async def test_a_lent_key_is_for_its_bucket_alone() -> None:
    async with Replay(Canned(body=b"{}\n")) as server:
        made = gateway(server, aws=KEYS, options={"aws_s3_bucket": "mine"})
        assert (await of_files(made, "s3://mine/a")).status == 200
        for id, options in (("s3://other/a", {}), ("s3://other/a", {"aws_s3_bucket": "other"})):
            refused = await of_files(made, id, **options)
            assert (refused.status, b"'mine'" in refused.body) == (400, True)
        assert [asked.target for asked in server.asked] == ["/through/mine/a"]
        await made.close()


@pytest.mark.behaviour("TR-25")
async def test_a_key_without_a_bucket_is_for_those_it_can_open() -> None:
    async with Replay(Canned(body=b"{}\n")) as server:
        made = gateway(server, aws=KEYS)
        assert (await of_files(made, "s3://other/a")).status == 200
        own = {"aws_access_key_id": "AKIA", "aws_secret_access_key": "s", "aws_s3_bucket": "own"}
        assert (await of_files(made, "s3://other/a", **own)).status == 200
        await made.close()
