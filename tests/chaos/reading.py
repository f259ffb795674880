"""Everything that a cluster holds in the end: as its API lists it, and as its database's rows say it.

What must live here: reading. What must not: rules (`judge`, `tests.crash.check`).
"""

from contextlib import closing
from pathlib import Path

import apsw
import asyncpg

from loomgate.store import schema, tables
from tests.chaos.clients import Client
from tests.chaos.judge import Stored
from tests.crash.check import Database, check_consistent

_OWN = {"alembic_version"}


async def copied(url: str, path: Path) -> None:
    """Copy all rows of the PostgreSQL database of ``url`` into a new SQLite file, which `check_consistent` reads."""
    schema.prepare(path)
    connection = await asyncpg.connect(url)
    try:
        with closing(apsw.Connection(str(path))) as file:
            file.execute("BEGIN")
            for table in tables.metadata.sorted_tables:
                names = [column.name for column in table.columns]
                rows = await connection.fetch(f"SELECT {', '.join(names)} FROM {table.name}")  # noqa: S608
                places = ", ".join("?" * len(names))
                file.execute(f"DELETE FROM {table.name}")  # noqa: S608 - its own names
                file.executemany(
                    f"INSERT INTO {table.name} ({', '.join(names)}) VALUES ({places})",  # noqa: S608
                    (tuple(row.values()) for row in rows),
                )
            file.execute("COMMIT")
    finally:
        await connection.close()


async def read(url: str, folder: Path, client: Client) -> tuple[Stored, list[str]]:
    """All threads, messages, runs and steps as the API lists them; and where its rows are inconsistent by themselves
    or its lists are not the rows."""
    path = folder / "copy.db"
    await copied(url, path)
    faults: list[str] = []
    try:
        found = check_consistent(path, ended=True)
    except AssertionError as error:
        faults.append(f"the database: {error}")
        found = Database(path)
    stored = Stored({}, {}, {})
    for rows in (found.messages, found.runs, found.steps):
        stored.places |= {row["id"]: row["position"] for row in rows}
    listed = {row["id"] for row in await client.all("/v1/threads")}
    if listed != set(found.threads):
        faults.append(f"threads are listed that are not there, or the other way round: {listed ^ set(found.threads)}")
    for thread in found.threads:
        stored.messages[thread] = await client.all(f"/v1/threads/{thread}/messages")
        stored.runs[thread] = await client.all(f"/v1/threads/{thread}/runs")
        for run in stored.runs[thread]:
            stored.steps[run["id"]] = await client.all(f"/v1/threads/{thread}/runs/{run['id']}/steps")
    for what, rows, lists in (
        ("messages", found.messages, stored.messages),
        ("runs", found.runs, stored.runs),
        ("steps", found.steps, stored.steps),
    ):
        parent = "run_id" if what == "steps" else "thread_id"
        for id, list_ in lists.items():
            there = [row["id"] for row in rows if row[parent] == id]
            if there != [row["id"] for row in list_]:
                faults.append(f"{what} of {id}: listed as {[row['id'] for row in list_]}, stored as {there}")
    return stored, faults
