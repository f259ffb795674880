"""The moves of the model, made with the real store: the same verbs that the engine and its workers use.

Time is the exception: that a lease has lapsed, or a run's time is over, is written into its row, since each happens to
one run at a time here, as it does to a worker whose clock is wrong.
"""

from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from loomgate import clock
from loomgate.errors import IllegalTransition, LeaseLost
from loomgate.store import Store, tables
from loomgate.store.database import Database, Statement
from loomgate.store.records import Commit
from loomgate.store.rows import RunRow, millis
from loomgate.wire import lifecycle
from loomgate.wire.page import PageQuery
from loomgate.wire.runs import Failure, FunctionStepCall, Run, RunSpec, StepToolCall, ToolCallsDetails, Usage
from loomgate.wire.runs import Step as RunStep
from loomgate.wire.threads import IncompleteMessage, Message
from tests.protocol import model
from tests.protocol.model import Move, State, Step
from tests.support.objects import WORKSPACE, make_answer, make_message, make_run, make_step, make_thread

LEASE = 60.0
_r = tables.runs
_key: sa.BindParameter[Any] = sa.bindparam("key")
ROW = Statement(sa.select(_r.c.status, _r.c.holds, _r.c.due, _r.c.expires_at, _r.c.fence).where(_r.c.id == _key))
SET_DUE = Statement(sa.update(_r).where(_r.c.id == _key).values(due=sa.bindparam("at", type_=sa.BigInteger)))
SET_END = Statement(sa.update(_r).where(_r.c.id == _key).values(expires_at=sa.bindparam("at", type_=sa.BigInteger)))
USAGE = Usage(prompt_tokens=1, completion_tokens=1, total_tokens=2)
FAILURE = Failure("server_error", "It broke.")


