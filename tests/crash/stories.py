"""What clients do with runs in these tests, each told once: with a server that lives, and with one that dies anywhere.

What must live here: stories, and what each must have led to whatever died on the way. What must not: processes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from loomgate.engine.points import Point
from loomgate.wire import lifecycle
from tests.crash.rig import SOON, Client, Gone, Object, text_of, until
from tests.support import schema, sse

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]


class Done(NamedTuple):
    """A run and what has to be true of it: its status, its steps' types, and the texts that it wrote.

    ``partly``: it was ended in the middle, so its texts may be beginnings of those, and steps may be missing.
    """

    run: str
    status: str
    steps: list[str]
    texts: list[str]
    partly: bool = False


class Told(NamedTuple):
    """What came of a story: its thread, the user messages in order, and the runs in order."""

    thread: str
    said: list[str]
    runs: list[Done]


class Story(NamedTuple):
    """``tell`` it; ``points``: the points that it passes, and how often; ``turns``: its model calls without a crash.

    ``only``: crash there and nowhere else, since it takes seconds and another story has passed the same points.
    """

    tell: Callable[[Client], Told]
    points: dict[Point, int]
    turns: int
    only: frozenset[Point] = frozenset()


_M, _T = "message_creation", "tool_calls"


def plain(client: Client) -> Told:
    """A text."""
    assistant, script = client.assistant(), "/say one two three four"
    thread = client.thread(messages=[{"role": "user", "content": script}])
    run = client.settled(client.run(thread, assistant))
    return Told(thread, [script], [Done(run["id"], "completed", [_M], ["one two three four"])])


def text_then_tools(client: Client) -> Told:
    """Text and a call in one turn, then text."""
    assistant, script = (
        client.assistant(tools=TOOLS),
        '/say Let me see.\n/call look {"at": "it"}\n/turn\n/say It is red.',
    )
    thread = client.thread(messages=[{"role": "user", "content": script}])
    run = _answered(client, client.run(thread, assistant), ["look"])
    assert run["status"] == "completed"
    return Told(thread, [script], [Done(run["id"], "completed", [_M, _T, _M], ["Let me see.", "It is red."])])


def parallel_tools(client: Client) -> Told:
    """Two calls in one turn, then the default answer, which reports their outputs."""
    assistant, script = client.assistant(tools=TOOLS), '/call look {"at": 1}\n/call look {"at": 2}'
    thread = client.thread()
    body = {"additional_messages": [{"role": "user", "content": script}]}
    run = _answered(client, client.run(thread, assistant, **body), ["look", "look"])
    answer = "look answered: output 0\nlook answered: output 1"
    return Told(thread, [script], [Done(run["id"], "completed", [_T, _M], [answer])])


def _answered(client: Client, run: Object, calls: list[str]) -> Object:
    """The run at its end, its calls (of those names) answered on the way."""
    run = client.settled(run)
    assert run["status"] == "requires_action"
    required = run["required_action"]["submit_tool_outputs"]["tool_calls"]
    assert [call["function"]["name"] for call in required] == calls
    client.submit(run, {call["id"]: f"output {number}" for number, call in enumerate(required)})
    done = client.settled(run)
    assert done["id"] == run["id"]
    first = next(step for step in client.steps(run) if step["type"] == _T)
    assert [call["id"] for call in first["step_details"]["tool_calls"]] == [call["id"] for call in required]
    return done


def streamed(client: Client) -> Told:
    """A streamed run with a message of its own; when the stream breaks off the client looks on with the next one."""
    assistant, script, thread = client.assistant(), "/say one two\n/wait 0.01\n/say three four", client.thread()
    path = f"/threads/{thread}/runs"
    body = {"assistant_id": assistant, "stream": True, "additional_messages": [{"role": "user", "content": script}]}
    run: Object | None = None
    while run is None:
        seen, whole = _read(client, path, body)
        run = client.new_run(thread, set()) if not whole else client.all(path)[0]
    if not whole:
        # What the broken stream told is true: what it named is there, what it said is the beginning of what is said.
        _joined(client, f"{path}/{run['id']}/stream")
    run = client.settled(run)
    _true(client, thread, run, seen)
    return Told(thread, [script], [Done(run["id"], "completed", [_M], ["one two\nthree four"])])


def _read(client: Client, path: str, body: Object | None) -> tuple[bytes, bool]:
    """What a stream gave, and whether it came to its end."""
    seen = b""
    try:
        with client.stream(path, body) as pieces:
            for piece in pieces:
                seen += piece
    except Gone:
        client.world.recover()
        return seen[: seen.rfind(b"\n\n") + 2] if b"\n\n" in seen else b"", False
    sse.check_stream(seen)
    return seen, True


def _joined(client: Client, path: str) -> None:
    """Look on until a stream comes to its end."""
    while True:
        seen = b""
        try:
            with client.stream(path) as pieces:
                for piece in pieces:
                    seen += piece
        except Gone:
            client.world.recover()
            continue
        events = sse.parse_with_ids(seen)
        assert events[-1][1] == ("done", "[DONE]")
        for _, event in events[:-1]:
            schema.check_event(event.name, event.data)
        return


def _true(client: Client, thread: str, run: Object, seen: bytes) -> None:
    """Everything that a viewer was told before the stream broke off still holds."""
    messages = {message["id"]: message for message in client.messages(thread)}
    steps = {step["id"]: step for step in client.steps(run)}
    said: dict[str, str] = {}
    for event in sse.parse(seen) if seen else ():
        if event.name in {"error", "done"}:
            continue
        told: Any = msgspec.json.decode(event.data)
        if event.name == "thread.message.delta":
            for part in told["delta"]["content"]:
                said[told["id"]] = said.get(told["id"], "") + part["text"]["value"]
        elif told["object"] == "thread.message":
            assert told["id"] in messages
        elif told["object"] == "thread.run.step":
            assert told["id"] in steps
        elif told["object"] == "thread.run":
            assert told["id"] == run["id"]
    for id, text in said.items():
        assert text_of(messages[id]).startswith(text)


def cancelled(client: Client) -> Told:
    """Cancelled while the model speaks."""
    assistant, script = client.assistant(), "/say Well,\n/wait 60\n/say no."
    thread = client.thread(messages=[{"role": "user", "content": script}])
    run = client.run(thread, assistant)
    until(lambda: client.steps(run), SOON, "the model speaks")
    client.cancel(run)
    run = client.settled(run)
    return Told(thread, [script], [Done(run["id"], "cancelled", [_M], ["Well,\n"], partly=True)])


def cancelled_waiting(client: Client) -> Told:
    """Cancelled while it waits for its client."""
    assistant, script = client.assistant(tools=TOOLS), "/call look {}"
    thread = client.thread(messages=[{"role": "user", "content": script}])
    run = client.settled(client.run(thread, assistant))
    client.cancel(run)
    run = until(lambda: found if (found := client.retrieve(run))["status"] == "cancelled" else None, SOON, "its end")
    return Told(thread, [script], [Done(run["id"], "cancelled", [_T], [])])


def expired(client: Client) -> Told:
    """Time runs out while the model speaks."""
    assistant, script = client.assistant(), "/say Well,\n/wait 60\n/say no."
    thread = client.thread(messages=[{"role": "user", "content": script}])
    run = client.run(thread, assistant, loomgate={"expires_after_seconds": 2})
    # Looks on and asks nothing: a read of the run would end it on sight (RUN-44), and this is about its worker.
    _joined(client, f"/threads/{thread}/runs/{run['id']}/stream")
    return Told(thread, [script], [Done(run["id"], "expired", [_M], ["Well,\n"], partly=True)])


def expired_waiting(client: Client) -> Told:
    """Time runs out while it waits for its client, and nobody looks: the run behind it has its turn by itself."""
    assistant, script = client.assistant(tools=TOOLS), "/call look {}"
    thread = client.thread(messages=[{"role": "user", "content": script}], loomgate={"on_active_run": "enqueue"})
    first = client.run(thread, assistant, loomgate={"expires_after_seconds": 2})
    second = client.run(thread, assistant, additional_messages=[{"role": "user", "content": "/say And me?"}])
    second = client.settled(second)  # asks for the second one only: a read of the first would end it on sight
    first = client.retrieve(first)
    done = [Done(first["id"], "expired", [_T], [], partly=True), Done(second["id"], "completed", [_M], ["And me?"])]
    return Told(thread, [script, "/say And me?"], done)


def enqueued(client: Client) -> Told:
    """A second run waits for the first; each answers what was asked before it."""
    assistant, scripts = client.assistant(), ["/wait 0.05\n/say first", "/say second"]
    thread = client.thread(messages=[{"role": "user", "content": scripts[0]}], loomgate={"on_active_run": "enqueue"})
    first = client.run(thread, assistant)
    second = client.run(thread, assistant, additional_messages=[{"role": "user", "content": scripts[1]}])
    runs = [client.settled(run)["id"] for run in (first, second)]
    done = [Done(id, "completed", [_M], [text]) for id, text in zip(runs, ("first", "second"), strict=True)]
    return Told(thread, scripts, done)


def long(client: Client) -> Told:
    """An answer that takes longer than the time between two checkpoints."""
    assistant, script = client.assistant(), "/repeat 20 tick\n/wait 1.02\n/say tock\n/say tick"
    thread = client.thread(messages=[{"role": "user", "content": script}])
    run = client.run(thread, assistant)
    text = " ".join(["tick"] * 20)
    path = f"/threads/{thread}/messages"
    shown = 0

    def look() -> bool:
        nonlocal shown
        found = [len(text_of(message)) for message in client.all(path) if message["run_id"] == run["id"]]
        # MSG-14: what readers saw of it does not become less, whatever happens.
        assert not found or found[0] >= shown or client.retrieve(run)["status"] == "in_progress"
        shown = max(found, default=0)
        return client.retrieve(run)["status"] in lifecycle.SETTLED

    until(look, 3 * SOON, "its end")
    return Told(thread, [script], [Done(run["id"], "completed", [_M], [f"{text}\ntock\ntick"])])


def failed(client: Client) -> Told:
    """The model refuses in the middle of a word."""
    assistant, script = client.assistant(), "/say Well,\n/error 400"
    thread = client.thread(messages=[{"role": "user", "content": script}])
    run = client.settled(client.run(thread, assistant))
    return Told(thread, [script], [Done(run["id"], "failed", [_M], ["Well,"], partly=True)])


def broken(client: Client) -> Told:
    """The answer breaks off in the middle, and the turn is done again."""
    assistant, script = client.assistant(), "/say one two\n/error cut times=1\n/say three"
    thread = client.thread(messages=[{"role": "user", "content": script}])
    run = client.settled(client.run(thread, assistant))
    return Told(thread, [script], [Done(run["id"], "completed", [_M], ["one two\nthree"])])


def _turn(delta: int, turns: int = 1) -> dict[Point, int]:
    return {
        "created": 1,
        "claimed": turns,
        "calling": turns,
        "opened": turns,
        "delta": delta,
        "answered": turns,
        "settled": turns,
    }


STORIES: dict[str, Story] = {
    "plain": Story(plain, _turn(4), 1),
    "text_then_tools": Story(text_then_tools, {**_turn(8, 2), "switched": 1, "opened": 2, "submitted": 1}, 2),
    "parallel_tools": Story(parallel_tools, {**_turn(12, 2), "submitted": 1}, 2),
    "streamed": Story(streamed, _turn(4), 1),
    "cancelled": Story(cancelled, {**_turn(1), "cancelling": 1, "answered": 0}, 1),
    "cancelled_waiting": Story(cancelled_waiting, {**_turn(1), "claimed": 2, "cancelling": 1, "ended": 1}, 1),
    "expired": Story(expired, {**_turn(1), "answered": 0}, 1, frozenset({"opened", "settled"})),
    "expired_waiting": Story(
        expired_waiting, {**_turn(3, 2), "created": 2, "claimed": 3, "ended": 1}, 2, frozenset({"claimed", "ended"})
    ),
    "enqueued": Story(enqueued, {**_turn(2, 2), "created": 2}, 2),
    "long": Story(long, {**_turn(22), "checkpointed": 1}, 1, frozenset({"checkpointed", "answered"})),
    "broken": Story(broken, {**_turn(5), "calling": 2, "opened": 2, "broken": 1}, 2),
    "failed": Story(failed, {**_turn(1), "answered": 0}, 1),
}


def check_told(client: Client, told: Told) -> None:
    """Compare a story's outcome with what the API shows: every run, step and message, and nothing besides."""
    written: list[tuple[str, str]] = []
    runs = client.all(f"/threads/{told.thread}/runs")
    assert [run["id"] for run in runs] == [done.run for done in told.runs]
    messages = client.messages(told.thread)
    for run, done in zip(runs, told.runs, strict=True):
        schema.check_component("RunObject", run)
        assert run["status"] == done.status
        steps = client.steps(run)
        types = [step["type"] for step in steps]
        assert types == done.steps or (done.partly and types == done.steps[: len(types)])
        own = [message for message in messages if message["run_id"] == run["id"]]
        assert [message["id"] for message in own] == [
            step["step_details"]["message_creation"]["message_id"] for step in steps if step["type"] == _M
        ]
        texts = [text_of(message) for message in own]
        if done.partly:
            assert all(whole.startswith(text) for text, whole in zip(texts, done.texts, strict=False))
            assert all(message["status"] == "incomplete" for message in own)
        else:
            assert texts == done.texts
            assert all(message["status"] == "completed" for message in own)
        written += [(message["id"], text) for message, text in zip(own, texts, strict=True)]
    assert [text_of(message) for message in messages if message["run_id"] is None] == told.said
    assert len(messages) == len(told.said) + len(written)


def check_free(client: Client, told: Told) -> None:
    """The thread takes a message and a run again (BEHAVIOUR LOCK-04)."""
    assistant = client.get(f"/threads/{told.thread}/runs/{told.runs[0].run}")["assistant_id"]
    client.say(told.thread, "/say free")
    run = client.settled(client.run(told.thread, assistant))
    assert run["status"] == "completed"
    assert text_of(client.messages(told.thread)[-1]) == "free"
