"""The schema's versions: migrations and `tables` say the same, old files are upgraded, newer ones are refused."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from loomgate.errors import StoreError
from loomgate.store import schema, tables
from loomgate.store.sqlite import connect

NEWEST = schema.HEAD
NEXT = '''"""Notes on threads, for a test."""

import sqlalchemy as sa
from alembic import op

revision = "9000"
down_revision = "NEWEST"


def upgrade() -> None:
    op.add_column("threads", sa.Column("note", sa.Text()))
    op.execute("UPDATE threads SET note = 'before ' || id")
'''.replace("NEWEST", schema.HEAD)


def query(path: Path, sql: str, *params: object) -> list[tuple[object, ...]]:
    connection = connect(path)
    try:
        return list(connection.execute(sql, params).fetchall())
    finally:
        connection.close()


def shape(path: Path) -> dict[str, str]:
    """Every table and index by name: its SQL without what only lays it out."""
    found = query(path, "SELECT name, coalesce(sql, 'automatic') FROM sqlite_master WHERE name NOT LIKE '%alembic%'")
    return {str(name): tight(str(sql)) for name, sql in found}


def tight(sql: str) -> str:
    """``sql`` without what only lays it out."""
    return re.sub(r"\s*([(),])\s*", r"\1", " ".join(sql.split()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "loomgate.db"


@pytest.fixture
def migrated(tmp_path: Path) -> Path:
    """A database that Alembic alone has made."""
    path = tmp_path / "migrated.db"
    command.upgrade(schema.alembic_config(path), "head")
    return path


def test_migrations_lead_to_the_tables_that_are_created(path: Path, migrated: Path) -> None:
    schema.prepare(path)
    made = shape(path)
    assert shape(migrated) == made
    assert set(tables.metadata.tables) <= made.keys()
    indexes = {index.name for table in tables.metadata.tables.values() for index in table.indexes}
    assert indexes <= made.keys()


def test_partial_indexes_are_partial_in_both(path: Path, migrated: Path) -> None:
    """Alembic's own comparison does not look at an index's condition, so it is looked at by itself."""
    schema.prepare(path)
    wanted = {
        str(index.name): tight(str(index.dialect_options["sqlite"]["where"]))
        for table in tables.metadata.tables.values()
        for index in table.indexes
        if index.dialect_options["sqlite"]["where"] is not None
    }
    assert len(wanted) >= 7
    for made in (shape(path), shape(migrated)):
        found = {name: re.search(r"\bWHERE (.*)", sql) for name, sql in made.items()}
        assert {name: match[1] for name, match in found.items() if match} == wanted


def test_alembic_finds_nothing_left_to_migrate(path: Path, migrated: Path) -> None:
    schema.prepare(path)
    for file in (path, migrated):
        engine = create_engine(f"sqlite:///{file}")
        with engine.connect() as connection:
            assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
        engine.dispose()


def test_head_is_the_newest_migration(path: Path, migrated: Path) -> None:
    script = ScriptDirectory.from_config(schema.alembic_config(path))
    assert script.get_heads() == [schema.HEAD]
    assert schema.revision(migrated) == schema.HEAD
    assert not path.exists(), "asking for the revisions makes no file"


def test_preparing_is_done_once(path: Path) -> None:
    assert schema.revision(path) is None
    assert schema.upgrade(path) == (None, schema.HEAD)
    query(path, "INSERT INTO workspaces (id, created_at) VALUES ('kept', 1)")
    before = path.read_bytes()
    schema.prepare(path)
    assert schema.upgrade(path) == (schema.HEAD, schema.HEAD)
    assert path.read_bytes() == before
    assert query(path, "SELECT id FROM workspaces") == [("kept",)]


def _with_a_next_migration(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """From now on this version is one that has a migration more."""
    scripts = folder / "migrations"
    shutil.copytree(Path(schema.__file__).parent / "migrations", scripts)
    (scripts / "versions" / "9000_notes.py").write_text(text)
    real = schema.alembic_config

    def config(path: Path) -> object:
        made = real(path)
        made.set_main_option("script_location", str(scripts))
        return made

    monkeypatch.setattr(schema, "alembic_config", config)
    monkeypatch.setattr(schema, "HEAD", "9000")


def test_an_older_database_is_upgraded_and_keeps_its_rows(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema.prepare(path)
    query(path, "INSERT INTO threads (id, workspace, position, body) VALUES ('thread_1', 'default', 1, x'7b7d')")
    _with_a_next_migration(path.parent, monkeypatch, NEXT)

    assert schema.upgrade(path) == (NEWEST, "9000")
    assert schema.revision(path) == "9000"
    assert query(path, "SELECT id, position, note FROM threads") == [("thread_1", 1, "before thread_1")]
    assert schema.upgrade(path) == ("9000", "9000")


def test_an_upgrade_that_fails_is_one_line_and_leaves_the_revision(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema.prepare(path)
    _with_a_next_migration(path.parent, monkeypatch, NEXT.replace("SET note", "SET no_such_column"))
    with pytest.raises(StoreError, match="cannot upgrade the database") as caught:
        schema.prepare(path)
    assert str(path) in str(caught.value)
    assert schema.revision(path) == NEWEST


def test_half_an_upgrade_never_stays(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    schema.prepare(path)
    before = query(path, "SELECT name, sql FROM sqlite_master ORDER BY name")
    body = "op.execute('CREATE TABLE later (id TEXT)')\n    op.execute('DROP TABLE missing')"
    _with_a_next_migration(
        path.parent, monkeypatch, NEXT[: NEXT.index("def upgrade")] + f"def upgrade():\n    {body}\n"
    )
    with pytest.raises(StoreError, match="cannot upgrade the database"):
        schema.prepare(path)
    assert query(path, "SELECT name, sql FROM sqlite_master ORDER BY name") == before


def test_a_newer_database_is_refused_in_one_line_and_left_alone(path: Path) -> None:
    schema.prepare(path)
    query(path, "UPDATE alembic_version SET version_num = '9999'")
    before = path.read_bytes()
    for refused in (schema.prepare, schema.upgrade):
        with pytest.raises(StoreError) as caught:
            refused(path)
        message = str(caught.value)
        assert "\n" not in message
        assert str(path) in message
        assert "newer version" in message
        assert "9999" in message
    assert path.read_bytes() == before


def test_a_file_that_is_no_database_is_refused_in_one_line(path: Path) -> None:
    path.write_bytes(b"Dear diary, " * 1000)
    with pytest.raises(StoreError, match="cannot open the database") as caught:
        schema.prepare(path)
    assert "\n" not in str(caught.value)
    assert path.read_bytes().startswith(b"Dear diary")


def test_two_processes_that_create_at_once_agree(path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from loomgate.store import schema\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        "for n in range(int(sys.argv[2])): schema.prepare(Path(sys.argv[1] + str(n)))\n"
    )
    command = [sys.executable, "-W", "error", "-c", program, str(path), "8"]
    both = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        for process in both:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
        for process in both:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        for process in both:
            process.communicate(timeout=30)
            assert process.returncode == 0
    finally:
        for process in both:
            process.kill()
    schema.prepare(path)
    for n in range(8):
        made = Path(f"{path}{n}")
        assert query(made, "SELECT version_num FROM alembic_version") == [(schema.HEAD,)]
        assert shape(made) == shape(path)
