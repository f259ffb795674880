"""Every wire under a whole server: the same stories of runs, as a client of the Assistants API drives them."""

import asyncio
import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loomgate.providers.dialect import HttpCall
from loomgate.settings import Provider, Secret
from loomgate.wire.chat import Chat, Usage
from tests.api.driving import calls, hurried, settle, start, steps, submit, text_of, written
from tests.providers.conformance.replay import Asked, Canned, Replay
from tests.providers.conformance.suite import Answer, Wire, chat, key, model, request, scenario, wires
from tests.support import sse
from tests.support.server import BETA, Client, Server, serving

_TOOLS = [{"type": "function", "function": {"name": name}} for name in ("weather", "now")]


@pytest.fixture(scope="module")
def endpoints() -> Iterator[dict[str, Replay]]:
    """A vendor's endpoint for each wire, in a thread of their own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="vendors", daemon=True)
    thread.start()

    def run(work: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(work, loop).result(10)

    made = {wire.name: run(Replay().__aenter__()) for wire in wires()}
    yield made
    for replay in made.values():
        run(replay.__aexit__())
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def server(endpoints: dict[str, Replay], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with a provider for each wire."""
    providers = {
        f"wire{number}": Provider(
            name=f"wire{number}",
            vendor=wire.vendor,
            base_url=endpoints[wire.name].base_url,
            api_key=Secret(key(wire)),
            max_attempts=1,
        )
        for number, wire in enumerate(wires())
    }
    with serving(tmp_path_factory.mktemp("wires") / "data", providers=providers) as made:
        yield made


def provider_of(wire: Wire) -> str:
    """The name of the provider with this wire."""
    return f"wire{[one.name for one in wires()].index(wire.name)}"


def client_of(wire: Wire, server: Server, how: str = "provider", **config: Any) -> Client:
    """A client whose runs go there: by a header, by a config that makes the call anew, or not at all (``model``)."""
    named = {"x-portkey-api-key": server.new_key()}
    if how == "provider":
        named["x-portkey-provider"] = provider_of(wire)
    elif how == "config":
        # A parameter that is not the run's own makes the gateway read its call anew.
        given = {"provider": provider_of(wire), "override_params": {"temperature": 1}, **config}
        named["x-portkey-config"] = json.dumps(given)
    return Client(server.url, None, headers={**BETA, **named})


def streamed(wire: Wire, answer: Answer) -> Canned:
    """The wire's whole answer."""
    return Canned(headers={"Content-Type": wire.content_type}, body=wire.stream(answer))


def understood(wire: Wire, asked: Asked) -> Chat:
    """What the vendor understands of a request that a run made."""
    made = request(wire, chat(wire, stream=True))
    assert made.url.endswith(asked.target)
    names = {name.lower(): name for name in made.headers}
    return wire.told(HttpCall(made.url, {names.get(k, k): v for k, v in asked.headers.items()}, asked.body))


@scenario("tools", "parallel_tools", "tool_results")
@pytest.mark.parametrize("how", ["provider", "model", "config"])
def test_a_run_with_tools(wire: Wire, server: Server, endpoints: dict[str, Replay], how: str) -> None:
    client, named = client_of(wire, server, how), model(wire)
    if how == "model":
        named = f"{provider_of(wire)}/{named}"
    thinking = None if "thinking" in wire.lacks else "Hm. I should look."  # no run has a place for it
    asked = Answer(
        thinking=thinking,
        text=["Let me look."],
        calls=[("weather", '{"city":"東京"}'), ("now", "{}")],
        finish="tool_calls",
        usage=Usage(20, 9),
    )
    said = Answer(thinking=thinking, text=["Sun, ", "at noon."], usage=Usage(50, 6))
    vendor = endpoints[wire.name]
    vendor.play(*(Canned(headers={"Content-Type": wire.content_type}, body=wire.stream(one)) for one in (asked, said)))
    run = settle(client, start(client, "Weather?", model=named, tools=_TOOLS, instructions="Be brief."))
    assert run["status"] == "requires_action", run
    made = [(call["function"]["name"], call["function"]["arguments"]) for call in calls(run)]
    assert made == asked.calls
    submit(client, run, "Sun", "12:00")
    run = settle(client, run)
    assert run["status"] == "completed", run["last_error"]
    assert text_of(written(client, run)[-1]) == "Sun, at noon."
    if "usage" not in wire.lacks:
        assert run["usage"] == run["usage"] | {"prompt_tokens": 70, "completion_tokens": 15}
    # What the second request said to the vendor.
    first, second = vendor.asked
    assert "Sun" not in first.body.decode()
    assert "東京" in second.body.decode() or "\\u6771" in second.body.decode()
    assert "12:00" in second.body.decode()


