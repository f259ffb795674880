"""Looks at every state that a model can reach, and at whether each still leads to an end. Knows no real code."""

from collections import deque
from dataclasses import dataclass

from tests.protocol.model import (
    ABSENT,
    ACTIVE,
    BROKEN,
    CANCEL,
    EMPTY,
    HELD,
    NEVER,
    RULES,
    STALE,
    TERMINAL,
    WRITING,
    Move,
    Rules,
    State,
    initial,
    steps,
)


class Violated(Exception):
    """A promise is broken: which, and the moves that lead there."""

    def __init__(self, promise: str, path: list[Move]) -> None:
        super().__init__("\n".join([promise, *(f"  {move}" for move in path)]))
        self.promise = promise
        self.path = path


@dataclass(frozen=True)
class Explored:
    """How much there was to look at."""

    states: int
    transitions: int
    depth: int


def broken(state: State) -> str | None:
    """The promise that ``state`` breaks by itself, if any."""
    if sum(run.holds for run in state.runs) > 1:
        return "a thread has one holder"
    for number, run in enumerate(state.runs):
        drives = [worker[number] for worker in state.workers]
        if sum(drive not in (None, STALE) for drive in drives) > 1:
            return "a token is held by one worker"
        if run.status not in HELD and any(drive in (EMPTY, WRITING, CANCEL, BROKEN) for drive in drives):
            return "a token is good for a run in its worker's hands"
        if run.message == "twice":
            return "a message exists once"
        if run.status in ACTIVE:
            if run.due == NEVER:
                return "somebody comes back to every active run"
            if run.status in ("in_progress", "requires_action") and not run.holds:
                return "only the holder of its thread is worked on"
            if run.status == "queued" and not run.holds and not any(other.holds for other in state.runs):
                return "a free thread goes to whoever waits for it"
        elif run.status in TERMINAL:
            if run.holds or run.due != NEVER:
                return "a run at its end holds nothing and needs nobody"
            if run.message == "open" or run.calls == "open":
                return "a run at its end leaves nothing open"
            if (run.status == "completed") != (run.message == "completed"):
                return "a message is completed with its run"
    return None


def _same(state: State) -> State:
    """Workers are all alike: states that differ in who is who are one."""
    return State(state.runs, tuple(sorted(state.workers, key=lambda drives: tuple(phase or "" for phase in drives))))


def explore(workers: int, runs: int, rules: Rules = RULES, *, calls: bool = True, ends: bool = True) -> Explored:
    """Look at all there is: whether each state keeps the promises, and (``ends``) whether each leads to an end though
    only one worker does anything. Without the second, states that differ in who is who count as one.

    Raises `Violated`.
    """
    first = initial(workers, runs, calls=calls)
    numbers: dict[State, int] = {first: 0}
    found = [first]
    parents: list[tuple[int, Move] | None] = [None]
    depths = [0]
    alone: list[list[int]] = [[]]  # from where one worker and time alone lead here
    awaits: list[list[int]] = [[]]  # the same without the end of anyone's time
    transitions = 0
    ahead = deque([0])

    def path(number: int, *last: Move) -> list[Move]:
        moves = list(last)
        while (parent := parents[number]) is not None:
            number, move = parent
            moves.append(move)
        return moves[::-1]

    while ahead:
        number = ahead.popleft()
        before: State | None = None
        known: int | None = None
        for move, after, void in steps(found[number], rules):
            transitions += 1
            if void:
                raise Violated("nothing is accepted from a void token", path(number, move))
            if after is not before:  # what is refused leads to the same state again and again
                state = before = after
                if not ends:
                    state = _same(after)
                known = numbers.get(state)
            if known is None:
                known = numbers[state] = len(found)
                found.append(state)
                parents.append((number, move))
                depths.append(depths[number] + 1)
                alone.append([])
                awaits.append([])
                if promise := broken(state):
                    raise Violated(promise, path(known))
                ahead.append(known)
            if move.worker == 0 or move.name in ("lapse", "pass"):
                alone[known].append(number)
                if move.name != "pass":
                    awaits[known].append(number)
    if ends:
        for back, spared in ((alone, False), (awaits, True)):
            stuck = _stuck(found, back, spared=spared)
            if stuck is not None:
                raise Violated("a worker that lives brings every run to its end", path(stuck))
    return Explored(len(found), transitions, max(depths))


def _stuck(found: list[State], back: list[list[int]], *, spared: bool) -> int | None:
    """The first state that does not lead on, against ``back``, to one in which all runs are at their end; states in
    which a client's move is awaited need not, if they are ``spared``."""
    good = [
        all(run.status in TERMINAL or run.status == ABSENT for run in state.runs)
        or (spared and any(run.status == "requires_action" for run in state.runs))
        for state in found
    ]
    ahead = deque(number for number, is_good in enumerate(good) if is_good)
    while ahead:
        for before in back[ahead.popleft()]:
            if not good[before]:
                good[before] = True
                ahead.append(before)
    return None if all(good) else good.index(False)
