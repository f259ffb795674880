"""The stream checks take what the real service sent, and refuse each fault that would break an SDK."""

from collections.abc import Callable
from typing import Any

import pytest

from tests.support import sse
from tests.support_tests import samples
from tests.support_tests.samples import Stream


@pytest.mark.parametrize("stream", samples.STREAMS.values(), ids=samples.STREAMS)
def test_a_right_stream_is_taken(stream: Callable[[], Stream]) -> None:
    assert sse.check_stream(samples.encode(stream())) == stream()


@pytest.mark.parametrize(
    ("stream", "sequence"),
    [
        (samples.plain, "SSE-40"),
        (samples.thread_and_run, "SSE-41"),
        (samples.function_part_1, "SSE-42/1"),
        (samples.function_part_2, "SSE-42/2"),
    ],
)
def test_names_gives_the_sequences_of_the_statements(stream: Callable[[], Stream], sequence: str) -> None:
    assert sse.names(stream()) == sse.SEQUENCES[sequence]


def test_names_keeps_deltas_apart_that_something_lies_between() -> None:
    delta = ("thread.message.delta", None)
    assert sse.names([delta, delta, ("thread.message.completed", None), delta]) == [
        "thread.message.delta",
        "thread.message.completed",
        "thread.message.delta",
    ]


GOOD = "event: done\ndata: [DONE]\n\n"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("event: done\ndata: [DONE]\n", "breaks off"),
        ("event: done\r\ndata: [DONE]\r\n\r\n", "carriage return"),
        ("event:done\ndata: [DONE]\n\n", "expected one"),
        ("data: [DONE]\nevent: done\n\n", "expected one"),
        ("event: error\ndata: {}\ndata: {}\n\n" + GOOD, "expected one"),
        ("retry: 10\nevent: done\ndata: [DONE]\n\n", "expected one"),
        ("id: 7\nevent: done\ndata: [DONE]\n\n", "an id line"),
        ("data: {}\n\n" + GOOD, "expected one"),
    ],
)
def test_framing_is_strict(text: str, why: str) -> None:
    with pytest.raises(AssertionError, match=why):
        sse.parse(text.encode())


def test_keep_alives_are_skipped() -> None:
    assert sse.parse(f": keep-alive\n\n{GOOD}".encode()) == [("done", "[DONE]")]


def test_ids_are_read_when_asked_for_and_then_needed() -> None:
    assert sse.parse_with_ids(b"id: 12\nevent: error\ndata: {}\n\n" + GOOD.encode()) == [
        ("12", ("error", "{}")),
        ("", ("done", "[DONE]")),
    ]
    with pytest.raises(AssertionError, match="expected one id line"):
        sse.parse_with_ids(b"event: error\ndata: {}\n\n")


def test_data_is_compact() -> None:
    loose = samples.encode(samples.plain()).replace(b'"status":"queued"', b'"status": "queued"')
    with pytest.raises(AssertionError, match=r"SSE-01: the data of thread\.run\.created is not compact"):
        sse.check_stream(loose)


def _index(stream: Stream, name: str, nth: int = 0) -> int:
    return [number for number, event in enumerate(stream) if event[0] == name][nth]


def _without(name: str, nth: int = 0) -> Callable[[Stream], None]:
    return lambda stream: stream.__delitem__(_index(stream, name, nth))


def _change(name: str, *path: str | int, to: Any, nth: int = 0) -> Callable[[Stream], None]:
    def change(stream: Stream) -> None:
        at = stream[_index(stream, name, nth)][1]
        for part in path[:-1]:
            at = at[part]
        at[path[-1]] = to

    return change


def _insert(before: str, *events: tuple[str, Any]) -> Callable[[Stream], None]:
    def insert(stream: Stream) -> None:
        at = _index(stream, before)
        stream[at:at] = events

    return insert


def _append(*events: tuple[str, Any]) -> Callable[[Stream], None]:
    return lambda stream: stream.extend(events)


