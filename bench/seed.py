"""Fills a stopped server's SQLite file with runs, faster than HTTP could: copies of one run that was really made.

What must live here: copying rows. What must not: a row's content, since what is copied is exactly what the server
itself wrote, with other ids and order keys. Half of the runs go into one long thread, the rest into threads of
`SHORT` runs, so that both a deep and a wide table can be listed.

``python -m bench.seed FILE RUNS`` seeds a file by hand. Never run it on data that somebody needs.
"""

import argparse
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

SHORT = 20
# How many of the short threads are handed back for listing.
SAMPLE = 500

Value = str | int | float | bytes | None


class CannotSeed(Exception):
    """The file is not what this tool knows how to fill; the message says what it expected."""


@dataclass(frozen=True)
class Seeded:
    """What a file holds after seeding: number of runs, the long thread, some short ones, seconds it took."""

    runs: int
    long_thread: str
    short_threads: list[str]
    seconds: float
    megabytes: float


@dataclass(frozen=True)
class _Row:
    """A row that was really written, to be copied with other ids."""

    table: str
    values: dict[str, Value]

    def copy(self, renamed: dict[str, str], **changed: Value) -> tuple[Value, ...]:
        """The row's values with every id of ``renamed`` replaced, in keys and bodies, and ``changed`` columns set."""
        copied = self.values | changed
        for column in copied.keys() - changed.keys():
            for old, new in renamed.items():
                value = copied[column]
                if isinstance(value, str):
                    copied[column] = value.replace(old, new)
                elif isinstance(value, bytes):
                    copied[column] = value.replace(old.encode(), new.encode())
        return tuple(copied.values())

    def text(self, column: str) -> str:
        """A column that must hold text."""
        return str(self.values[column])

    def number(self, column: str) -> int:
        """A column that must hold a whole number."""
        value = self.values[column]
        if not isinstance(value, int):
            raise CannotSeed(f"{self.table}.{column}: expected a whole number, found {value!r}")
        return value


def _row(database: sqlite3.Connection, table: str, where: str, value: str, *needed: str) -> _Row:
    cursor = database.execute(f"SELECT * FROM {table} WHERE {where} = ?", (value,))
    columns = [description[0] for description in cursor.description]
    missing = {"id", *needed} - set(columns)
    if missing:
        raise CannotSeed(f"table {table}: expected columns {sorted(missing)}, found {columns}")
    found = cursor.fetchone()
    if found is None:
        raise CannotSeed(f"table {table}: expected a row with {where} = {value!r}, found none")
    return _Row(table, dict(zip(columns, found, strict=True)))


def _insert(database: sqlite3.Connection, row: _Row, copies: Iterator[tuple[Value, ...]]) -> None:
    names = ", ".join(row.values)
    places = ", ".join("?" * len(row.values))
    database.executemany(f"INSERT INTO {row.table} ({names}) VALUES ({places})", copies)


def _id(prefix: str) -> str:
    return f"{prefix}_{secrets.token_hex(12)}"


def seed(file: Path, run_id: str, runs: int) -> Seeded:
    """Copy the run ``run_id`` (terminal, alone in its thread) until ``file`` holds ``runs`` more of its kind.

    The server that owns ``file`` must be stopped. Raises `CannotSeed` if the tables are not as expected.
    """
    started = time.perf_counter()
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        run = _row(database, "runs", "id", run_id, "thread_id", "position", "due")
        if run.values["due"] is not None:
            raise CannotSeed(f"run {run_id}: expected a terminal run, found one that still needs a worker")
        thread = _row(database, "threads", "id", run.text("thread_id"), "workspace", "position", "positions")
        workspace = _row(database, "workspaces", "id", thread.text("workspace"), "positions")
        # Nothing is worth keeping if this is interrupted, so nothing is made durable before the end.
        for pragma in ("journal_mode=MEMORY", "synchronous=OFF", "cache_size=-1000000", "locking_mode=EXCLUSIVE"):
            database.execute(f"PRAGMA {pragma}").fetchall()
        database.execute("BEGIN")
        deep = runs // 2
        sizes = [deep] + [min(SHORT, runs - done) for done in range(deep, runs, SHORT)]
        threads = [_id("thread") for _ in sizes]
        first = workspace.number("positions")
        old_run, old_thread = run.text("id"), thread.text("id")
        base = thread.number("positions")
        _insert(
            database,
            thread,
            (
                thread.copy({old_thread: name}, position=first + n + 1, positions=base + size)
                for n, (name, size) in enumerate(zip(threads, sizes, strict=True))
            ),
        )
        _insert(
            database,
            run,
            (
                run.copy({old_run: _id("run"), old_thread: name}, position=base + n + 1)
                for name, size in zip(threads, sizes, strict=True)
                for n in range(size)
            ),
        )
        database.execute(
            "UPDATE workspaces SET positions = ? WHERE id = ?", (first + len(threads), workspace.text("id"))
        )
        database.execute("COMMIT")
        count = int(database.execute("SELECT count(*) FROM runs").fetchone()[0])
        database.execute("PRAGMA journal_mode=WAL").fetchall()
    full = [name for name, size in zip(threads[1:], sizes[1:], strict=True) if size == SHORT]
    return Seeded(
        runs=count,
        long_thread=threads[0],
        short_threads=full[:: max(1, len(full) // SAMPLE)][:SAMPLE],
        seconds=time.perf_counter() - started,
        megabytes=file.stat().st_size / 1e6,
    )


def database_file(folder: Path) -> Path:
    """The one SQLite file in a server's data folder. Raises `CannotSeed` if there is none or several."""
    found: list[Path] = []
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as opened:
                if opened.read(16) == b"SQLite format 3\0":
                    found.append(path)
    if len(found) != 1:
        raise CannotSeed(f"expected one SQLite file in the data folder, found {[path.name for path in found]}")
    return found[0]


def main() -> None:
    """Seed a file by hand: the last terminal run in it is the one that is copied."""
    parser = argparse.ArgumentParser(prog="bench.seed", description="Copy a run many times in a stopped server's file.")
    parser.add_argument("file", type=Path)
    parser.add_argument("runs", type=int)
    options = parser.parse_args()
    with closing(sqlite3.connect(options.file)) as database:
        found = database.execute("SELECT id FROM runs WHERE due IS NULL ORDER BY rowid DESC LIMIT 1").fetchone()
    if found is None:
        parser.error("the file holds no terminal run to copy")
    print(seed(options.file, str(found[0]), options.runs))


if __name__ == "__main__":
    main()
