"""Failed and incomplete runs, budgets and truncation (BEHAVIOUR 4.8, RUN-19)."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from loomgate import clock
from loomgate.engine import points
from loomgate.providers import tokens
from tests.api.driving import (
    CALL,
    TTL,
    F,
    again,
    documented,
    eventually,
    hurried,
    load,
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
from tests.support.server import Client, ProcessServer, serving
from tests.support.storage import Storage
from tests.support.upstream import ModelEndpoint

# What the endpoint does, and the code of the failed run.
_FAILURES = {
    "/error 500": "server_error",
    "/error 503": "server_error",
    "/error 401": "server_error",
    "/error 404": "server_error",
    "/error timeout": "server_error",
    "/error connect": "server_error",
    "/error cut": "server_error",
    "/error malformed": "server_error",
    "/error 429": "rate_limit_exceeded",
    "/error quota": "rate_limit_exceeded",
    "/error 400": "invalid_prompt",
}


@pytest.mark.behaviour("RUN-90", "RUN-97", "RUN-31")
@pytest.mark.parametrize("fault", _FAILURES)
def test_what_a_failing_model_makes_of_a_run(standin: Client, fault: str) -> None:
    run = start(standin, fault, model="stand-in")
    assert run["status"] == "queued"
    failed = settle(standin, run)
    assert failed["status"] == "failed"
    assert failed["last_error"]["code"] == _FAILURES[fault]
    assert failed["last_error"]["message"]
    assert (failed["expires_at"], failed["completed_at"]) == (None, None)
    assert failed["failed_at"] >= failed["started_at"]
    assert written(standin, run) == steps(standin, run) == []
    # The next run on the thread is as good as any.
    more = [{"role": "user", "content": "/say Better."}]
    assert settle(standin, again(standin, run["thread_id"], additional_messages=more))["status"] == "completed"


@pytest.mark.behaviour("RUN-98", "RUN-97", "RUN-90", "STEP-16")
@pytest.mark.parametrize("fault", _FAILURES)
def test_a_failure_in_the_middle_of_an_answer_keeps_what_was_said(
    standin: Client, endpoint: ModelEndpoint, fault: str
) -> None:
    run = hurried(standin, start(standin, f"/say Half a\n{fault}", model="stand-in"))
    # What another attempt may mend gets three more.
    assert len(endpoint.requests) == (1 if fault.endswith(("400", "401", "404", "quota")) else 4)
    assert (run["status"], run["last_error"]["code"]) == ("failed", _FAILURES[fault])
    (message,) = written(standin, run)
    assert (message["status"], message["incomplete_details"]) == ("incomplete", {"reason": "run_failed"})
    assert message["incomplete_at"] is not None
    assert text_of(message) == "Half a"
    (step,) = steps(standin, run)
    assert (step["status"], step["completed_at"]) == ("failed", None)
    assert run["failed_at"] - step["failed_at"] in range(10)  # `hurried` moves time between the two
    code = "rate_limit_exceeded" if run["last_error"]["code"] == "rate_limit_exceeded" else "server_error"
    assert step["last_error"] == {"code": code, "message": run["last_error"]["message"]}


@pytest.mark.behaviour("RUN-98", "STEP-16")
def test_a_failure_leaves_what_was_complete(standin: Client) -> None:
    run = waiting(standin, "/say First.\n/call f\n/turn\n/say Half\n/error cut", model="stand-in")
    submit(standin, run)
    run = hurried(standin, run)
    assert run["status"] == "failed"
    assert [step["status"] for step in steps(standin, run)] == ["completed", "completed", "failed"]
    assert [message["status"] for message in written(standin, run)] == ["completed", "incomplete"]
    spent = [step["usage"]["total_tokens"] for step in steps(standin, run) if step["usage"]]
    assert run["usage"]["total_tokens"] == sum(spent) > 0


@pytest.mark.behaviour("RUN-90")
def test_the_codes_are_the_documented_ones() -> None:
    assert set(_FAILURES.values()) == documented("RunObject", "last_error", "code")
    assert documented("RunStepObject", "last_error", "code") == {"server_error", "rate_limit_exceeded"}


@pytest.mark.behaviour("RUN-97")
@pytest.mark.parametrize("fault", ["/wait 30\n/say late", "/say Half\n/wait 30\n/say late"])
def test_a_model_that_falls_silent_fails_the_run(standin: Client, endpoint: ModelEndpoint, fault: str) -> None:
    run = hurried(standin, start(standin, fault, model="hasty"), 0.05)
    assert (run["status"], run["last_error"]["code"]) == ("failed", "server_error")
    eventually(endpoint.dropped.is_set)


@pytest.mark.behaviour("RUN-97")
def test_a_model_call_is_tried_again_before_the_run_fails(standin: Client, endpoint: ModelEndpoint) -> None:
    run = play(standin, "/error 500 times=1\n/say Now.", model="stubborn")
    assert run["status"] == "completed"
    assert [text_of(message) for message in written(standin, run)] == ["Now."]
    assert len(endpoint.requests) == 2
    assert play(standin, "/error 500", model="stubborn")["last_error"]["code"] == "server_error"
    assert len(endpoint.requests) == 4
    assert play(standin, "/error 400", model="stubborn")["last_error"]["code"] == "invalid_prompt"
    assert len(endpoint.requests) == 5


@pytest.fixture
def breaking() -> Iterator[Callable[[str], None]]:
    """Makes the next run break at a point of its life."""

    def at(wanted: str) -> None:
        def watcher(point: str) -> None:
            if point == wanted:
                points.watch(None)
                raise RuntimeError("a fault of ours")

        points.watch(watcher)

    yield at
    points.watch(None)


@pytest.mark.behaviour("RUN-91", "RUN-98")
@pytest.mark.parametrize("point", ["calling", "delta"])
def test_a_fault_of_the_server_fails_the_run(client: Client, breaking: Callable[[str], None], point: str) -> None:
    breaking(point)
    run = play(client, "/say Hello.")
    assert (run["status"], run["expires_at"]) == ("failed", None)
    assert run["last_error"] == {"code": "server_error", "message": "Sorry, something went wrong."}
    assert {run["usage"][name] for name in ("prompt_tokens", "completion_tokens", "total_tokens")} == {0}
    assert [step["status"] for step in steps(client, run)] == ([] if point == "calling" else ["failed"])
    for message in written(client, run):
        assert (message["status"], message["incomplete_details"]) == ("incomplete", {"reason": "run_failed"})


# --- incomplete ------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("RUN-92", "RUN-95", "RUN-31")
def test_an_answer_that_is_cut_at_the_budget(standin: Client, endpoint: ModelEndpoint) -> None:
    run = play(standin, "/repeat 300 word", model="stand-in", max_completion_tokens=256)
    assert endpoint.requests[-1].body["max_completion_tokens"] == 256
    assert (run["status"], run["incomplete_details"]) == ("incomplete", {"reason": "max_completion_tokens"})
    assert (run["usage"]["completion_tokens"], run["last_error"]) == (256, None)
    (message,) = written(standin, run)
    assert (message["status"], message["incomplete_details"]) == ("incomplete", {"reason": "max_tokens"})
    assert (message["incomplete_at"], message["completed_at"]) == (run["completed_at"], None)
    assert text_of(message).split() == ["word"] * 256
    (step,) = steps(standin, run)
    assert (step["status"], step["usage"]["completion_tokens"]) == ("completed", 256)
    more = [{"role": "user", "content": "/say On we go."}]
    assert settle(standin, again(standin, run["thread_id"], additional_messages=more))["status"] == "completed"


@pytest.mark.behaviour("RUN-92")
def test_a_content_filter(client: Client) -> None:
    cut = play(client, "/say The beginning\n/finish content_filter")
    assert (cut["status"], cut["incomplete_details"], cut["last_error"]) == ("completed", None, None)
    (message,) = written(client, cut)
    assert (message["status"], message["incomplete_details"]) == ("incomplete", {"reason": "content_filter"})
    assert text_of(message) == "The beginning"
    withheld = play(client, "/finish content_filter")
    assert (withheld["status"], withheld["incomplete_details"]) == ("failed", None)
    assert withheld["last_error"]["code"] == "server_error"
    (message,) = written(client, withheld)
    assert message["incomplete_details"] == {"reason": "content_filter"}
    reasons = documented("RunObject", "incomplete_details", "reason")
    assert reasons == {"max_completion_tokens", "max_prompt_tokens"}


@pytest.mark.behaviour("RUN-93")
def test_the_completion_budget_spans_the_run(standin: Client, endpoint: ModelEndpoint) -> None:
    script = "/usage completion=300 prompt=10\n/call f\n/turn\n/repeat 300 word"
    run = waiting(standin, script, model="stand-in", max_completion_tokens=500)
    submit(standin, run)
    run = settle(standin, run)
    assert [request.body["max_completion_tokens"] for request in endpoint.requests] == [500, 200]
    assert (run["status"], run["usage"]["completion_tokens"]) == ("incomplete", 500)
    assert len(text_of(written(standin, run)[0]).split()) == 200


@pytest.mark.behaviour("RUN-93", "RUN-92", "RUN-96")
@pytest.mark.parametrize("which", ["max_completion_tokens", "max_prompt_tokens"])
def test_a_budget_that_is_used_up_ends_the_run_before_the_next_turn(
    standin: Client, endpoint: ModelEndpoint, which: str
) -> None:
    kind = which.split("_")[1]
    script = f"/usage prompt=10 completion=10 {kind}=256\n/call f\n/turn\n/say never"
    script = script.replace(f"{kind}=10 ", "")
    run = waiting(standin, script, model="stand-in", **{which: 256})
    submit(standin, run)
    run = settle(standin, run)
    assert (run["status"], run["incomplete_details"]) == ("incomplete", {"reason": which})
    assert len(endpoint.requests) == 1
    assert written(standin, run) == []
    assert [step["status"] for step in steps(standin, run)] == ["completed"]


@pytest.mark.behaviour("RUN-94")
def test_a_budget_is_a_target(standin: Client) -> None:
    run = play(standin, "/usage prompt=700 completion=5\n/say Hello.", model="stand-in", max_prompt_tokens=256)
    assert (run["status"], run["usage"]["prompt_tokens"]) == ("completed", 700)


@pytest.mark.behaviour("RUN-96", "RUN-92")
@pytest.mark.parametrize("where", ["message", "instructions"])
def test_a_prompt_that_cannot_fit_ends_the_run_without_a_word(
    standin: Client, endpoint: ModelEndpoint, where: str
) -> None:
    long = "word " * 400
    texts, instructions = (long, "Go.") if where == "message" else ("Hello", long)
    run = play(standin, texts, model="stand-in", instructions=instructions, max_prompt_tokens=256)
    assert (run["status"], run["incomplete_details"]) == ("incomplete", {"reason": "max_prompt_tokens"})
    assert endpoint.requests == []
    assert written(standin, run) == steps(standin, run) == []
    assert run["completed_at"] >= run["started_at"]


# --- truncation ------------------------------------------------------------------------------------------------------

_TEXTS = [f"Message number {n}: " + "some more words " * 10 for n in range(40)]


def _tokens(request: Any) -> int:
    return sum(tokens.count_text(message["content"], "stand-in") for message in request.body["messages"])


@pytest.mark.behaviour("RUN-19", "RUN-18")
@pytest.mark.parametrize(
    ("fields", "limit"),
    [({"model": "stand-in", "max_prompt_tokens": 600}, 600), ({"model": "stand-in-small"}, 1024)],
)
def test_auto_leaves_out_the_middle(
    standin: Client, endpoint: ModelEndpoint, fields: dict[str, Any], limit: int
) -> None:
    run = play(standin, *_TEXTS, instructions="Be brief.", **fields)
    assert run["status"] == "completed"
    (request,) = endpoint.requests
    system, *sent = [message["content"] for message in request.body["messages"]]
    assert system == "Be brief."
    assert sent[0] == _TEXTS[0]
    newest = len(sent) - 1
    assert 3 < newest < 30
    assert sent[1:] == _TEXTS[-newest:]
    assert _tokens(request) <= limit
    assert [text_of(message) for message in thread_messages(standin, run)][:-1] == _TEXTS


@pytest.mark.behaviour("RUN-19", "RUN-18")
@pytest.mark.parametrize("count", [1, 3, 100])
def test_last_messages_sends_only_the_newest(standin: Client, endpoint: ModelEndpoint, count: int) -> None:
    strategy = {"type": "last_messages", "last_messages": count}
    play(standin, *_TEXTS, model="stand-in", truncation_strategy=strategy)
    assert [message["content"] for message in endpoint.requests[-1].body["messages"]] == _TEXTS[-count:]


@pytest.mark.behaviour("RUN-19")
def test_what_fits_is_sent_whole(standin: Client, endpoint: ModelEndpoint) -> None:
    run = play(standin, *_TEXTS, model="stand-in", instructions="Be brief.")
    again(standin, run["thread_id"], model="stand-in")
    eventually(lambda: len(endpoint.requests) == 2)
    found = [(message["role"], message["content"]) for message in endpoint.requests[-1].body["messages"]]
    assert found == [*(("user", text) for text in _TEXTS), ("assistant", text_of(written(standin, run)[0]))]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_a_refusal_is_a_message_of_its_kind(standin: Client, endpoint: ModelEndpoint) -> None:
    run = play(standin, "/refuse I cannot help with that.", model="stand-in")
    assert run["status"] == "completed"
    (message,) = written(standin, run)
    assert message["content"] == [{"type": "refusal", "refusal": "I cannot help with that."}]
    settle(standin, again(standin, run["thread_id"], model="stand-in"))
    assert endpoint.requests[-1].body["messages"][1] == {
        "role": "assistant",
        "content": None,
        "refusal": "I cannot help with that.",
    }


# --- restarts --------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("RUN-99")
def test_a_restart_leaves_no_run_behind(storage: Storage, tmp_path: Path) -> None:
    """What was under way goes on, what waits still waits, what is overdue by then has expired."""
    with storage.new() as there:
        with serving(tmp_path / "data", drain_seconds=0.0, **there) as first:
            client = first.client()
            key = client.key
            talking = start(client, "/say Hel\n/wait 5\n/say lo")
            waits = waiting(client, CALL, loomgate={"expires_after_seconds": 3600})
            overdue = waiting(client, CALL)
            eventually(lambda: written(client, talking))
        clock.advance(5)
        with serving(tmp_path / "data", drain_seconds=0.0, **there) as second:
            client = Client(second.url, key)
            clock.advance(5)
            eventually(lambda: clock.advance(1) or load(client, talking)["status"] == "completed")
            assert [text_of(message) for message in written(client, talking)] == ["Hel\nlo"]
            assert [step["status"] for step in steps(client, talking)] == ["completed"]
        clock.advance(TTL)
        with serving(tmp_path / "data", **there) as third:
            client = Client(third.url, key)
            assert load(client, overdue)["status"] == "expired"
            assert load(client, waits) == waits
            submit(client, waits)
            assert settle(client, waits)["status"] == "completed"


@pytest.mark.behaviour("RUN-99")
def test_a_power_cut_leaves_no_run_behind(process_server: Callable[..., ProcessServer]) -> None:
    server = process_server()
    client = server.client()
    run = start(client, "/say Hel\n/wait 1\n/say lo", tools=[F])
    eventually(lambda: written(client, run))
    server.kill()
    server.start()
    client = server.client()
    assert settle(client, run)["status"] == "completed"
    assert [text_of(message) for message in written(client, run)] == ["Hel\nlo"]
