"""Every statement compiles, and those that are on the way of a run look nothing up by reading a whole table."""

import importlib
import pkgutil
from collections.abc import Iterator
from typing import Any

import apsw
import pytest

from loomgate import store as package
from loomgate.store import runs, schema, threads
from loomgate.store.database import Statement
from loomgate.store.pages import Listing
from loomgate.wire import lifecycle


def _statements() -> Iterator[tuple[str, Statement]]:
    for module in pkgutil.iter_modules(package.__path__):
        if module.ispkg or module.name in ("database",):
            continue
        for name, value in vars(importlib.import_module(f"{package.__name__}.{module.name}")).items():
            for number, one in enumerate(value if isinstance(value, list) else [value]):
                if isinstance(one, Statement):
                    yield f"{module.name}.{name}{number or ''}", one


STATEMENTS = dict(_statements())
LISTINGS: dict[str, tuple[Listing, tuple[str, ...]]] = {
    "runs": (runs._LIST, ()),
    "steps": (runs._STEP_LIST, ()),
    "messages": (threads._MESSAGES, ()),
    "messages of a run": (threads._MESSAGES, ("run_id",)),
    "threads": (threads._LIST, ()),
    "threads by one tag": (threads._LIST, ("k0", "v0")),
    "threads by two tags": (threads._LIST, ("k0", "k1", "v0", "v1")),
}
# Those that mean the whole table, which is small or of which they count a part that an index holds.
_WHOLE = {"keys._ANY", "keys._ALL", "keys._VIRTUALS", "threads._TO_PURGE"}


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[apsw.Connection]:
    path = tmp_path_factory.mktemp("statements") / "loomgate.db"
    schema.prepare(path)
    connection = apsw.Connection(str(path))
    yield connection
    connection.close()


class _Anything(dict[str, Any]):
    """A value for every parameter."""

    def __missing__(self, name: str) -> Any:
        return 1


def _plan(empty: apsw.Connection, statement: Statement) -> list[str]:
    sql, _ = statement.sqlite()
    return [row[3] for row in empty.execute(f"EXPLAIN QUERY PLAN {sql}", _Anything())]


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_statement_uses_an_index(empty: apsw.Connection, name: str) -> None:
    plan = _plan(empty, STATEMENTS[name])
    if name not in _WHOLE:
        assert not [line for line in plan if line.startswith("SCAN") and "USING" not in line], plan


HOT = [
    "runs._CLAIM",
    "runs._NEXT_DUE",
    "runs._RUN",
    "runs._JOURNAL",
    "runs._HISTORY",
    "runs._MESSAGES_OF",
    "runs._OPEN_CALLS",
    "rows._HOLDER",
    "rows._PROMOTE",
    "rows._BY_ID",
    "rows._OPEN_STEPS",
    "outbox._CLAIM",
    "threads._ABORT",
    "threads._ABORT1",
    "threads._PURGE_SOME",
    "threads._PURGE_SOME1",
    "threads._PURGE_SOME2",
]


@pytest.mark.parametrize("name", HOT)
def test_a_hot_statement_looks_up_and_sorts_nothing(empty: apsw.Connection, name: str) -> None:
    plan = _plan(empty, STATEMENTS[name])
    for line in plan:
        assert not line.startswith("SCAN"), plan
        assert "TEMP B-TREE" not in line, plan


def test_the_claim_the_lock_and_the_queue_use_their_own_indexes(empty: apsw.Connection) -> None:
    for name, index in (
        ("runs._CLAIM", "ix_runs_due"),
        ("rows._HOLDER", "uq_runs_holds"),
        ("rows._PROMOTE", "ix_runs_waiting"),
        ("threads._ABORT", "uq_runs_holds"),
        ("threads._ABORT1", "ix_runs_waiting"),
        ("runs._HISTORY", "ix_messages_thread_id_place_position"),
        ("runs._MESSAGES_OF", "ix_messages_run_id"),
    ):
        assert any(index in line for line in _plan(empty, STATEMENTS[name])), (name, index)


@pytest.mark.parametrize("name", LISTINGS)
@pytest.mark.parametrize("descending", [True, False])
@pytest.mark.parametrize("low", [True, False])
@pytest.mark.parametrize("high", [True, False])
def test_a_page_costs_the_same_however_long_the_list(
    empty: apsw.Connection, name: str, descending: bool, low: bool, high: bool
) -> None:
    listing, filters = LISTINGS[name]
    plan = _plan(empty, listing._select(descending, low, high, filters, ("id", "body")))
    for line in plan:
        assert line.startswith("SEARCH"), plan
    cursor = _plan(empty, listing._cursor)
    assert all(line.startswith("SEARCH") for line in cursor), cursor


def test_statuses_in_sql_are_those_of_the_tables() -> None:
    sql, _ = STATEMENTS["runs._RENEW"].sqlite()
    assert all(f"'{status}'" in sql for status in lifecycle.HELD)
    assert f"'{lifecycle.INITIAL_RUN}'" in STATEMENTS["rows._PROMOTE"].sqlite()[0]


def test_a_missing_parameter_is_an_error(empty: apsw.Connection) -> None:
    sql, _ = STATEMENTS["runs._SPEC"].sqlite()
    with pytest.raises((KeyError, apsw.BindingsError)):
        empty.execute(sql, {}).fetchall()
