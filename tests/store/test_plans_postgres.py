"""The same of PostgreSQL's planner: the list of `test_plans`, on tables with a few thousand rows.

Statements are planned as they are after a few executions: once for all values. Sequential scans are switched off, so
what still walks through a table could not do otherwise; and bitmap scans, which go by the same indexes and then sort.
"""

import json
import re
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import asyncpg
import pytest
from tests.store.test_plans import LISTINGS, LISTS, PLANS, STATEMENTS, WALKS
from tests.support.engines import Databases

from loomgate.store.database import Statement
from loomgate.store.postgres import DIALECT

pytestmark = pytest.mark.anyio

# Where PostgreSQL takes another way than SQLite, which is as good.
OTHERWISE = {
    "ledger._GET": "ix_calls_workspace_id (workspace=? AND id=?)",
    "outbox._NEXT_DUE": "ix_deliveries_due (endpoint=?)",  # and stops at the first
    "claims._NEXT_DUE": "WALK ix_runs_due",  # likewise
    "runs._ACTIVE_OF_ALL": "WALK ix_runs_due",  # of which it counts all
}

_FILL = """
INSERT INTO workspaces SELECT 'w' || n, 0, 1 FROM generate_series(1, 50) n;
INSERT INTO api_keys SELECT 'key' || n, 'w' || n % 50, 'n', sha256(n::text::bytea), 'h', 1, NULL, 'user'
    FROM generate_series(1, 500) n;
INSERT INTO virtual_keys SELECT 'w' || n % 50, 's' || n, 'openai', NULL, 's', 1, 'id' || n, 'n', 'i' || n, NULL, 'a', 1
    FROM generate_series(1, 1000) n;
INSERT INTO integrations SELECT * FROM virtual_keys;
INSERT INTO documents
    SELECT 'w' || n % 50, 'config', 's' || n, 'id' || n, 'n', 'active', n < 50, 'v' || n, 1, 1, NULL, NULL
    FROM generate_series(1, 1000) n;
INSERT INTO document_versions SELECT 'v' || n, 'id' || n % 1000, n / 1000, 'n', 's', 1, NULL
    FROM generate_series(1, 5000) n;
INSERT INTO generations SELECT 'w' || n, 1 FROM generate_series(1, 500) n;
INSERT INTO credentials SELECT 'c' || n, 'w' || n % 50, sha256(n::text::bytea), 's', 1 FROM generate_series(1, 2000) n;
INSERT INTO assistants SELECT 'a' || n, 'w' || n % 50, n, 'p', 'b' FROM generate_series(1, 3000) n;
INSERT INTO threads SELECT 't' || n, 'w' || n % 50, n, 9, 9, NULL, 'b' FROM generate_series(1, 3000) n;
INSERT INTO thread_tags SELECT 'w' || n % 50, 'k' || n % 4, 'v' || n % 7, n, 't' || n FROM generate_series(1, 3000) n;
INSERT INTO purges SELECT 'gone' || n FROM generate_series(1, 1000) n;
INSERT INTO messages
    SELECT 'm' || n, 't' || n % 3000, n, CASE WHEN n % 2 = 0 THEN 'r' || n % 5000 END, n, 'user', 'b'
    FROM generate_series(1, 12000) n;
INSERT INTO runs
    SELECT 'r' || n, 'w' || n % 50, 't' || n % 3000, n, CASE WHEN n <= 3000 THEN 'completed' ELSE 'queued' END, 9,
        CASE WHEN n BETWEEN 3001 AND 3100 THEN 't' || n % 3000 END, CASE WHEN n > 3000 THEN n END, 1, NULL, 's', 'b'
    FROM generate_series(1, 5000) n;
INSERT INTO steps SELECT 's' || n, 't' || n % 3000, 'r' || n % 5000, n, 1, 'completed', NULL, 'b'
    FROM generate_series(1, 12000) n;
INSERT INTO deliveries
    SELECT 'd' || n, 'e' || n % 5, 'r' || n, 1, 0, n, CASE WHEN n > 4000 THEN n END, CASE WHEN n <= 4000 THEN n END,
        NULL, 'p'
    FROM generate_series(1, 5000) n;
INSERT INTO calls SELECT 'l' || n, 'w' || n % 50, 200, 'p', 'm', 't' || n % 700, 'b', NULL, NULL
    FROM generate_series(1, 5000) n;
INSERT INTO spending SELECT 'w' || n % 50, 'v' || n % 100, n / 100, 1, 1 FROM generate_series(1, 5000) n;
"""


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
async def connection(databases: Databases) -> AsyncIterator[Any]:
    url = await databases.ready()
    connection = await asyncpg.connect(url)
    await connection.execute(_FILL)
    await connection.execute("ANALYZE")
    await connection.execute(
        "SET enable_seqscan = off; SET enable_bitmapscan = off; SET plan_cache_mode = force_generic_plan"
    )
    yield connection
    await connection.close()
    await databases.drop(url)


