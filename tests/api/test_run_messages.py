"""The messages that runs write, while they do and afterwards (BEHAVIOUR 6, as far as runs are concerned)."""

from collections.abc import Callable
from typing import Any

import pytest

from loomgate import clock
from tests.api.driving import (
    TTL,
    again,
    eventually,
    load,
    path,
    play,
    settle,
    start,
    steps,
    submit,
    text_of,
    thread_messages,
    waiting,
    written,
)
from tests.support.server import Client
from tests.support.upstream import ModelEndpoint


def _cancel(client: Client, run: dict[str, Any]) -> None:
    client.post(path(run, "/cancel"))


def _expire(_client: Client, _run: dict[str, Any]) -> None:
    clock.advance(TTL + 1)


def _nothing(_client: Client, _run: dict[str, Any]) -> None:
    pass


# Why a message stayed incomplete: the script, what happens meanwhile, how the run ends.
_REASONS: dict[str, tuple[str, Callable[[Client, dict[str, Any]], None], str]] = {
    "content_filter": ("/say Half\n/finish content_filter", _nothing, "completed"),
    "max_tokens": ("/say Half\n/finish length", _nothing, "incomplete"),
    "run_failed": ("/say Half\n/error cut", _nothing, "failed"),
    "run_cancelled": ("/say Half\n/wait 900", _cancel, "cancelled"),
    "run_expired": ("/say Half\n/wait 900", _expire, "expired"),
}


@pytest.mark.behaviour("MSG-11", "MSG-13")
@pytest.mark.parametrize("reason", _REASONS)
def test_why_a_message_is_incomplete(client: Client, reason: str) -> None:
    script, meanwhile, status = _REASONS[reason]
    run = start(client, script)
    (message,) = eventually(lambda: written(client, run))
    meanwhile(client, run)
    assert settle(client, run)["status"] == status
    (after,) = written(client, run)
    assert (after["status"], after["incomplete_details"]) == ("incomplete", {"reason": reason})
    assert (after["completed_at"], after["incomplete_at"] is None) == (None, False)
    assert text_of(after) == "Half"
    assert (after["id"], after["assistant_id"], after["run_id"]) == (message["id"], run["assistant_id"], run["id"])


@pytest.mark.behaviour("MSG-11", "MSG-13", "MSG-14")
def test_a_message_is_there_while_it_is_written(client: Client) -> None:
    run = start(client, "/say One.\n/wait 2\n/say Two.\n/wait 2\n/say Three.")
    (message,) = eventually(lambda: written(client, run))
    assert (message["status"], message["completed_at"], message["incomplete_at"]) == ("in_progress", None, None)
    assert (message["role"], message["assistant_id"], message["run_id"]) == (
        "assistant",
        run["assistant_id"],
        run["id"],
    )
    assert message["content"] == [] or "One.\nTwo.\nThree.".startswith(text_of(message))
    clock.advance(2)
    (more,) = eventually(lambda: [one for one in written(client, run) if one["content"]])
    assert text_of(more).startswith("One.\nTwo")
    assert more["status"] == "in_progress"
    clock.advance(2)
    settle(client, run, "completed")
    (done,) = written(client, run)
    assert done == {
        **message,
        "status": "completed",
        "completed_at": done["completed_at"],
        "content": [{"type": "text", "text": {"value": "One.\nTwo.\nThree.", "annotations": []}}],
    }


@pytest.mark.behaviour("MSG-18")
def test_a_step_outlives_its_message(client: Client) -> None:
    run = play(client, "/say Hello.")
    before, (message,) = steps(client, run), written(client, run)
    client.delete(f"/threads/{run['thread_id']}/messages/{message['id']}")
    assert written(client, run) == []
    assert steps(client, run) == before
    assert before[0]["step_details"]["message_creation"]["message_id"] == message["id"]
    assert load(client, run) == run


def test_a_model_that_says_nothing_completes_its_run(standin: Client, endpoint: ModelEndpoint) -> None:
    run = play(standin, "/finish stop", model="stand-in")
    assert run["status"] == "completed"
    (message,) = written(standin, run)
    assert (message["status"], text_of(message)) == ("completed", "")
    # The next model call does not carry an empty message, which vendors refuse.
    settle(standin, again(standin, run["thread_id"], model="stand-in"))
    assert [one["role"] for one in endpoint.requests[-1].body["messages"]] == ["user"]


def test_a_second_run_sees_the_whole_conversation_in_order(standin: Client, endpoint: ModelEndpoint) -> None:
    run = waiting(standin, "/say Let me see.\n/call f\n/turn\n/say It is so.", model="stand-in")
    submit(standin, run)
    settle(standin, run)
    told = endpoint.requests[-1].body["messages"]
    assert [one["role"] for one in told] == ["user", "assistant", "tool"]
    assert told[1]["content"] == "Let me see."
    standin.post(f"/threads/{run['thread_id']}/messages", {"role": "user", "content": "Thanks."})
    run = settle(standin, again(standin, run["thread_id"], model="stand-in"))
    assert [one["content"] for one in endpoint.requests[-1].body["messages"]][1:] == [
        "Let me see.",
        "It is so.",
        "Thanks.",
    ]
    assert [text_of(one) for one in thread_messages(standin, run)][-1] == "You said: Thanks."