class Real:
    """A thread and its workers on a real store. `make` a step of the model; `state` is what came of it."""

    def __init__(self, store: Store, database: Database, state: State) -> None:
        self.store = store
        self.database = database
        self.thread = make_thread("enqueue")
        self.runs: list[Run] = []
        self.made = len(state.runs)
        self.names = [f"worker-{self.thread.id}-{number}" for number in range(len(state.workers))]
        self.drives: dict[tuple[int, int], RunRow] = {}
        self.work: dict[tuple[int, int], tuple[RunStep, Message]] = {}

    async def make(self, before: State, step: Step) -> None:
        """Make ``step`` and hold what the store answers against what the model says."""
        move = step.move
        if move.worker < 0:
            await getattr(self, f"_{move.name}")(move.run, before)
        elif move.name == "claim":
            await self._claim(move.worker, before)
        elif move.name == "die":
            for number in range(self.made):
                self._let_go(move.worker, number)
        else:
            await self._drive(move, before, step.state)

    async def leave(self) -> None:
        """Nothing of this is claimed by who comes next."""
        if self.runs:
            await self.store.threads.delete(WORKSPACE, self.thread.id)

    # Clients, and time

    async def _create(self, number: int, _: State) -> None:
        run = make_run(self.thread.id)
        message = make_message(self.thread.id, f"Number {number}.")
        await self.store.runs.create(WORKSPACE, run, RunSpec(), [message], None if number else self.thread)
        self.runs.append(run)

    async def _lapse(self, number: int, _: State) -> None:
        at = millis(clock.now()) - 1
        await self.database.write(lambda tx: tx.run(SET_DUE, key=self.runs[number].id, at=at))

    async def _pass(self, number: int, before: State) -> None:
        at = clock.timestamp() - 1

        async def work(tx: Any) -> None:
            await tx.run(SET_END, key=self.runs[number].id, at=at)
            if before.runs[number].due == model.WAIT:  # until its time is over, which it is
                await tx.run(SET_DUE, key=self.runs[number].id, at=at * 1000)

        await self.database.write(work)

    async def _read(self, number: int, _: State) -> None:
        assert await self.store.runs.end(self.runs[number].id, "expire") is not None

    async def _cancel(self, number: int, _: State) -> None:
        await self.store.runs.cancel(WORKSPACE, self.thread.id, self.runs[number].id)

    async def _submit(self, number: int, _: State) -> None:
        await self.store.runs.submit(WORKSPACE, self.thread.id, self.runs[number].id, [("call_a", "Done.")])

    # Workers

    async def _claim(self, worker: int, before: State) -> None:
        found = {one.row.id: one.row for one in await self.store.runs.claim(self.names[worker], 10, LEASE)}
        due = {number for number, run in enumerate(before.runs) if run.due == model.NOW}
        assert found.keys() == {self.runs[number].id for number in due}
        for number in due:
            self._let_go(worker, number)
            self.drives[worker, number] = found[self.runs[number].id]

    def _let_go(self, worker: int, number: int) -> None:
        self.drives.pop((worker, number), None)
        self.work.pop((worker, number), None)

    async def _drive(self, move: Move, before: State, after: State) -> None:
        """What a worker does with a run. Whatever it does with a void token is refused."""
        where = move.worker, move.run
        row = self.drives[where]
        knew, knows = before.workers[move.worker][move.run], after.workers[move.worker][move.run]
        if move.name == "look":
            await self._look(where, row, knows)
        elif move.name in ("renew", "hand_back"):
            held = [(row.id, row.fence)]
            if move.name == "renew":
                lost = await self.store.runs.renew(held, LEASE)
                assert lost == ([] if knows is not None else [row.id])
            else:
                await self.store.runs.hand_back(held)
        elif move.name != "doubt":
            work = self._work(move, where, row, knew)
            if knew == model.STALE:
                with pytest.raises(LeaseLost):
                    await work
            elif knows == model.CANCEL:
                with pytest.raises(IllegalTransition):
                    await work
            else:
                ended = await work
                if move.name == "end":
                    assert (ended is None) == (before.runs == after.runs)
        if knows is None:
            self._let_go(*where)

    async def _look(self, where: tuple[int, int], row: RunRow, knows: str | None) -> None:
        status = await self.store.runs.status(row.id, row.fence)
        if knows == model.CANCEL:
            assert status in lifecycle.RUN["cancel"].sources
        elif knows in (model.EMPTY, model.WRITING):
            assert status in lifecycle.EXECUTING
            journal = await self.store.runs.journal(row.id)
            left = [entry.step for entry in journal.entries if entry.step.status == "in_progress"]
            assert (knows == model.WRITING) == bool(left)
            if left:
                (message,) = journal.messages.values()
                self.work[where] = left[0], message

    def _work(self, move: Move, where: tuple[int, int], row: RunRow, knew: str | None) -> Any:
        run = self.runs[move.run]
        runs = self.store.runs
        if move.name.startswith("end"):
            why = move.name.removeprefix("end_") if knew == model.STALE else knew
            if why == model.BROKEN:
                return runs.end(row.id, "fail", fence=row.fence, failure=FAILURE)
            return runs.end(row.id, "cancel" if why == model.CANCEL else "expire", fence=row.fence)
        if move.name == "ask":
            step = make_step(run)
            calls = ToolCallsDetails([StepToolCall("call_a", FunctionStepCall("a", "{}"))])
            asked = msgspec.structs.replace(step, step_details=calls)
            return runs.apply(row, Commit(turn=1, verb="ask", open_steps=[step], put_steps=[(asked, USAGE)]))
        if move.name == "begin" or where not in self.work:
            message = make_answer(run)
            step = make_step(run, message)
            if move.name == "begin":
                self.work[where] = step, message
                return runs.apply(row, Commit(turn=2, open_steps=[step], open_messages=[message]))
        else:
            step, message = self.work[where]
        now = clock.timestamp()
        if move.name == "finish":
            message = lifecycle.step_on(lifecycle.MESSAGE, message, "complete", now)
            step = lifecycle.step_on(lifecycle.STEP, step, "complete", now, usage=USAGE)
            return runs.apply(row, Commit(turn=2, verb="complete", put_messages=[message], put_steps=[(step, None)]))
        cut = IncompleteMessage("run_failed")
        message = lifecycle.step_on(lifecycle.MESSAGE, message, "cut", now, incomplete_details=cut)
        step = lifecycle.step_on(lifecycle.STEP, step, "fail", now, usage=USAGE, last_error=FAILURE)
        fields = {"last_error": FAILURE}
        commit = Commit(turn=2, verb="fail", fields=fields, put_messages=[message], put_steps=[(step, None)])
        return runs.apply(row, commit)

    # What came of it

    async def agrees(self, state: State) -> None:
        """Hold all that is stored, and who has which token, against ``state``."""
        fences: list[int] = []
        for number, run in enumerate(self.runs):
            wanted = state.runs[number]
            found, fence = await self._stored(run, wanted)
            fences.append(fence)
            assert found == wanted, (number, found, wanted)
        assert all(run.status == model.ABSENT for run in state.runs[len(self.runs) :])
        for worker, drives in enumerate(state.workers):
            for number, knows in enumerate(drives):
                row = self.drives.get((worker, number))
                assert (row is None) == (knows is None)
                if row is not None:
                    assert (row.fence == fences[number]) == (knows != model.STALE), "the current token, or a void one"
        if self.runs:
            page = await self.store.threads.messages(WORKSPACE, self.thread.id, PageQuery(limit=100, order="asc"), None)
            said = [msgspec.json.decode(body) for body in page.bodies]
            texts = [one["content"][0]["text"]["value"] for one in said if one["role"] == "user"]
            assert texts == [f"Number {number}." for number in range(len(self.runs))], "each accepted message once"

    async def _stored(self, run: Run, wanted: model.Run) -> tuple[model.Run, int]:
        row = await self.database.row(ROW, key=run.id)
        assert row is not None
        status, holds, due, expires_at, fence = row
        now = clock.now()
        if due is None:
            when = model.NEVER
        elif due <= now * 1000:
            when = model.NOW
        else:
            when = model.WAIT if due == expires_at * 1000 else model.LEASE
        late = expires_at <= now if status in lifecycle.ACTIVE else wanted.late
        journal = await self.store.runs.journal(run.id)
        calls = {entry.step.status for entry in journal.entries if entry.step.type == "tool_calls"}
        written = [message.status for message in journal.messages.values()]
        said = {"in_progress": "open", "incomplete": "cut"}
        message = "none" if not written else said.get(written[0], written[0]) if len(written) == 1 else "twice"
        return (
            model.Run(
                status,
                holds is not None,
                when,
                late,
                "none" if not calls else "open" if "in_progress" in calls else "over",
                message,
            ),
            fence,
        )