def _condition(found: str) -> str:
    """An index condition as SQLite words it: column, operator, question mark."""
    found = re.sub(r"::\w+( \w+)?(\(\d+\))?|[()\"]", "", found)
    parts = [re.fullmatch(r"(\w+) (=|<|>|<=|>=|IS NOT) .+", part) for part in found.split(" AND ")]
    assert all(parts), found
    words = [(part[1], part[2]) for part in parts if part is not None]
    return " AND ".join(f"{name}{sign.rstrip('=') or '='}?" for name, sign in words if sign != "IS NOT")


def _searches(node: dict[str, Any]) -> list[str]:
    """The searches of a plan; a step that walks or sorts as it is."""
    kind, found = node["Node Type"], []
    if kind in {"Index Scan", "Index Only Scan"}:
        name = node["Index Name"]
        if re.match("(pk|uq)_(?!runs_holds)", name):
            alias = node["Alias"]
            name = f"{alias if re.fullmatch('t[0-9]', alias) else node['Relation Name']} key"
        found.append(f"{name} ({_condition(node['Index Cond'])})" if "Index Cond" in node else f"WALK {name}")
    elif ("Scan" in kind and kind not in {"CTE Scan", "Subquery Scan"}) or "Sort" in kind:
        found.append(f"{kind} {node.get('Relation Name', '')}".strip())
    for child in node.get("Plans", []):
        found += _searches(child)
    return found


async def plan(connection: Any, statement: Statement) -> str:
    """The plan in the form of `PLANS`, in the order of the alphabet."""
    made = statement.compiled(DIALECT)
    await connection.execute(f"PREPARE asked AS {made.sql}")
    try:
        nulls = f"({', '.join(['NULL'] * len(made.names))})" if made.names else ""
        found = await connection.fetchval(f"EXPLAIN (FORMAT JSON) EXECUTE asked{nulls}")
    finally:
        await connection.execute("DEALLOCATE asked")
    return "; ".join(sorted(_searches(json.loads(found)[0]["Plan"])))


@pytest.mark.parametrize("name", PLANS)
async def test_a_statement_goes_by_its_index(connection: Any, name: str) -> None:
    wanted = OTHERWISE.get(name, PLANS[name])
    assert await plan(connection, STATEMENTS[name]) == "; ".join(sorted(wanted.split("; ")))


_CANDIDATES = [
    "ix_runs_held (workspace=? AND status=? AND due>?)",
    "ix_runs_held (workspace=? AND status=?)",
    "ix_runs_owed (due<?)",
    "ix_runs_queued (workspace=? AND due<?)",
    "ix_runs_queued_expires_at (expires_at<?)",
]


@pytest.mark.parametrize(
    ("name", "searches"),
    {
        "claims._NAMES": ["ix_runs_queued (workspace>?)"],  # and the same once more, for the first
        "claims._ANY": _CANDIDATES,
        "claims._CLAIM": [*_CANDIDATES, "runs key (id=?)", "runs key (id=?)"],
    }.items(),
)
async def test_a_claim_looks_at_the_beginnings_of_its_indexes(connection: Any, name: str, searches: list[str]) -> None:
    """Whatever the planner takes the number of candidates for: nothing reads all that is due."""
    found = (await plan(connection, STATEMENTS[name])).split("; ")
    assert [step for step in found if step not in {"Sort", "Function Scan", "WorkTable Scan"}] == searches


@pytest.mark.parametrize("name", WALKS)
async def test_what_may_walk_is_short_by_nature(connection: Any, name: str) -> None:
    assert re.search("WALK|Seq Scan", await plan(connection, STATEMENTS[name])), "it need not be listed there"


@pytest.mark.parametrize(("listing", "filters"), list(LISTS))
async def test_every_form_of_a_list_is_one_search_in_order(connection: Any, listing: str, filters: str) -> None:
    for descending, low, high in product((False, True), repeat=3):
        statement = LISTINGS[listing]._select(descending, low, high, tuple(filters.split()), ("id", "body"))
        bounds = " AND position>?" * low + " AND position<?" * high
        found = (await plan(connection, statement)).split("; ")
        wanted = LISTS[listing, filters].replace(")", f"{bounds})")
        assert wanted in found
        found.remove(wanted)
        assert all(re.fullmatch(r"\w+ key \((\w+=\?( AND )?)+\)", step) for step in found), found


@pytest.mark.parametrize("listing", LISTINGS)
async def test_a_cursor_is_found_by_its_key(connection: Any, listing: str) -> None:
    assert (await plan(connection, LISTINGS[listing]._cursor)).endswith(" key (id=?)")
