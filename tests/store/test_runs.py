"""The table is the queue: who may hold a run, for how long, and what a holder that is no more may write."""

import asyncio
from pathlib import Path

import msgspec
import pytest
import sqlalchemy as sa
from tests.support.objects import WORKSPACE, make_answer, make_message, make_run, make_step, make_thread

from loomgate import clock
from loomgate.errors import ApiError, IllegalTransition, LeaseLost
from loomgate.store import Store, schema, tables
from loomgate.store.database import Database, Statement
from loomgate.store.outbox import Endpoint
from loomgate.store.records import Claimed, Commit
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase
from loomgate.wire.page import Page, PageQuery
from loomgate.wire.runs import (
    Failure,
    FunctionStepCall,
    MessageDetails,
    Run,
    RunSpec,
    Step,
    StepToolCall,
    ToolCallsDetails,
    Usage,
)

pytestmark = pytest.mark.anyio

LEASE = 60.0
ROW = Statement(
    sa.select(tables.runs.c.status, tables.runs.c.due, tables.runs.c.fence, tables.runs.c.holds).where(
        tables.runs.c.id == sa.bindparam("key")
    )
)
EVERYTHING = [
    Statement(sa.select(table).order_by(*table.primary_key.columns))
    for table in tables.metadata.sorted_tables
    if table is not tables.writers  # which counts attempts as well
]


async def new_run(store: Store, *, rule: str | None = None, ttl: int = 600) -> Run:
    """A queued run on a thread of its own."""
    thread = make_thread(rule)
    run = make_run(thread.id, ttl)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id)], thread)
    return run


async def claim(store: Store, worker: str = "worker") -> list[Claimed]:
    return await store.runs.claim(worker, 100, LEASE)


async def started(store: Store, **fields: object) -> tuple[Run, Claimed]:
    """A run in a worker's hands."""
    run = await new_run(store, **fields)  # type: ignore[arg-type]
    (claimed,) = await claim(store)
    return run, claimed


async def row(database: Database, run: Run) -> tuple[str, float | None, int, str | None]:
    """Status, seconds until the run is due, fencing token, and what it holds."""
    found = await database.row(ROW, key=run.id)
    assert found is not None
    status, due, fence, holds = found
    return status, None if due is None else due / 1000 - clock.now(), fence, holds


async def status(store: Store, run: Run) -> str:
    body = await store.runs.body(WORKSPACE, run.thread_id, run.id)
    assert isinstance(body, bytes)
    return msgspec.json.decode(body)["status"]


async def everything(database: Database) -> list[object]:
    """All that is stored, to tell whether something changed."""
    return [await database.rows(statement) for statement in EVERYTHING]


def asking(run: Run) -> tuple[Commit, Commit, Step]:
    """What a turn that calls two functions writes: at its beginning and at its end."""
    step = make_step(run)
    calls = [StepToolCall(f"call_{name}", FunctionStepCall(name, "{}")) for name in ("a", "b")]
    full = msgspec.structs.replace(step, step_details=ToolCallsDetails(calls))
    usage = Usage(prompt_tokens=5, completion_tokens=2, total_tokens=7)
    return Commit(turn=1, open_steps=[step]), Commit(turn=1, verb="ask", put_steps=[(full, usage)]), step


async def waiting(store: Store, **fields: object) -> tuple[Run, Claimed, Step]:
    """A run in `requires_action`."""
    run, claimed = await started(store, **fields)
    opens, asks, step = asking(run)
    await store.runs.apply(claimed.row, opens)
    await store.runs.apply(claimed.row, asks)
    return run, claimed, step


