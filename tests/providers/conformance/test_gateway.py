"""Every wire, end to end: `Gateway.chat` before a real HTTP server that sends the vendor's bytes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from loomgate.errors import ProviderError
from loomgate.gateway import Gateway, GatewayConfig, ProviderConfig, Retries
from loomgate.providers.dialect import HttpCall
from loomgate.wire.chat import Chat, ChatMessage, Chunk, FunctionTool, Upstream, Usage
from tests.providers.conformance.replay import Canned, Replay
from tests.providers.conformance.suite import Answer, Heard, Wire, chat, heard, key, meaning, request, scenario, wires

pytestmark = pytest.mark.anyio

ANSWER = Answer(
    text=["Let me ", "look: ", "世界"],
    calls=[("weather", '{"city":"Berlin"}'), ("now", "{}")],
    finish="tool_calls",
    usage=Usage(30, 12),
)


@asynccontextmanager
async def gateway(wire: Wire, server: Replay) -> AsyncIterator[Gateway]:
    provider = ProviderConfig(vendor=wire.vendor, base_url=server.base_url, api_key=key(wire))
    config = GatewayConfig(
        providers={"main": provider}, default="main", retries=Retries(attempts=2, base=0.001, cap=0.001)
    )
    made = Gateway(config)
    try:
        yield made
    finally:
        await made.close()


async def ask(wire: Wire, call: Chat, *answers: Canned) -> tuple[Heard, Replay]:
    async with Replay(*answers) as server, gateway(wire, server) as made:
        chunks = [chunk async for chunk in made.chat(call, Upstream(), "ws")]
    return heard(chunks), server


def streamed(wire: Wire, body: bytes, broken: bool = False) -> Canned:
    return Canned(headers={"Content-Type": wire.content_type}, body=body, broken=broken)


def refused(wire: Wire, kind: str) -> Canned:
    status, headers, body = wire.error(kind)
    # Asked to wait, the gateway would: on the clock of these tests that is real time. Some are asked in the body.
    body = body.replace(b'"7s"', b'"0s"')
    return Canned(status=status, headers={k: v for k, v in headers.items() if k != "retry-after"}, body=body)


@scenario("tools")
async def test_a_call_with_tools(wire: Wire) -> None:
    call = chat(wire, ChatMessage(role="user", content="Wetter? 世界"), tools=[FunctionTool(name="weather")])
    found, server = await ask(wire, call, streamed(wire, wire.stream(ANSWER)))
    assert (found.text, found.calls, found.finish) == ("Let me look: 世界", ANSWER.calls, "tool_calls")
    if "usage" not in wire.lacks:
        assert found.usage == ANSWER.usage
    # What arrived is what the dialect made, and it is understood: only the address is another.
    (asked,) = server.asked
    made = request(wire, call)
    assert made.url.endswith(asked.target)
    names = {name.lower(): name for name in made.headers}
    sent = {names.get(name, name): value for name, value in asked.headers.items()}
    assert meaning(wire.told(HttpCall(made.url, sent, asked.body))) == meaning(wire.told(made))


@scenario("tools")
async def test_a_call_whose_answer_is_not_streamed(wire: Wire) -> None:
    answer = Canned(headers={"Content-Type": "application/json"}, body=wire.whole(ANSWER))
    found, server = await ask(wire, chat(wire, stream=False, tools=[FunctionTool(name="weather")]), answer)
    calls = [(name, json.loads(arguments)) for name, arguments in found.calls]
    assert calls == [("weather", {"city": "Berlin"}), ("now", {})]
    assert (found.text, found.finish) == ("Let me look: 世界", "tool_calls")
    assert b'"stream"' not in server.asked[0].body
    assert "stream" not in server.asked[0].target.lower()


@pytest.mark.parametrize("kind", ["rate_limit", "server", "overloaded"])
@scenario("plain")
async def test_a_failure_that_may_pass_is_tried_again(wire: Wire, kind: str) -> None:
    if kind in wire.lacks:
        pytest.skip(wire.why[kind])
    answer = streamed(wire, wire.stream(Answer(text=["Yes"])))
    found, server = await ask(wire, chat(wire), refused(wire, kind), answer)
    assert found.text == "Yes"
    assert len(server.asked) == 2


@pytest.mark.parametrize("kind", ["invalid", "auth"])
@scenario("plain")
async def test_a_failure_that_will_not_pass_is_told(wire: Wire, kind: str) -> None:
    if kind in wire.lacks:
        pytest.skip(wire.why[kind])
    with pytest.raises(ProviderError) as caught:
        await ask(wire, chat(wire), refused(wire, kind))
    assert (caught.value.kind, caught.value.status) == (kind, wire.error(kind)[0])
    assert key(wire) not in caught.value.message


@pytest.mark.parametrize("broken", [False, True], ids=["ended", "broken"])
@scenario("cut")
async def test_a_stream_that_breaks_off_is_not_asked_for_again(wire: Wire, broken: bool) -> None:
    cut = streamed(wire, wire.cut(Answer(text=["One", "two", "three"])), broken)
    chunks: list[Chunk] = []

    async def read(server: Replay) -> None:
        async with gateway(wire, server) as made:
            async for chunk in made.chat(chat(wire), Upstream(), "ws"):
                chunks.append(chunk)

    async with Replay(cut) as server:
        with pytest.raises(ProviderError) as caught:
            await read(server)
        assert len(server.asked) == 1
    assert caught.value.kind == "cut"
    assert heard(chunks).text.startswith("One")


async def test_an_answer_that_breaks_among_its_thoughts_is_told_as_broken_in_the_middle() -> None:
    """Then its run asks again: see `test_a_run_whose_model_breaks_off_while_it_thinks`."""
    (wire,) = (wire for wire in wires() if wire.name == "anthropic")
    thought = wire.stream(Answer(thinking="Hm.")).split(b"event: content_block_stop")[0]
    broken = thought + b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Over"}}\n\n'
    with pytest.raises(ProviderError) as caught:
        await ask(wire, chat(wire), streamed(wire, broken))
    assert (caught.value.kind, caught.value.path) == ("overloaded", "config")


@scenario("malformed")
async def test_nonsense(wire: Wire) -> None:
    with pytest.raises(ProviderError) as caught:
        await ask(wire, chat(wire), streamed(wire, wire.malformed()))
    assert caught.value.kind == "malformed"
