"""What a run does next: every state of a run and its journal, as a table; and what the next attempt makes of each."""

from typing import Any, get_args

import pytest

from loomgate.engine.plan import CallModel, Cancel, Cut, Expire, Finish, Move, Snapshot, Wait, next_move
from loomgate.store.records import Entry
from loomgate.wire.lifecycle import RunStatus
from loomgate.wire.runs import (
    CreatedMessage,
    FunctionStepCall,
    MessageDetails,
    Run,
    Step,
    StepToolCall,
    ToolCallsDetails,
    Usage,
)

EXPIRES = 1000


def a_run(status: str = "in_progress", **fields: Any) -> Run:
    return Run(
        id="run_1",
        created_at=100,
        assistant_id="asst_1",
        thread_id="thread_1",
        expires_at=EXPIRES,
        model="scripted",
        status=status,  # type: ignore[arg-type]
        **fields,
    )


def entry(
    kind: str, turn: int, status: str = "completed", tokens: tuple[int, int] = (0, 0), *, kept: bool = False
) -> Entry:
    """A step of ``turn``: writes a message (``text``) or calls tools (``call``); ``kept``: its usage is beside it."""
    details: MessageDetails | ToolCallsDetails
    if kind == "text":
        details = MessageDetails(CreatedMessage(f"msg_{turn}"))
    else:
        details = ToolCallsDetails([StepToolCall(f"call_{turn}", FunctionStepCall("weather", "{}", "sunny"))])
    usage = (
        Usage(prompt_tokens=tokens[0], completion_tokens=tokens[1], total_tokens=sum(tokens)) if any(tokens) else None
    )
    step = Step(
        id=f"step_{kind}_{turn}",
        created_at=100,
        run_id="run_1",
        assistant_id="asst_1",
        thread_id="thread_1",
        type="message_creation" if kind == "text" else "tool_calls",
        status=status,  # type: ignore[arg-type]
        step_details=details,
        usage=None if kept else usage,
    )
    return Entry(step, turn, usage if kept else None)


def move(*entries: Entry, now: float = 500, status: str = "in_progress", **fields: Any) -> Move:
    return next_move(Snapshot(a_run(status, **fields), list(entries), now, EXPIRES))


def call(
    turn: int, *left_open: Entry, said: bool = False, prompt: int | None = None, completion: int | None = None
) -> Move:
    """The model is called for ``turn``; what forces a tool counts in the first one only."""
    return CallModel(turn, prompt, completion, turn == 1, left_open, said)


class TestBeforeAnythingElse:
    @pytest.mark.behaviour("RUN-41", "RUN-59")
    @pytest.mark.parametrize("status", ["queued", "in_progress", "requires_action", "cancelling"])
    def test_the_time_is_over(self, status: str) -> None:
        for now in (EXPIRES, EXPIRES + 0.5, EXPIRES + 10_000):
            assert move(status=status, now=now) == Expire()
            assert move(entry("text", 1), status=status, now=now) == Expire()
        assert move(status=status, now=EXPIRES - 0.001) != Expire()

    @pytest.mark.behaviour("RUN-50", "RUN-57")
    def test_somebody_asked_for_the_end(self) -> None:
        assert move(status="cancelling") == Cancel()
        assert move(entry("text", 1, "in_progress"), status="cancelling") == Cancel()
        assert move(entry("text", 1), status="cancelling") == Cancel()

    def test_a_status_that_is_not_a_workers_has_nothing_to_do(self) -> None:
        for status in set(get_args(RunStatus)) - {"in_progress", "cancelling"}:
            assert move(status=status) == Wait()
            assert move(entry("call", 1, "in_progress"), status=status) == Wait()


class TestTurns:
    """A turn that is over is not done again, and the next one follows from how it ended."""

    def test_nothing_was_done_yet(self) -> None:
        assert move() == call(1)

    @pytest.mark.parametrize(
        ("entries", "expected"),
        [
            ([entry("text", 1)], Finish()),
            ([entry("call", 1)], call(2)),
            ([entry("text", 1), entry("call", 1)], call(2)),
            ([entry("call", 1), entry("text", 2)], Finish()),
            ([entry("call", 1), entry("call", 2)], call(3)),
            ([entry("call", 1), entry("text", 2), entry("call", 2)], call(3)),
            ([entry("text", 1), entry("call", 1), entry("text", 2)], Finish()),
        ],
        ids=["text", "call", "text-and-call", "call, text", "call, call", "call, text-and-call", "text-and-call, text"],
    )
    def test_all_steps_are_closed(self, entries: list[Entry], expected: Move) -> None:
        assert move(*entries) == expected

    @pytest.mark.behaviour("RUN-21")
    def test_a_forcing_tool_choice_applies_to_the_first_turn_and_to_its_repetition(self) -> None:
        first, again, later = move(), move(entry("call", 1, "in_progress")), move(entry("call", 1))
        assert [one.forced for one in (first, again, later) if isinstance(one, CallModel)] == [True, True, False]


