"""Retrieving, listing and modifying runs (BEHAVIOUR 4.6)."""

import warnings
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.api.driving import ACTIVE, TERMINAL, Lives, again, calls, error, load, path, play, settle, start, waiting
from tests.support.server import Client


@pytest.fixture
def sdk(client: Client) -> Iterator[openai.OpenAI]:
    """The official SDK with the key of `client`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # the whole of `beta.threads` says that it is deprecated
        with openai.OpenAI(base_url=client.url + "/v1", api_key=client.key, max_retries=0) as made:
            yield made


@pytest.mark.behaviour("RUN-80")
def test_retrieve(client: Client) -> None:
    run = play(client, "Hello", metadata={"a": "b"})
    assert client.get(path(run)) == run
    assert client.get(path(run, "?anything=1&limit=x")) == run
    assert run["metadata"] == {"a": "b"}


@pytest.mark.behaviour("RUN-81")
def test_a_run_belongs_to_its_thread(client: Client) -> None:
    run, other = waiting(client), client.thread("Hello")
    elsewhere = {**run, "thread_id": other["id"]}
    unknown = {**run, "id": "run_" + "0" * 24}
    submitted = {"tool_outputs": [{"tool_call_id": calls(run)[0]["id"], "output": ""}]}
    for wrong in (elsewhere, unknown):
        said = f"No run found with id '{wrong['id']}'."
        for tail, body in (("", None), ("/cancel", None), ("", {}), ("/submit_tool_outputs", submitted)):
            method = "POST" if body is not None or tail else "GET"
            assert client.call(method, path(wrong, tail), body, status=404)["message"] == said
        for tail in ("/steps", "/steps/step_x"):
            assert client.get(path(wrong, tail), status=404)["message"] == said
    missing = "thread_" + "0" * 24
    assert client.get(f"/threads/{missing}/runs/{run['id']}", status=404)["message"] == (
        f"No thread found with id '{missing}'."
    )
    assert load(client, run) == run


@pytest.mark.behaviour("RUN-82", "RUN-83", "LIST-01", "LIST-03", "LIST-05")
def test_a_list_holds_the_runs_of_one_thread_newest_first(client: Client) -> None:
    assistant = client.assistant()["id"]
    thread = client.thread("Hello")
    runs = [settle(client, again(client, thread["id"], assistant_id=assistant)) for _ in range(3)]
    play(client, "elsewhere", assistant_id=assistant)
    page = client.get(f"/threads/{thread['id']}/runs")
    assert page["data"] == [client.get(path(run)) for run in reversed(runs)] == runs[::-1]
    assert (page["first_id"], page["last_id"], page["has_more"]) == (runs[2]["id"], runs[0]["id"], False)
    assert client.get(f"/threads/{thread['id']}/runs?order=asc")["data"] == runs
    assert client.get(f"/threads/{client.thread()['id']}/runs") == {
        "object": "list",
        "data": [],
        "first_id": None,
        "last_id": None,
        "has_more": False,
    }


@pytest.mark.behaviour("RUN-83")
@pytest.mark.parametrize("status", [*ACTIVE, *TERMINAL])
def test_a_lists_element_is_what_retrieve_returns(lives: Lives, status: str) -> None:
    client, run = lives(status)
    assert client.get(f"/threads/{run['thread_id']}/runs")["data"] == [run] == [load(client, run)]
    lives.end(client, run)


@pytest.mark.behaviour("RUN-82", "LIST-06", "LIST-07", "LIST-08", "LIST-09", "LIST-11", "LIST-12", "LIST-19")
def test_forty_five_runs_in_pages(client: Client, sdk: openai.OpenAI) -> None:
    """E2E-07: pages of 20, 20 and 5 in both directions, ties in ``created_at`` included, inserts while paging."""
    assistant = client.assistant()["id"]
    thread = client.thread("/say Hi")["id"]

    def run() -> dict[str, Any]:
        return settle(client, again(client, thread, assistant_id=assistant))

    runs = [run() for _ in range(45)]
    ids = [one["id"] for one in runs]
    assert len({one["created_at"] for one in runs}) < 45  # there are ties

    def pages(query: str, cursor: str) -> list[list[str]]:
        found: list[list[str]] = []
        more = ""
        while True:
            page = client.get(f"/threads/{thread}/runs?limit=20&{query}{more}")
            found.append([one["id"] for one in page["data"]])
            if not page["has_more"]:
                return found
            more = f"&{cursor}={page['last_id' if cursor == 'after' else 'first_id']}"

    assert pages("order=asc", "after") == [ids[:20], ids[20:40], ids[40:]]
    back = ids[::-1]
    assert pages("order=desc", "after") == [back[:20], back[20:40], back[40:]]
    # Backwards from the last element: the page before, nearest first, in the same order.
    before = client.get(f"/threads/{thread}/runs?order=asc&limit=20&before={ids[44]}")
    assert [one["id"] for one in before["data"]] == ids[24:44]
    before = client.get(f"/threads/{thread}/runs?order=asc&limit=20&before={ids[24]}")
    assert ([one["id"] for one in before["data"]], before["has_more"]) == (ids[4:24], True)
    before = client.get(f"/threads/{thread}/runs?order=asc&limit=20&before={ids[4]}")
    assert ([one["id"] for one in before["data"]], before["has_more"]) == (ids[:4], False)

    seen: list[str] = []
    for number, one in enumerate(sdk.beta.threads.runs.list(thread, limit=20)):
        seen.append(one.id)
        if number in (5, 25):
            run()  # what is new does not shift the pages that follow
    assert seen == back


@pytest.mark.behaviour("RUN-84", "RUN-86", "RUN-87", "RUN-89")
@pytest.mark.parametrize("status", TERMINAL)
def test_metadata_of_a_run_that_has_ended(lives: Lives, status: str) -> None:
    client, run = lives(status)
    cases: list[tuple[dict[str, Any], dict[str, str]]] = [
        ({"metadata": {"a": "1", "b": "2"}}, {"a": "1", "b": "2"}),
        ({}, {"a": "1", "b": "2"}),
        ({"metadata": {"b": "3"}}, {"b": "3"}),
        ({"metadata": {}}, {}),
        ({"metadata": {"c": "4"}}, {"c": "4"}),
        ({"metadata": None}, {}),
    ]
    for body, shown in cases:
        changed = client.post(path(run), body)
        assert changed == {**run, "metadata": shown}
        assert load(client, run) == changed
    client.post(f"/threads/{run['thread_id']}/messages", {"role": "user", "content": "The thread is free."})


@pytest.mark.behaviour("RUN-84", "RUN-88")
def test_nothing_but_metadata_can_be_modified(client: Client) -> None:
    run = play(client, "Hello")
    for field, value in (("instructions", "x"), ("status", "queued"), ("model", "scripted"), ("stream", True)):
        assert client.post(path(run), {"metadata": {}, field: value}, status=400) == error(
            f"Unknown parameter: '{field}'.", param=field, code="unknown_parameter"
        )
    assert client.post(path(run), {"metadata": {"modified": True}}, status=400) == error(
        "Invalid type for 'metadata.modified': expected a string, but got a boolean instead.",
        param="metadata.modified",
        code="invalid_type",
    )
    assert load(client, run) == run


@pytest.mark.behaviour("RUN-85", "RUN-89", "HDR-09")
@pytest.mark.parametrize("status", ACTIVE)
def test_an_active_run_cannot_be_modified(lives: Lives, status: str) -> None:
    client, run = lives(status)
    refused = client.post(path(run), {"metadata": {"a": "b"}}, status=400)
    assert refused == error(f"Cannot update run with status '{status}'.")
    wrong = client.post(path(run), {"metadata": {"a": True}}, status=400)
    assert wrong["code"] == "invalid_type"
    assert load(client, run) == run
    lives.end(client, run)


@pytest.mark.behaviour("RUN-80", "RUN-84", "RUN-60", "RUN-63", "RUN-55", "SDK-03")
def test_the_official_client_sees_the_same(client: Client, sdk: openai.OpenAI) -> None:
    runs = sdk.beta.threads.runs
    made = start(client, "/call f\n/turn\n/say Done.", tools=[{"type": "function", "function": {"name": "f"}}])
    run = runs.poll(made["id"], thread_id=made["thread_id"])
    assert run.status == "requires_action"
    assert run.required_action is not None
    (call,) = run.required_action.submit_tool_outputs.tool_calls
    done = runs.submit_tool_outputs_and_poll(
        run_id=run.id, thread_id=run.thread_id, tool_outputs=[{"tool_call_id": call.id, "output": "out"}]
    )
    assert done.status == "completed"
    assert runs.update(run.id, thread_id=run.thread_id, metadata={"a": "b"}).metadata == {"a": "b"}
    with pytest.raises(openai.BadRequestError, match="Cannot cancel run with status 'completed'"):
        runs.cancel(run.id, thread_id=run.thread_id)
    steps = list(runs.steps.list(run.id, thread_id=run.thread_id))
    assert [step.type for step in steps] == ["message_creation", "tool_calls"]
    assert runs.steps.retrieve(steps[0].id, thread_id=run.thread_id, run_id=run.id) == steps[0]
