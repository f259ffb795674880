"""The official clients read what the fronts write, over HTTP."""

import json
from typing import Any

import anthropic
import openai
import pytest

from loomgate.gateway.fronts.errors import error_body, messages_error_body
from loomgate.wire.chat import (
    Chunk,
    Finish,
    RedactedThinking,
    TextDelta,
    ThinkingDelta,
    ToolCallDelta,
    Usage,
)
from tests.gateway.fronts.kit import CHAT, COMPLETIONS, MESSAGES, about, written
from tests.providers.conformance.replay import Canned, Replay

pytestmark = pytest.mark.anyio

SPOKEN: list[Chunk] = [
    ThinkingDelta("Hm."),
    ThinkingDelta("", "seal"),
    RedactedThinking("enc"),
    TextDelta("Let me "),
    TextDelta("look: 世界."),
    ToolCallDelta(0, "toolu_a", "weather"),
    ToolCallDelta(0, arguments='{"city":'),
    ToolCallDelta(0, arguments='"Berlin"}'),
    ToolCallDelta(1, "toolu_b", "now", "{}"),
    Finish("tool_calls", Usage(30, 12, 8, 4, 2), "tool_use"),
]
HI: Any = [{"role": "user", "content": "Hi"}]


def stream(body: bytes) -> Canned:
    return Canned(headers={"Content-Type": "text/event-stream"}, body=body)


def answer(body: dict[str, Any], status: int = 200) -> Canned:
    headers = {"Content-Type": "application/json"}
    return Canned(status=status, headers=headers, body=json.dumps(body).encode())


class TestOpenAI:
    """``openai``: chat completions and completions."""

    def client(self, server: Replay) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(api_key="k", base_url=server.base_url, max_retries=0)

    async def test_a_whole_answer(self) -> None:
        async with Replay(answer(CHAT.whole(SPOKEN, about()))) as server, self.client(server) as client:
            found = await client.chat.completions.create(model="m", messages=HI)
        message = found.choices[0].message
        assert message.content == "Let me look: 世界."
        assert [call.id for call in message.tool_calls or ()] == ["toolu_a", "toolu_b"]
        assert found.usage is not None
        assert found.usage.total_tokens == 42

    @pytest.mark.parametrize("strict", [True, False])
    async def test_a_stream(self, strict: bool) -> None:
        asked = {"stream_options": {"include_usage": True}}
        body = written(CHAT, [*SPOKEN[:-1], Finish("tool_calls", Usage(30, 12))], strict=strict, **asked)
        async with (
            Replay(stream(body)) as server,
            self.client(server) as client,
            client.chat.completions.stream(model="m", messages=HI) as events,
        ):
            async for _ in events:
                pass
            found = await events.get_final_completion()
        message = found.choices[0].message
        assert message.content == "Let me look: 世界."
        arguments = [call.function.arguments for call in message.tool_calls or ()]
        assert arguments == ['{"city":"Berlin"}', "{}"]
        assert found.usage is not None
        assert found.usage.total_tokens == 42

    async def test_a_completion(self) -> None:
        body = written(COMPLETIONS, [TextDelta("a"), TextDelta("b"), Finish("length")])
        whole = COMPLETIONS.whole([TextDelta("ab"), Finish("length")], about())
        async with Replay(stream(body), answer(whole)) as server, self.client(server) as client:
            pieces = [piece async for piece in await client.completions.create(model="m", prompt="x", stream=True)]
            found = await client.completions.create(model="m", prompt="x")
        assert "".join(piece.choices[0].text for piece in pieces) == found.choices[0].text == "ab"
        assert pieces[-1].choices[0].finish_reason == found.choices[0].finish_reason == "length"

    @pytest.mark.behaviour("GERR-01")
    async def test_an_error(self) -> None:
        told = error_body(
            "anthropic", 429, b'{"error":{"type":"rate_limit_error","message":"Slow down."}}', "anthropic"
        )
        async with Replay(answer(told, 429)) as server, self.client(server) as client:
            with pytest.raises(openai.RateLimitError) as caught:
                await client.chat.completions.create(model="m", messages=HI)
        assert "anthropic error: Slow down." in caught.value.message
        assert caught.value.type == "rate_limit_error"

    @pytest.mark.behaviour("STM-07")
    async def test_a_stream_that_breaks(self) -> None:
        encoder = CHAT.encoder(about())
        body = encoder.feed(TextDelta("Half")) + encoder.error("Overloaded", "server_error", "overloaded")
        async with Replay(stream(body)) as server, self.client(server) as client:
            events = await client.chat.completions.create(model="m", messages=HI, stream=True)
            with pytest.raises(openai.APIError, match="Overloaded"):
                _ = [event async for event in events]


