"""A model of how runs are claimed, leased, fenced and ended (docs/why/leases.md), small enough to look at all of it.

One thread with its runs, and workers that drive them. Time is not counted: a lease may lapse and a run's time may be
over at any moment, which is what workers whose clocks differ, or who were stopped for a while, see of it. Nobody is
told anything: who is to act finds out by looking, as when every message is lost. A worker does nothing for as long as
it likes, dies at any moment and forgets all, or does not learn what became of a commit.

A fencing token is not a number here: a drive holds the current one, or it is ``STALE`` and tries whatever there is.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

ABSENT = "absent"
ACTIVE = frozenset({"queued", "in_progress", "requires_action", "cancelling"})
HELD = frozenset({"in_progress", "cancelling"})
TERMINAL = frozenset({"completed", "failed", "cancelled", "expired"})

# When a run needs a worker: now, when its lease is over, when its time is over, never.
NOW, LEASE, WAIT, NEVER = "now", "lease", "wait", "never"

# What a drive knows: that it has the run; that nothing, or an open message, is in its journal; that the run is to be
# cancelled, or past its time; not what became of its commit; and, in truth, that its token is void.
FRESH, EMPTY, WRITING, CANCEL, EXPIRE, BROKEN, STALE = "fresh empty writing cancel expire broken stale".split()


class Run(NamedTuple):
    """What is stored of a run."""

    status: str = ABSENT
    holds: bool = False
    due: str = NEVER
    late: bool = False
    calls: str = "none"  # the step of tool calls: none, open, over
    message: str = "none"  # what it writes: none, open, completed, cut, twice


Drives = tuple[str | None, ...]  # of one worker: what it knows of each run


class State(NamedTuple):
    """Everything: the runs of a thread, and for each worker its drives."""

    runs: tuple[Run, ...]
    workers: tuple[Drives, ...]


class Move(NamedTuple):
    """Something that can happen. ``worker`` is -1 for what clients do and for time; ``lost``: the answer gets lost."""

    name: str
    worker: int
    run: int
    lost: bool = False


class Step(NamedTuple):
    """A move, where it leads, and whether a write of a worker without the current token was accepted."""

    move: Move
    state: State
    void: bool = False


@dataclass(frozen=True)
class Rules:
    """What the protocol rests on. Each can be taken away, to see that it is missed."""

    commit_checks_token: bool = True
    end_checks_token: bool = True
    renewal_checks_token: bool = True
    hand_back_checks_token: bool = True
    claim_changes_token: bool = True
    end_changes_token: bool = True
    ask_changes_token: bool = True
    lapsed_leases_are_claimed: bool = True
    journal_is_read: bool = True
    end_promotes: bool = True
    newcomers_wait: bool = True
    cancelling_makes_due: bool = True


RULES = Rules()
ALL_RULES = [field.name for field in fields(Rules)]


def initial(workers: int, runs: int, *, calls: bool = True) -> State:
    """Before anything happened; ``calls``: the model may call tools once in each run."""
    return State((Run(calls="none" if calls else "over"),) * runs, ((None,) * runs,) * workers)


def _put(state: State, number: int, run: Run) -> State:
    runs = state.runs
    return State((*runs[:number], run, *runs[number + 1 :]), state.workers)


def _know(state: State, worker: int, number: int, phase: str | None) -> State:
    workers, drives = state.workers, state.workers[worker]
    drives = (*drives[:number], phase, *drives[number + 1 :])
    return State(state.runs, (*workers[:worker], drives, *workers[worker + 1 :]))


def _void(state: State, number: int) -> State:
    """The run's token has changed: whoever had it has it no more."""
    return State(
        state.runs,
        tuple(
            drives if drives[number] is None else (*drives[:number], STALE, *drives[number + 1 :])
            for drives in state.workers
        ),
    )


