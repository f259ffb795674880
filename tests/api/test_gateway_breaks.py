"""An upstream that breaks in the middle of an answer: the run does the turn again, or elsewhere, and doubles nothing.

Held for the store, for a client that polls, and for the official SDK's accumulated snapshots of a stream.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
from openai import AssistantEventHandler

from loomgate import clock
from tests.api.driving import F, eventually, hurried, load, path, settle, start, steps, submit, text_of, written
from tests.api.gated import Site, fallback, said
from tests.support import sse
from tests.support.server import BETA, Client, ProcessServer
from tests.support.upstream import Fault, ModelEndpoint

pytestmark = pytest.mark.behaviour("PRX-19")

WORDS = " ".join(f"word{n}" for n in range(40))
TALK = f"/say {WORDS}"
# Bytes of the stand-in's stream after which some words are out, but not all.
MIDDLE = 2500


def _one_message(client: Client, run: dict[str, Any]) -> dict[str, Any]:
    """The one message of a run with one turn of text; its step is there once, too."""
    (message,) = written(client, run)
    (step,) = steps(client, run)
    assert step["step_details"]["message_creation"]["message_id"] == message["id"]
    assert (step["status"], message["status"]) == ("completed", "completed")
    return message


def _partly(client: Client, run: dict[str, Any]) -> str:
    """The text of a message that was written in part."""
    (message,) = written(client, run)
    assert message["status"] == "incomplete"
    text = text_of(message)
    assert text
    assert text != WORDS
    assert WORDS.startswith(text)
    (step,) = steps(client, run)
    assert step["status"] == run["status"]
    return text


# --- again -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cut", "malformed", "500", "429"])
@pytest.mark.parametrize("times", [1, 3])
def test_the_turn_is_done_again(site: Site, how: str, times: int) -> None:
    client = site.client(provider="a")
    run = start(client, f"{TALK}\n/error {how} times={times}", model="any")
    done = hurried(client, run)
    assert done["status"] == "completed"
    assert text_of(_one_message(client, done)) == WORDS
    assert len(site.a.requests) == times + 1
    bodies = [request.body for request in site.a.requests]
    assert all(body == bodies[0] for body in bodies)  # the half of an answer is no part of the next question
    assert done["usage"]["completion_tokens"] < 100  # of the answer that counts
    records = site.logs(client, run, times + 1)
    assert [bool(record["loomgate"]["error"]) for record in records] == [True] * times + [False]


def test_four_breaks_fail_the_run_with_what_was_there(site: Site) -> None:
    site.a.faults += [Fault(cut_after=MIDDLE)] * 4
    client = site.client(provider="a")
    failed = hurried(client, start(client, TALK, model="any"))
    assert (failed["status"], failed["last_error"]["code"]) == ("failed", "server_error")
    assert len(site.a.requests) == 4
    _partly(client, failed)


@pytest.mark.parametrize("then", [Fault(status=401), Fault(status=500), Fault(status=429)])
def test_what_was_there_stays_when_the_next_attempt_says_nothing(site: Site, then: Fault) -> None:
    site.a.faults += [Fault(cut_after=MIDDLE), then]
    client = site.client(provider="a")
    failed = hurried(client, start(client, TALK, model="any"))
    assert failed["status"] == "failed"
    assert failed["last_error"]["code"] == ("rate_limit_exceeded" if then.status == 429 else "server_error")
    assert len(site.a.requests) == 2
    _partly(client, failed)


def test_an_error_that_waiting_will_not_mend_is_not_tried_again(site: Site) -> None:
    client = site.client(provider="a")
    failed = hurried(client, start(client, "/say Half\n/error 401", model="any"))
    assert (failed["status"], len(site.a.requests)) == ("failed", 1)
    assert said(client, failed) == ["Half"]


def test_the_second_turn_breaks(site: Site) -> None:
    client = site.client(provider="a")
    run = hurried(client, start(client, f"/say First.\n/call f\n/turn\n{TALK}", model="any", tools=[F]))
    site.a.faults.append(Fault(cut_after=MIDDLE))
    submit(client, run)
    done = hurried(client, run)
    assert (done["status"], said(client, done)) == ("completed", ["First.", WORDS])
    assert [step["status"] for step in steps(client, done)] == ["completed"] * 3
    assert len(site.a.requests) == 3


# --- elsewhere -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["fallback", "loadbalance"])
def test_the_next_target_does_it(site: Site, mode: str) -> None:
    config = fallback("a", "b")
    config["strategy"]["mode"] = mode
    if mode == "loadbalance":
        config["targets"][1]["weight"] = 0.0000001
    site.a.faults.append(Fault(cut_after=MIDDLE))
    client = site.client(config=config)
    before = clock.now()
    run = settle(client, start(client, TALK, model="any"))
    assert clock.now() - before < 5
    assert run["status"] == "completed"
    assert text_of(_one_message(client, run)) == WORDS
    assert site.asked == (1, 1)
    paths = [record["response"]["lastUsedOptionJsonPath"] for record in site.logs(client, run, 2)]
    assert paths == ["config.targets[0]", "config.targets[1]"]


def test_all_targets_break(site: Site) -> None:
    """When none is left that did not break, all count again."""
    site.a.faults += [Fault(cut_after=MIDDLE)]
    site.b.faults += [Fault(cut_after=MIDDLE)]
    client = site.client(config=fallback("a", "b"))
    run = hurried(client, start(client, TALK, model="any"))
    assert run["status"] == "completed"
    assert text_of(_one_message(client, run)) == WORDS
    assert site.asked == (2, 1)


@pytest.mark.parametrize("config", [fallback("a", "b"), {"provider": "a"}])
def test_an_answer_that_breaks_while_a_guardrail_holds_it_back(site: Site, config: dict[str, Any]) -> None:
    guardrail = {"default.regexMatch": {"rule": "forbidden", "not": True}, "deny": True}
    site.a.faults.append(Fault(cut_after=MIDDLE))
    client = site.client(config={**config, "output_guardrails": [guardrail], "retry": {"attempts": 1}})
    run = hurried(client, start(client, TALK, model="any"))
    assert run["status"] == "completed"
    assert text_of(_one_message(client, run)) == WORDS
    assert site.asked == (2, 0)  # by the config's retry: nothing had gone out yet


def test_what_broke_is_not_kept_in_the_cache(site: Site) -> None:
    site.a.faults.append(Fault(cut_after=MIDDLE))
    client = site.client(config={"provider": "a", "cache": {"mode": "simple"}})
    for _ in range(2):
        run = hurried(client, start(client, TALK, model="any"))
        assert said(client, run) == [WORDS]
    assert len(site.a.requests) == 2


# --- tools -----------------------------------------------------------------------------------------------------------

_CITY = "x" * 300
CALLS = f'/call f {{"city": "{_CITY}"}}\n/call g {{"n": 2}}\n/turn\n/say Done.'
G = {"type": "function", "function": {"name": "g"}}


@pytest.mark.parametrize("cut_after", [700, 1500, 2600])
def test_calls_that_were_sent_by_half(site: Site, cut_after: int) -> None:
    site.a.faults.append(Fault(cut_after=cut_after))
    client = site.client(provider="a")
    run = hurried(client, start(client, CALLS, model="any", tools=[F, G]))
    assert run["status"] == "requires_action", run
    made = [call["function"] for call in run["required_action"]["submit_tool_outputs"]["tool_calls"]]
    assert made == [
        {"name": "f", "arguments": f'{{"city": "{_CITY}"}}'},
        {"name": "g", "arguments": '{"n": 2}'},
    ]
    broken, step = steps(client, run)  # viewers have heard of the first one, so it stays
    assert (broken["status"], broken["last_error"]["code"]) == ("failed", "server_error")
    assert len(step["step_details"]["tool_calls"]) == 2
    submit(client, run)
    done = hurried(client, run)
    assert (done["status"], said(client, done)) == ("completed", ["Done."])
    assert len(site.a.requests) == 3


def test_text_and_half_a_call(site: Site) -> None:
    """The text was stored when the call began: it is not told a second time."""
    site.a.faults.append(Fault(cut_after=1700))
    client = site.client(provider="a")
    script = f"/say Let me see.\n{CALLS}"
    run = hurried(client, start(client, script, model="any", tools=[F, G]))
    assert run["status"] == "requires_action"
    assert said(client, run) == ["Let me see."]
    kinds = [(step["type"], step["status"]) for step in steps(client, run)]
    assert kinds == [("message_creation", "completed"), ("tool_calls", "failed"), ("tool_calls", "in_progress")]
    submit(client, run)
    assert hurried(client, run)["status"] == "completed"
    assert said(client, run) == ["Let me see.", "Done."]
    assert len(site.a.requests) == 3
    asked = [message["role"] for message in site.a.requests[-1].body["messages"]]
    assert asked == ["user", "assistant", "tool", "tool"]


def test_text_and_half_a_call_and_then_no_call(site: Site) -> None:
    """The next attempt only repeats the text, which is there: the run is complete with it."""
    config = fallback("a", "b")
    config["targets"][1]["override_params"] = {"messages": [{"role": "user", "content": "/say Let me see."}]}
    site.a.faults.append(Fault(cut_after=1700))
    client = site.client(config=config)
    run = hurried(client, start(client, f"/say Let me see.\n{CALLS}", model="any", tools=[F, G]))
    assert (run["status"], said(client, run)) == ("completed", ["Let me see."])


def test_half_a_text_and_then_a_call(site: Site) -> None:
    """The beginning of a text that never came is not taken back: its message is incomplete."""
    config = fallback("a", "b")
    config["targets"][1]["override_params"] = {"messages": [{"role": "user", "content": "/call f"}]}
    site.a.faults.append(Fault(cut_after=MIDDLE))
    client = site.client(config=config)
    events = _streamed(client, f"{TALK}\n/turn\n/say Done.", tools=[F])
    kinds = [name.removeprefix("thread.") for name, _ in events if not name.startswith("thread.run.") or "step" in name]
    assert [kind for kind, before in zip(kinds, ["", *kinds], strict=False) if kind != before] == [
        "run.step.created", "run.step.in_progress", "message.created", "message.in_progress", "message.delta",
        "message.incomplete", "run.step.failed", "run.step.created", "run.step.in_progress", "run.step.delta",
    ]  # fmt: skip
    run = events[-1][1]
    assert run["status"] == "requires_action"
    (message,) = written(client, run)
    assert (message["status"], WORDS.startswith(text_of(message))) == ("incomplete", True)
    submit(client, run)
    assert hurried(client, run)["status"] == "completed"
    assert [(step["type"], step["status"]) for step in steps(client, run)] == [
        ("message_creation", "failed"),
        ("tool_calls", "completed"),
        ("message_creation", "completed"),
    ]


# --- cancel, expiry, crashes -----------------------------------------------------------------------------------------


def _broken_and_waiting(site: Site, client: Client, **fields: Any) -> dict[str, Any]:
    """A run whose answer broke, and which the next attempt leaves waiting for its first word."""
    site.a.faults += [Fault(cut_after=MIDDLE), Fault(wait=5000)]
    run = start(client, TALK, model="any", **fields)

    def asked() -> bool:
        clock.advance(0.5)
        return len(site.a.requests) == 2

    eventually(asked)
    return run


def test_a_run_is_cancelled_while_it_waits_for_the_next_attempt(site: Site) -> None:
    client = site.client(provider="a")
    run = _broken_and_waiting(site, client)
    client.post(path(run, "/cancel"))
    cancelled = settle(client, run)
    assert cancelled["status"] == "cancelled"
    (message,) = written(client, cancelled)
    assert message["incomplete_details"] == {"reason": "run_cancelled"}
    _partly(client, cancelled)
    eventually(site.a.dropped.is_set)


def test_a_run_is_cancelled_in_its_back_off(site: Site) -> None:
    client = site.client(provider="a")
    site.a.faults += [Fault(cut_after=MIDDLE)] * 4
    run = start(client, TALK, model="any")
    eventually(lambda: any(message["content"] for message in written(client, run)))
    client.post(path(run, "/cancel"))
    cancelled = settle(client, run)
    assert cancelled["status"] == "cancelled"
    _partly(client, cancelled)


def test_a_run_expires_while_it_waits_for_the_next_attempt(site: Site) -> None:
    client = site.client(provider="a")
    run = _broken_and_waiting(site, client, loomgate={"expires_after_seconds": 40})
    clock.advance(40)  # less than the endpoint is given for its first word
    expired = settle(client, run)
    assert expired["status"] == "expired"
    _partly(client, expired)


def test_the_worker_dies_while_it_waits_for_the_next_attempt(
    process_server: Callable[..., ProcessServer], endpoints: Callable[[], ModelEndpoint]
) -> None:
    a = endpoints()
    server = process_server(TRUSTED_CUSTOM_HOSTS="127.0.0.1")
    config = {"provider": "openai", "api_key": "sk-some-0123456789abcdef", "custom_host": a.base_url}
    client = Client(server.url, None, headers={**BETA, "x-portkey-config": json.dumps(config)})
    a.faults += [Fault(cut_after=MIDDLE), Fault(wait=5000), Fault(cut_after=MIDDLE)]
    run = start(client, TALK, model="any")
    eventually(lambda: len(a.requests) == 2)
    server.kill()
    server.start()
    plain = server.client()
    done = settle(plain, run)
    assert done["status"] == "completed"
    assert text_of(_one_message(plain, done)) == WORDS


# --- streams ---------------------------------------------------------------------------------------------------------


class Handler(AssistantEventHandler):
    """Accumulates as an application would: by the SDK's snapshots."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []
        self.messages: list[Any] = []
        self.calls: list[Any] = []

    def on_text_done(self, text: Any) -> None:
        self.texts.append(text.value)

    def on_message_done(self, message: Any) -> None:
        self.messages.append(message)

    def on_tool_call_done(self, tool_call: Any) -> None:
        self.calls.append(tool_call)


