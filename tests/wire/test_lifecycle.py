"""The state tables against BEHAVIOUR, written out here a second time and independently of the code."""

import re
from itertools import product
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from tests.support.schema import check_component

from loomgate.errors import IllegalTransition
from loomgate.wire import lifecycle
from loomgate.wire.lifecycle import MESSAGE, RUN, STEP, MessageStatus, RunStatus, StepStatus, Transition, step_on
from loomgate.wire.runs import (
    CalledFunction,
    CreatedMessage,
    Failure,
    IncompleteRun,
    MessageDetails,
    RequiredAction,
    RequiredCall,
    RequiredCalls,
    Run,
    Step,
    Usage,
)
from loomgate.wire.threads import IncompleteMessage, Message, Text, TextContent

NOW = 2_000_000_000
PAGE = Path(__file__).parents[2] / "docs" / "lifecycle.md"

# RUN-31, a line for each status: which may follow.
MAY_FOLLOW = {
    "queued": "in_progress cancelling failed expired",
    "in_progress": "requires_action completed incomplete failed cancelling expired",
    "requires_action": "queued expired cancelling",
    "cancelling": "cancelled completed failed incomplete expired",
    "cancelled": "",
    "failed": "",
    "completed": "",
    "incomplete": "",
    "expired": "",
}

# RUN-33 for each verb: which fields it stamps with the present and which it makes null. All others are kept.
STAMPS = {
    "start": "started_at",
    "cancel": "cancelled_at",
    "fail": "failed_at",
    "complete": "completed_at",
    "cut": "completed_at",
}
CLEARS = {
    "start": "",
    "ask": "",
    "resume": "required_action",
    "request_cancel": "required_action",
    "cancel": "expires_at",
    "fail": "expires_at",
    "complete": "expires_at",
    "cut": "expires_at",
    "expire": "required_action",
}
# What a verb's caller brings along, being more than a time (RUN-33: "set").
BRINGS: dict[str, dict[str, Any]] = {
    "ask": {
        "required_action": RequiredAction(RequiredCalls([RequiredCall("call_1", CalledFunction("weather", "{}"))]))
    },
    "cancel": {"usage": Usage()},
    "fail": {"last_error": Failure("server_error", "Sorry, something went wrong."), "usage": Usage()},
    "complete": {"usage": Usage(prompt_tokens=1, completion_tokens=2, total_tokens=3)},
    "cut": {"incomplete_details": IncompleteRun("max_completion_tokens"), "usage": Usage()},
    "expire": {"usage": Usage()},
}

# RUN-33, the columns that are times or sub-objects: n null, s set, k kept from the status before.
COLUMNS = (
    "started_at expires_at cancelled_at failed_at completed_at required_action last_error incomplete_details usage"
)
SHOWN = {
    "queued": "k k n n n n n n n",
    "in_progress": "s k n n n n n n n",
    "requires_action": "k k n n n s n n n",
    "cancelling": "k k n n n n n n n",
    "cancelled": "k n s n n n n n s",
    "failed": "k n n s n n s n s",
    "completed": "k n n n s n n n s",
    "incomplete": "k n n n s n n s s",
    "expired": "k k n n n n n n s",
}


def a_run(status: str, **fields: Any) -> Run:
    fields = {"expires_at": 700, **fields}
    return Run(
        id="run_1",
        created_at=100,
        assistant_id="asst_1",
        thread_id="thread_1",
        model="scripted",
        status=status,  # type: ignore[arg-type]
        **fields,
    )


def a_step(status: str) -> Step:
    return Step(
        id="step_1",
        created_at=100,
        run_id="run_1",
        assistant_id="asst_1",
        thread_id="thread_1",
        type="message_creation",
        status=status,  # type: ignore[arg-type]
        step_details=MessageDetails(CreatedMessage("msg_1")),
    )


def a_message(status: str) -> Message:
    return Message(
        id="msg_1",
        created_at=100,
        thread_id="thread_1",
        status=status,  # type: ignore[arg-type]
        role="assistant",
        content=[TextContent(Text("So far."))],
    )


def changes(before: msgspec.Struct, after: msgspec.Struct) -> dict[str, Any]:
    old, new = msgspec.structs.asdict(before), msgspec.structs.asdict(after)
    return {name: value for name, value in new.items() if value != old[name]}


