"""The state tables are BEHAVIOUR's, written out here a second time; the diagram in the docs is made from them."""

from pathlib import Path
from typing import Any, get_args

import pytest
from tests.support.objects import make_answer, make_run, make_step
from tests.support.run_fields import RUN as FIELDS

from loomgate.errors import IllegalTransition
from loomgate.wire import lifecycle
from loomgate.wire.lifecycle import MESSAGE, RUN, STEP, step_on
from loomgate.wire.runs import Failure, Run, Usage

# BEHAVIOUR RUN-31, read off by hand. `cancel` is a way through `cancelling`.
LEGAL = {
    "queued": {"in_progress", "cancelling", "failed", "expired"},
    "in_progress": {"requires_action", "completed", "incomplete", "failed", "cancelling", "expired"},
    "requires_action": {"queued", "expired", "cancelling"},
    "cancelling": {"cancelled", "completed", "failed", "incomplete", "expired"},
    "cancelled": set[str](),
    "failed": set[str](),
    "completed": set[str](),
    "incomplete": set[str](),
    "expired": set[str](),
}


def _run(status: Any) -> Run:
    return make_run("thread_one", status=status)


@pytest.mark.behaviour("RUN-30", "RUN-31", "RUN-32", "RUN-57")
def test_runs_go_where_they_may_and_nowhere_else() -> None:
    ways: dict[str, set[str]] = {status: set() for status in LEGAL}
    for move in RUN.values():
        for source in move.sources:
            ways[source].add(move.target)
    assert ways == LEGAL
    assert set(LEGAL) == set(get_args(lifecycle.RunStatus)) == set(FIELDS)
    assert set(RUN) == set(get_args(lifecycle.RunVerb))


@pytest.mark.behaviour("RUN-30", "LOCK-04", "SDK-01", "SDK-02")
def test_kinds_of_status() -> None:
    assert {"queued", "in_progress", "requires_action", "cancelling"} == lifecycle.ACTIVE
    assert {"cancelled", "failed", "completed", "incomplete", "expired"} == lifecycle.TERMINAL
    assert {*lifecycle.TERMINAL, "requires_action"} == lifecycle.SETTLED
    assert {"in_progress"} == lifecycle.EXECUTING
    assert {"in_progress", "cancelling"} == lifecycle.HELD
    assert lifecycle.INITIAL_RUN == "queued"


@pytest.mark.behaviour("STEP-01", "STEP-16", "MSG-13")
def test_steps_and_messages_end_once() -> None:
    ends = {move.target: (move.sources, move.stamp) for move in STEP.values()}
    assert ends == {
        status: (("in_progress",), f"{status}_at") for status in ("completed", "failed", "cancelled", "expired")
    }
    assert {move.target for move in MESSAGE.values()} == {"completed", "incomplete"}
    assert all(move.sources == ("in_progress",) for move in MESSAGE.values())
    assert set(STEP) == set(get_args(lifecycle.StepVerb))
    assert set(MESSAGE) == set(get_args(lifecycle.MessageVerb))


@pytest.mark.behaviour("RUN-31", "RUN-33")
@pytest.mark.parametrize("status", list(LEGAL))
@pytest.mark.parametrize("verb", list(RUN))
def test_a_verb_changes_what_its_row_says_and_nothing_else(status: Any, verb: Any) -> None:
    run, move = _run(status), RUN[verb]
    if status not in move.sources:
        with pytest.raises(IllegalTransition) as refused:
            step_on(RUN, run, verb, 77)
        assert (refused.value.verb, refused.value.status) == (verb, status)
        assert run.status == status
        return
    after = step_on(RUN, run, verb, 77, usage=Usage())
    assert run.status == status, "the run before is what it was"
    changed = {f for f in Run.__struct_fields__ if getattr(after, f) != getattr(run, f)}
    assert after.status == move.target
    allowed = {"status", "usage", *move.clears} | ({move.stamp} if move.stamp else set())
    assert changed <= allowed
    assert all(getattr(after, name) is None for name in move.clears)
    assert move.stamp is None or getattr(after, move.stamp) == 77


@pytest.mark.behaviour("RUN-33", "RUN-34")
def test_stamps_and_clearings_are_those_of_the_field_table() -> None:
    for move in RUN.values():
        row = FIELDS[move.target]
        stamps = [name for name in row if name.endswith("_at") and name != "expires_at" and row[name] == "set"]
        assert [move.stamp] == (stamps or [None])
        assert ("expires_at" in move.clears) == (row["expires_at"] == "null")
        leaves_question = "requires_action" in move.sources
        assert not leaves_question or "required_action" in move.clears


@pytest.mark.behaviour("RUN-42", "RUN-43", "RUN-58", "RUN-95", "RUN-98")
def test_what_an_end_does_to_what_is_open() -> None:
    reasons = {verb: lifecycle.ENDINGS[verb] for verb in ("cancel", "expire", "fail", "cut")}
    assert reasons == {
        "cancel": ("cancel", "run_cancelled"),
        "expire": ("expire", "run_expired"),
        "fail": ("fail", "run_failed"),
        "cut": ("complete", "max_tokens"),
    }
    run = _run("in_progress")
    failed = step_on(STEP, make_step(run), "fail", 5, last_error=Failure("server_error", "No."))
    assert (failed.status, failed.failed_at, failed.last_error) == ("failed", 5, Failure("server_error", "No."))
    cut = step_on(MESSAGE, make_answer(run), "cut", 6)
    assert (cut.status, cut.incomplete_at, cut.completed_at) == ("incomplete", 6, None)


def test_the_diagram_in_the_docs_is_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "lifecycle.md").read_text()
    assert page.count("```mermaid") == 1
    assert page.partition("```mermaid\n")[2].partition("```")[0] == lifecycle.diagram()
    for verb in RUN:
        assert f"| `{verb}` |" in page, "every arrow is explained"
    arrows = {line.strip() for line in lifecycle.diagram().splitlines() if "-->" in line and "[*]" not in line}
    assert arrows == {f"{a} --> {move.target}: {verb}" for verb, move in RUN.items() for a in move.sources}