class TestClaim:
    async def test_two_claimers_never_get_the_same_run(self, tmp_path: Path) -> None:
        """Two connections on one file, as two processes have, that take turns and race."""
        path = tmp_path / "shared.db"
        schema.prepare(path)
        stores = [Store(SqliteDatabase(path, synchronous="normal"), Sealer(bytes(32)), [], "reject") for _ in range(2)]
        try:
            made = {(await new_run(stores[n % 2])).id for n in range(40)}

            async def greedy(name: str, store: Store) -> list[tuple[str, int]]:
                mine: list[tuple[str, int]] = []
                while some := await store.runs.claim(name, 3, LEASE):
                    mine += [(one.row.id, one.row.fence) for one in some]
                    await asyncio.sleep(0)
                return mine

            first, second = await asyncio.gather(greedy("one", stores[0]), greedy("two", stores[1]))
            ids = [id for id, _ in first + second]
            assert len(ids) == len(set(ids)) == 40
            assert set(ids) == made
            assert {fence for _, fence in first + second} == {1}
            assert first
            assert second
        finally:
            for store in stores:
                await store.close()

    @pytest.mark.behaviour("RUN-34")
    async def test_a_claim_starts_the_run_under_a_lease(self, store: Store, database: Database) -> None:
        run = await new_run(store)
        assert await row(database, run) == ("queued", pytest.approx(0, abs=5), 0, run.thread_id)
        (claimed,) = await claim(store)
        assert (claimed.row.id, claimed.row.fence, claimed.row.worker) == (run.id, 1, "worker")
        assert (claimed.run.status, claimed.run.started_at) == ("in_progress", pytest.approx(clock.timestamp(), abs=5))
        assert await row(database, run) == ("in_progress", pytest.approx(LEASE, abs=5), 1, run.thread_id)
        assert await claim(store) == []
        assert await store.runs.seconds_to_next() == pytest.approx(LEASE, abs=5)

    async def test_the_oldest_due_come_first_and_no_more_than_wanted(self, store: Store) -> None:
        made = []
        for _ in range(5):
            made.append((await new_run(store)).id)
            clock.advance(0.01)
        found: list[str] = []
        for count in (2, 2, 2):
            some = await store.runs.claim("worker", count, LEASE)
            assert len(some) <= count
            found += [one.row.id for one in some]
        assert found == made

    @pytest.mark.behaviour("RUN-99")
    async def test_a_lapsed_lease_lets_the_next_claimer_in(self, store: Store) -> None:
        run, first = await started(store)
        clock.advance(LEASE - 10)
        assert await claim(store, "other") == []
        clock.advance(11)
        (second,) = await claim(store, "other")
        assert (second.row.id, second.row.worker, second.row.fence) == (run.id, "other", first.row.fence + 1)
        assert second.run.started_at == first.run.started_at, "it goes on, it is not started again"
        assert second.events == []

    async def test_nothing_due_is_found_without_writing(self, store: Store, database: Database) -> None:
        assert await claim(store) == []
        assert await store.runs.seconds_to_next() == float("inf")
        await started(store)
        before = await everything(database)
        assert await claim(store) == []
        assert await everything(database) == before

    @pytest.mark.behaviour("RUN-41")
    async def test_a_run_past_its_time_is_handed_over_but_not_started(self, store: Store) -> None:
        run = await new_run(store, ttl=30)
        clock.advance(31)
        (claimed,) = await claim(store)
        assert (claimed.row.id, claimed.run.status, claimed.events) == (run.id, "queued", [])
        assert claimed.row.overdue