def _over(state: State, number: int, status: str, rules: Rules, *, message: str | None = None) -> State:
    """The run is at its end, and the thread goes to the next one that waits."""
    run = state.runs[number]
    if message is None:
        message = "cut" if run.message == "open" else run.message
    calls = "over" if run.calls == "open" else run.calls
    state = _put(state, number, Run(status, False, NEVER, run.late, calls, message))
    if rules.end_changes_token:
        state = _void(state, number)
    if run.holds and rules.end_promotes:
        for other, waiting in enumerate(state.runs):
            if waiting.status == "queued" and not waiting.holds:
                return _put(state, other, waiting._replace(holds=True, due=NOW))
    return state


def steps(state: State, rules: Rules = RULES) -> Iterator[Step]:
    """All that can happen next."""
    for number, run in enumerate(state.runs):
        if run.status == ABSENT:
            if number == 0 or state.runs[number - 1].status != ABSENT:
                yield Step(Move("create", -1, number), _create(state, number, rules))
        elif run.status in ACTIVE:
            yield from _outside(state, number, run, rules)
    for worker, drives in enumerate(state.workers):
        if any(_claimable(run, rules) for run in state.runs):
            yield Step(Move("claim", worker, -1), _claim(state, worker, rules))
        if any(phase is not None for phase in drives):
            nothing = (None,) * len(drives)
            workers = (*state.workers[:worker], nothing, *state.workers[worker + 1 :])
            yield Step(Move("die", worker, -1), State(state.runs, workers))
        for number, phase in enumerate(drives):
            if phase == STALE:
                yield from _try(state, worker, number, rules)
            elif phase is not None:
                yield from _drive(state, worker, number, phase, rules)


# Clients, and time


def _create(state: State, number: int, rules: Rules) -> State:
    for other, run in enumerate(state.runs):
        if run.holds and run.late:  # a newcomer ends whoever is past its time
            state = _over(state, other, "expired", rules)
    waits = rules.newcomers_wait and any(run.holds for run in state.runs)
    due = WAIT if waits else NOW
    return _put(state, number, state.runs[number]._replace(status="queued", holds=not waits, due=due))


def _outside(state: State, number: int, run: Run, rules: Rules) -> Iterator[Step]:
    if run.due == LEASE:
        yield Step(Move("lapse", -1, number), _put(state, number, run._replace(due=NOW)))
    if run.late:
        yield Step(Move("read", -1, number), _over(state, number, "expired", rules))
        return
    due = NOW if run.due == WAIT else run.due
    yield Step(Move("pass", -1, number), _put(state, number, run._replace(late=True, due=due)))
    if run.status != "cancelling":
        due = run.due if run.status == "in_progress" or not rules.cancelling_makes_due else NOW
        yield Step(Move("cancel", -1, number), _put(state, number, run._replace(status="cancelling", due=due)))
    if run.status == "requires_action":
        resumed = run._replace(status="queued", due=NOW, calls="over")
        yield Step(Move("submit", -1, number), _put(state, number, resumed))


# Workers


def _claimable(run: Run, rules: Rules) -> bool:
    return run.due == NOW and (rules.lapsed_leases_are_claimed or run.status not in HELD)


def _claim(state: State, worker: int, rules: Rules) -> State:
    for number, run in enumerate(state.runs):
        if _claimable(run, rules):
            started = run.status == "queued" and run.holds and not run.late
            status = "in_progress" if started else run.status
            state = _put(state, number, run._replace(status=status, due=LEASE))
            if rules.claim_changes_token:
                state = _void(state, number)
            state = _know(state, worker, number, FRESH)
    return state


