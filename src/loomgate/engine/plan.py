"""What a run does next: a pure function of what is known about it. No I/O, no clock, no randomness.

The journal (the run's steps) says how far it came. A turn is one model call: its steps share a number. A step
still open in the last turn means that the turn was not finished, by a worker that is gone: it is done again.
"""

import msgspec

from loomgate.store.records import Entry
from loomgate.wire import lifecycle
from loomgate.wire.runs import MessageDetails, Run, ToolCallsDetails


class Snapshot(msgspec.Struct, frozen=True):
    """All that decides a run's next move; ``now`` and ``expires_at`` in seconds since the epoch."""

    run: Run
    entries: list[Entry]
    now: float
    expires_at: int


class Expire(msgspec.Struct, frozen=True):
    """The time is over (BEHAVIOUR RUN-41)."""


class Cancel(msgspec.Struct, frozen=True):
    """Somebody asked for the end (RUN-50)."""


class Wait(msgspec.Struct, frozen=True):
    """Nothing to do before ``expires_at``: the client's turn, or another run's."""


class Finish(msgspec.Struct, frozen=True):
    """The model has said all: complete the run."""


class Cut(msgspec.Struct, frozen=True):
    """A token budget is used up (RUN-92): ``max_prompt_tokens`` or ``max_completion_tokens``."""

    reason: str


class CallModel(msgspec.Struct, frozen=True):
    """Make model call number ``turn`` (from 1).

    ``prompt_left`` and ``completion_left`` are what the run's budgets still allow (RUN-93); ``None``: no budget.
    ``forced``: the run's tool choice applies, which it does in the first turn only (RUN-21). ``left_open`` are the
    steps of an earlier attempt at this same turn, and ``said`` tells whether its text was committed already.
    """

    turn: int
    prompt_left: int | None
    completion_left: int | None
    forced: bool
    left_open: tuple[Entry, ...] = ()
    said: bool = False


Move = Expire | Cancel | Wait | Finish | Cut | CallModel


def next_move(snapshot: Snapshot) -> Move:
    """The move that ``snapshot`` calls for."""
    run = snapshot.run
    if snapshot.now >= snapshot.expires_at:
        return Expire()
    if run.status in lifecycle.RUN["cancel"].sources:
        return Cancel()
    if run.status not in lifecycle.EXECUTING:
        return Wait()
    entries = snapshot.entries
    turn = entries[-1].turn if entries else 0
    last_turn = [entry for entry in entries if entry.turn == turn]
    left_open = tuple(entry for entry in last_turn if entry.step.status in lifecycle.STEP["complete"].sources)
    # A step of calls that failed in a run that goes on: the answer broke off, and the turn is done again without it.
    broke = bool(last_turn) and last_turn[-1].step.status == lifecycle.STEP["fail"].target
    if not left_open and not broke:
        if entries and isinstance(entries[-1].step.step_details, MessageDetails):
            return Finish()
        turn += 1
    done = [entry for entry in entries if entry.turn < turn]
    prompt_used = sum(_usage(entry)[0] for entry in done)
    completion_used = sum(_usage(entry)[1] for entry in done)
    prompt_left = None if run.max_prompt_tokens is None else run.max_prompt_tokens - prompt_used
    completion_left = None if run.max_completion_tokens is None else run.max_completion_tokens - completion_used
    if completion_left is not None and completion_left <= 0:
        return Cut("max_completion_tokens")
    if prompt_left is not None and prompt_left <= 0:
        return Cut("max_prompt_tokens")
    said = bool(left_open or broke) and any(
        isinstance(entry.step.step_details, MessageDetails) and entry.step.status == lifecycle.STEP["complete"].target
        for entry in last_turn
    )
    return CallModel(turn, prompt_left, completion_left, turn == 1, left_open, said)


def _usage(entry: Entry) -> tuple[int, int]:
    usage = entry.step.usage or entry.usage
    return (0, 0) if usage is None else (usage.prompt_tokens, usage.completion_tokens)


def calls_tools(entry: Entry) -> bool:
    """Is this the step of a turn that called tools?"""
    return isinstance(entry.step.step_details, ToolCallsDetails)