class TestFencing:
    """Whoever holds an old token writes nothing, whatever it tries."""

    async def stale(self, store: Store) -> tuple[Run, Claimed, Claimed]:
        run, old = await started(store)
        clock.advance(LEASE + 1)
        (new,) = await claim(store, "other")
        return run, old, new

    async def test_a_stale_commit_writes_nothing(self, store: Store, database: Database) -> None:
        run, old, new = await self.stale(store)
        kept = make_answer(run, "kept")
        step = make_step(run, kept)
        await store.runs.apply(new.row, Commit(turn=1, open_steps=[step], open_messages=[kept]))
        before = await everything(database)
        late = make_answer(run, "late")
        closed = msgspec.structs.replace(step, status="completed")
        for commit in (
            Commit(turn=1, open_steps=[make_step(run, late)], open_messages=[late]),
            Commit(put_messages=[msgspec.structs.replace(kept, content=late.content)], put_steps=[(closed, None)]),
            Commit(drop_steps=[step.id], drop_messages=[kept.id]),
            Commit(verb="complete"),
            Commit(),
        ):
            with pytest.raises(LeaseLost):
                await store.runs.apply(old.row, commit)
        for verb in ("fail", "cancel", "expire"):
            with pytest.raises(LeaseLost):
                await store.runs.end(run.id, verb, fence=old.row.fence)  # type: ignore[arg-type]
        assert await everything(database) == before
        assert (await store.runs.apply(new.row, Commit(verb="complete"))).run.status == "completed"

    async def test_a_stale_lease_is_not_renewed_given_back_or_parked(self, store: Store, database: Database) -> None:
        run, old, new = await self.stale(store)
        before = await everything(database)
        assert await store.runs.renew([(run.id, old.row.fence)], 900) == [run.id]
        await store.runs.hand_back([(run.id, old.row.fence)])
        await store.runs.park(old.row)
        assert await everything(database) == before
        assert await store.runs.renew([(run.id, new.row.fence)], LEASE) == []

    async def test_ending_a_run_voids_its_workers_token(self, store: Store) -> None:
        """A run that somebody found past its time ends; its worker, late, finds its token void."""
        run, claimed = await started(store, ttl=30)
        clock.advance(31)
        ended = await store.runs.end(run.id, "expire")
        assert ended is not None
        assert ended.run.status == "expired"
        with pytest.raises(LeaseLost):
            await store.runs.apply(claimed.row, Commit(verb="complete"))

    async def test_a_refused_verb_takes_the_whole_commit_with_it(self, store: Store, database: Database) -> None:
        run, claimed = await started(store)
        await store.runs.cancel(WORKSPACE, run.thread_id, run.id)
        before = await everything(database)
        opens, asks, _ = asking(run)
        with pytest.raises(IllegalTransition):
            await store.runs.apply(claimed.row, msgspec.structs.replace(asks, open_steps=opens.open_steps))
        assert await everything(database) == before

    async def test_of_two_runs_under_one_token_each_is_its_own(self, store: Store) -> None:
        """Tokens are per run: the same number on another run opens nothing."""
        (a, first), (b, second) = await started(store), await started(store)
        assert first.row.fence == second.row.fence == 1
        clock.advance(LEASE + 1)
        await claim(store)
        assert sorted(await store.runs.renew([(a.id, 1), (b.id, 2)], LEASE)) == [a.id]


class TestLeases:
    async def test_a_renewed_lease_holds(self, store: Store, database: Database) -> None:
        run, claimed = await started(store)
        for _ in range(4):
            clock.advance(LEASE - 10)
            assert await store.runs.renew([(run.id, claimed.row.fence)], LEASE) == []
            assert await claim(store, "other") == []
        assert (await row(database, run))[1] == pytest.approx(LEASE, abs=5)

    async def test_a_run_that_waits_for_its_client_has_no_lease_to_renew(
        self, store: Store, database: Database
    ) -> None:
        run, claimed, _ = await waiting(store)
        before = await everything(database)
        assert await store.runs.renew([(run.id, claimed.row.fence)], LEASE) == [run.id]
        assert await everything(database) == before
        assert (await row(database, run))[1] == pytest.approx(600, abs=5), "due when its time is over"

    async def test_a_lease_that_is_handed_back_is_due_at_once(self, store: Store) -> None:
        run, claimed = await started(store)
        await store.runs.hand_back([(run.id, claimed.row.fence)])
        (next_one,) = await claim(store, "other")
        assert (next_one.row.id, next_one.row.fence) == (run.id, claimed.row.fence + 1)
        with pytest.raises(LeaseLost):
            await store.runs.apply(claimed.row, Commit(verb="complete"))

    async def test_a_parked_run_is_due_when_its_time_is_over(self, store: Store, database: Database) -> None:
        run, claimed = await started(store)
        await store.runs.park(claimed.row)
        assert (await row(database, run))[1] == pytest.approx(600, abs=5)
        assert await claim(store) == []

    async def test_parking_what_has_ended_leaves_it_alone(self, store: Store, database: Database) -> None:
        run, claimed = await started(store)
        await store.runs.apply(claimed.row, Commit(verb="complete"))
        await store.runs.park(claimed.row)
        assert (await row(database, run))[1] is None
        assert await store.runs.seconds_to_next() == float("inf")

    @pytest.mark.behaviour("RUN-99")
    async def test_a_server_that_starts_adopts_what_was_leased_and_nothing_else(
        self, store: Store, database: Database
    ) -> None:
        leased, _ = await started(store)
        asked, _, _ = await waiting(store)
        cancelling, held = await started(store)
        await store.runs.cancel(WORKSPACE, cancelling.thread_id, cancelling.id)
        ended, done = await started(store)
        await store.runs.apply(done.row, Commit(verb="complete"))
        fences = {run.id: (await row(database, run))[2] for run in (leased, asked, cancelling, ended)}

        assert await store.runs.adopt() == 2
        assert {one.row.id for one in await claim(store, "new")} == {leased.id, cancelling.id}
        assert (await row(database, asked))[2] == fences[asked.id]
        assert (await row(database, ended))[:2] == ("completed", None)
        with pytest.raises(LeaseLost):
            await store.runs.apply(held.row, Commit(verb="complete"))