def _drive(state: State, worker: int, number: int, phase: str, rules: Rules) -> Iterator[Step]:
    """What a worker does with a run whose token it has."""
    run = state.runs[number]

    def move(name: str, after: State, phase: str | None, *, lost: bool = False) -> Step:
        return Step(Move(name, worker, number, lost), _know(after, worker, number, phase))

    yield _renew(state, worker, number)
    yield _hand_back(state, worker, number)
    if phase in (FRESH, EMPTY, WRITING):
        if run.late:
            yield move("look", state, EXPIRE)
        elif run.status == "cancelling":
            yield move("look", state, CANCEL)
        elif phase == FRESH and run.status == "in_progress":
            open_ = run.message == "open" and rules.journal_is_read
            yield move("look", state, WRITING if open_ else EMPTY)
    if phase in (CANCEL, EXPIRE, BROKEN):
        after, _ = _end(state, number, phase, rules)
        yield move("end", after, None)
    # Commits. Each may come to nothing, or be done, without the worker's ever hearing of it.
    commits = {EMPTY: ("begin", "ask"), WRITING: ("finish", "fail")}.get(phase, ())
    for name in commits:
        if name == "ask" and run.calls != "none":
            continue
        after = _commit(state, number, name, rules)
        if after is None:
            yield move(name, state, CANCEL)  # its status does not allow it: somebody asked for its end
            continue
        yield move(name, after, WRITING if name == "begin" else None)
        void = after.workers[worker][number] == STALE  # the run has left its hands, and it does not know
        yield move(name, after, STALE if void else BROKEN, lost=True)
    if commits:
        yield move("doubt", state, BROKEN)


def _commit(state: State, number: int, name: str, rules: Rules) -> State | None:
    run = state.runs[number]
    if name == "begin":
        return _put(state, number, run._replace(message="open" if run.message == "none" else "twice"))
    if name == "ask":
        if run.status != "in_progress":
            return None
        due = NOW if run.late else WAIT
        state = _put(state, number, run._replace(status="requires_action", due=due, calls="open"))
        return _void(state, number) if rules.ask_changes_token else state
    if run.status not in HELD:
        return None
    status, message = ("completed", "completed") if name == "finish" else ("failed", "cut")
    return _over(state, number, status, rules, message=message)


def _end(state: State, number: int, phase: str, rules: Rules) -> tuple[State, bool]:
    """End a run without more to write; whether it was its turn to be ended so."""
    run = state.runs[number]
    status, allowed = {
        CANCEL: ("cancelled", run.status == "cancelling"),
        EXPIRE: ("expired", run.status in ACTIVE and run.late),
        BROKEN: ("failed", run.status in HELD or run.status == "queued"),
    }[phase]
    return (_over(state, number, status, rules), True) if allowed else (state, False)


def _renew(state: State, worker: int, number: int) -> Step:
    run, move = state.runs[number], Move("renew", worker, number)
    if run.status in HELD:
        return Step(move, _put(state, number, run._replace(due=LEASE)))
    return Step(move, _know(state, worker, number, None))  # told that it is lost


def _hand_back(state: State, worker: int, number: int) -> Step:
    run = state.runs[number]
    if run.status in HELD:
        state = _put(state, number, run._replace(due=NOW))
    return Step(Move("hand_back", worker, number), _know(state, worker, number, None))


def _try(state: State, worker: int, number: int, rules: Rules) -> Iterator[Step]:
    """What a worker tries whose token is void: all of it is refused, and it lets go of the run."""
    gone = _know(state, worker, number, None)
    run = state.runs[number]
    for name in ("begin", "ask", "finish", "fail"):
        after = None if rules.commit_checks_token else _commit(gone, number, name, rules)
        yield Step(Move(name, worker, number), after or gone, after is not None)
    for phase in (CANCEL, EXPIRE, BROKEN):
        after, done = (gone, False) if rules.end_checks_token else _end(gone, number, phase, rules)
        yield Step(Move(f"end_{phase}", worker, number), after, done)
    for name, due, checked in (
        ("renew", LEASE, rules.renewal_checks_token),
        ("hand_back", NOW, rules.hand_back_checks_token),
    ):
        done = not checked and run.status in HELD
        yield Step(Move(name, worker, number), _put(gone, number, run._replace(due=due)) if done else gone, done)
