"""What docs/extensions.md promises, each section once, and its Python examples as they are printed."""

import contextlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from openai import OpenAI

from loomgate import clock
from loomgate.bus.redis import RedisBus
from tests.support import sse
from tests.support.eventually import eventually, passing
from tests.support.server import Client, Server
from tests.support.viewer import Viewer, ask, path_of, streamed

PAGE = Path(__file__).parents[2] / "docs" / "extensions.md"


def examples() -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)


def test_the_examples_run_as_printed(server: Server) -> None:
    """One after the other, with the names that they take for granted."""
    assert len(examples()) >= 4
    with OpenAI(base_url=f"{server.url}/v1", api_key=server.new_key(), max_retries=0) as client:
        assistant = client.beta.assistants.create(model="scripted", instructions="Help.")
        mine = client.beta.threads.create(metadata={"user": "42"})
        client.beta.threads.create(metadata={"user": "7"})
        thread = client.beta.threads.create(messages=[{"role": "user", "content": "/wait 3600"}])
        names: dict[str, Any] = {"client": client, "assistant": assistant, "thread": thread}
        pages, times, rules, left = examples()
        exec(pages, names)  # noqa: S102 - the documentation's own code
        assert [found["id"] for found in names["page"]["data"]] == [mine.id]
        exec(times, names)  # noqa: S102
        run = names["run"]
        assert run.expires_at == run.created_at + 3600
        client.beta.threads.runs.cancel(run.id, thread_id=thread.id)
        client.beta.threads.runs.poll(run.id, thread_id=thread.id, poll_interval_ms=10)
        exec(rules, names)  # noqa: S102
        assert names["thread"].to_dict()["loomgate"] == {"on_active_run": "enqueue"}
        names["thread"] = thread
        exec(left, names)  # noqa: S102
        run = next(iter(names["stream"])).data
        names["stream"].close()
        last = client.beta.threads.runs.poll(run.id, thread_id=thread.id, poll_interval_ms=10)
        assert last.status == "cancelled"


# --- Threads ---------------------------------------------------------------------------------------------------------


def listed(client: Client, query: str = "") -> list[str]:
    """The ids of every page, followed as an SDK does."""
    found: list[str] = []
    after = ""
    while True:
        page = client.get(f"/threads?limit=3{query}{after}")
        assert page["object"] == "list"
        found += [thread["id"] for thread in page["data"]]
        if not page["has_more"]:
            return found
        after = f"&after={page['last_id']}"


def test_threads_are_listed_and_filtered(client: Client, server: Server) -> None:
    made = [
        client.post("/threads", {"metadata": {"user": str(n % 2), "team": "a" if n < 4 else "b ü&="}})["id"]
        for n in range(8)
    ]
    newest_first = made[::-1]
    assert listed(client) == newest_first
    assert listed(client, "&order=asc") == made
    assert listed(client, "&metadata[user]=1") == newest_first[::2]
    assert listed(client, "&metadata%5Buser%5D=1&order=asc") == made[1::2]
    assert listed(client, "&metadata[user]=0&metadata[team]=b%20%C3%BC%26%3D") == [made[6], made[4]]
    assert listed(client, "&metadata[user]=9") == []
    page = client.get(f"/threads?metadata[user]=1&limit=2&before={made[3]}")
    assert ([thread["id"] for thread in page["data"]], page["has_more"]) == ([made[7], made[5]], False)

    client.post(f"/threads/{made[7]}", {"metadata": {"user": "0"}})
    client.delete(f"/threads/{made[5]}")
    assert listed(client, "&metadata[user]=1") == [made[3], made[1]]
    assert server.client().get("/threads")["data"] == []  # another workspace's are not seen
    assert client.get("/threads?limit=101", status=400)["param"] == "limit"
    assert client.get("/threads?after=thread_unknown", status=400)["param"] == "after"


# --- A run's own time ------------------------------------------------------------------------------------------------