class TestLock:
    """One run holds its thread; what comes meanwhile is refused, or waits its turn."""

    @pytest.mark.behaviour("LOCK-03", "LOCK-06", "LOCK-11")
    async def test_of_runs_created_at_once_one_holds_the_thread_and_the_others_leave_nothing(
        self, store: Store, database: Database
    ) -> None:
        thread = make_thread()
        await store.threads.create(WORKSPACE, thread, [make_message(thread.id)])
        runs = [make_run(thread.id) for _ in range(8)]
        results = await asyncio.gather(
            *(store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id, run.id)]) for run in runs),
            return_exceptions=True,
        )
        (winner,) = [run for run, result in zip(runs, results, strict=True) if not isinstance(result, BaseException)]
        for result in results:
            if isinstance(result, BaseException):
                assert isinstance(result, ApiError)
                assert (result.status, result.param, result.code) == (400, None, None)
                assert result.message == f"Thread {thread.id} already has an active run {winner.id}."
        page = await store.threads.messages(WORKSPACE, thread.id, PageQuery(), None)
        said = [msgspec.json.decode(body)["content"][0]["text"]["value"] for body in page.bodies]
        assert said == [winner.id, "Hello."]
        assert await store.runs.active() == 1
        listed = await store.runs.page(WORKSPACE, thread.id, PageQuery())
        assert isinstance(listed, Page)
        assert listed.ids == [winner.id]

    @pytest.mark.behaviour("LOCK-01", "LOCK-02", "LOCK-04", "LOCK-05", "LOCK-10")
    async def test_a_message_waits_for_no_active_status_and_for_nothing_after_it(self, store: Store) -> None:
        run = await new_run(store)

        async def refused() -> None:
            for role in ("user", "assistant"):
                with pytest.raises(ApiError) as caught:
                    await store.threads.add_message(WORKSPACE, make_message(run.thread_id, role=role))
                assert caught.value.message == (
                    f"Can't add messages to {run.thread_id} while a run {run.id} is active."
                )

        await refused()  # queued
        (claimed,) = await claim(store)
        await refused()  # in_progress
        opens, asks, _ = asking(run)
        await store.runs.apply(claimed.row, opens)
        await store.runs.apply(claimed.row, asks)
        await refused()  # requires_action
        await store.runs.cancel(WORKSPACE, run.thread_id, run.id)
        await refused()  # cancelling
        (claimed,) = await claim(store)
        await store.runs.end(run.id, "cancel", fence=claimed.row.fence)
        await store.threads.add_message(WORKSPACE, make_message(run.thread_id))

    async def test_runs_that_wait_are_promoted_in_the_order_of_their_creation(
        self, store: Store, database: Database
    ) -> None:
        first = await new_run(store, rule="enqueue")
        others = [make_run(first.thread_id) for _ in range(3)]
        for run in others:
            assert (await store.runs.create(WORKSPACE, run, RunSpec(), [])).waits
            assert await row(database, run) == ("queued", pytest.approx(600, abs=5), 0, None)
        order = [first]
        for number, run in enumerate((first, *others)):
            (claimed,) = await claim(store)
            assert claimed.row.id == run.id
            applied = await store.runs.apply(claimed.row, Commit(verb="complete"))
            left = others[number:]
            assert applied.promoted == (left[0].id if left else None)
            if left:
                order.append(left[0])
                assert await row(database, left[0]) == ("queued", pytest.approx(0, abs=5), 0, first.thread_id)
        assert [run.id for run in order] == [first.id, *(run.id for run in others)]

    async def test_a_waiting_run_that_is_cancelled_lets_the_one_behind_it_pass(self, store: Store) -> None:
        first = await new_run(store, rule="enqueue")
        (holding,) = await claim(store)
        second, third = make_run(first.thread_id), make_run(first.thread_id)
        for run in (second, third):
            await store.runs.create(WORKSPACE, run, RunSpec(), [])
        await store.runs.cancel(WORKSPACE, first.thread_id, second.id)
        (claimed,) = await claim(store)
        assert claimed.row.id == second.id
        ended = await store.runs.end(second.id, "cancel", fence=claimed.row.fence)
        assert ended is not None
        assert (ended.run.status, ended.promoted) == ("cancelled", None), "it held nothing to hand on"
        applied = await store.runs.apply(holding.row, Commit(verb="complete"))
        assert applied.promoted == third.id

    @pytest.mark.behaviour("RUN-46")
    async def test_a_newcomer_ends_a_holder_whose_time_is_over(self, store: Store) -> None:
        run, _ = await started(store, ttl=30)
        clock.advance(31)
        newcomer = make_run(run.thread_id)
        created = await store.runs.create(WORKSPACE, newcomer, RunSpec(), [])
        assert [(ended.run.id, ended.run.status) for ended in created.changed] == [(run.id, "expired")]
        assert not created.waits
        assert await status(store, run) == "expired"

    @pytest.mark.behaviour("RUN-13", "RUN-14", "LOCK-11")
    async def test_a_run_with_nothing_to_answer_is_refused_and_leaves_nothing(
        self, store: Store, database: Database
    ) -> None:
        thread = make_thread()
        await store.threads.create(WORKSPACE, thread, [])
        before = await everything(database)
        more = [make_message(thread.id, role="assistant")]
        with pytest.raises(ApiError, match="Run creation requires a Thread with a user message") as caught:
            await store.runs.create(WORKSPACE, make_run(thread.id), RunSpec(), more)
        assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_thread", None)
        assert await everything(database) == before
        await store.runs.create(WORKSPACE, make_run(thread.id, instructions="Greet."), RunSpec(), more)

    @pytest.mark.behaviour("RUN-81")
    async def test_a_run_of_another_thread_or_workspace_is_unknown(self, store: Store) -> None:
        run, other = await new_run(store), await new_run(store)
        for workspace, thread, kind in (
            (WORKSPACE, other.thread_id, "run"),
            ("other", run.thread_id, "thread"),
        ):
            for question in (
                store.runs.body(workspace, thread, run.id),
                store.runs.cancel(workspace, thread, run.id),
                store.runs.submit(workspace, thread, run.id, []),
                store.runs.modify(workspace, thread, run.id, lambda before: before),
                store.runs.steps(workspace, thread, run.id, PageQuery()),
            ):
                with pytest.raises(ApiError, match=f"No {kind} found with id") as caught:
                    await question
                assert caught.value.status == 404