@pytest.fixture
def sdk(site: Site) -> Iterator[openai.OpenAI]:
    headers = {"x-portkey-config": json.dumps({"provider": "a"})}
    key = site.server.new_key()
    with openai.OpenAI(base_url=site.server.url + "/v1", api_key=key, max_retries=0, default_headers=headers) as made:
        yield made


def _asked(sdk: openai.OpenAI, text: str, **more: Any) -> dict[str, Any]:
    assistant = sdk.beta.assistants.create(model="any", **more)
    thread = sdk.beta.threads.create(messages=[{"role": "user", "content": text}])
    return {"thread_id": thread.id, "assistant_id": assistant.id}


@pytest.fixture
def hasty() -> Iterator[None]:
    """Time passes quickly, so that no test waits for a back-off."""
    import threading

    over = threading.Event()

    def hurry() -> None:
        while not over.wait(0.02):
            clock.advance(0.5)

    thread = threading.Thread(target=hurry, daemon=True)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.usefixtures("hasty")
def test_the_sdks_snapshot_is_the_final_message(site: Site, sdk: openai.OpenAI, times: int) -> None:
    site.a.faults += [Fault(cut_after=MIDDLE)] * times
    handler = Handler()
    with sdk.beta.threads.runs.stream(**_asked(sdk, TALK), event_handler=handler) as stream:
        stream.until_done()
        (final,) = stream.get_final_messages()
        assert stream.current_run is not None
    assert final.content[0].text.value == WORDS  # type: ignore[union-attr]
    (stored,) = sdk.beta.threads.messages.list(final.thread_id, run_id=stream.current_run.id).data
    assert stored.to_dict() == final.to_dict()
    assert handler.messages[-1].to_dict() == stored.to_dict()
    assert len({message.id for message in handler.messages}) == 1
    assert handler.texts[-1] == WORDS
    assert len(site.a.requests) == times + 1