def test_a_run_may_ask_for_its_own_time(make_server: Callable[..., Server]) -> None:
    client = make_server(run_ttl_max_seconds=7200).client()
    path, body = ask(client, "/wait 9000", stream=False)

    def create(seconds: object, status: int = 200) -> Any:
        return client.post(path, {**body, "loomgate": {"expires_after_seconds": seconds}}, status=status)

    for wrong, code in ((0, "integer_below_min_value"), (7201, "integer_above_max_value"), ("5", "invalid_type")):
        error = create(wrong, 400)
        assert (error["param"], error["code"]) == ("loomgate.expires_after_seconds", code)
    error = client.post(path, {**body, "loomgate": {"expires_in": 5}}, status=400)
    assert (error["code"], error["param"]) == ("unknown_parameter", "loomgate.expires_in")
    run = create(7200)
    assert run["expires_at"] == run["created_at"] + 7200
    reaches(client, run, "in_progress")
    clock.advance(601)
    assert client.get(path_of(run))["status"] == "in_progress"
    clock.advance(6600)
    assert client.get(path_of(run))["status"] == "expired"
    run = client.post(path, body)
    assert run["expires_at"] == run["created_at"] + 600


# --- A second run or message -----------------------------------------------------------------------------------------


def texts(client: Client, thread: str) -> list[tuple[str, str]]:
    messages = client.get(f"/threads/{thread}/messages?order=asc")["data"]
    return [(m["role"], "".join(part["text"]["value"] for part in m["content"])) for m in messages]


def ruled(client: Client, rule: str, text: str) -> dict[str, Any]:
    return client.thread(text, loomgate={"on_active_run": rule})


def settled(client: Client, run: dict[str, Any]) -> str:
    """The run's status once it needs nobody any more."""
    ends = ("completed", "failed", "cancelled", "incomplete", "expired")
    return eventually(lambda: (found := client.get(path_of(run))["status"]) in ends and found)


def reaches(client: Client, run: dict[str, Any], status: str) -> None:
    eventually(lambda: client.get(path_of(run))["status"] == status)


def test_enqueue(client: Client) -> None:
    assistant = client.assistant(instructions="Help.")["id"]
    thread = ruled(client, "enqueue", "/wait 60\n/say First answer")
    runs = f"/threads/{thread['id']}/runs"
    first = client.post(runs, {"assistant_id": assistant})
    reaches(client, first, "in_progress")
    second = client.post(
        runs, {"assistant_id": assistant, "additional_messages": [{"role": "user", "content": "/say Second answer"}]}
    )
    third = client.post(runs, {"assistant_id": assistant, "instructions": "Third."})
    client.post(f"/threads/{thread['id']}/messages", {"role": "user", "content": "Nobody has answered this"})
    assert [run["status"] for run in client.get(runs)["data"]] == ["queued", "queued", "in_progress"]
    clock.advance(60)
    assert [settled(client, run) for run in (first, second, third)] == ["completed"] * 3
    done = [client.get(path_of(run)) for run in (first, second, third)]
    assert [run["started_at"] for run in done] == sorted(run["started_at"] for run in done)
    answers = {m["run_id"]: m["content"][0]["text"]["value"] for m in client.get(runs[:-4] + "messages")["data"]}
    assert answers[first["id"]] == "First answer"
    assert answers[second["id"]] == "Second answer"
    # The last message came after the third run: that one has nothing new to answer but the second's question.
    assert answers[third["id"]] == "Second answer"
    reject = client.post(f"/threads/{thread['id']}", {"loomgate": {"on_active_run": "reject"}})
    assert reject["loomgate"] == {"on_active_run": "reject"}


def test_the_clock_of_a_queued_run_runs(client: Client) -> None:
    assistant = client.assistant(instructions="Help.")["id"]
    thread = ruled(client, "enqueue", "/wait 3600")
    runs = f"/threads/{thread['id']}/runs"
    first = client.post(runs, {"assistant_id": assistant, "loomgate": {"expires_after_seconds": 3000}})
    second = client.post(runs, {"assistant_id": assistant, "loomgate": {"expires_after_seconds": 60}})
    third = client.post(runs, {"assistant_id": assistant, "loomgate": {"expires_after_seconds": 3000}})
    reaches(client, first, "in_progress")
    clock.advance(60)
    assert settled(client, second) == "expired"
    assert client.get(path_of(second))["started_at"] is None
    assert client.post(path_of(third) + "/cancel")["status"] == "cancelling"  # it waits, and is let go of at once
    assert settled(client, third) == "cancelled"
    assert client.get(path_of(first))["status"] == "in_progress"
    client.post(path_of(first) + "/cancel")


