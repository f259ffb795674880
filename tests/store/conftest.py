"""What these tests share: a store on a database of its own, of either engine."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tests.support.engines import Databases

from loomgate.store import Store, schema
from loomgate.store.database import Database
from loomgate.store.postgres import PostgresDatabase
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


# Tests that look into SQLite's file or connection.
_OF_SQLITE = {
    "test_many_changes_at_once_are_as_many_versions",
    "test_bodies_are_sealed_each_for_its_version",
    "test_another_process_is_noticed_within_a_second",
    "test_at_rest_there_is_a_hash_and_a_hint",
    "test_at_rest_it_is_sealed",
    "test_many_at_once_agree_on_one_id",
    "test_at_rest_there_is_neither_the_secret_nor_a_hash_to_try_guesses_on",
    "test_a_search_for_what_is_rare_looks_through_so_much_and_no_more",
    "test_a_trace_is_found_by_its_index",
    "test_a_message_that_goes_twice_is_counted_once",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the PostgreSQL form of what is about SQLite out."""
    items[:] = [
        item for item in items if not (getattr(item, "originalname", None) in _OF_SQLITE and "[postgresql" in item.name)
    ]


@pytest.fixture(params=["sqlite", "postgresql"])
async def database(request: pytest.FixtureRequest, tmp_path: Path, databases: Databases) -> AsyncIterator[Database]:
    if request.param == "sqlite":
        path = tmp_path / "loomgate.db"
        schema.prepare(path)
        database: Database = SqliteDatabase(path)
        yield database
        await database.close()
        return
    url = await databases.ready()
    database = await PostgresDatabase.open(url, connections=8)
    yield database
    await database.close()
    await databases.drop(url)


@pytest.fixture
async def store(database: Database) -> Store:
    return Store(database, Sealer(bytes(32)), [], "reject")
