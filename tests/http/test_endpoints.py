"""Endpoints that no vendor has as they are asked for: counted tokens, outputs of batches, Azure's form, prompts."""

import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import anthropic
import openai
import pytest

from loomgate.settings import Provider, Secret
from tests.providers.conformance.replay import Canned, Replay
from tests.support.server import Client, Server

pytestmark = pytest.mark.anyio

JSON = {"Content-Type": "application/json"}
COMPLETION = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "m",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "Hi"}, "finish_reason": "stop"}],
}


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def vendor() -> AsyncIterator[Replay]:
    async with Replay(Canned()) as made:
        yield made


@pytest.fixture
def made(make_server: Callable[..., Server], vendor: Replay) -> Server:
    address = {"base_url": vendor.base_url + "/v1", "api_key": Secret("sk-operator-0123456789")}
    providers = {
        "openai": Provider(name="openai", vendor="openai", **address),
        "anthropic": Provider(name="anthropic", vendor="anthropic", **address),
    }
    return make_server(key=True, providers=providers)


def answer(body: Any, status: int = 200, **more: Any) -> Canned:
    return Canned(
        status=status, headers=JSON, body=body if isinstance(body, bytes) else json.dumps(body).encode(), **more
    )


def sdk(made: Server, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(api_key=made.key, base_url=f"{made.url}/v1", max_retries=0, **more)


# --- counted tokens ---


@pytest.mark.behaviour("RT-02")
@pytest.mark.parametrize("model", ["gpt-4o", "scripted"])
async def test_tokens_are_counted_here_where_the_vendor_does_not(made: Server, vendor: Replay, model: str) -> None:
    async with anthropic.AsyncAnthropic(auth_token=made.key, base_url=made.url, max_retries=0) as client:
        short = await client.messages.count_tokens(model=model, messages=[{"role": "user", "content": "Hi"}])
        long = await client.messages.count_tokens(
            model=model, messages=[{"role": "user", "content": "Hi there, " * 50}]
        )
        with pytest.raises(anthropic.BadRequestError, match="messages"):
            await client.messages.count_tokens(model=model, messages=[])
    assert 0 < short.input_tokens < 20
    assert 100 < long.input_tokens < 300
    assert vendor.asked == []


@pytest.mark.behaviour("RT-02")
async def test_tokens_are_counted_by_the_vendor_that_does(made: Server, vendor: Replay) -> None:
    vendor.play(answer({"input_tokens": 7}))
    async with anthropic.AsyncAnthropic(auth_token=made.key, base_url=made.url, max_retries=0) as client:
        found = await client.messages.count_tokens(model="claude-x", messages=[{"role": "user", "content": "Hi"}])
    assert (found.input_tokens, vendor.asked[0].target) == (7, "/v1/messages/count_tokens")


# --- outputs of batches ---


@pytest.mark.behaviour("RT-02")
@pytest.mark.parametrize("piece", [61, 1_000_000])
async def test_the_output_of_a_batch(made: Server, vendor: Replay, piece: int) -> None:
    lines = b'{"custom_id":"a"}\n' * 20_000
    vendor.play(
        answer({"id": "batch_1", "status": "completed", "output_file_id": "file-9", "error_file_id": "file-8"}),
        Canned(headers={"Content-Type": "application/jsonl"}, body=lines, piece=piece * 100),
    )
    async with sdk(made, default_headers={"x-portkey-provider": "openai"}) as client:
        found = await client.get("/batches/batch_1/output", cast_to=str)
    assert found.encode() == lines
    assert [asked.target for asked in vendor.asked] == ["/v1/batches/batch_1", "/v1/files/file-9/content"]


@pytest.mark.parametrize(
    ("first", "status", "code"),
    [
        (answer({"id": "b", "status": "in_progress"}), 404, "no_batch_output"),
        (answer({"error": {"message": "No such batch", "code": "gone"}}, 404), 404, "gone"),
        (answer(b"nonsense"), 502, "malformed"),
    ],
)
async def test_a_batch_without_output(made: Server, vendor: Replay, first: Canned, status: int, code: str) -> None:
    vendor.play(first)
    async with sdk(made, default_headers={"x-portkey-provider": "openai"}) as client:
        with pytest.raises(openai.APIStatusError) as caught:
            await client.get("/batches/b/output", cast_to=str)
    assert (caught.value.status_code, caught.value.code, len(vendor.asked)) == (status, code, 1)


# --- Azure's form ---


async def test_a_client_of_azure(made: Server, vendor: Replay) -> None:
    vendor.play(answer(COMPLETION))
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=made.url, api_key=made.key, api_version="2024-10-21", max_retries=0
    ) as client:
        found = await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])
        assert found.choices[0].message.content == "Hi"
        played = await client.chat.completions.create(
            model="scripted", messages=[{"role": "user", "content": "/say Hello"}], stream=True
        )
        said = [event.choices[0].delta.content or "" async for event in played if event.choices]
    assert "".join(said) == "Hello"
    (asked,) = vendor.asked
    assert asked.target == "/v1/chat/completions"
    assert json.loads(asked.body)["model"] == "gpt-4o"


async def test_the_deployment_is_the_model(made: Server, vendor: Replay) -> None:
    vendor.play(answer(COMPLETION))
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=made.url, azure_deployment="gpt-4o", api_key=made.key, api_version="2024-10-21", max_retries=0
    ) as client:
        await client.chat.completions.create(model="whatever", messages=[{"role": "user", "content": "Hi"}])
    assert json.loads(vendor.asked[0].body)["model"] == "gpt-4o"
    async with openai.AsyncOpenAI(api_key=made.key, base_url=f"{made.url}/openai/v1", max_retries=0) as client:
        await client.chat.completions.create(model="gpt-4o", messages=[{"role": "user", "content": "Hi"}])
    assert [asked.target for asked in vendor.asked] == ["/v1/chat/completions"] * 2


def test_azures_form_wants_its_version(server: Server, client: Client) -> None:
    body = json.dumps({"messages": []}).encode()
    found = client.raw("POST", "/openai/deployments/scripted/chat/completions", body, check=False)
    assert (found.status, found.json["error"]["param"]) == (400, "api-version")
    path = "/openai/deployments/scripted/threads?api-version=1"
    assert client.raw("POST", path, body, check=False).status == 404


# --- what there is not ---


@pytest.mark.behaviour("RT-08")
@pytest.mark.parametrize("headers", [{}, {"x-portkey-provider": "openai"}])
def test_prompts_are_not_offered(server: Server, client: Client, headers: dict[str, str]) -> None:
    found = client.raw("POST", "/v1/prompts/pp-1/completions", b"{}", headers, check=False)
    assert (found.status, found.json["error"]["code"]) == (404, "unsupported_endpoint")
    assert "Prompts are not offered" in found.json["error"]["message"]