class TestAnthropic:
    """``anthropic``: messages."""

    def client(self, server: Replay) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(api_key="k", base_url=server.base_url, max_retries=0)

    def check(self, message: Any) -> None:
        kinds = [block.type for block in message.content]
        assert kinds == ["thinking", "redacted_thinking", "text", "tool_use", "tool_use"]
        thinking, redacted, text, first, second = message.content
        assert (thinking.thinking, thinking.signature, redacted.data) == ("Hm.", "seal", "enc")
        assert (text.text, first.id, first.input, second.input) == (
            "Let me look: 世界.",
            "toolu_a",
            {"city": "Berlin"},
            {},
        )
        assert message.stop_reason == "tool_use"
        assert (message.usage.input_tokens, message.usage.output_tokens) == (20, 12)
        assert (message.usage.cache_read_input_tokens, message.usage.cache_creation_input_tokens) == (8, 2)

    async def test_a_whole_answer(self) -> None:
        async with Replay(answer(MESSAGES.whole(SPOKEN, about()))) as server, self.client(server) as client:
            self.check(await client.messages.create(model="m", max_tokens=9, messages=HI))

    @pytest.mark.parametrize("replayed", [False, True])
    async def test_a_stream(self, replayed: bool) -> None:
        body = written(MESSAGES, SPOKEN)
        if replayed:
            body = MESSAGES.replay(MESSAGES.whole(SPOKEN, about()), about())
        async with (
            Replay(stream(body)) as server,
            self.client(server) as client,
            client.messages.stream(model="m", max_tokens=9, messages=HI) as events,
        ):
            kinds = [event.type async for event in events]
            self.check(await events.get_final_message())
        assert (kinds[0], kinds[-1]) == ("message_start", "message_stop")

    async def test_what_was_said_can_be_said_again(self) -> None:
        """The next request of a tool loop, as the client itself writes it."""
        first = answer(MESSAGES.whole(SPOKEN, about()))
        async with Replay(first, first) as server, self.client(server) as client:
            message = await client.messages.create(model="m", max_tokens=9, messages=HI)
            outputs = [
                {"type": "tool_result", "tool_use_id": block.id, "content": "x"}
                for block in message.content
                if block.type == "tool_use"
            ]
            again = [*HI, {"role": "assistant", "content": message.content}, {"role": "user", "content": outputs}]
            await client.messages.create(model="m", max_tokens=9, messages=again)
            call = MESSAGES.chat(json.loads(server.asked[1].body))
        assert [said.role for said in call.messages] == ["user", "assistant", "tool", "tool"]
        assert [made.id for made in call.messages[1].tool_calls] == ["toolu_a", "toolu_b"]
        assert isinstance(call.messages[1].content, list)
        assert len(call.messages[1].content) == 3

    async def test_tokens_are_counted(self) -> None:
        async with Replay(answer({"input_tokens": 1})) as server, self.client(server) as client:
            await client.messages.count_tokens(model="m", messages=HI, system="Be brief.")
            server.play(answer(MESSAGES.count_tokens(json.loads(server.asked[0].body))))
            assert (await client.messages.count_tokens(model="m", messages=HI)).input_tokens > 5

    async def test_an_error(self) -> None:
        told = messages_error_body("openai", 429, b'{"error":{"message":"Slow down."}}', "openai")
        async with Replay(answer(told, 429)) as server, self.client(server) as client:
            with pytest.raises(anthropic.RateLimitError) as caught:
                await client.messages.create(model="m", max_tokens=9, messages=HI)
        assert caught.value.body["error"] == {"type": "rate_limit_error", "message": "openai error: Slow down."}

    async def test_a_stream_that_breaks(self) -> None:
        encoder = MESSAGES.encoder(about())
        body = encoder.feed(TextDelta("Half")) + encoder.error("Overloaded", "overloaded", None)
        async with Replay(stream(body)) as server, self.client(server) as client:
            with pytest.raises(anthropic.APIStatusError, match="Overloaded"):
                async with client.messages.stream(model="m", max_tokens=9, messages=HI) as events:
                    _ = [event async for event in events]