@pytest.mark.usefixtures("hasty")
def test_a_stream_in_the_sdks_plain_form(site: Site, sdk: openai.OpenAI) -> None:
    """An application that adds the deltas up itself."""
    site.a.faults += [Fault(cut_after=MIDDLE)]
    told, names = "", list[str]()
    for event in sdk.beta.threads.runs.create(**_asked(sdk, TALK), stream=True):
        names.append(event.event)
        if event.event == "thread.message.delta":
            told += "".join(part.text.value for part in event.data.delta.content or ())  # type: ignore[union-attr]
    assert told == WORDS
    assert names.count("thread.message.created") == names.count("thread.run.step.created") == 1


def test_the_sdks_snapshot_of_another_answer(site: Site, sdk: openai.OpenAI) -> None:
    """What the next attempt says instead is told at its end, and counts."""
    config = fallback("a", "b")
    config["targets"][1]["override_params"] = {"messages": [{"role": "user", "content": "/say word0 word1 other"}]}
    site.a.faults.append(Fault(cut_after=MIDDLE))
    handler = Handler()
    headers = {"x-portkey-config": json.dumps(config)}
    with sdk.beta.threads.runs.stream(**_asked(sdk, TALK), event_handler=handler, extra_headers=headers) as stream:
        stream.until_done()
        (final,) = stream.get_final_messages()
    assert final.content[0].text.value == handler.texts[-1] == "word0 word1 other"  # type: ignore[union-attr]
    (stored,) = sdk.beta.threads.messages.list(final.thread_id, order="desc", limit=1).data
    assert stored.to_dict() == final.to_dict() == handler.messages[-1].to_dict()


