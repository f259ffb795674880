"""Who gets a worker next: workspaces in turns, none beyond its limit, and nobody the later for another's long queue."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.support.engines import Databases
from tests.support.objects import make_message, make_run, make_step, make_thread

from loomgate import clock
from loomgate.store import Store, claims, schema, tables
from loomgate.store.database import Database, Statement
from loomgate.store.postgres import PostgresDatabase
from loomgate.store.records import Claimed, Commit
from loomgate.store.rows import encode, millis
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase
from loomgate.wire.runs import Run, RunSpec

pytestmark = pytest.mark.anyio

LEASE = 60.0
INSERT = Statement(sa.insert(tables.runs))
RUNNING = Statement(
    sa.select(tables.runs.c.workspace, sa.func.count())
    .where(tables.runs.c.status == "in_progress")
    .group_by(tables.runs.c.workspace)
)


async def queue(store: Store, workspace: str, count: int, *, ttl: int = 600) -> list[Run]:
    """Queued runs, each on a thread of its own, a millisecond apart."""
    made: list[Run] = []
    for _ in range(count):
        thread = make_thread()
        run = make_run(thread.id, ttl)
        await store.runs.create(workspace, run, RunSpec(), [make_message(thread.id)], thread)
        clock.advance(0.001)
        made.append(run)
    return made


async def fill(database: Database, workspaces: int, count: int) -> None:
    """``count`` queued runs of each of ``workspaces``, as rows; they have waited for a while."""
    now, spec = clock.now(), encode(RunSpec())
    found: list[dict[str, object]] = []
    for number in range(workspaces * count):
        run = make_run(f"thread_{number}")
        found.append(
            {
                "id": run.id,
                "workspace": f"busy{number % workspaces:04}",
                "thread_id": run.thread_id,
                "position": 1,
                "status": run.status,
                "expires_at": run.expires_at,
                "holds": run.thread_id,
                "due": millis(now - 60) + number,
                "fence": 0,
                "worker": None,
                "spec": spec,
                "body": encode(run),
            }
        )
    for start in range(0, len(found), 2000):
        await database.write(lambda tx, start=start: tx.insert(INSERT, found[start : start + 2000]))


async def claim(store: Store, count: int, most: int = 0, worker: str = "worker") -> list[Claimed]:
    return await store.runs.claim(worker, count, LEASE, most)


async def end(store: Store, claimed: Claimed) -> None:
    await store.runs.apply(claimed.row, Commit(verb="complete"))


def by_workspace(claimed: list[Claimed]) -> dict[str, int]:
    return dict(Counter(one.row.workspace for one in claimed))


class TestTurns:
    async def test_workspaces_take_turns_whoever_came_first(self, store: Store) -> None:
        await queue(store, "many", 10)
        await queue(store, "few", 2)
        await queue(store, "one", 1)
        assert by_workspace(await claim(store, 5)) == {"many": 2, "few": 2, "one": 1}
        assert by_workspace(await claim(store, 5)) == {"many": 5}

    async def test_what_is_in_workers_hands_counts(self, store: Store) -> None:
        await queue(store, "many", 10)
        assert by_workspace(await claim(store, 4)) == {"many": 4}
        await queue(store, "late", 6)
        assert by_workspace(await claim(store, 4)) == {"late": 4}
        assert by_workspace(await claim(store, 4)) == {"late": 2, "many": 2}

    async def test_within_a_workspace_the_oldest_come_first(self, store: Store) -> None:
        made = [run.id for run in await queue(store, "many", 6)]
        found = [one.row.id for _ in range(3) for one in await claim(store, 2)]
        assert found == made

    async def test_lapsed_leases_come_before_the_queue(self, store: Store) -> None:
        (left,) = await queue(store, "left", 1)
        await claim(store, 1)
        await queue(store, "many", 20)
        clock.advance(LEASE + 1)
        assert left.id in {one.row.id for one in await claim(store, 2)}

    async def test_a_run_past_its_time_does_not_wait_for_its_turn(self, store: Store) -> None:
        await queue(store, "many", 20)
        (short,) = await queue(store, "many", 1, ttl=1)
        clock.advance(5)
        found = {one.row.id: one for one in await claim(store, 2)}
        assert found[short.id].row.overdue
        assert found[short.id].run.status == "queued"

    async def test_of_many_workspaces_each_has_its_turn(
        self, store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims, "WORKSPACES", 4)
        await fill(database, 11, 3)
        seen: Counter[str] = Counter()
        for _ in range(8):
            seen.update(by_workspace(await claim(store, 2)))
        assert sum(seen.values()) == 16
        assert len(seen) == 11, "two claims of each four looked at, and all were looked at"

    async def test_a_full_queue_does_not_hold_another_workspace_up(self, store: Store, database: Database) -> None:
        await fill(database, 1, 10_000)
        await claim(store, 8)
        began = time.perf_counter()
        (run,) = await queue(store, "other", 1)
        found = {one.row.id: one for one in await claim(store, 8)}
        took = time.perf_counter() - began
        assert found[run.id].run.status == "in_progress"
        print(f"created and started behind 10,000 others in {took * 1000:.1f} ms")
        assert took < 1.0, "0.1 s on a machine that does nothing else"


class TestLimit:
    async def test_no_more_than_so_many_are_started_until_one_is_over(self, store: Store) -> None:
        await queue(store, "many", 5)
        await queue(store, "few", 1)
        first = await claim(store, 10, 2)
        assert by_workspace(first) == {"many": 2, "few": 1}
        assert await claim(store, 10, 2) == []
        await end(store, next(one for one in first if one.row.workspace == "many"))
        assert by_workspace(await claim(store, 10, 2)) == {"many": 1}
        assert await claim(store, 10, 2) == []

    async def test_at_its_limit_a_claim_only_reads_and_the_worker_has_nothing_to_wait_for(
        self, store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await queue(store, "many", 3)
        await claim(store, 10, 1)
        with monkeypatch.context() as patch:
            patch.setattr(database, "write", None)
            assert await claim(store, 10, 1) == []
        assert await store.runs.seconds_to_next() == float("inf"), "until somebody makes a move, or polls"
        assert len(await claim(store, 10, 2)) == 1
        assert await store.runs.seconds_to_next() <= 0, "one is due, whether or not it may start"

    async def test_a_client_whose_turn_it_is_takes_no_place(self, store: Store) -> None:
        run, _ = await queue(store, "many", 2)
        (held,) = await claim(store, 10, 1)
        assert held.row.id == run.id
        step = make_step(run)
        await store.runs.apply(held.row, Commit(turn=1, open_steps=[step]))
        await store.runs.apply(held.row, Commit(turn=1, verb="ask"))
        assert by_workspace(await claim(store, 10, 1)) == {"many": 1}

    async def test_ends_need_no_place(self, store: Store) -> None:
        """Cancelled runs and those past their time are handed over whatever the limit."""
        _, cancelled, late = [*await queue(store, "many", 2), *await queue(store, "many", 1, ttl=2)]
        await claim(store, 10, 1)
        await store.runs.cancel("many", cancelled.thread_id, cancelled.id)
        clock.advance(5)
        assert {one.row.id for one in await claim(store, 10, 1)} == {cancelled.id, late.id}

    async def test_a_lapsed_run_keeps_its_place_and_is_taken_over(self, store: Store) -> None:
        first, *_ = await queue(store, "many", 3)
        await claim(store, 10, 1)
        clock.advance(LEASE + 1)
        (again,) = await claim(store, 10, 1)
        assert (again.row.id, again.row.fence) == (first.id, 2)

    async def test_runs_of_a_deleted_thread_take_no_place(self, store: Store) -> None:
        run, _ = await queue(store, "many", 2)
        await claim(store, 10, 1)
        await store.threads.delete("many", run.thread_id)
        assert by_workspace(await claim(store, 10, 1)) == {"many": 1}

    async def test_more_workspaces_at_their_limits_than_are_looked_at(
        self, store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(claims, "WORKSPACES", 2)
        await fill(database, 7, 3)
        got: Counter[str] = Counter()
        while sum(got.values()) < 7:
            got.update(by_workspace(await claim(store, 3, 1)))
        assert set(got.values()) == {1}
        for _ in range(4):
            assert await claim(store, 3, 1) == []
        assert await store.runs.seconds_to_next() == float("inf")
        await queue(store, "zz", 1)
        found = [one.row.workspace for _ in range(4) for one in await claim(store, 3, 1)]
        assert found == ["zz"]


async def test_clocks_that_differ_are_noticed(
    store: Store, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clock, "_offset", 0.0)
    assert abs(await store.runs.queue.clock_ahead()) < 1
    monkeypatch.setattr(clock, "_offset", -20.0)
    expected = 0 if isinstance(database, SqliteDatabase) else -20
    assert await store.runs.queue.clock_ahead() == pytest.approx(expected, abs=1)


@asynccontextmanager
async def two_nodes(engine: str, databases: Databases, folder: Path) -> AsyncIterator[list[Store]]:
    """Two stores on one database, as two processes have them."""
    made: list[Database] = []
    url = None
    if engine == "sqlite":
        path = folder / "shared.db"
        schema.prepare(path)
        made = [SqliteDatabase(path, synchronous="normal") for _ in range(2)]
    else:
        url = await databases.ready()
        made = [await PostgresDatabase.open(url, connections=4) for _ in range(2)]
    yield [Store(database, Sealer(bytes(32)), [], "reject") for database in made]
    for database in made:
        await database.close()
    if url is not None:
        await databases.drop(url)


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
@pytest.mark.parametrize("most", [0, 3])
async def test_nodes_that_race_share_the_queue_and_keep_to_the_limit(
    engine: str, most: int, databases: Databases, tmp_path: Path
) -> None:
    async with two_nodes(engine, databases, tmp_path) as stores:
        database = stores[0].runs._db
        await fill(database, 3, 20)
        seen: list[tuple[str, int]] = []
        highest: Counter[str] = Counter()

        async def work(name: str, store: Store) -> None:
            idle = 0
            while idle < 20 and len(seen) < 60:
                found = await claim(store, 4, most, name)
                idle = 0 if found else idle + 1
                seen.extend((one.row.id, one.row.fence) for one in found)
                for workspace, count in await store.runs._db.rows(RUNNING):
                    highest[workspace] = max(highest[workspace], count)
                for one in found:
                    await end(store, one)
                await asyncio.sleep(0.002 if not found else 0)

        await asyncio.gather(*(work(f"{n}{m}", store) for n, store in enumerate(stores) for m in range(2)))
        assert len(seen) == len({id for id, _ in seen}) == 60, "each once"
        assert {fence for _, fence in seen} == {1}
        if most:
            assert max(highest.values()) <= most