class TestOutputs:
    @pytest.mark.behaviour("RUN-32", "RUN-35", "RUN-63", "RUN-70", "STEP-08")
    async def test_outputs_complete_the_step_and_queue_the_run(self, store: Store, database: Database) -> None:
        run, claimed, step = await waiting(store)
        clock.advance(3)
        submitted = await store.runs.submit(WORKSPACE, run.thread_id, run.id, [("call_b", "2"), ("call_a", "1")])
        body = msgspec.json.decode(submitted.body)  # type: ignore[union-attr]
        assert body["status"] == "queued"
        assert body["required_action"] is None
        assert (body["started_at"], body["expires_at"]) == (claimed.run.started_at, run.expires_at)
        kept = msgspec.json.decode(await store.runs.step(WORKSPACE, run.thread_id, run.id, step.id))  # type: ignore[arg-type]
        assert kept["status"] == "completed"
        assert kept["completed_at"] == pytest.approx(clock.timestamp(), abs=5)
        assert kept["usage"]["total_tokens"] == 7
        assert [call["function"]["output"] for call in kept["step_details"]["tool_calls"]] == ["1", "2"]
        assert (await row(database, run))[1] == pytest.approx(0, abs=5)
        (again,) = await claim(store)
        assert again.run.started_at == pytest.approx(clock.timestamp(), abs=5)
        assert again.run.started_at > (claimed.run.started_at or 0)  # type: ignore[operator]

    @pytest.mark.behaviour("RUN-62", "RUN-65", "RUN-66")
    @pytest.mark.parametrize(
        "given",
        [[], ["call_a"], ["call_a", "call_a"], ["call_a", "call_b", "call_c"], ["call_a", "call_c"]],
        ids=lambda given: " ".join(given) or "none",
    )
    async def test_other_ids_are_refused_and_change_nothing(
        self, store: Store, database: Database, given: list[str]
    ) -> None:
        run, _, _ = await waiting(store)
        before = await everything(database)
        with pytest.raises(ApiError) as caught:
            await store.runs.submit(WORKSPACE, run.thread_id, run.id, [(id, "") for id in given])
        assert caught.value.message == f"Expected tool outputs for call_ids ['call_a', 'call_b'], got {given}"
        assert (caught.value.status, caught.value.param, caught.value.code) == (400, None, None)
        assert await everything(database) == before

    @pytest.mark.behaviour("RUN-64")
    async def test_of_two_submissions_at_once_one_wins(self, store: Store) -> None:
        run, _, _ = await waiting(store)
        outputs = [("call_a", "1"), ("call_b", "2")]
        results = await asyncio.gather(
            *(store.runs.submit(WORKSPACE, run.thread_id, run.id, outputs) for _ in range(2)), return_exceptions=True
        )
        (refused,) = [result for result in results if isinstance(result, BaseException)]
        assert isinstance(refused, ApiError)
        assert refused.message == 'Runs in status "queued" do not accept tool outputs.'