@pytest.mark.parametrize("cut_after", [700, 1500, 2600])
@pytest.mark.usefixtures("hasty")
def test_the_sdks_snapshot_of_calls(site: Site, sdk: openai.OpenAI, cut_after: int) -> None:
    site.a.faults += [Fault(cut_after=cut_after)]
    handler = Handler()
    with sdk.beta.threads.runs.stream(**_asked(sdk, CALLS, tools=[F, G]), event_handler=handler) as stream:
        stream.until_done()
        broken, step = stream.get_final_run_steps()
        run = stream.current_run
    assert broken.id != step.id
    assert run is not None
    assert run.required_action is not None
    wanted = [call.to_dict() for call in run.required_action.submit_tool_outputs.tool_calls]
    found: Any = step.step_details
    told = [call.to_dict() for call in found.tool_calls]
    assert [{**call["function"], "id": call["id"]} for call in told] == [
        {**call["function"], "id": call["id"], "output": None} for call in wanted
    ]


def _streamed(client: Client, text: str, **fields: Any) -> list[tuple[str, Any]]:
    thread, assistant = client.thread(text), client.assistant(model="any", **fields)
    body = json.dumps({"assistant_id": assistant["id"], "stream": True}).encode()
    raw = client.raw("POST", f"/v1/threads/{thread['id']}/runs", body)
    return [(event.name, json.loads(event.data)) for event in sse.parse(raw.body) if event.name != "done"]


