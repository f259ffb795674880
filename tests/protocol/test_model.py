"""The protocol by which runs are claimed, leased and ended: all of its model, and the model against the real store.

``LOOMGATE_PROPERTIES=long`` looks at more workers and runs at once, and replays more.
"""

import os
import random
from collections import deque
from collections.abc import AsyncIterator, Callable, Hashable
from dataclasses import replace
from pathlib import Path

import pytest

from loomgate.store import Store, schema
from loomgate.store.database import Database
from loomgate.store.postgres import PostgresDatabase
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase
from tests.protocol.checker import Violated, explore
from tests.protocol.model import ALL_RULES, RULES, Move, Rules, State, Step, initial, steps
from tests.protocol.real import Real
from tests.support.engines import Databases

LONG = os.environ.get("LOOMGATE_PROPERTIES") == "long"

# Workers and runs -> states and transitions, so that a change to the model does not make it smaller unnoticed.
FULL = {(2, 1): (826, 9_674), (3, 1): (2_298, 40_224), (1, 2): (14_187, 128_849)}


@pytest.mark.parametrize(("workers", "runs"), FULL)
def test_every_state_keeps_the_promises_and_leads_to_an_end(workers: int, runs: int) -> None:
    found = explore(workers, runs)
    print(found)
    assert (found.states, found.transitions) == FULL[workers, runs]


def test_two_workers_and_two_runs_of_a_thread() -> None:
    """Without calls of tools, and workers that are alike counted as one; the long form has both."""
    found = explore(2, 2) if LONG else explore(2, 2, calls=False, ends=False)
    print(found)
    assert found.states >= 23_165


@pytest.mark.skipif(not LONG, reason="takes minutes")
def test_three_workers_and_two_runs_of_a_thread() -> None:
    print(explore(3, 2, calls=False, ends=False))


# Rule -> the promise that is broken without it.
MISSED = {
    "commit_checks_token": "nothing is accepted from a void token",
    "end_checks_token": "nothing is accepted from a void token",
    "renewal_checks_token": "nothing is accepted from a void token",
    "hand_back_checks_token": "nothing is accepted from a void token",
    "claim_changes_token": "a token is held by one worker",
    "end_changes_token": "a token is good for a run in its worker's hands",
    "ask_changes_token": "a token is good for a run in its worker's hands",
    "lapsed_leases_are_claimed": "a worker that lives brings every run to its end",
    "journal_is_read": "a message exists once",
    "end_promotes": "a free thread goes to whoever waits for it",
    "newcomers_wait": "a thread has one holder",
    "cancelling_makes_due": "a worker that lives brings every run to its end",
}


@pytest.mark.parametrize("rule", ALL_RULES)
def test_each_rule_is_missed_when_it_is_taken_away(rule: str) -> None:
    promise, _, path = _missed(rule)
    assert promise == MISSED[rule]
    assert len(path) < 12, "the shortest way there"


def _missed(rule: str) -> tuple[str, State, list[Move]]:
    """The promise that is broken without ``rule``, and the way there from the beginning."""
    for workers, runs in ((2, 1), (1, 2)):
        try:
            explore(workers, runs, replace(RULES, **{rule: False}))
        except Violated as violated:
            return violated.promise, initial(workers, runs), violated.path
    raise AssertionError(f"{rule} is not missed")


# A worker asks for outputs of tools and does not hear that its question was stored; its client has answered already
# when the worker, which takes what it met for a fault of its own, fails the run.
UNHEARD = [
    Move("create", -1, 0),
    Move("claim", 0, -1),
    Move("look", 0, 0),
    Move("ask", 0, 0, lost=True),
    Move("submit", -1, 0),
]


def test_a_worker_that_did_not_hear_of_its_commit_fails_no_healthy_run() -> None:
    def after(state: State, rules: Rules) -> State:
        for move in UNHEARD:
            state = next(step.state for step in steps(state, rules) if step.move == move)
        return state

    state = after(initial(2, 1), RULES)
    assert {step.state.runs for step in steps(state) if step.move.worker == 0 and step.move.name.startswith("end")} == {
        state.runs
    }
    cut = replace(RULES, ask_changes_token=False)
    state = after(initial(2, 1), cut)
    (ended,) = (step.state for step in steps(state, cut) if step.move == Move("end", 0, 0))
    assert [run.status for run in ended.runs] == ["failed"], "the way there was"


# The model against the store


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path, databases: Databases) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        path = tmp_path / "loomgate.db"
        schema.prepare(path)
        yield (made := SqliteDatabase(path, synchronous="normal"))
        await made.close()
        return
    url = await databases.ready()
    yield (opened := await PostgresDatabase.open(url, connections=4))
    await opened.close()
    await databases.drop(url)


