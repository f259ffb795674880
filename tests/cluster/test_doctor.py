"""`loomgate doctor` on the engines of a cluster: what it finds, and that it leaves nothing behind."""

import asyncio
import re
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from loomgate.settings import Secret, Settings
from loomgate.store import open_store
from tests.cluster.conftest import SEAL_KEY
from tests.crash.rig import CLEAN
from tests.support.engines import Databases, free_port

Report = Callable[..., tuple[int, str]]


@pytest.fixture
def report(redis_url: str, tmp_path: Path) -> Report:
    """Runs doctor on a database with settings; its exit code and what it printed. In a process of its own, whose clock
    no other test has moved."""

    def run(url: str, **settings: str) -> tuple[int, str]:
        given = {"seal_key": SEAL_KEY, "redis_url": redis_url, **settings, "database_url": url}
        made = CLEAN | {f"LOOMGATE_{name.upper()}": value for name, value in given.items()}
        command = [sys.executable, "-m", "loomgate", "doctor", "--offline"]
        done = subprocess.run(command, check=False, env=made, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, re.sub(r" +", " ", done.stdout)

    return run


def ask(url: str, query: str) -> Any:
    async def work() -> Any:
        connection = await asyncpg.connect(url)
        try:
            return await connection.fetchval(query)
        finally:
            await connection.close()

    return asyncio.run(work())


async def _a_node_was_there(url: str) -> None:
    async with open_store(Settings(database_url=Secret(url), seal_key=Secret(SEAL_KEY))) as store:
        await store.keys.create(workspace="default", name="x")


def _do(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_a_cluster_in_order(report: Report, database_url: str) -> None:
    code, text = report(database_url)
    assert code == 0, text
    assert "ok Database PostgreSQL " in text
    assert "ok Clock agrees with PostgreSQL's" in text
    assert "ok Connections " in text
    assert "pgvector" in text
    assert "no node has used one yet" in text
    assert re.search(r"ok Redis (Redis|Valkey) \d", text)
    assert ask(database_url, "SELECT count(*) FROM credentials") == 0  # it leaves nothing
    _do(_a_node_was_there(database_url))
    code, text = report(database_url)
    assert code == 0, text
    assert "ok Seal key from the setting seal_key; the database's" in text
    assert "ok API keys 1 in force" in text


def test_what_is_wrong_with_the_database(report: Report, database_url: str, databases: Databases) -> None:
    _do(_a_node_was_there(database_url))
    code, text = report(database_url, seal_key="00" * 32)
    assert code == 1
    assert "problem Seal key not the one that the database is sealed with" in text
    code, text = report(database_url, seal_key="")
    assert code == 1
    assert "problem Seal key none: nodes on PostgreSQL need the setting seal_key" in text
    code, text = report(database_url, database_connections="100000")
    assert "note Connections " in text
    empty = asyncio.run(databases.empty())
    code, text = report(empty)
    assert code == 1
    assert "is at revision none" in text
    assert "-> run `loomgate migrate`" in text
    asyncio.run(databases.drop(empty))
    code, text = report(f"postgresql://loomgate:secret@127.0.0.1:{free_port()}/x")
    assert code == 1
    assert "problem Database cannot open the database 127.0.0.1" in text
    assert "secret" not in text


def test_what_is_wrong_with_redis(report: Report, database_url: str) -> None:
    code, text = report(database_url, redis_url=f"redis://:secret@127.0.0.1:{free_port()}/0")
    assert code == 1
    assert "problem Redis not reachable" in text
    assert "secret" not in text
    code, text = report(database_url, redis_url="")
    assert code == 0
    assert "ok Redis none: one `loomgate serve` alone may use the database" in text