def test_interrupt_by_a_run_and_by_a_message(client: Client) -> None:
    assistant = client.assistant(instructions="Help.")["id"]
    thread = ruled(client, "interrupt", "/say So far\n/wait 3600\n/say and on")
    runs, messages = f"/threads/{thread['id']}/runs", f"/threads/{thread['id']}/messages"
    with Viewer(client, "POST", runs, {"assistant_id": assistant, "stream": True}) as viewer:
        first = viewer.until("thread.run.in_progress")
        viewer.until("thread.message.delta", times=2)
        more = {"role": "user", "content": "/say Instead\n/wait 3600"}
        second = client.post(runs, {"assistant_id": assistant, "additional_messages": [more]})
        assert second["status"] == "queued"
        events = viewer.events()
    assert sse.names(events)[-5:] == [
        "thread.run.cancelling",
        "thread.message.incomplete",
        "thread.run.step.cancelled",
        "thread.run.cancelled",
        "done",
    ]
    reaches(client, second, "in_progress")
    eventually(lambda: len(texts(client, thread["id"])) == 4)
    client.post(messages, {"role": "user", "content": "/say Never mind."})
    assert settled(client, second) == "cancelled"
    third = client.post(runs, {"assistant_id": assistant})
    assert settled(client, third) == "completed"
    assert texts(client, thread["id"]) == [
        ("user", "/say So far\n/wait 3600\n/say and on"),
        ("assistant", "So far"),
        ("user", "/say Instead\n/wait 3600"),
        ("assistant", "Instead"),
        ("user", "/say Never mind."),
        ("assistant", "Never mind."),
    ]
    assert client.get(path_of(first))["status"] == "cancelled"


def waited_out(client: Client, run: Any) -> str:
    """How ``run`` ends after its model's wait, which begins a moment after the run is in progress."""
    for _ in range(5):
        clock.advance(60)
        with contextlib.suppress(AssertionError):
            return eventually(lambda: settled_status(client, run), patience=3.0)
    raise AssertionError("it still waits")


def settled_status(client: Client, run: Any) -> str | None:
    status = client.get(path_of(run))["status"]
    return status if status in ("completed", "failed", "cancelled", "expired", "incomplete") else None


def test_the_setting_rules_all_threads(make_server: Callable[..., Server]) -> None:
    client = make_server(active_thread="enqueue").client()
    path, body = ask(client, "/wait 60\n/say Done.", stream=False)
    first, second = client.post(path, body), client.post(path, body)
    own = ruled(client, "reject", "/wait 60")
    client.post(f"/threads/{own['id']}/runs", {"assistant_id": body["assistant_id"]})
    client.post(f"/threads/{own['id']}/runs", {"assistant_id": body["assistant_id"]}, status=400)
    reaches(client, first, "in_progress")
    assert client.get(path_of(second))["status"] == "queued"
    assert waited_out(client, first) == "completed"
    reaches(client, second, "in_progress")
    assert waited_out(client, second) == "completed"


# --- Looking on ------------------------------------------------------------------------------------------------------


def test_every_place_to_break_off_and_come_back(client: Client) -> None:
    path, body = ask(client, "/say One two three\n/call f {}", tools=[{"type": "function", "function": {"name": "f"}}])
    with Viewer(client, "POST", path, body, {"Loomgate-Event-Ids": "true"}) as viewer:
        whole = viewer.rest()
    parsed = sse.parse_with_ids(whole)
    run = client.get(path)["data"][0]
    for n in range(len(parsed) - 1):  # the last one is done
        resumed = client.raw("GET", f"/v1{path_of(run)}/stream", headers={"Last-Event-ID": parsed[n][0]})
        blocks = whole.split(b"\n\n")
        assert b"\n\n".join(blocks[: n + 1]) + b"\n\n" + resumed.body == whole