def _swap(first: str, second: str) -> Callable[[Stream], None]:
    def swap(stream: Stream) -> None:
        a, b = _index(stream, first), _index(stream, second)
        stream[a], stream[b] = stream[b], stream[a]

    return swap


PART = ("delta", "content", 0)
CALL = ("delta", "step_details", "tool_calls", 0)
OTHER = "msg_Other7KjPd2TxNv5YqLc9HsG"
DONE = ("done", "[DONE]")

FAULTS: list[tuple[str, Callable[[], Stream], Callable[[Stream], None], str]] = [
    ("no done", samples.plain, _without("done"), "SSE-02"),
    ("two dones", samples.plain, _append(DONE), "SSE-02"),
    ("after done", samples.plain, _append(("thread.run.completed", samples.run("completed"))), "SSE-02"),
    ("event after error", samples.cut, _insert("done", ("thread.run.queued", samples.run())), "SSE-53"),
    ("error says two things", samples.cut, _change("error", "message", to="Something else."), "SSE-53"),
    ("error without inner", samples.cut, _change("error", "error", to=None), "None is not of type 'object'"),
    ("unknown event", samples.plain, _insert("done", ("thread.run.paused", {})), "SSE-06"),
    ("schema", samples.plain, _change("thread.run.queued", "created_at", to="now"), r"\$\.data\.created_at"),
    ("late thread", samples.plain, _insert("done", ("thread.created", samples.thread())), "SSE-41"),
    ("status", samples.plain, _change("thread.run.in_progress", "status", to="queued"), "SSE-07"),
    ("step status", samples.plain, _change("thread.run.step.completed", "status", to="in_progress"), "SSE-07"),
    ("message status", samples.plain, _change("thread.message.completed", "status", to="in_progress"), "SSE-07"),
    ("another run", samples.plain, _change("thread.run.completed", "id", to="run_other"), "another run"),
    ("run after its end", samples.plain, _insert("done", ("thread.run.queued", samples.run())), "SDK-05"),
    ("not over", samples.plain, _without("thread.run.completed"), "SDK-05"),
    ("created twice", samples.plain, _insert("done", ("thread.run.created", samples.run())), "SDK-05"),
    ("created late", samples.plain, _swap("thread.run.created", "thread.run.queued"), "not the first run event"),
    ("step left open", samples.plain, _without("thread.run.step.completed"), "still open"),
    ("message left open", samples.plain, _without("thread.message.completed"), "still open"),
    ("delta of an old step", samples.function_part_2, _insert("done", ("thread.run.step.delta", {})), "required"),
    ("delta before its step", samples.function_part_1, _without("thread.run.step.created"), "SSE-20"),
    (
        "old step's delta",
        samples.function_part_2,
        _insert(
            "thread.run.queued",
            ("thread.run.step.delta", {**samples.more_call(0, "x"), "id": "step_Old8GhRt3VkWn6QyXe1MbCd9"}),
        ),
        "ended",
    ),
    (
        "step twice",
        samples.plain,
        _insert("thread.message.created", ("thread.run.step.created", samples.step(samples.creation()))),
        "was created already",
    ),
    (
        "two open steps",
        samples.plain,
        _insert(
            "thread.message.created", ("thread.run.step.created", samples.step(samples.creation(), id="step_other"))
        ),
        "is open",
    ),
    (
        "step has calls at once",
        samples.function_part_1,
        _change("thread.run.step.created", "step_details", to=samples.calls(None)),
        "STEP-03",
    ),
    ("delta before message", samples.plain, _swap("thread.message.created", "thread.message.delta"), "SSE-21"),
    ("delta of another", samples.plain, _change("thread.message.delta", "id", to=OTHER), "SSE-21"),
    (
        "two open messages",
        samples.plain,
        _insert("thread.message.delta", ("thread.message.created", samples.message(id=OTHER))),
        "SSE-25",
    ),
    (
        "message again",
        samples.plain,
        _insert("thread.run.step.completed", ("thread.message.created", samples.message())),
        "a second time",
    ),
    (
        "content at creation",
        samples.plain,
        _change("thread.message.created", "content", to=[samples.text("Grüß")]),
        "SSE-40",
    ),
    (
        "no index",
        samples.plain,
        lambda stream: stream[7][1]["delta"]["content"][0].pop("index"),
        "'index' is a required property",
    ),
    ("gap", samples.plain, _change("thread.message.delta", *PART, "index", to=1), "SSE-2[23]"),
    ("gap of calls", samples.function_part_1, _change("thread.run.step.delta", *CALL, "index", to=2, nth=3), "SSE-22"),
    (
        "id again",
        samples.function_part_1,
        _change("thread.run.step.delta", *CALL, "id", to=samples.CALL_A, nth=1),
        "sent again",
    ),
    (
        "name again",
        samples.function_part_1,
        _change("thread.run.step.delta", *CALL, "function", "name", to="get_weather", nth=1),
        "sent again",
    ),
    (
        "call without id",
        samples.function_part_1,
        lambda stream: stream[5][1]["delta"]["step_details"]["tool_calls"][0].pop("id"),
        "SSE-42",
    ),
    (
        "no annotations first",
        samples.plain,
        lambda stream: stream[7][1]["delta"]["content"][0]["text"].pop("annotations"),
        "SSE-23",
    ),
    (
        "annotations later",
        samples.plain,
        _change("thread.message.delta", *PART, "text", "annotations", to=[], nth=1),
        "SSE-23",
    ),
    ("role", samples.plain, _change("thread.message.delta", "delta", "role", to="assistant"), "SSE-24"),
    ("a lost delta", samples.plain, _without("thread.message.delta", 1), "SSE-26"),
    (
        "a delta twice",
        samples.plain,
        _insert("thread.message.completed", ("thread.message.delta", samples.message_delta("!"))),
        "SSE-26",
    ),
    ("other arguments", samples.function_part_1, _without("thread.run.step.delta", 2), "RUN-61"),
    ("a call not told of", samples.function_part_1, _without("thread.run.step.delta", 4), "RUN-61"),
    (
        "no required action",
        samples.function_part_1,
        _change("thread.run.requires_action", "required_action", to=None),
        "RUN-60",
    ),
    (
        "partial text lost",
        samples.failed,
        _change("thread.message.incomplete", "content", to=[samples.text("Grüß")]),
        "SSE-26",
    ),
]


