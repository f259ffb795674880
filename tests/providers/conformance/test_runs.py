"""Every wire under a whole server: a run with a tool call, as a client of the Assistants API drives it."""

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from loomgate.settings import Provider, Secret
from loomgate.wire.chat import Usage
from tests.api.driving import calls, settle, start, submit, text_of, written
from tests.providers.conformance.replay import Canned, Replay
from tests.providers.conformance.suite import Answer, Wire, key, model, scenario, wires
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


@scenario("tools", "parallel_tools", "tool_results")
def test_a_run_with_tools(wire: Wire, server: Server, endpoints: dict[str, Replay]) -> None:
    number = [one.name for one in wires()].index(wire.name)
    named = {"x-portkey-api-key": server.new_key(), "x-portkey-provider": f"wire{number}"}
    client = Client(server.url, None, headers={**BETA, **named})
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
    run = settle(client, start(client, "Weather?", model=model(wire), tools=_TOOLS, instructions="Be brief."))
    assert run["status"] == "requires_action", run
    made = [(call["function"]["name"], call["function"]["arguments"]) for call in calls(run)]
    assert made == asked.calls
    submit(client, run, "Sun", "12:00")
    run = settle(client, run)
    assert run["status"] == "completed", run
    assert text_of(written(client, run)[-1]) == "Sun, at noon."
    if "usage" not in wire.lacks:
        assert run["usage"] == run["usage"] | {"prompt_tokens": 70, "completion_tokens": 15}
    # What the second request said to the vendor.
    first, second = vendor.asked
    assert "Sun" not in first.body.decode()
    assert "東京" in second.body.decode() or "\\u6771" in second.body.decode()
    assert "12:00" in second.body.decode()