@scenario("pieces")
def test_a_streamed_run(wire: Wire, server: Server, endpoints: dict[str, Replay]) -> None:
    vendor, client = endpoints[wire.name], client_of(wire, server)
    vendor.play(streamed(wire, Answer(text=["Guten ", "Tag, ", "世界"], usage=Usage(11, 5))))
    thread, assistant = client.thread("Hello"), client.assistant(model=model(wire))
    body = json.dumps({"assistant_id": assistant["id"], "stream": True}).encode()
    raw = client.raw("POST", f"/v1/threads/{thread['id']}/runs", body)
    events = sse.check_stream(raw.body)
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]
    assert [name for name, _ in events].count("thread.message.delta") > 1
    run = events[-2][1]
    assert text_of(written(client, run)[0]) == "Guten Tag, 世界"
    assert understood(wire, vendor.asked[0]).stream
    if "usage" not in wire.lacks:
        assert (run["usage"]["prompt_tokens"], run["usage"]["completion_tokens"]) == (11, 5)


@scenario("json_schema")
@pytest.mark.parametrize("how", ["provider", "config"])
def test_a_run_with_a_json_schema(wire: Wire, server: Server, endpoints: dict[str, Replay], how: str) -> None:
    vendor, client = endpoints[wire.name], client_of(wire, server, how)
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "place", "schema": schema, "strict": True}}
    vendor.play(streamed(wire, Answer(text=['{"city":', '"Oslo"}'])))
    run = settle(client, start(client, "Where?", model=model(wire), response_format=wanted))
    assert (run["status"], run["response_format"]["type"]) == ("completed", "json_schema"), run
    assert text_of(written(client, run)[0]) == '{"city":"Oslo"}'
    told = understood(wire, vendor.asked[0]).response_format
    assert told is not None
    assert told["json_schema"]["schema"] == schema


@scenario("length", "max_completion_tokens", "tools", "tool_results")
def test_a_runs_token_budget(wire: Wire, server: Server, endpoints: dict[str, Replay]) -> None:
    vendor, client = endpoints[wire.name], client_of(wire, server)
    asked = Answer(calls=[("now", "{}")], finish="tool_calls", usage=Usage(20, 120))
    said = Answer(text=["The ", "beginning"], finish="length", usage=Usage(30, 380))
    vendor.play(streamed(wire, asked), streamed(wire, said))
    run = start(client, "Go on.", model=model(wire), tools=_TOOLS, max_completion_tokens=500)
    run = settle(client, run)
    submit(client, run, "12:00")
    run = settle(client, run)
    assert (run["status"], run["incomplete_details"]) == ("incomplete", {"reason": "max_completion_tokens"})
    (message,) = written(client, run)
    assert (message["incomplete_details"], text_of(message)) == ({"reason": "max_tokens"}, "The beginning")
    limits = [understood(wire, one).max_completion_tokens for one in vendor.asked]
    assert limits[0] == 500
    if "usage" not in wire.lacks:
        assert limits[1] == 380
        assert run["usage"]["completion_tokens"] == 500