def test_coming_back_while_the_run_goes_on(client: Client) -> None:
    path, body = ask(client, "/say One\n/wait 60\n/say two\n/wait 60\n/say three")
    with Viewer(client, "POST", path, body, {"Loomgate-Event-Ids": "true"}) as viewer:
        run = viewer.until("thread.run.in_progress")
        viewer.until("thread.message.delta")
        before = viewer.body
    last = sse.parse_with_ids(before)[-1][0]
    clock.advance(60)  # it goes on while nobody looks
    with Viewer(client, "GET", path_of(run) + "/stream", headers={"Last-Event-ID": last}) as viewer, passing():
        after = viewer.rest()
    events = sse.check_stream(before + after, ids=True)
    assert sse.names(events) == sse.SEQUENCES["SSE-40"]
    assert dict(events)["thread.message.completed"]["content"][0]["text"]["value"] == "One\ntwo\nthree"


def test_what_is_not_kept_any_more(make_server: Callable[..., Server]) -> None:
    server = make_server(stream_retention_seconds=30)
    client = server.client()
    with streamed(client, "/say One") as viewer:
        run = viewer.events()[0][1]
    clock.advance(31)
    bus: Any = server.application.engine._bus  # type: ignore[union-attr]
    if isinstance(bus, RedisBus):  # Redis has a clock of its own
        server.run(bus._redis.call("DEL", bus._publisher.key(run["id"])))
    with streamed(client, "/say Another") as viewer:  # what is old goes when something new comes
        viewer.rest()
    with Viewer(client, "GET", path_of(run) + "/stream") as viewer:
        assert "present state" in viewer.comment()
        body = viewer.rest()
    events = sse.parse_with_ids(body)
    assert [event.name for _, event in events] == ["thread.run.completed", "done"]


def test_the_present_state_of_a_run_under_way(make_server: Callable[..., Server]) -> None:
    """An id of another process: the run, its open step and message with the text so far, then the rest."""
    client = make_server().client()
    with streamed(client, "/say One\n/wait 60\n/say two") as viewer:
        run = viewer.until("thread.run.in_progress")
        viewer.until("thread.message.delta")
        with Viewer(client, "GET", path_of(run) + "/stream", headers={"Last-Event-ID": "0-7"}) as late:
            assert "present state" in late.comment()
            shown = late.until("thread.message.in_progress")
            so_far = "".join(part["text"]["value"] for part in shown["content"])
            clock.advance(60)
            parsed = sse.parse_with_ids(late.rest())
        full = sse.check_stream(viewer.rest())
    # Who breaks off inside the state has not all of it: only its last event's id is one to go on from.
    assert len({id for id, _ in parsed[:4]}) == 1
    again = client.raw("GET", f"/v1{path_of(run)}/stream", headers={"Last-Event-ID": parsed[3][0]})
    assert b"present state" in again.body
    resumed = client.raw("GET", f"/v1{path_of(run)}/stream", headers={"Last-Event-ID": parsed[4][0]})
    assert sse.parse_with_ids(resumed.body) == parsed[5:]
    names = [event.name for _, event in parsed]
    assert names[:5] == [
        "thread.run.in_progress",
        "thread.run.step.created",
        "thread.run.step.in_progress",
        "thread.message.created",
        "thread.message.in_progress",
    ]
    assert names[-4:] == ["thread.message.completed", "thread.run.step.completed", "thread.run.completed", "done"]
    deltas = [sse.schema.parse_json(e.data) for _, e in parsed if e.name == "thread.message.delta"]
    more = "".join(part["text"]["value"] for delta in deltas for part in delta["delta"]["content"])
    said = dict(full)["thread.message.completed"]["content"][0]["text"]["value"]
    assert so_far + more == said == "One\ntwo"


@pytest.mark.parametrize("value", ["yes", "1", ""])
def test_event_ids_are_asked_for_in_words_it_knows(client: Client, value: str) -> None:
    path, body = ask(client, "/say Hello")
    response = client.raw("POST", f"/v1{path}", b"{}", {"Loomgate-Event-Ids": value}, check=False)
    assert response.status == 400
    assert body["stream"]