class TestRepetition:
    """What a worker that died left behind: the rows of the table in docs/why/journal.md."""

    @pytest.mark.behaviour("RUN-99")
    @pytest.mark.parametrize("before", [[], [entry("call", 1)], [entry("text", 1), entry("call", 1)]], ids=len)
    def test_only_the_unfinished_turn_is_done_again(self, before: list[Entry]) -> None:
        turn = 2 if before else 1
        text, calls = entry("text", turn, "in_progress"), entry("call", turn, "in_progress")
        assert move(*before) == call(turn), "nothing open"
        assert move(*before, text) == call(turn, text), "an open message"
        assert move(*before, calls) == call(turn, calls), "an open tool step, no text"
        said = entry("text", turn)
        assert move(*before, said, calls) == call(turn, calls, said=True), "a finished message and an open tool step"

    def test_text_of_an_earlier_turn_is_not_this_turns_text(self) -> None:
        open_calls = entry("call", 2, "in_progress")
        assert move(entry("text", 1), entry("call", 1), open_calls) == call(2, open_calls)

    def test_calls_that_broke_off_failed_their_step_and_the_turn_is_done_again(self) -> None:
        broken = entry("call", 1, "failed")
        assert move(broken) == call(1)
        assert move(entry("text", 1), broken) == call(1, said=True)
        assert move(broken, broken, entry("call", 1)) == call(2)
        again = entry("call", 1, "in_progress")
        assert move(broken, again) == call(1, again)
        # A text that calls took the place of was not said.
        assert move(entry("text", 1, "failed"), again) == call(1, again)
        assert move(entry("text", 1, "failed"), entry("call", 1)) == call(2)

    def test_what_a_turn_that_is_done_again_has_cost_is_not_counted(self) -> None:
        left = entry("call", 2, "in_progress", (9999, 9999), kept=True)
        found = move(entry("call", 1, "completed", (100, 10)), left, max_prompt_tokens=300, max_completion_tokens=300)
        assert found == call(2, left, prompt=200, completion=290)


class TestBudgets:
    @pytest.mark.behaviour("RUN-93")
    def test_a_budget_spans_the_run(self) -> None:
        done = entry("call", 1, "completed", (50, 300))
        assert move(done, max_completion_tokens=500) == call(2, completion=200)
        assert move(done, max_prompt_tokens=500) == call(2, prompt=450)
        both = move(done, entry("call", 2, "completed", (60, 150)), max_completion_tokens=500, max_prompt_tokens=256)
        assert both == call(3, prompt=146, completion=50)

    @pytest.mark.behaviour("RUN-93")
    def test_tokens_of_a_turn_are_counted_whichever_of_its_steps_holds_them(self) -> None:
        turn = [entry("text", 1), entry("call", 1, "completed", (40, 30))]
        assert move(*turn, max_prompt_tokens=300, max_completion_tokens=300) == call(2, prompt=260, completion=270)

    @pytest.mark.behaviour("RUN-92", "RUN-96")
    @pytest.mark.parametrize("used", [300, 301, 5000])
    def test_a_budget_that_is_used_up_cuts_the_run(self, used: int) -> None:
        assert move(entry("call", 1, "completed", (0, used)), max_completion_tokens=300) == Cut("max_completion_tokens")
        assert move(entry("call", 1, "completed", (used, 0)), max_prompt_tokens=300) == Cut("max_prompt_tokens")
        assert move(
            entry("call", 1, "completed", (299, 299)), max_prompt_tokens=300, max_completion_tokens=300
        ) == call(2, prompt=1, completion=1)

    @pytest.mark.behaviour("RUN-94")
    def test_a_run_that_said_all_completes_though_it_overshot(self) -> None:
        assert (
            move(entry("text", 1, "completed", (400, 400)), max_prompt_tokens=300, max_completion_tokens=300)
            == Finish()
        )

    def test_no_budget_is_none(self) -> None:
        assert move(entry("call", 1, "completed", (10**9, 10**9))) == call(2)