@pytest.mark.behaviour("PRX-19")
@scenario("cut")
@pytest.mark.parametrize("broken", [False, True], ids=["ended", "broken"])
def test_a_run_whose_answer_breaks_off(wire: Wire, server: Server, endpoints: dict[str, Replay], broken: bool) -> None:
    vendor, client = endpoints[wire.name], client_of(wire, server)
    answer = Answer(text=["One, ", "two, ", "three."])
    kind = {"Content-Type": wire.content_type}
    vendor.play(Canned(headers=kind, body=wire.cut(answer), broken=broken), streamed(wire, answer))
    run = hurried(client, start(client, "Count.", model=model(wire)))
    assert run["status"] == "completed", run["last_error"]
    assert [text_of(message) for message in written(client, run)] == ["One, two, three."]
    assert [step["status"] for step in steps(client, run)] == ["completed"]
    assert len(vendor.asked) == 2


@scenario("cut", "thinking")
def test_a_run_whose_model_breaks_off_while_it_thinks(wire: Wire, server: Server, endpoints: dict[str, Replay]) -> None:
    vendor, client = endpoints[wire.name], client_of(wire, server)
    answer = Answer(thinking="Let me count.", text=["One, ", "two."])
    kind = {"Content-Type": wire.content_type}
    whole = wire.stream(answer)
    vendor.play(Canned(headers=kind, body=whole[: whole.index(b"count") + 200], broken=True), streamed(wire, answer))
    run = hurried(client, start(client, "Count.", model=model(wire)))
    assert run["status"] == "completed", run["last_error"]
    assert [text_of(message) for message in written(client, run)] == ["One, two."]
    assert len(vendor.asked) == 2


@pytest.mark.behaviour("PRX-19")
@scenario("cut")
def test_a_run_goes_on_with_another_vendor(wire: Wire, server: Server, endpoints: dict[str, Replay]) -> None:
    other = next(one for one in wires() if one.name != wire.name)
    answer = Answer(text=["One, ", "two, ", "three."])
    endpoints[wire.name].play(Canned(headers={"Content-Type": wire.content_type}, body=wire.cut(answer)))
    endpoints[other.name].play(streamed(other, answer))
    targets = [{"provider": provider_of(one), "override_params": {"model": model(one)}} for one in (wire, other)]
    config = {"strategy": {"mode": "fallback"}, "targets": targets}
    named = {"x-portkey-api-key": server.new_key(), "x-portkey-config": json.dumps(config)}
    client = Client(server.url, None, headers={**BETA, **named})
    run = settle(client, start(client, "Count.", model="whatever"))
    assert run["status"] == "completed", run["last_error"]
    assert [text_of(message) for message in written(client, run)] == ["One, two, three."]
    assert (len(endpoints[wire.name].asked), len(endpoints[other.name].asked)) == (1, 1)


@pytest.mark.behaviour("PRX-19", "RUN-97")
@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("invalid", "invalid_prompt"),
        ("auth", "server_error"),
        ("rate_limit", "rate_limit_exceeded"),
        ("server", "server_error"),
        ("overloaded", "server_error"),
    ],
)
@scenario("plain")
def test_a_run_that_is_refused(wire: Wire, server: Server, endpoints: dict[str, Replay], kind: str, code: str) -> None:
    if kind in wire.lacks:
        pytest.skip(wire.why[kind])
    vendor, client = endpoints[wire.name], client_of(wire, server)
    status, headers, body = wire.error(kind)
    vendor.play(Canned(status=status, headers=headers, body=body))
    run = settle(client, start(client, "Hello", model=model(wire)))
    assert (run["status"], run["last_error"]["code"]) == ("failed", code)
    assert key(wire) not in str(run)
    assert len(vendor.asked) == 1


@scenario("refusal")
def test_a_run_that_ends_in_a_refusal(wire: Wire, server: Server, endpoints: dict[str, Replay]) -> None:
    vendor, client = endpoints[wire.name], client_of(wire, server)
    vendor.play(streamed(wire, Answer(refusal="I cannot help with that.")))
    run = settle(client, start(client, "Hello", model=model(wire)))
    assert run["status"] == "completed"
    (message,) = written(client, run)
    assert message["content"] == [{"type": "refusal", "refusal": "I cannot help with that."}]
