"""What these tests share: a store on a file of its own, and its database."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from loomgate.store import Store, schema
from loomgate.store.database import Database
from loomgate.store.seal import Sealer


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    path = tmp_path / "loomgate.db"
    schema.prepare(path)
    database = Database(path)
    yield database
    await database.close()


@pytest.fixture
async def store(database: Database) -> Store:
    return Store(database, Sealer(bytes(32)), [], "reject")
