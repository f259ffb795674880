"""Seeding must copy what is there, whole, and nothing else."""

import sqlite3
from contextlib import closing
from pathlib import Path

import msgspec
import pytest
import sqlalchemy
from bench import report
from bench.seed import CannotSeed, database_file, seed

from loomgate.store import tables

RUN, THREAD = "run_" + "r" * 24, "thread_" + "t" * 24


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A database with the server's own tables and one run in them."""
    made = tmp_path / "loomgate.db"
    engine = sqlalchemy.create_engine(f"sqlite:///{made}")
    tables.metadata.create_all(engine)
    body = {"id": RUN, "object": "thread.run", "thread_id": THREAD, "status": "completed"}
    rows = {
        "workspaces": {"positions": 2},
        "threads": {"position": 2, "positions": 3, "body": msgspec.json.encode({"id": THREAD})},
        "runs": {"position": 3, "status": "completed", "body": msgspec.json.encode(body)},
    }
    given = {"workspace": "default", "thread_id": THREAD, "created_at": 1, "expires_at": 600, "spec": b"{}"}
    ids = {"workspaces": "default", "threads": THREAD, "runs": RUN}
    with engine.begin() as connection:
        for name, row in rows.items():
            table = tables.metadata.tables[name]
            values = {"id": ids[name]} | {key: value for key, value in given.items() if key in table.c} | row
            connection.execute(table.insert().values(values))
    engine.dispose()
    return made


def test_seed(file: Path) -> None:
    seeded = seed(database_file(file.parent), RUN, 1_000)
    assert seeded.runs == 1_001
    assert len(seeded.short_threads) == 25
    with closing(sqlite3.connect(file)) as database:
        found = database.execute("SELECT id, thread_id, position, status, body FROM runs").fetchall()
        threads = dict(database.execute("SELECT id, positions FROM threads").fetchall())
        positions = [row[0] for row in database.execute("SELECT position FROM threads ORDER BY position")]
        assert database.execute("SELECT positions FROM workspaces").fetchone() == (positions[-1],)
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    assert positions == list(range(2, 2 + 27))
    of: dict[str, list[int]] = {}
    for id, thread, position, status, body in found:
        assert msgspec.json.decode(body) == {"id": id, "object": "thread.run", "thread_id": thread, "status": status}
        of.setdefault(thread, []).append(position)
    assert of.keys() == threads.keys()
    assert {len(of[thread]) for thread in seeded.short_threads} == {20}
    assert len(of[seeded.long_thread]) == 500
    # The next run of any thread gets an order key of its own.
    assert all(max(given) == threads[thread] for thread, given in of.items())


def test_seed_wants_a_terminal_run(file: Path) -> None:
    with closing(sqlite3.connect(file)) as database, database:
        database.execute("UPDATE runs SET due = 5")
    with pytest.raises(CannotSeed, match="expected a terminal run"):
        seed(file, RUN, 10)
    with pytest.raises(CannotSeed, match="expected a row with id"):
        seed(file, "run_none", 10)


def test_the_page_keeps_its_words(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.update(page, "new")
    assert page.read_text() == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    assert report.BEGIN in report.PAGE.read_text()
    assert report.END in report.PAGE.read_text()
    page.write_text("no markers")
    with pytest.raises(ValueError, match="expected the lines"):
        report.update(page, "new")
