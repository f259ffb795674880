"""What a claim costs by the length of the queue and the number of workspaces in it: ``python -m bench.claims``.

On SQLite in a scratch folder, and on the PostgreSQL that the tests use. Times are medians, in milliseconds.
"""

import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import sqlalchemy as sa
from tests.support.engines import Databases, PostgresServer, folder
from tests.support.objects import make_run

from loomgate import clock
from loomgate.store import Store, schema, tables
from loomgate.store.database import Database, Statement
from loomgate.store.postgres import PostgresDatabase
from loomgate.store.rows import encode, millis
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase
from loomgate.wire.runs import RunSpec

SIZES = ((1, 1), (1_000, 1), (1_000, 100), (100_000, 1), (100_000, 100), (100_000, 2_000))  # queued runs, workspaces
WANTED = 8
TIMES = 25
_INSERT = Statement(sa.insert(tables.runs))


async def _fill(database: Database, runs: int, workspaces: int, name: str) -> None:
    now, spec = clock.now(), encode(RunSpec())
    found: list[dict[str, object]] = []
    for number in range(runs):
        run = make_run(f"{name}_{number}")
        found.append(
            {
                "id": run.id,
                "workspace": f"ws{number % workspaces:05}",
                "thread_id": run.thread_id,
                "position": 1,
                "status": run.status,
                "expires_at": run.expires_at,
                "holds": run.thread_id,
                "due": millis(now - 600) + number,
                "fence": 0,
                "worker": None,
                "spec": spec,
                "body": encode(run),
            }
        )
    for start in range(0, runs, 2000):
        await database.write(lambda tx, start=start: tx.insert(_INSERT, found[start : start + 2000]))


async def _timed(work: Callable[[], Awaitable[object]], first: Callable[[], Awaitable[object]] | None = None) -> str:
    took: list[float] = []
    for _ in range(TIMES):
        if first is not None:
            await first()
        began = time.perf_counter()
        await work()
        took.append(time.perf_counter() - began)
    return f"{statistics.median(took) * 1000:.2f}"


async def _measure(engine: str, database: Database, runs: int, workspaces: int) -> None:
    runs_of = Store(database, Sealer(bytes(32)), [], "reject").runs
    names = (f"thread{number}" for number in count())

    async def fill() -> None:
        await _fill(database, runs, workspaces, next(names))

    for most in (0, 2, 0, 2):  # the first of all prepares the statements
        await _fill(database, 1, 1, next(names))
        await runs_of.claim("one", 1, 900, most)
    idle = await _timed(lambda: runs_of.claim("one", WANTED, 900))
    few = None if runs > 1 else fill
    await fill()
    plain = await _timed(lambda: runs_of.claim("one", WANTED, 900), few)
    limited = await _timed(lambda: runs_of.claim("one", WANTED, 900, 10_000), few)
    blocked = await _timed(lambda: runs_of.claim("one", WANTED, 900, 1), few) if workspaces == 1 else ""
    print(f"| {engine} | {runs:,} | {workspaces:,} | {plain} | {limited} | {blocked} | {idle} |", flush=True)


async def main() -> None:
    """Measure, and print a table."""
    print(f"| engine | queued | workspaces | claim of {WANTED} | with a limit | at its limit | idle |")
    print("|---|---|---|---|---|---|---|")
    for runs, workspaces in SIZES:
        with tempfile.TemporaryDirectory() as made:
            path = Path(made) / "loomgate.db"
            schema.prepare(path)
            database: Database = SqliteDatabase(path)
            await _measure("SQLite", database, runs, workspaces)
            await database.close()
    with folder() as place:
        server = PostgresServer(place, {"fsync": "on"})
        server.start()
        try:
            databases = Databases(server.url())
            for runs, workspaces in SIZES:
                url = await databases.ready()
                database = await PostgresDatabase.open(url, connections=4)
                await _measure("PostgreSQL", database, runs, workspaces)
                await database.close()
                await databases.drop(url)
        finally:
            server.stop()


if __name__ == "__main__":
    asyncio.run(main())
