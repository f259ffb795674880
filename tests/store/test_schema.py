"""A new database and an upgraded one are the same; an upgrade is done whole or not at all."""

import re
from collections.abc import Callable
from pathlib import Path

import apsw
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory

from loomgate.errors import StoreError
from loomgate.store import schema, tables
from loomgate.store.schema import HEAD, alembic_config, prepare, revision, upgrade

_VERSIONS = Path(schema.__file__).parent / "migrations" / "versions"


def _shape(path: Path) -> dict[str, object]:
    """Everything that SQLite knows of the tables: their columns, their indexes and the conditions of these."""
    connection = apsw.Connection(str(path))
    found: dict[str, object] = {}
    for type, name, sql in list(connection.execute("SELECT type, name, sql FROM sqlite_master ORDER BY name")):
        if type == "table":
            found[name] = list(connection.execute(f"PRAGMA table_xinfo({name})"))
        else:
            found[name] = (
                list(connection.execute(f"PRAGMA index_xinfo({name})")),
                re.sub(r"\s+", " ", sql or "").strip(),
            )
    connection.close()
    return found


def _migrated(path: Path) -> Path:
    """A database that Alembic alone has made."""
    apsw.Connection(str(path)).close()
    command.upgrade(alembic_config(path), "head")
    return path


def test_head_is_the_newest_migration(tmp_path: Path) -> None:
    assert ScriptDirectory.from_config(alembic_config(tmp_path / "x.db")).get_current_head() == HEAD


def test_migrations_lead_to_the_tables_of_a_new_database(tmp_path: Path) -> None:
    new = tmp_path / "new.db"
    assert upgrade(new) == (None, HEAD)
    migrated = _migrated(tmp_path / "migrated.db")
    assert _shape(migrated) == _shape(new)
    assert revision(new) == revision(migrated) == HEAD


def test_the_tables_are_those_that_the_code_declares(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{_migrated(tmp_path / 'x.db')}")
    with engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), tables.metadata) == []
    engine.dispose()


def test_preparing_again_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    prepare(path)
    before = _shape(path)
    prepare(path)
    assert upgrade(path) == (HEAD, HEAD)
    assert _shape(path) == before


@pytest.fixture
def newer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Makes this a later version whose newest migration does what is said."""

    def newer(body: str) -> None:
        folder = tmp_path / "migrations"
        (folder / "versions").mkdir(parents=True)
        for name in ("env.py", "script.py.mako"):
            (folder / name).write_text((_VERSIONS.parent / name).read_text())
        for script in _VERSIONS.glob("*.py"):
            (folder / "versions" / script.name).write_text(script.read_text())
        (folder / "versions" / "0099_later.py").write_text(
            f"from alembic import op\nrevision = '0099'\ndown_revision = '{HEAD}'\n\n\ndef upgrade():\n{body}"
        )

        def config(path: Path) -> object:
            found = alembic_config(path)
            found.set_main_option("script_location", str(folder))
            return found

        monkeypatch.setattr(schema, "alembic_config", config)
        monkeypatch.setattr(schema, "HEAD", "0099")

    return newer


def test_an_older_database_is_upgraded_and_keeps_its_rows(tmp_path: Path, newer: Callable[[str], None]) -> None:
    path = tmp_path / "x.db"
    prepare(path)
    connection = apsw.Connection(str(path))
    connection.execute("INSERT INTO workspaces VALUES ('default', 3, 1)")
    connection.close()
    newer("    op.execute('ALTER TABLE workspaces ADD COLUMN note TEXT')\n")
    assert upgrade(path) == (HEAD, "0099")
    connection = apsw.Connection(str(path))
    assert list(connection.execute("SELECT * FROM workspaces")) == [("default", 3, 1, None)]
    connection.close()


def test_an_upgrade_that_fails_leaves_the_database_as_it_was(tmp_path: Path, newer: Callable[[str], None]) -> None:
    path = tmp_path / "x.db"
    prepare(path)
    before = _shape(path)
    newer("    op.execute('CREATE TABLE later (id TEXT)')\n    op.execute('DROP TABLE missing')\n")
    with pytest.raises(StoreError, match=r"cannot upgrade the database .*x\.db"):
        prepare(path)
    assert _shape(path) == before
    assert revision(path) == HEAD


def test_a_database_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    prepare(path)
    connection = apsw.Connection(str(path))
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(StoreError, match=r"written by a newer version \(revision 9999\)"):
        prepare(path)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.db"
    path.write_bytes(b"This is a letter, not a database." * 100)
    with pytest.raises(StoreError, match="cannot open the database"):
        prepare(path)
    with pytest.raises(StoreError, match="cannot open the database"):
        prepare(tmp_path / "missing" / "x.db")