def kind(state: State, step: Step) -> tuple[object, ...]:
    """What matters of a move to whoever makes it really: the verb, the row it meets, and what its worker knows."""
    move = step.move
    if move.run < 0:
        return move.name, tuple(sorted(run[:4] for run in state.runs))
    knows = state.workers[move.worker][move.run] if move.worker >= 0 else None
    return move.name, move.lost, knows, state.runs[move.run]


def rough(state: State, step: Step) -> tuple[object, ...]:
    """Less of the same: the verb, what its worker knows, and the run's status."""
    known = kind(state, step)
    return known[:2] if step.move.run < 0 else (*known[:3], state.runs[step.move.run].status)


def verb(state: State, step: Step) -> tuple[object, ...]:
    """Less still: the verb, and what its worker knows."""
    return kind(state, step)[: 1 if step.move.run < 0 else 3]


def ways(workers: int, runs: int, kinds: Callable[[State, Step], Hashable]) -> dict[Hashable, list[Move]]:
    """Each kind of move with the shortest way to it, itself included."""
    first = initial(workers, runs)
    seen: dict[State, list[Move]] = {first: []}
    ahead = deque([first])
    found: dict[Hashable, list[Move]] = {}
    while ahead:
        state = ahead.popleft()
        for step in steps(state):
            way = [*seen[state], step.move]
            found.setdefault(kinds(state, step), way)
            if step.state not in seen:
                seen[step.state] = way
                ahead.append(step.state)
    return found


class Walk:
    """A walk through the model and through the store at once; ``done`` collects the kinds of moves that were made."""

    def __init__(self, database: Database, state: State, done: set[Hashable]) -> None:
        store = Store(database, Sealer(bytes(32)), [], "reject")
        self.state = state
        self.real = Real(store, database, state)
        self._done = done
        self._path: list[Move] = []

    async def go(self, step: Step) -> None:
        self._path.append(step.move)
        self._done |= {made(self.state, step) for made in (kind, rough, verb)}
        try:
            await self.real.make(self.state, step)
            await self.real.agrees(step.state)
        except BaseException:
            print(*self._path, sep="\n")
            raise
        self.state = step.state

    async def follow(self, way: list[Move], rules: Rules = RULES) -> Step:
        for move in way:
            step = next(step for step in steps(self.state, rules) if step.move == move)
            await self.go(step)
        return step


@pytest.mark.anyio
async def test_the_store_does_what_the_model_does(database: Database) -> None:
    """Every kind of move that the model knows of, made with the real store too, and the two compared after each."""
    done: set[Hashable] = set()
    kinds = rough if isinstance(database, SqliteDatabase) else verb
    for workers, runs in ((2, 1), (1, 2)) if LONG else ((2, 1),):
        found = ways(workers, runs, kind if LONG else kinds)
        for wanted in sorted(found, key=lambda wanted: len(found[wanted]), reverse=True):  # short ways begin long ones
            if wanted not in done:
                walk = Walk(database, initial(workers, runs), done)
                await walk.follow(found[wanted])
                await walk.real.leave()
        assert found.keys() <= done


@pytest.mark.anyio
async def test_what_a_worker_did_not_hear_of_is_out_of_its_hands(database: Database) -> None:
    walk = Walk(database, initial(2, 1), set())
    await walk.follow([*UNHEARD, Move("end_broken", 0, 0), Move("claim", 1, -1)])
    assert walk.state.runs[0].status == "in_progress"
    await walk.real.leave()


@pytest.mark.anyio
async def test_on_random_ways_too(database: Database) -> None:
    dice = random.Random(seed := random.randrange(1 << 32))
    print(f"seed {seed}")
    done: set[Hashable] = set()
    for _ in range(1_000 if LONG else 40 if isinstance(database, SqliteDatabase) else 12):
        walk = Walk(database, initial(*dice.choice([(2, 1), (2, 2), (3, 2)])), done)
        for _ in range(dice.randint(5, 30)):
            ahead = list(steps(walk.state))
            if not ahead:
                break
            new = [step for step in ahead if kind(walk.state, step) not in done]
            await walk.go(dice.choice(new if new and dice.random() < 0.7 else ahead))
        await walk.real.leave()
    print(f"{len(done)} kinds")


@pytest.mark.anyio
async def test_what_breaks_a_promise_cannot_be_done_with_the_store(database: Database) -> None:
    """The ways that models without one of the rules would go: the store, which has them all, does not follow."""
    for rule in ALL_RULES:
        _, first, path = _missed(rule)
        await _not_followed(Walk(database, first, set()), path, replace(RULES, **{rule: False}))


async def _not_followed(walk: Walk, path: list[Move], rules: Rules) -> None:
    try:
        last = await walk.follow(path, rules)
    except (AssertionError, pytest.fail.Exception):
        await walk.real.leave()  # another state, another answer
        return
    if not last.void:  # it was refused, as `Real` expects of a void token
        known = list(steps(walk.state, rules))
        await walk.go(next(step for step in steps(walk.state) if step not in known))  # where such a model is stuck
    await walk.real.leave()