def test_a_stream_that_broke_is_like_any_other(site: Site) -> None:
    client = site.client(config=fallback("a", "b"))
    site.a.faults.append(Fault(cut_after=MIDDLE))
    thread, assistant = client.thread(TALK), client.assistant(model="any")
    body = json.dumps({"assistant_id": assistant["id"], "stream": True}).encode()
    raw = client.raw("POST", f"/v1/threads/{thread['id']}/runs", body)
    assert sse.names(sse.check_stream(raw.body)) == sse.SEQUENCES["SSE-40"]
    assert site.asked == (1, 1)


def test_readers_keep_what_they_have_seen(site: Site) -> None:
    client = site.client(provider="a")
    site.a.faults += [Fault(cut_after=MIDDLE), Fault(hang_after=1200)]
    run = start(client, TALK, model="any")
    seen = 0

    def look() -> bool:
        nonlocal seen
        for message in written(client, run):
            now = len(text_of(message)) if message["content"] else 0
            assert now >= seen
            seen = now
        clock.advance(0.5)
        return len(site.a.requests) == 2

    eventually(look)
    for _ in range(10):
        look()
    assert 0 < seen < len(WORDS)
    client.post(path(run, "/cancel"))
    assert settle(client, run)["status"] == "cancelled"


def test_a_viewer_who_joins_between_two_attempts(site: Site) -> None:
    client = site.client(provider="a")
    run = _broken_and_waiting(site, client)
    assert load(client, run)["status"] == "in_progress"
    (message,) = written(client, run)
    assert (message["status"], WORDS.startswith(text_of(message))) == ("in_progress", True)
    client.post(path(run, "/cancel"))
    told = client.raw("GET", f"/v1{path(run, '/stream')}").body.decode()
    assert told.count("event: thread.message.incomplete\n") == told.count("event: done\n") == 1
    assert told.count("event: thread.message.created\n") == 1
