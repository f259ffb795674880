"""The judge must notice every kind of fault: a good record has none, a spoiled one has the fault it was given."""

import copy
from collections.abc import Callable

import pytest

from tests.chaos.judge import Notes, Object, Piece, Script, Stored, Stream, Tried, judge

USAGE = {"prompt_tokens": 1, "completion_tokens": 2, "total_tokens": 3}
SCRIPT = '/call look {"at": 0}\n/turn\n/say so it is'


def _message(id: str, text: str, role: str, run: str | None = None, **metadata: str) -> Object:
    part = {"type": "text", "text": {"value": text, "annotations": []}}
    more = {"status": "completed", "metadata": metadata, "run_id": run}
    return {"id": id, "thread_id": "t", "role": role, "content": [part], **more}


def _run(id: str, tag: str, began: int) -> Object:
    stamps = {
        "created_at": began,
        "started_at": began,
        "completed_at": began + 5,
        "cancelled_at": None,
        "failed_at": None,
    }
    of = {"thread_id": "t", "metadata": {"tag": tag}, "usage": {**USAGE, "total_tokens": 6}}
    return {"id": id, "status": "completed", **stamps, **of}


def _steps(run: str, began: int) -> list[Object]:
    function = {"name": "look", "arguments": '{"at": 0}', "output": f"seen by {run}"}
    calls = {"type": "tool_calls", "tool_calls": [{"id": f"call_{run}", "type": "function", "function": function}]}
    says = {"type": "message_creation", "message_creation": {"message_id": f"msg_{run}"}}
    both = (("calls", calls), ("says", says))
    ends = {"completed_at": began + 4, "cancelled_at": None, "failed_at": None, "expired_at": None}
    return [
        {
            "id": f"{name}_{run}",
            "type": details["type"],
            "status": "completed",
            "created_at": began + 1,
            **ends,
            "usage": USAGE,
            "step_details": details,
        }
        for name, details in both
    ]


def _event(number: int, name: str, data: object) -> Piece:
    return Piece("event", f"thread.{name}" if name != "done" else name, f"1-{number}-0", data)


def _stream(run: Object, steps: list[Object]) -> Stream:
    """What a viewer sees who submitted the output of the run's call."""
    message = _message(f"msg_{run['id']}", "so it is", "assistant", run["id"])
    deltas = [
        {"id": message["id"], "delta": {"content": [{"index": 0, "type": "text", "text": {"value": word, **more}}]}}
        for word, more in (("so ", {"annotations": []}), ("it is", {}))
    ]
    told: list[tuple[str, object]] = [
        ("run.step.completed", steps[0]),
        ("run.queued", {**run, "status": "queued"}),
        ("run.in_progress", {**run, "status": "in_progress"}),
        ("run.step.created", {**steps[1], "status": "in_progress"}),
        ("run.step.in_progress", {**steps[1], "status": "in_progress"}),
        ("message.created", {**message, "status": "in_progress", "content": []}),
        ("message.in_progress", {**message, "status": "in_progress", "content": []}),
        ("message.delta", deltas[0]),
        ("message.delta", deltas[1]),
        ("message.completed", message),
        ("run.step.completed", steps[1]),
        ("run.completed", run),
        ("done", "[DONE]"),
    ]
    return Stream(run["id"], "submit", [_event(n, name, data) for n, (name, data) in enumerate(told)], ended=True)


def _good() -> tuple[Notes, Stored]:
    notes, stored = Notes(), Stored({"t": []}, {"t": []}, {})
    notes.tried["thread 0"] = Tried("thread", "0", None, "t")
    notes.scripts[SCRIPT] = Script(("so it is",), (1,))
    place = 0
    for number, name in enumerate(("one", "two")):
        run, steps = _run(name, name, 100 + 10 * number), _steps(name, 100 + 10 * number)
        notes.tried[f"message {name}"] = Tried("message", name, "t", f"user_{name}")
        notes.tried[f"run {name}"] = Tried("run", name, "t", name)
        notes.said.append(("t", f"user_{name}"))
        notes.outputs[f"call_{name}"] = f"seen by {name}"
        notes.submitted.add(f"call_{name}")
        notes.seen[name] = ["queued", "in_progress", "requires_action", "queued", "completed"]
        notes.streams.append(_stream(run, steps))
        stored.messages["t"].append(_message(f"user_{name}", SCRIPT, "user", tag=name))
        stored.messages["t"].append(_message(f"msg_{name}", "so it is", "assistant", name))
        stored.runs["t"].append(run)
        stored.steps[name] = steps
        for id in (f"user_{name}", name, *(step["id"] for step in steps), f"msg_{name}"):
            place += 1
            stored.places[id] = place
    return notes, stored


def test_a_good_record_has_no_fault() -> None:
    assert judge(*_good()) == []


def test_a_stream_that_begins_anew_with_the_present_state_is_none() -> None:
    notes, stored = _good()
    pieces = notes.streams[0].pieces
    shown = {**pieces[6].data, "content": [{"type": "text", "text": {"value": "so ", "annotations": []}}]}
    anew = [
        Piece("comment", ": this is the present state"),
        Piece("event", "thread.run.in_progress", "2-0-state", pieces[2].data),
        Piece("event", "thread.run.step.in_progress", "2-0-state", pieces[4].data),
        Piece("event", "thread.message.in_progress", "2-0-2", shown),
    ]
    notes.streams[0].pieces[8:8] = anew
    assert judge(notes, stored) == []
    notes.streams[0].pieces[5:8] = [Piece("break")]
    assert judge(notes, stored) == []