class TestEnds:
    @pytest.mark.behaviour("RUN-42", "RUN-43", "RUN-58", "RUN-98", "STEP-16")
    @pytest.mark.parametrize(
        ("verb", "step_status", "stamp", "reason"),
        [
            ("cancel", "cancelled", "cancelled_at", "run_cancelled"),
            ("expire", "expired", "expired_at", "run_expired"),
            ("fail", "failed", "failed_at", "run_failed"),
        ],
    )
    async def test_what_was_open_is_closed_with_the_run(
        self, store: Store, verb: str, step_status: str, stamp: str, reason: str
    ) -> None:
        run, claimed = await started(store, ttl=30)
        done, answer = make_answer(run, "first"), make_answer(run, "so far")
        first, step = make_step(run, done), make_step(run, answer)
        assert isinstance(step.step_details, MessageDetails)
        closed = msgspec.structs.replace(
            first, status="completed", completed_at=1, usage=Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)
        )
        finished = msgspec.structs.replace(done, status="completed", completed_at=1)
        await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[first], open_messages=[done]))
        await store.runs.apply(claimed.row, Commit(put_steps=[(closed, None)], put_messages=[finished]))
        await store.runs.apply(claimed.row, Commit(turn=2, open_steps=[step], open_messages=[answer]))
        if verb == "cancel":
            await store.runs.cancel(WORKSPACE, run.thread_id, run.id)
        if verb == "expire":
            clock.advance(31)
        failure = Failure("server_error", "It broke.") if verb == "fail" else None
        ended = await store.runs.end(run.id, verb, fence=claimed.row.fence, failure=failure)  # type: ignore[arg-type]
        assert ended is not None

        names = [event.split(b"\n")[0].decode() for event in ended.events]
        assert names == [
            "event: thread.message.incomplete",
            f"event: thread.run.step.{step_status}",
            f"event: thread.run.{ended.run.status}",
        ]
        journal = await store.runs.journal(run.id)
        kept = {entry.step.id: entry.step for entry in journal.entries}
        assert kept[step.id].status == step_status
        assert getattr(kept[step.id], stamp) is not None
        assert kept[step.id].last_error == failure
        assert kept[first.id] == closed, "what was completed stays so"
        cut = journal.messages[answer.id]
        assert (cut.status, cut.content) == ("incomplete", answer.content)
        assert cut.incomplete_details is not None
        assert cut.incomplete_details.reason == reason
        assert journal.messages[done.id] == finished
        assert ended.run.usage == Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7)

    async def test_ending_asks_whether_the_status_allows_it(self, store: Store, database: Database) -> None:
        run, claimed = await started(store)
        before = await everything(database)
        assert await store.runs.end(run.id, "cancel", fence=claimed.row.fence) is None, "nobody asked to cancel"
        assert await store.runs.end(run.id, "expire") is None, "its time is not over"
        assert await store.runs.end("run_unknown", "expire") is None
        assert await everything(database) == before
        await store.runs.apply(claimed.row, Commit(verb="complete"))
        assert await store.runs.end(run.id, "fail") is None

    @pytest.mark.behaviour("MSG-17", "LOCK-08")
    async def test_a_message_that_was_deleted_meanwhile_stays_deleted(self, store: Store) -> None:
        run, claimed = await started(store)
        answer = make_answer(run, "so far")
        commit = Commit(turn=1, open_steps=[make_step(run, answer)], open_messages=[answer])
        await store.runs.apply(claimed.row, commit)
        await store.threads.delete_message(WORKSPACE, run.thread_id, answer.id)
        await store.runs.apply(claimed.row, Commit(verb="complete", put_messages=[answer]))
        with pytest.raises(ApiError, match="No message found"):
            await store.threads.message_body(WORKSPACE, run.thread_id, answer.id)


