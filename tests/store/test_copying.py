"""An embedded installation moved to PostgreSQL: whole, or to be gone on with; never into what is in use."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from tests.support.engines import Databases

from loomgate.errors import StoreError
from loomgate.store import lock, schema, tables
from loomgate.store.copying import _ALL, copy
from loomgate.store.sqlite import connect

pytestmark = pytest.mark.anyio


def _value(column: sa.Column[object], n: int) -> object:
    if isinstance(column.type, sa.Boolean):
        return n % 2
    if isinstance(column.type, sa.LargeBinary):
        return None if column.nullable and n % 3 == 0 else b"{%d}\0" % n * 20
    if isinstance(column.type, sa.Double):
        return n / 7
    if isinstance(column.type, sa.BigInteger):
        return n
    return None if column.nullable and n % 3 == 0 else f"{column.name}\0{n}\U0001f600\ufdd0"


@pytest.fixture
def installation(tmp_path: Path) -> Path:
    """A data folder with rows in every table, some thousands in all."""
    path = tmp_path / "data" / "loomgate.db"
    path.parent.mkdir()
    schema.prepare(path)
    (path.parent / "seal.key").write_text("0" * 64)
    connection = connect(path)
    connection.execute("BEGIN")
    for table in _ALL:
        marks = ", ".join("?" * len(table.columns))
        for n in range(5_000 if table.name in ("messages", "steps") else 120):
            row = tuple(_value(column, n) for column in table.columns)
            connection.execute(f"INSERT INTO {table.name} VALUES ({marks})", row)  # noqa: S608 - names of ours
    connection.execute("COMMIT")
    connection.close()
    return path.parent


@pytest.fixture
async def target(databases: Databases) -> AsyncIterator[str]:
    url = await databases.empty()
    yield url
    await databases.drop(url)


def _quiet(*_: object) -> None:
    pass


async def test_everything_is_copied_and_compared(installation: Path, target: str) -> None:
    compared = await copy(installation, target, _quiet)
    assert all(one.same for one in compared)
    assert {one.table: one.target for one in compared}["messages"] == 5_000
    assert {one.table for one in compared} == set(tables.metadata.tables) - {"writers"}
    assert all(one.source > 0 for one in compared)
    await schema.check_postgres(target)
    with pytest.raises(StoreError, match="is not empty"):
        await copy(installation, target, _quiet)


async def test_a_copy_that_was_killed_goes_on(installation: Path, target: str) -> None:
    program = (
        "import asyncio, sys; from pathlib import Path; from loomgate.store import copying\n"
        "copying._ROWS = 400\n"
        "asyncio.run(copying.copy(Path(sys.argv[1]), sys.argv[2], lambda *told: print(*told, flush=True)))\n"
    )
    process = subprocess.Popen(  # noqa: ASYNC220 - nothing else runs in this loop
        [sys.executable, "-c", program, str(installation), target], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("copying messages 2000"):
            process.send_signal(signal.SIGKILL)
            break
    await asyncio.to_thread(process.wait)
    process.stdout.close()
    with pytest.raises(StoreError, match="not copied to its end"):
        await schema.check_postgres(target)
    connection = await asyncpg.connect(target)
    assert await connection.fetchval("SELECT count(*) FROM messages") >= 2_000
    told: list[tuple[str, str, int, int]] = []
    compared = await copy(installation, target, lambda *one: told.append(one))
    assert all(one.same for one in compared)
    first = next(one for one in told if one[:2] == ("copying", "messages"))
    assert first[2] > 2_000, "it did not begin anew"
    assert await connection.fetchval("SELECT to_regclass('copying')") is None
    await connection.close()


async def test_a_source_that_changed_is_not_mixed_with_what_is_there(installation: Path, target: str) -> None:
    def stop(what: str, *_: object) -> None:
        if what == "copying":
            raise RuntimeError("stop here")

    with pytest.raises(RuntimeError):
        await copy(installation, target, stop)
    connection = connect(installation / "loomgate.db")
    connection.execute("UPDATE threads SET messages = messages + 1")
    connection.close()
    with pytest.raises(StoreError, match="has changed since"):
        await copy(installation, target, _quiet)


async def test_a_server_that_uses_the_file_is_not_copied_from(installation: Path, target: str) -> None:
    held = lock(installation / "loomgate.db")
    try:
        with pytest.raises(StoreError, match="in use by another server"):
            await copy(installation, target, _quiet)
    finally:
        os.close(held)
    with pytest.raises(StoreError, match="there is no database"):
        await copy(installation / "nowhere", target, _quiet)


async def test_the_command_prints_a_table_and_where_the_key_is(installation: Path, target: str) -> None:
    command = [sys.executable, "-m", "loomgate", "copy", str(installation), target]
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "messages" in done.stdout
    assert "NOT THE SAME" not in done.stdout
    assert f"LOOMGATE_SEAL_KEY=$(cat {installation / 'seal.key'})" in done.stderr
    assert "copying messages: 5,000 of 5,000 row(s)" in done.stderr
    again = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
    assert again.returncode == 1
    assert again.stderr.strip().count("\n") < 30
    assert "is not empty" in again.stderr
