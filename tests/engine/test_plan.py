"""The next move of a run, for every state that a journal can be in."""

from typing import Any

import pytest
from tests.support.objects import make_answer, make_run, make_step

from loomgate.engine.plan import CallModel, Cancel, Cut, Expire, Finish, Move, Snapshot, Wait, next_move
from loomgate.store.runs import Entry
from loomgate.wire.runs import FunctionStepCall, Run, Step, StepToolCall, ToolCallsDetails, Usage

RUN = make_run("thread_one", status="in_progress")


def _usage(prompt: int, completion: int) -> Usage:
    return Usage(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


def _text(turn: int, status: Any = "completed", usage: Usage | None = None) -> Entry:
    step = make_step(RUN, make_answer(RUN))
    step.status, step.usage = status, usage
    return Entry(step, turn)


def _calls(turn: int, status: Any = "completed", usage: Usage | None = None, kept: Usage | None = None) -> Entry:
    step: Step = make_step(RUN)
    step.step_details = ToolCallsDetails([StepToolCall("call_a", FunctionStepCall("look", "{}", "1"))])
    step.status, step.usage = status, usage
    return Entry(step, turn, kept)


def _next(*entries: Entry, now: float = 0.0, expires_at: int = 600, **fields: Any) -> Move:
    run: Run = make_run("thread_one", **{"status": "in_progress", **fields})
    return next_move(Snapshot(run, list(entries), now, expires_at))


def _call(turn: int, **fields: Any) -> CallModel:
    given = {"prompt_left": None, "completion_left": None, "forced": turn == 1, **fields}
    return CallModel(turn, given.pop("prompt_left"), given.pop("completion_left"), given.pop("forced"), **given)


ACTIVE = ["queued", "in_progress", "requires_action", "cancelling"]


@pytest.mark.behaviour("RUN-41", "RUN-59")
@pytest.mark.parametrize("status", ACTIVE)
def test_time_goes_before_everything(status: str) -> None:
    assert _next(now=600.0, status=status) == Expire()
    assert _next(now=9999.0, status=status, max_prompt_tokens=256) == Expire()
    assert _next(_text(1, "in_progress"), now=600.0, status=status) == Expire()
    assert _next(now=599.9, status=status) != Expire()


@pytest.mark.behaviour("RUN-50", "RUN-52", "RUN-53")
@pytest.mark.parametrize("entries", [(), (_text(1),), (_calls(1, "in_progress"),)])
def test_a_request_to_cancel_goes_before_work(entries: tuple[Entry, ...]) -> None:
    assert _next(*entries, status="cancelling") == Cancel()


@pytest.mark.parametrize("status", ["queued", "requires_action"])
def test_the_clients_turn_or_another_runs(status: str) -> None:
    assert _next(status=status) == Wait()
    assert _next(_calls(1, "in_progress"), status=status) == Wait()


@pytest.mark.behaviour("RUN-21")
def test_the_first_turn_is_forced_and_the_next_is_free() -> None:
    assert _next() == _call(1, forced=True)
    assert _next(_calls(1)) == _call(2, forced=False)
    assert _next(_text(1), _calls(1)) == _call(2, forced=False)
    assert _next(_calls(1), _calls(2), _calls(3)) == _call(4, forced=False)


def test_a_run_that_said_its_last_word_is_finished() -> None:
    assert _next(_text(1)) == Finish()
    assert _next(_calls(1), _text(2)) == Finish()


@pytest.mark.behaviour("RUN-99")
def test_an_unfinished_turn_is_done_again() -> None:
    text, calls = _text(1, "in_progress"), _calls(1, "in_progress")
    assert _next(text) == _call(1, left_open=(text,))
    assert _next(calls) == _call(1, left_open=(calls,))
    second = _text(2, "in_progress")
    assert _next(_calls(1), second) == _call(2, left_open=(second,))


@pytest.mark.behaviour("RUN-99")
def test_text_that_was_committed_is_not_said_again() -> None:
    calls = _calls(1, "in_progress")
    assert _next(_text(1), calls) == _call(1, left_open=(calls,), said=True)
    later = _calls(2, "in_progress")
    assert _next(_text(1), _calls(1), later) == _call(2, left_open=(later,), said=False)
    assert _next(_calls(1), _text(2), later) == _call(2, left_open=(later,), said=True)


@pytest.mark.behaviour("RUN-93", "RUN-92")
def test_budgets_span_the_run() -> None:
    used = (_calls(1, usage=_usage(300, 100)), _calls(2, usage=_usage(350, 200)))
    assert _next(max_completion_tokens=500, max_prompt_tokens=1000) == _call(1, prompt_left=1000, completion_left=500)
    left = _call(3, prompt_left=350, completion_left=200)
    assert _next(*used, max_completion_tokens=500, max_prompt_tokens=1000) == left
    assert _next(*used, max_completion_tokens=301) == _call(3, completion_left=1)
    assert _next(*used, max_completion_tokens=300) == Cut("max_completion_tokens")
    assert _next(*used, max_completion_tokens=299, max_prompt_tokens=100) == Cut("max_completion_tokens")
    assert _next(*used, max_prompt_tokens=650) == Cut("max_prompt_tokens")
    assert _next(*used, max_prompt_tokens=651) == _call(3, prompt_left=1)


def test_tokens_of_a_turn_with_text_and_calls_count_once() -> None:
    turn = (_text(1, usage=_usage(0, 0)), _calls(1, usage=_usage(10, 20)))
    assert _next(*turn, max_completion_tokens=256) == _call(2, completion_left=236)


def test_a_turn_that_is_done_again_does_not_pay_for_itself() -> None:
    open_step = _calls(2, "in_progress", kept=_usage(50, 60))
    found = _next(_calls(1, usage=_usage(10, 20)), open_step, max_completion_tokens=256)
    assert found == _call(2, completion_left=236, left_open=(open_step,))


@pytest.mark.parametrize("status", ["completed", "failed", "expired", "cancelled", "incomplete"])
def test_nothing_is_to_be_done_after_the_end(status: str) -> None:
    assert _next(status=status) == Wait()
