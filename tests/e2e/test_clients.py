"""One scenario through every client that knows this API: OpenAI's, Azure's and Portkey's SDKs, none of them changed."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import count
from typing import Any

import pytest
from openai import AzureOpenAI, OpenAI

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # what its import says of its own dependencies is not ours
    import portkey_ai

from tests.support import sse
from tests.support.node import play
from tests.support.recorder import Recorder
from tests.support.server import Server
from tests.support.upstream import ModelEndpoint

pytestmark = pytest.mark.filterwarnings(r"ignore:(The Assistants API is )?deprecated:DeprecationWarning")

PROVIDER_KEY = "sk-the-operators-own-key"
SLUG = "team-openai"
TOOL = {"type": "function", "function": {"name": "get_weather", "parameters": {"type": "object"}}}
_workspaces = count(1)


@dataclass
class Place:
    """A key of a workspace with a virtual key for a stand-in endpoint."""

    url: str
    key: str
    endpoint: ModelEndpoint


@pytest.fixture
def place(server: Server, wire: Recorder) -> Iterator[Place]:
    """Where the clients go: through `wire`, as a workspace that has the virtual key."""
    endpoint = ModelEndpoint(api_key=PROVIDER_KEY)
    server.run(endpoint.start())
    workspace = f"clients-{next(_workspaces)}"
    made = server.store.virtual_keys.create(workspace, SLUG, "openai", PROVIDER_KEY, endpoint.base_url)
    assert server.run(made)
    yield Place(wire.url, server.new_key(workspace), endpoint)
    server.run(endpoint.stop())


def plain(place: Place) -> Any:
    return OpenAI(base_url=f"{place.url}/v1", api_key=place.key, max_retries=0)


def azure(place: Place) -> Any:
    return AzureOpenAI(azure_endpoint=place.url, api_key=place.key, api_version="2024-05-01-preview", max_retries=0)


def portkey(place: Place) -> Any:
    return portkey_ai.Portkey(api_key=place.key, virtual_key=SLUG, base_url=f"{place.url}/v1")


def portkey_at_provider(place: Place) -> Any:
    return portkey_ai.Portkey(api_key=place.key, provider=f"@{SLUG}", base_url=f"{place.url}/v1")


def openai_with_portkey_headers(place: Place) -> Any:
    headers: Any = portkey_ai.createHeaders(api_key=place.key, virtual_key=SLUG)
    return OpenAI(base_url=f"{place.url}/v1", api_key="none", default_headers=headers, max_retries=0)


@pytest.mark.behaviour("E2E-10", "SDK-10")
@pytest.mark.parametrize(
    ("connect", "model"),
    [
        (plain, "scripted"),
        (azure, "scripted"),
        (portkey, "gpt-4o-mini"),
        (portkey_at_provider, "gpt-4o-mini"),
        (openai_with_portkey_headers, "gpt-4o-mini"),
    ],
)
def test_a_client_runs_unchanged(connect: Callable[[Place], Any], model: str, place: Place, wire: Recorder) -> None:
    with ExitStack() as stack:
        client = connect(place)
        stack.callback((client if hasattr(client, "close") else client.openai_client).close)
        threads, runs = client.beta.threads, client.beta.threads.runs
        assistant = client.beta.assistants.create(model=model, tools=[TOOL], instructions="Follow the script.")
        thread = threads.create()
        threads.messages.create(thread.id, role="user", content='/call get_weather {"city":"Oslo"}\n/turn\n/say Cold.')
        run = runs.create_and_poll(thread_id=thread.id, assistant_id=assistant.id, poll_interval_ms=10)
        assert (run.status, run.last_error) == ("requires_action", None)
        (call,) = run.required_action.submit_tool_outputs.tool_calls
        assert call.function.arguments == '{"city":"Oslo"}'
        runs.submit_tool_outputs(
            run_id=run.id, thread_id=thread.id, tool_outputs=[{"tool_call_id": call.id, "output": "3"}]
        )
        run = runs.poll(run_id=run.id, thread_id=thread.id, poll_interval_ms=10)
        assert run.status == "completed"

        # The three calls that the product began with: list, retrieve and modify a run.
        assert runs.retrieve(thread_id=thread.id, run_id=run.id).usage.total_tokens == run.usage.total_tokens
        changed = runs.update(thread_id=thread.id, run_id=run.id, metadata={"checked": "yes"})
        assert (changed.metadata, changed.status) == ({"checked": "yes"}, "completed")
        listed = runs.list(thread_id=thread.id, limit=5, order="desc")
        assert [(found.id, found.metadata) for found in listed.data] == [(run.id, {"checked": "yes"})]
        assert [step.type for step in runs.steps.list(run_id=run.id, thread_id=thread.id).data] == [
            "message_creation",
            "tool_calls",
        ]
        (answer, _) = threads.messages.list(thread_id=thread.id).data
        assert answer.content[0].text.value == "Cold."

        threads.messages.create(thread.id, role="user", content="/say And a stream.")
        with runs.stream(thread_id=thread.id, assistant_id=assistant.id) as stream:
            assert "".join(stream.text_deltas) == "And a stream."
            assert stream.get_final_run().status == "completed"

        threads.messages.create(thread.id, role="user", content="/wait 3600")
        run = runs.create(thread_id=thread.id, assistant_id=assistant.id)
        assert runs.cancel(thread_id=thread.id, run_id=run.id).status == "cancelling"
        assert runs.poll(run_id=run.id, thread_id=thread.id, poll_interval_ms=10).status == "cancelled"
        assert threads.delete(thread.id).deleted
        assert client.beta.assistants.delete(assistant.id).deleted

    assert sse.names(wire.streams()[0].events) == sse.SEQUENCES["SSE-40"]
    through = [seen.headers.get("authorization") for seen in place.endpoint.requests]
    if model == "scripted":
        assert not through
    else:
        assert set(through) == {f"Bearer {PROVIDER_KEY}"}
        assert {seen.body["model"] for seen in place.endpoint.requests} == {model}
    # The key that the client holds was in no request to the provider.
    assert place.key not in str(place.endpoint.requests)


@pytest.mark.behaviour("E2E-10")
def test_the_portkey_client_of_node_runs_unchanged(place: Place) -> None:
    environment = {"LOOMGATE_URL": place.url, "LOOMGATE_KEY": place.key, "VIRTUAL_KEY": SLUG}
    assert play("portkey.mjs", environment)[0]["status"] == "completed"
    assert {seen.headers.get("authorization") for seen in place.endpoint.requests} == {f"Bearer {PROVIDER_KEY}"}