@pytest.mark.parametrize(("stream", "fault", "why"), [row[1:] for row in FAULTS], ids=[row[0] for row in FAULTS])
def test_a_broken_stream_is_refused(stream: Callable[[], Stream], fault: Callable[[Stream], None], why: str) -> None:
    broken = stream()
    fault(broken)
    assert broken != stream(), "the fault changed nothing"
    with pytest.raises(AssertionError, match=why):
        sse.check_stream(samples.encode(broken))


def test_citations_lose_index_and_quote_in_the_finished_message() -> None:
    marker = "【4:0†f.txt】"
    citation: dict[str, Any] = {"type": "file_citation", "text": marker, "start_index": 11, "end_index": 22}
    told = {**citation, "index": 0, "file_citation": {"file_id": "file-1", "quote": ""}}
    stream = samples.plain()
    stream[10:10] = [("thread.message.delta", samples.message_delta(marker, annotations=[told]))]
    final = stream[_index(stream, "thread.message.completed")][1]["content"][0]["text"]
    final["value"] += marker
    with pytest.raises(AssertionError, match="SSE-26"):
        sse.check_stream(samples.encode(stream))
    final["annotations"] = [{**citation, "file_citation": {"file_id": "file-1"}}]
    sse.check_stream(samples.encode(stream))


def test_an_interrupted_viewers_two_halves_are_checked_as_one() -> None:
    events = sse.parse(samples.encode(samples.plain()))
    with pytest.raises(AssertionError):
        sse.check_events(events[8:])
    sse.check_events(events[:8] + events[8:])


def test_merge_adds_numbers_and_overwrites_indexes() -> None:
    sum: dict[str, Any] = {"n": 1, "index": 0}
    sse.merge(sum, {"n": 2, "index": 3})
    assert sum == {"n": 3, "index": 3}