def pairs(table: dict[Any, Transition]) -> set[tuple[str, str]]:
    return {(source, transition.target) for transition in table.values() for source in transition.sources}


@pytest.mark.behaviour("RUN-30")
def test_there_are_nine_statuses_and_five_are_terminal() -> None:
    statuses = set(get_args(RunStatus))
    assert statuses == MAY_FOLLOW.keys()
    assert len(statuses) == 9
    assert {status for status, after in MAY_FOLLOW.items() if not after} == lifecycle.TERMINAL
    assert statuses - lifecycle.TERMINAL == lifecycle.ACTIVE


@pytest.mark.behaviour("RUN-31")
def test_one_status_may_follow_another_as_behaviour_says_and_not_otherwise() -> None:
    legal = {(source, target) for source, after in MAY_FOLLOW.items() for target in after.split()}
    assert pairs(RUN) == legal


@pytest.mark.behaviour("RUN-31", "RUN-55", "RUN-56")
@pytest.mark.parametrize("status", MAY_FOLLOW)
@pytest.mark.parametrize("verb", RUN)
def test_a_run_follows_a_verb_or_refuses_it_and_stays_as_it_was(verb: str, status: str) -> None:
    run = a_run(status)
    untouched = msgspec.structs.replace(run)
    target = RUN[verb].target  # type: ignore[index]
    if status in RUN[verb].sources:  # type: ignore[index]
        assert step_on(RUN, run, verb, NOW).status == target
        assert target in MAY_FOLLOW[status].split()
    else:
        with pytest.raises(IllegalTransition) as caught:
            step_on(RUN, run, verb, NOW, metadata={"changed": "yes"})
        assert (caught.value.verb, caught.value.status) == (verb, status)
    assert run == untouched


@pytest.mark.behaviour("RUN-33", "RUN-34", "RUN-35")
@pytest.mark.parametrize("verb", RUN)
def test_a_verb_stamps_and_clears_what_behaviour_says_and_keeps_the_rest(verb: str) -> None:
    transition = RUN[verb]  # type: ignore[index]
    for source in transition.sources:
        before = a_run(source, started_at=150, required_action=BRINGS["ask"]["required_action"], metadata={"a": "b"})
        expected: dict[str, Any] = {"status": transition.target, **dict.fromkeys(CLEARS[verb].split())}
        if verb in STAMPS:
            expected[STAMPS[verb]] = NOW
        assert changes(before, step_on(RUN, before, verb, NOW)) == expected


def _ways() -> list[tuple[str, ...]]:
    """Every way through the table from creation, of at most five verbs."""
    ways: list[tuple[str, ...]] = []
    open_ways: list[tuple[tuple[str, ...], str]] = [((), lifecycle.INITIAL_RUN)]
    while open_ways:
        way, status = open_ways.pop()
        ways.append(way)
        if len(way) < 5:
            open_ways += [((*way, verb), t.target) for verb, t in RUN.items() if status in t.sources]
    return ways


@pytest.mark.behaviour("RUN-33", "RUN-36")
def test_whatever_way_a_run_takes_each_status_shows_its_fields() -> None:
    seen: set[str] = set()
    for way in _ways():
        run = a_run(lifecycle.INITIAL_RUN)
        for now, verb in enumerate(way, start=NOW):
            before = msgspec.structs.asdict(run)
            run = step_on(RUN, run, verb, now, **BRINGS.get(verb, {}))
            shown = msgspec.structs.asdict(run)
            for field, rule in zip(COLUMNS.split(), SHOWN[run.status].split(), strict=True):
                said = f"{' '.join(way)}: {field} in {run.status}"
                if rule == "k":
                    assert shown[field] == before[field], said
                else:
                    assert (shown[field] is None) == (rule == "n"), said
                if rule == "s" and field.endswith("_at"):
                    assert shown[field] == now, said
        seen.add(run.status)
        check_component("RunObject", msgspec.to_builtins(run))
    assert seen == MAY_FOLLOW.keys(), "every status was come to"


