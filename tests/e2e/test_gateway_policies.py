"""Retries, time limits, the cache and guardrails as a client sees them (GATEWAY 6.7 to 6.9, section 7)."""

import json
from types import SimpleNamespace
from typing import Any

import pytest

from loomgate import clock
from tests.support.standin import chat_answer, chat_events
from tests.support.way import Way

_RETRY_AFTER = {"attempts": 3, "use_retry_after_headers": True}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The waits between tries, which do not take their time."""
    found: list[float] = []

    async def asleep(seconds: float) -> None:
        found.append(seconds)

    # Its own clock: whatever else in the server waits does not count.
    monkeypatch.setattr("loomgate.gateway.gateway.clock", SimpleNamespace(**{**vars(clock), "sleep": asleep}))
    return found


# --- retries ----------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("RTY-01", "RTY-04", "RSP-03")
def test_tries_until_it_answers(way: Way, waits: list[float]) -> None:
    for _ in range(3):
        way.upstream.say(b'{"error":{"message":"no"}}', "503 Oops")
    way.upstream.say(chat_answer())
    found = way.config({"retry": {"attempts": 5}}).chat()
    assert (found.status, found.headers["x-portkey-retry-attempt-count"], waits) == (200, "3", [1, 2, 4])
    assert len({request.body for request in way.upstream.asked}) == 1


@pytest.mark.behaviour("RTY-01", "RTY-09", "RSP-03")
def test_tries_used_up(way: Way, waits: list[float]) -> None:
    way.upstream.at("POST", {"error": {"message": "no"}}, "500 Oops", ("X-Why", "w"))
    found = way.config({"retry": {"attempts": 2}}).chat()
    assert (found.status, found.headers["x-portkey-retry-attempt-count"], waits) == (500, "-1", [1, 2])
    assert (found.headers["x-why"], len(way.upstream.asked)) == ("w", 3)


@pytest.mark.behaviour("RTY-02", "RTY-03", "RTY-09")
@pytest.mark.parametrize(
    ("codes", "status", "tries"),
    [(None, 529, 2), (None, 501, 1), (None, 400, 1), ([418], 418, 2), ([418], 500, 1), ([], 500, 1)],
)
def test_statuses_that_are_tried_again(
    way: Way, waits: list[float], codes: list[int] | None, status: int, tries: int
) -> None:
    way.upstream.at("POST", {"error": {"message": "no"}}, f"{status} X")
    retry = {"attempts": 1} if codes is None else {"attempts": 1, "on_status_codes": codes}
    assert way.config({"retry": retry}).chat().status == status
    assert (len(way.upstream.asked), len(waits)) == (tries, tries - 1)


@pytest.mark.behaviour("RTY-05", "RTY-06")
@pytest.mark.parametrize(
    ("header", "value", "tries"),
    [("retry-after-ms", "1", 2), ("x-ms-retry-after-ms", "1", 2), ("retry-after", "0", 2), ("retry-after", "61", 1)],
)
def test_waiting_as_long_as_the_endpoint_asks(
    way: Way, waits: list[float], header: str, value: str, tries: int
) -> None:
    way.upstream.say({"error": {"message": "slow"}}, "429 Too Many", (header, value))
    way.upstream.say(chat_answer())
    found = way.config({"retry": _RETRY_AFTER}).chat()
    assert (found.status, len(way.upstream.asked)) == (200 if tries == 2 else 429, tries)
    assert all(wait < 0.1 for wait in waits)
    assert found.headers["x-portkey-retry-attempt-count"] == ("1" if tries == 2 else "-1")


@pytest.mark.behaviour("RTY-07", "RSP-02", "RSP-03")
def test_each_target_counts_for_itself(way: Way, waits: list[float]) -> None:
    for status in ("503 A", "503 B", "503 C"):
        way.upstream.say({"error": {"message": "no"}}, status)
    way.upstream.say(chat_answer())
    config = {"strategy": {"mode": "fallback"}, "targets": [{"retry": {"attempts": 1}}, {"retry": {"attempts": 1}}]}
    found = way.config(config).chat()
    assert (found.status, len(way.upstream.asked)) == (200, 4)
    assert found.headers["x-portkey-last-used-option-index"] == "config.targets[1]"
    assert found.headers["x-portkey-retry-attempt-count"] == "1"


@pytest.mark.behaviour("RTY-08")
def test_a_verdict_may_ask_for_another_try(way: Way, waits: list[float]) -> None:
    way.upstream.say(chat_answer("bad"))
    way.upstream.say(chat_answer("good"))
    config = {
        "retry": {"attempts": 1, "on_status_codes": [446]},
        "output_guardrails": [{"default.contains": {"operator": "none", "words": ["bad"]}, "deny": True}],
    }
    found = way.config(config).chat()
    assert (found.status, found.json["choices"][0]["message"]["content"]) == (200, "good")


@pytest.mark.behaviour("RTY-11", "PRX-12", "PRX-08")
def test_a_proxied_post_is_not_made_twice(way: Way, waits: list[float]) -> None:
    config = way.config({"retry": {"attempts": 2}})
    way.upstream.at("POST", {"error": {"message": "no"}}, "500 Oops")
    assert config.raw("POST", "/proxy/threads", b"{}").status == 500
    assert len(way.upstream.asked) == 1
    way.upstream.forget()
    way.upstream.say(b"{}", "429 Too Many")
    way.upstream.say(b"{}")
    assert config.raw("POST", "/proxy/threads", b"{}").status == 200


@pytest.mark.behaviour("PRX-11")
def test_stateful_paths_are_not_spread_over_targets(way: Way) -> None:
    config = {"strategy": {"mode": "loadbalance"}, "targets": [{"weight": 1}, {"weight": 1}]}
    found = way.config(config).raw("POST", "/proxy/threads", b"{}")
    assert found.status == 400
    assert not way.upstream.asked


# --- time -------------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("TMO-01", "TMO-02", "TMO-04", "RH-11")
def test_a_time_limit(way: Way) -> None:
    way.upstream.hang()
    found = way.config({"request_timeout": 60_000}).named(request_timeout="40").chat()
    assert found.status == 408
    message = "Request exceeded the timeout sent in the request: 40ms"
    assert found.json == {"error": {"message": message, "type": "timeout_error", "param": None, "code": None}}


@pytest.mark.behaviour("RH-11")
@pytest.mark.parametrize("given", ["soon", "0", "-5", "1e3", ""])
def test_time_limits_that_are_none(way: Way, given: str) -> None:
    way.upstream.say(chat_answer())
    assert way.named(request_timeout=given).chat().status == 200


@pytest.mark.behaviour("TMO-03", "RSP-02")
def test_a_time_limit_may_lead_elsewhere(way: Way) -> None:
    way.upstream.hang()
    way.upstream.say(chat_answer())
    config = {
        "strategy": {"mode": "fallback", "on_status_codes": [408]},
        "targets": [{"request_timeout": 40}, {}],
    }
    found = way.config(config).chat()
    assert (found.status, found.headers["x-portkey-last-used-option-index"]) == (200, "config.targets[1]")


# --- the cache --------------------------------------------------------------------------------------------------------


@pytest.mark.behaviour("CCH-01", "CCH-06", "RSP-04")
@pytest.mark.parametrize("streams", [(False, True), (True, False), (True, True), (False, False)])
def test_a_kept_answer_in_both_forms(way: Way, streams: tuple[bool, bool]) -> None:
    """One that came whole answers a stream as a stream, and the other way round, in the shapes of the SDKs."""
    text = "Grüße, " + "x" * 1200
    cached = way.config({"cache": {"mode": "simple"}})
    if streams[0]:
        way.upstream.stream(*chat_events("Grüße, ", "x" * 1200))
    else:
        way.upstream.say(chat_answer(text))
    first, second = (cached.chat(stream=True) if stream else cached.chat() for stream in streams)
    assert [first.headers["x-portkey-cache-status"], second.headers["x-portkey-cache-status"]] == ["MISS", "HIT"]
    assert len(way.upstream.asked) == 1
    if not streams[1]:
        assert second.headers["content-type"].startswith("application/json")
        assert second.json["choices"][0]["message"]["content"] == text
        return
    assert second.headers["content-type"].startswith("text/event-stream")
    events = second.body.decode().removesuffix("\n\n").split("\n\n")
    assert events[-1] == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events[:-1]]
    pieces = [chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks if chunk["choices"]]
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 500
    assert [c["choices"][0]["finish_reason"] for c in chunks if c["choices"] and c["choices"][0]["finish_reason"]] == [
        "stop"
    ]


@pytest.mark.behaviour("CCH-06")
def test_kept_tool_calls_as_a_stream(way: Way) -> None:
    call = {"id": "call_1", "type": "function", "function": {"name": "now", "arguments": '{"a":1}'}}
    whole = chat_answer()
    whole["choices"][0] |= {"message": {"role": "assistant", "content": None, "tool_calls": [call]}}
    whole["choices"][0]["finish_reason"] = "tool_calls"
    way.upstream.say(whole)
    cached = way.config({"cache": {"mode": "simple"}})
    cached.chat()
    found = cached.chat(stream=True)
    chunks = [json.loads(event[6:]) for event in found.body.decode().split("\n\n") if event[6:] not in ("", "[DONE]")]
    deltas = [d for c in chunks if c["choices"] for d in c["choices"][0]["delta"].get("tool_calls") or ()]
    assert deltas[0]["function"]["name"] == "now"
    assert "".join(d["function"].get("arguments") or "" for d in deltas) == '{"a":1}'


@pytest.mark.behaviour("CCH-09")
@pytest.mark.parametrize("status", ["400 Bad", "500 Oops"])
def test_errors_are_not_kept(way: Way, status: str) -> None:
    cached = way.config({"cache": {"mode": "simple"}})
    way.upstream.say({"error": {"message": "no"}}, status)
    way.upstream.say(chat_answer())
    assert [cached.chat().headers["x-portkey-cache-status"] for _ in range(2)] == ["MISS", "MISS"]


@pytest.mark.behaviour("CCH-09")
def test_a_stream_that_broke_is_not_kept(way: Way) -> None:
    cached = way.config({"cache": {"mode": "simple"}})
    way.upstream.stream(chat_events("a")[0], b'data: {"error":{"message":"over"}}\n\n')
    way.upstream.say(chat_answer())
    cached.chat(stream=True)
    assert cached.chat().headers["x-portkey-cache-status"] == "MISS"


@pytest.mark.behaviour("CCH-05", "CCH-10")
@pytest.mark.parametrize("path", ["/files", "/batches", "/fine_tuning/jobs", "/images/edits", "/responses", "/proxy/x"])
def test_what_is_never_kept(way: Way, path: str) -> None:
    way.upstream.at("POST", {"id": "x"})
    cached = way.config({"cache": {"mode": "simple"}})
    found = [cached.post(path, {"model": "m"}).headers["x-portkey-cache-status"] for _ in range(2)]
    assert (found, len(way.upstream.asked)) == (["DISABLED", "DISABLED"], 2)


@pytest.mark.behaviour("CCH-08")
def test_guardrails_look_at_what_was_kept(way: Way) -> None:
    way.upstream.say(chat_answer())
    cache = {"cache": {"mode": "simple"}}
    assert way.config(cache).chat().status == 200
    long = [{"default.wordCount": {"minWords": 5, "maxWords": 9}}]
    found = way.config({**cache, "input_guardrails": long}).chat()
    assert (found.status, found.headers["x-portkey-cache-status"]) == (246, "HIT")
    assert found.json["hook_results"]["before_request_hooks"][0]["verdict"] is False


# --- guardrails -------------------------------------------------------------------------------------------------------

_LONG = {"default.wordCount": {"minWords": 5, "maxWords": 9}}
_SHORT = {"default.wordCount": {"minWords": 0, "maxWords": 9}}
_CLEAN = {"default.contains": {"operator": "none", "words": ["bad"]}}
_MESSAGE = (
    "The guardrail checks defined in the config failed. You can find more information in the `hook_results` object."
)


def _denied(found: Any) -> Any:
    assert (found.status, found.headers["content-type"]) == (446, "application/json")
    assert found.json["error"] == {"message": _MESSAGE, "type": "hooks_failed", "param": None, "code": None}
    return found.json["hook_results"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.behaviour("GR-10", "GR-15")
def test_a_question_that_is_denied(way: Way, stream: bool, strict: str) -> None:
    config = way.config({"input_guardrails": [{**_LONG, "deny": True}]}).named(strict_open_ai_compliance=strict)
    results = _denied(config.chat(stream=stream))
    assert results["before_request_hooks"][0]["verdict"] is False
    assert results["after_request_hooks"] == []
    assert not way.upstream.asked


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("pieces", [False, True])
@pytest.mark.behaviour("GR-11", "GR-08", "GR-16")
def test_an_answer_that_is_denied(way: Way, stream: bool, pieces: bool) -> None:
    """Also one that is streamed, however fast it comes."""
    config = way.config({"input_guardrails": [_SHORT], "output_guardrails": [{**_CLEAN, "deny": True}]})
    if stream:
        events = chat_events("a ", "bad", " word")
        way.upstream.stream(*(events if pieces else [b"".join(events)]))
    else:
        way.upstream.say(chat_answer("a bad word"))
    found = config.chat(stream=stream)
    results = _denied(found)
    assert results["before_request_hooks"][0]["verdict"] is True
    assert results["after_request_hooks"][0]["verdict"] is False
    assert b"bad word" not in found.body


@pytest.mark.behaviour("GR-12", "GR-13")
@pytest.mark.parametrize(("text", "status"), [("a bad word", 246), ("a word", 200)])
def test_an_answer_that_is_found_wanting(way: Way, text: str, status: int) -> None:
    way.upstream.say(chat_answer(text))
    found = way.config({"output_guardrails": [_CLEAN]}).chat()
    assert found.status == status
    assert found.json["hook_results"]["after_request_hooks"][0]["verdict"] is (status == 200)
    assert {name: value for name, value in found.json.items() if name != "hook_results"} == chat_answer(text)


@pytest.mark.behaviour("GR-14", "GR-08")
def test_errors_keep_their_status(way: Way) -> None:
    way.upstream.say({"error": {"message": "no"}}, "400 Bad")
    found = way.config({"input_guardrails": [_LONG], "output_guardrails": [_CLEAN]}).chat()
    assert (found.status, found.json["error"]["message"]) == (400, "openai error: no")


@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.parametrize(("check", "status"), [(_LONG, 246), (_SHORT, 200)])
@pytest.mark.behaviour("GR-15", "STM-01")
def test_verdicts_on_the_question_of_a_stream(way: Way, strict: str, check: Any, status: int) -> None:
    events = chat_events("a", "b")
    way.upstream.stream(*events)
    found = way.config({"input_guardrails": [check]}).named(strict_open_ai_compliance=strict).chat(stream=True)
    assert (found.status, found.headers["content-type"].partition(";")[0]) == (status, "text/event-stream")
    if strict == "true":
        assert found.body == b"".join(events)
        return
    first, rest = found.body.split(b"\n\n", 1)
    assert rest == b"".join(events)
    told = json.loads(first.removeprefix(b"data: "))["hook_results"]
    assert [result["verdict"] for result in told["before_request_hooks"]] == [status == 200]


@pytest.mark.parametrize("strict", ["true", "false"])
@pytest.mark.behaviour("GR-16")
def test_verdicts_on_the_answer_of_a_stream_come_after_it(way: Way, strict: str) -> None:
    events = chat_events("a ", "bad")
    way.upstream.stream(*events)
    found = way.config({"output_guardrails": [_CLEAN]}).named(strict_open_ai_compliance=strict).chat(stream=True)
    assert found.status == 200
    assert found.body.startswith(b"".join(events))
    rest = found.body.removeprefix(b"".join(events))
    assert (rest == b"") is (strict == "true")
    if rest:
        (result,) = json.loads(rest.removeprefix(b"data: "))["hook_results"]["after_request_hooks"]
        assert result["verdict"] is False


@pytest.mark.behaviour("GR-15")
def test_the_messages_route_names_the_event(way: Way) -> None:
    way.upstream.stream(*chat_events("a"))
    body = {"model": "m", "max_tokens": 9, "stream": True, "messages": [{"role": "user", "content": "Hi"}]}
    config = way.config({"input_guardrails": [_SHORT]}).named(strict_open_ai_compliance="false")
    assert config.post("/messages", body).body.startswith(b'event: hook_results\ndata: {"hook_results":')
