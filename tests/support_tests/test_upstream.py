"""The stand-in endpoint speaks OpenAI's wire: the vendor's own client must understand it."""

import asyncio
import json
import sys
import urllib.request

import openai
import pytest

from tests.support.upstream import Fault, ModelEndpoint

pytestmark = pytest.mark.anyio

TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


async def test_the_vendors_client_reads_streams_and_whole_answers() -> None:
    async with (
        ModelEndpoint(api_key="sk-x") as endpoint,
        openai.AsyncOpenAI(api_key="sk-x", base_url=endpoint.base_url, max_retries=0) as client,
    ):
        script = [{"role": "user", "content": '/say Hello there\n/call f {"a": 1}\n/usage prompt=7 completion=3'}]
        whole = await client.chat.completions.create(model="m", messages=script, tools=TOOLS)  # type: ignore[arg-type]
        message = whole.choices[0].message
        assert message.content == "Hello there"
        assert whole.choices[0].finish_reason == "tool_calls"
        assert message.tool_calls
        assert message.tool_calls[0].function.arguments == '{"a": 1}'
        assert whole.usage
        assert whole.usage.total_tokens == 10
        async with client.chat.completions.stream(
            model="m",
            messages=script,
            tools=TOOLS,
            stream_options={"include_usage": True},  # type: ignore[arg-type]
        ) as stream:
            async for _ in stream:
                pass
            final = await stream.get_final_completion()
        assert final.choices[0].message.content == "Hello there"
        assert final.choices[0].message.tool_calls[0].function.name == "f"  # type: ignore[index]
        assert final.usage
        assert final.usage.prompt_tokens == 7


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, openai.BadRequestError),
        (401, openai.AuthenticationError),
        (403, openai.PermissionDeniedError),
        (404, openai.NotFoundError),
        (429, openai.RateLimitError),
        (500, openai.InternalServerError),
        (529, openai.InternalServerError),
    ],
)
async def test_the_vendors_client_knows_its_errors(status: int, error: type[openai.APIStatusError]) -> None:
    async with (
        ModelEndpoint() as endpoint,
        openai.AsyncOpenAI(api_key="x", base_url=endpoint.base_url, max_retries=0) as client,
    ):
        endpoint.faults.append(Fault(status=status))
        with pytest.raises(error) as caught:
            await client.chat.completions.create(model="m", messages=[{"role": "user", "content": "x"}])
        assert caught.value.status_code == status
        assert isinstance(caught.value.body, dict)


async def test_it_refuses_what_the_vendor_refuses() -> None:
    async with (
        ModelEndpoint() as endpoint,
        openai.AsyncOpenAI(api_key="x", base_url=endpoint.base_url, max_retries=0) as client,
    ):
        for extra in ({"foo": 1}, {"tool_choice": "auto"}):
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(
                    model="m", messages=[{"role": "user", "content": "x"}], extra_body=extra
                )


async def test_it_runs_as_a_process() -> None:
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.upstream", stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        base = (await process.stdout.readline()).decode().strip()

        def post(path: str, body: object) -> dict[str, object]:
            data = json.dumps(body).encode()
            with urllib.request.urlopen(urllib.request.Request(base.removesuffix("/v1") + path, data)) as got:
                return json.load(got)

        assert await asyncio.to_thread(post, "/control/faults", [{"ignore_stream": True}]) == {"faults": 1}
        body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": "/say hi"}]}
        answer = await asyncio.to_thread(post, "/v1/chat/completions", body)
        assert answer["object"] == "chat.completion"
    finally:
        process.terminate()
        await process.wait()