class TestOutbox:
    """Each status change is owed to the endpoints in the transaction that makes it (docs/webhooks.md)."""

    @pytest.fixture
    def told(self, database: Database) -> Store:
        endpoints = [
            Endpoint("wh_all", WORKSPACE),
            Endpoint("wh_ends", WORKSPACE, frozenset({"thread.run.completed"})),
            Endpoint("wh_other", "other"),
        ]
        return Store(database, Sealer(bytes(32)), endpoints, "reject")

    async def owed(self, store: Store, endpoint: str) -> list[str]:
        """The events owed to ``endpoint``, taken one after the other."""
        found: list[str] = []
        while claimed := await store.outbox.claim(endpoint, 10, 60):
            for delivery in claimed:
                payload = msgspec.json.decode(delivery.payload)
                found.append(payload["type"])
                assert payload["type"] in (f"thread.run.{payload['data']['status']}", "thread.run.created")
                await store.outbox.end(delivery, "200", delivered=True)
        return found

    async def test_every_change_is_owed_in_order(self, told: Store) -> None:
        run, _, _ = await waiting(told)
        await told.runs.submit(WORKSPACE, run.thread_id, run.id, [("call_a", ""), ("call_b", "")])
        (claimed,) = await claim(told)
        await told.runs.apply(claimed.row, Commit(verb="complete"))
        names = "created queued in_progress requires_action queued in_progress completed".split()
        assert await self.owed(told, "wh_all") == [f"thread.run.{name}" for name in names]
        assert await self.owed(told, "wh_ends") == ["thread.run.completed"]
        assert await self.owed(told, "wh_other") == []

    async def test_what_was_refused_is_not_told(self, told: Store) -> None:
        run, old = await started(told)
        with pytest.raises(ApiError):
            await told.runs.create(WORKSPACE, make_run(run.thread_id), RunSpec(), [])
        clock.advance(LEASE + 1)
        await claim(told, "other")
        with pytest.raises(LeaseLost):
            await told.runs.apply(old.row, Commit(verb="complete"))
        assert await self.owed(told, "wh_all") == [
            f"thread.run.{name}" for name in ("created", "queued", "in_progress")
        ]