def _lost_message(notes: Notes, stored: Stored) -> None:
    del stored.messages["t"][0]


def _doubled_message(notes: Notes, stored: Stored) -> None:
    stored.messages["t"].insert(1, {**stored.messages["t"][0], "id": "user_again"})


def _listed_twice(notes: Notes, stored: Stored) -> None:
    stored.messages["t"].append(stored.messages["t"][1])


def _wrong_order(notes: Notes, stored: Stored) -> None:
    notes.said.reverse()


def _from_nowhere(notes: Notes, stored: Stored) -> None:
    stored.messages["t"].append(_message("ghost", "boo", "user", tag="nobody"))


def _refused_but_there(notes: Notes, stored: Stored) -> None:
    notes.tried["run one"].refused = True


def _half_an_attempt(notes: Notes, stored: Stored) -> None:
    notes.tried["message one"].id = None
    notes.said.clear()
    del stored.messages["t"][0]


def _lost_run(notes: Notes, stored: Stored) -> None:
    del stored.runs["t"][1]


def _not_over(notes: Notes, stored: Stored) -> None:
    stored.runs["t"][1]["status"] = "in_progress"


def _failed(notes: Notes, stored: Stored) -> None:
    stored.runs["t"][1]["status"] = "failed"


def _taken_back(notes: Notes, stored: Stored) -> None:
    notes.seen["one"] = ["in_progress", "completed", "in_progress"]


def _said_twice(notes: Notes, stored: Stored) -> None:
    stored.messages["t"].append(_message("msg_again", "so it is", "assistant", "two"))


def _other_output(notes: Notes, stored: Stored) -> None:
    notes.outputs["call_one"] = "another"


def _lost_output(notes: Notes, stored: Stored) -> None:
    notes.submitted.add("call_lost")


def _usage(notes: Notes, stored: Stored) -> None:
    stored.runs["t"][0]["usage"]["total_tokens"] = 7


def _late_step(notes: Notes, stored: Stored) -> None:
    stored.steps["one"][1]["completed_at"] = 900


def _open_step(notes: Notes, stored: Stored) -> None:
    stored.steps["one"][1]["completed_at"] = None


def _both_at_once(notes: Notes, stored: Stored) -> None:
    stored.places["calls_two"] = 1


def _too_early(notes: Notes, stored: Stored) -> None:
    stored.runs["t"][1]["started_at"] = 101


def _missing_delta(notes: Notes, stored: Stored) -> None:
    del notes.streams[0].pieces[8]


def _delta_twice(notes: Notes, stored: Stored) -> None:
    notes.streams[0].pieces.insert(8, copy.deepcopy(notes.streams[0].pieces[8]))


def _created_twice(notes: Notes, stored: Stored) -> None:
    again = copy.deepcopy(notes.streams[0].pieces[3:7])
    for number, piece in enumerate(again):
        piece.id = f"9-{number}-0"
    notes.streams[0].pieces[7:7] = again


def _skipped_step(notes: Notes, stored: Stored) -> None:
    stored.steps["one"].insert(1, {**stored.steps["one"][0], "id": "between"})


def _no_end(notes: Notes, stored: Stored) -> None:
    del notes.streams[0].pieces[-1]


def _after_done(notes: Notes, stored: Stored) -> None:
    notes.streams[0].pieces.append(Piece("event", "thread.run.completed", "9-9-0", stored.runs["t"][0]))


def _backwards(notes: Notes, stored: Stored) -> None:
    pieces = notes.streams[0].pieces
    pieces[1], pieces[11] = pieces[11], pieces[1]


def _another_end(notes: Notes, stored: Stored) -> None:
    stored.messages["t"][1]["content"][0]["text"]["value"] = "so it was"


def _stuck(notes: Notes, stored: Stored) -> None:
    notes.stuck.append("a client waits")


@pytest.mark.parametrize(
    ("spoil", "complaint"),
    [
        (_lost_message, "was acknowledged and is lost"),
        (_doubled_message, "made 2 messages"),
        (_listed_twice, "listed 2 times"),
        (_wrong_order, "messages were acknowledged as"),
        (_from_nowhere, "was made by nobody"),
        (_refused_but_there, "although its creation was refused"),
        (_half_an_attempt, "made 1 runs and 0 messages"),
        (_lost_run, "run two (tag two) was acknowledged and is lost"),
        (_not_over, "is in_progress, not over"),
        (_failed, "is failed, which nobody asked for"),
        (_taken_back, "was completed, and later in_progress"),
        (_said_twice, "has written"),
        (_other_output, "not the one that was submitted"),
        (_lost_output, "the output of call_lost was acknowledged and is lost"),
        (_usage, "tokens, its steps"),
        (_late_step, "is not within run one"),
        (_open_step, "without an end"),
        (_both_at_once, "run two wrote before one was over"),
        (_too_early, "began at 101"),
        (_missing_delta, "at its end it says"),
        (_delta_twice, "is told twice"),
        (_created_twice, "is created a second time"),
        (_skipped_step, "the journal has"),
        (_no_end, "ended without done"),
        (_after_done, "after done"),
        (_backwards, "thread.run.in_progress after completed"),
        (_another_end, "and is stored as"),
        (_stuck, "stuck: a client waits"),
    ],
)
def test_a_spoiled_record_has_its_fault(spoil: Callable[[Notes, Stored], None], complaint: str) -> None:
    notes, stored = _good()
    spoil(notes, stored)
    assert any(complaint in fault for fault in judge(notes, stored)), judge(notes, stored)