@pytest.mark.behaviour("STEP-01", "STEP-16")
def test_a_step_ends_once_in_one_of_four_ways() -> None:
    assert set(get_args(StepStatus)) == {"in_progress", "completed", "failed", "cancelled", "expired"}
    stamps = {
        "complete": "completed completed_at",
        "fail": "failed failed_at",
        "cancel": "cancelled cancelled_at",
        "expire": "expired expired_at",
    }
    assert STEP.keys() == stamps.keys()
    for verb, status in product(STEP, get_args(StepStatus)):
        step = a_step(status)
        if status == "in_progress":
            target, stamp = stamps[verb].split()
            assert changes(step, step_on(STEP, step, verb, NOW)) == {"status": target, stamp: NOW}
        else:
            with pytest.raises(IllegalTransition):
                step_on(STEP, step, verb, NOW)


@pytest.mark.behaviour("MSG-13")
def test_a_message_ends_once_completed_or_incomplete() -> None:
    assert set(get_args(MessageStatus)) == {"in_progress", "completed", "incomplete"}
    for status in ("completed", "incomplete"):
        for verb in MESSAGE:
            with pytest.raises(IllegalTransition):
                step_on(MESSAGE, a_message(status), verb, NOW)
    message = a_message("in_progress")
    assert changes(message, step_on(MESSAGE, message, "complete", NOW)) == {"status": "completed", "completed_at": NOW}
    why = IncompleteMessage("max_tokens")
    assert changes(message, step_on(MESSAGE, message, "cut", NOW, incomplete_details=why)) == {
        "status": "incomplete",
        "incomplete_at": NOW,
        "incomplete_details": why,
    }


@pytest.mark.behaviour("RUN-42", "RUN-43", "RUN-58", "RUN-95", "RUN-98", "MSG-13")
def test_what_is_open_when_a_run_ends_gets_the_reason_that_fits() -> None:
    assert {verb: lifecycle.ENDINGS[verb] for verb in ("cancel", "expire", "fail", "cut")} == {  # type: ignore[index]
        "cancel": ("cancel", "run_cancelled"),
        "expire": ("expire", "run_expired"),
        "fail": ("fail", "run_failed"),
        "cut": ("complete", "max_tokens"),
    }
    assert lifecycle.ENDINGS.keys() == {verb for verb, t in RUN.items() if t.target in lifecycle.TERMINAL}
    reasons = {"content_filter", "max_tokens", "run_cancelled", "run_expired", "run_failed"}
    assert {reason for _, reason in lifecycle.ENDINGS.values()} <= reasons


@pytest.mark.behaviour("LOCK-04", "LOCK-10")
def test_the_groups_of_statuses_are_those_that_other_rooms_rely_on() -> None:
    groups = {
        "ACTIVE": "queued in_progress requires_action cancelling",
        "TERMINAL": "completed failed cancelled expired incomplete",
        "EXECUTING": "in_progress",
        "HELD": "in_progress cancelling",
        "SETTLED": "requires_action completed failed cancelled expired incomplete",
    }
    assert {name: getattr(lifecycle, name) for name in groups} == {name: set(of.split()) for name, of in groups.items()}
    assert lifecycle.INITIAL_RUN == "queued"


def test_the_diagram_in_the_documentation_is_the_table() -> None:
    (drawn,) = re.findall(r"^```mermaid\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert drawn == lifecycle.diagram()


def test_the_diagram_shows_every_transition_and_nothing_else() -> None:
    lines = [line.strip() for line in lifecycle.diagram().splitlines()]
    assert lines[0] == "stateDiagram-v2"
    arrows = {tuple(re.split(r" --> |: ", line)) for line in lines[1:]}
    wanted = {(source, t.target, verb) for verb, t in RUN.items() for source in t.sources}
    ends = {(status, "[*]") for status in lifecycle.TERMINAL}
    assert arrows == wanted | ends | {("[*]", "queued", "create")}


def test_the_documentation_explains_every_verb_and_names_every_status() -> None:
    prose = re.sub(r"```.*?```", "", PAGE.read_text(), flags=re.DOTALL)
    explained = re.findall(r"^\| `(\w+)` \| (.{20,}) \|$", prose, re.MULTILINE)
    assert {verb for verb, _ in explained} == RUN.keys()
    assert all(f"`{status}`" in prose for status in lifecycle.ACTIVE)
