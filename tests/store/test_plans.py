"""No statement walks through a table: what SQLite's planner says of each of them, held in one list.

The list is complete: a new statement has to be entered, with the index that it is meant to use.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest

import loomgate.store
from loomgate.store import schema
from loomgate.store.database import Statement
from loomgate.store.pages import Listing
from loomgate.store.sqlite import DIALECT, Connection, connect

# Statement -> the indexes it goes by, with what they are asked for. ``key``: the primary key or a unique constraint.
# Parts of one statement are separated by semicolons, the outermost first.
PLANS = {
    "accounts._BY_SLUG[virtual_key]": "virtual_keys key (workspace=? AND slug=?)",
    "accounts._BY_SLUG[integration]": "integrations key (workspace=? AND slug=?)",
    "accounts._BY_ID[virtual_key]": "virtual_keys key (id=?)",
    "accounts._BY_ID[integration]": "integrations key (id=?)",
    "accounts._OF[virtual_key]": "virtual_keys key (workspace=?)",
    "accounts._OF[integration]": "integrations key (workspace=?)",
    "accounts._CHANGE[virtual_key]": "virtual_keys key (workspace=? AND slug=?)",
    "accounts._CHANGE[integration]": "integrations key (workspace=? AND slug=?)",
    "accounts._DROP[virtual_key]": "virtual_keys key (workspace=? AND slug=?)",
    "accounts._DROP[integration]": "integrations key (workspace=? AND slug=?)",
    "accounts._MADE_FROM": "virtual_keys key (workspace=?)",
    "assistants._ROW": "assistants key (id=?)",
    "assistants._FOR_CHANGE": "assistants key (id=?)",
    "assistants._UPDATE": "assistants key (id=?)",
    "assistants._DELETE": "assistants key (id=?)",
    "claims._NEXT_DUE": "ix_runs_due (due>?)",
    "claims._WAITING": "ix_runs_due (due<?)",
    "configs._BY_SLUG": "documents key (workspace=? AND kind=? AND slug=?); document_versions key (id=?)",
    "configs._BY_ID": "documents key (id=?); document_versions key (id=?)",
    "configs._DEFAULT": "documents key (workspace=? AND kind=?); document_versions key (id=?)",
    "configs._OF": "documents key (workspace=? AND kind=?); document_versions key (id=?)",
    "configs._NO_DEFAULT": "documents key (workspace=? AND kind=?)",
    "configs._CHANGE": "documents key (id=?)",
    "configs._DROP": "documents key (id=?)",
    "configs._NUMBER": "ix_document_versions_document_id_number (document_id=?)",
    "configs._VERSIONS": "ix_document_versions_document_id_number (document_id=?)",
    "configs._FORGET": "ix_document_versions_document_id_number (document_id=? AND number<?)",
    "configs._DROP_VERSIONS": "ix_document_versions_document_id_number (document_id=?)",
    "generations._NUMBER": "generations key (workspace=?)",
    "keys._FIND": "api_keys key (digest=?)",
    "keys._REVOKE": "api_keys key (id=?)",
    "keys._CREDENTIAL": "credentials key (id=?)",
    "keys._SAME_CREDENTIAL": "credentials key (workspace=? AND digest=?)",
    "ledger._GET": "calls key (id=?)",
    "ledger._FORGET": "calls key (id=?); calls key (id<?)",
    "ledger._LATELY": "spending key (workspace=? AND virtual_key=? AND day>?)",
    "ledger._RESET": "spending key (workspace=? AND virtual_key=?)",
    "nodes._SEALED": "credentials key (id=?)",
    "outbox._LAST": "ix_deliveries_owed (endpoint=? AND run_id=?)",
    "outbox._CLAIM": "deliveries key (id=?); ix_deliveries_due (endpoint=? AND due<?)",
    "outbox._NEXT_DUE": "ix_deliveries_due (endpoint=? AND due>?)",
    "outbox._RETRY": "deliveries key (id=?)",
    "outbox._RELEASE": "deliveries key (id=?)",
    "outbox._END": "deliveries key (id=?)",
    "outbox._ADVANCE": "deliveries key (id=?); ix_deliveries_owed (endpoint=? AND run_id=?)",
    "outbox._OLD": "ix_deliveries_ended_at (ended_at<?)",
    "outbox._FORGET": "deliveries key (id=?); ix_deliveries_ended_at (ended_at<?)",
    "outbox._NEXT_ENDPOINT": "ix_deliveries_owed (endpoint>?)",
    "outbox._DISOWN": "deliveries key (id=?); ix_deliveries_owed (endpoint=?)",
    "rows._BY_ID": "runs key (id=?)",
    "rows._LOCK": "threads key (id=?)",
    "rows._HOLDER": "uq_runs_holds (holds=?)",
    "rows._PUT": "runs key (id=?)",
    "rows._PROMOTE": "runs key (id=?); ix_runs_waiting (thread_id=?)",
    "rows._OPEN_STEPS": "ix_steps_run_id_position (run_id=?)",
    "rows._ALL_USAGE": "ix_steps_run_id_position (run_id=?)",
    "rows._PUT_STEP": "steps key (id=?)",
    "rows._MESSAGE": "messages key (id=?)",
    "rows._PUT_MESSAGE": "messages key (id=?)",
    "rows._RESERVE": "threads key (id=?)",
    "runs._HAS_USER": "ix_messages_thread_id_position (thread_id=?)",
    "runs._THREAD": "threads key (id=?)",
    "runs._RUN": "runs key (id=?); threads key (id=?)",
    "runs._THREAD_OF": "runs key (id=?)",
    "runs._SPEC": "runs key (id=?)",
    "runs._PUT_BODY": "runs key (id=?)",
    "runs._STEP": "steps key (id=?)",
    "runs._RENEW": "runs key (id=?)",
    "runs._PARK": "runs key (id=?)",
    "runs._ADOPT": "ix_runs_due (due>?)",
    "runs._STATUS": "runs key (id=?)",
    "runs._JOURNAL": "ix_steps_run_id_position (run_id=?)",
    "runs._HISTORY": "ix_messages_thread_id_place_position (thread_id=? AND place>? AND place<?)",
    "runs._DROP_STEP": "steps key (id=?)",
    "runs._DROP_MESSAGE": "messages key (id=?)",
    "runs._MESSAGES_OF": "ix_messages_run (thread_id=? AND run_id=?); runs key (id=?)",
    "runs._OPEN_CALLS": "ix_steps_run_id_position (run_id=?)",
    "runs._ACTIVE_OF_ALL": "ix_runs_due (due>?)",
    "threads._BODY": "threads key (id=?)",
    "threads._FOR_CHANGE": "threads key (id=?)",
    "threads._UPDATE": "threads key (id=?)",
    "threads._DELETE": "threads key (id=?)",
    "threads._UNTAG": "ix_thread_tags_thread_id (thread_id=?)",
    "threads._ABORT[0]": "uq_runs_holds (holds=?)",
    "threads._ABORT[1]": "ix_runs_waiting (thread_id=?)",
    "threads._PURGED": "purges key (thread_id=?)",
    "threads._PURGE_SOME[0]": "messages key (id=?); ix_messages_thread_id_position (thread_id=?)",
    "threads._PURGE_SOME[1]": "steps key (id=?); ix_steps_thread_id (thread_id=?)",
    "threads._PURGE_SOME[2]": "runs key (id=?); ix_runs_thread_id_position (thread_id=?)",
    "threads._MESSAGE": "messages key (id=?); threads key (id=?)",
    "threads._MESSAGE_FOR_CHANGE": "messages key (id=?); threads key (id=?)",
    "threads._DELETE_MESSAGE": "messages key (id=?)",
}

# A claim sorts what it has found, which is bounded; each search in it stops at its limit, or at the next workspace.
_CANDIDATES = [
    "head key (id=?)",
    "ix_runs_held (workspace=? AND status=? AND due>?)",
    "ix_runs_held (workspace=? AND status=? AND due>?)",
    "ix_runs_owed (due>? AND due<?)",
    "ix_runs_queued (workspace=? AND due<?)",
    "ix_runs_queued_expires_at (expires_at<?)",
]
CLAIMS = {
    "claims._NAMES": ["ix_runs_queued (workspace>?)"] * 2,
    "claims._ANY": _CANDIDATES,
    "claims._CLAIM": [*_CANDIDATES, "runs key (id=?)"],
    "claims._ALONE": [],
    "claims._CLOCK": [],
}

# A list of a handful of rows that somebody at a terminal asked for, or the first row of whatever there is.
WALKS = {
    "keys._ALL": "`loomgate keys list` shows all",
    "accounts._ALL[virtual_key]": "`loomgate virtual-keys list` shows all",
    "accounts._ALL[integration]": "`loomgate integrations list` shows all",
    "configs._ALL": "`loomgate configs list` shows all",
    "keys._ANY": "stops at the first",
    "ledger._SPENT": "the start adds up all there is: a row for each virtual key and day",
    "nodes._ANY[credential]": "stops at the first",
    "nodes._ANY[virtual_key]": "stops at the first",
    "nodes._ANY[integration]": "stops at the first",
    "threads._TO_PURGE": "stops at the first",
    "threads._PURGE_NOW": "stops at the first that nobody else has",
}

# List -> the search that gives its rows in order, by the filters that are given. What is joined to it goes by its key.
LISTS = {
    ("assistants._LIST", ""): "ix_assistants_workspace_position (workspace=?)",
    ("runs._LIST", ""): "ix_runs_thread_id_position (thread_id=?)",
    ("runs._STEP_LIST", ""): "ix_steps_run_id_position (run_id=?)",
    ("threads._MESSAGES", ""): "ix_messages_thread_id_position (thread_id=?)",
    ("threads._MESSAGES", "run_id"): "ix_messages_run (thread_id=? AND run_id=?)",
    ("threads._LIST", ""): "ix_threads_workspace_position (workspace=?)",
    ("threads._LIST", "k0 v0"): "t0 key (workspace=? AND key=? AND value=?)",
    ("threads._LIST", "k0 k1 v0 v1"): "t0 key (workspace=? AND key=? AND value=?)",
    ("threads._LIST", "k0 k1 k2 v0 v1 v2"): "t0 key (workspace=? AND key=? AND value=?)",
}


def _rooms() -> Iterator[tuple[str, Any]]:
    for module in pkgutil.iter_modules(loomgate.store.__path__):
        if not module.ispkg and module.name != "migrations":
            yield module.name, importlib.import_module(f"loomgate.store.{module.name}")


def _statements() -> dict[str, Statement]:
    """Every statement of the store by module and name; those in lists with their number."""
    found: dict[str, Statement] = {}
    for room, module in _rooms():
        for name, value in vars(module).items():
            if isinstance(value, Statement):
                found[f"{room}.{name}"] = value
            elif isinstance(value, list | dict):
                items = enumerate(value) if isinstance(value, list) else value.items()
                found |= {f"{room}.{name}[{n}]": one for n, one in items if isinstance(one, Statement)}
    return found


def _listings() -> dict[str, Listing]:
    return {
        f"{room}.{name}": value
        for room, module in _rooms()
        for name, value in vars(module).items()
        if isinstance(value, Listing)
    }


STATEMENTS, LISTINGS = _statements(), _listings()


@pytest.fixture(scope="module")
def connection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Connection]:
    path = tmp_path_factory.mktemp("plans") / "loomgate.db"
    schema.prepare(path)
    connection = connect(path)
    yield connection
    connection.close()


def steps(connection: Connection, statement: Statement) -> list[str]:
    """What the planner says, a line a step."""
    sql = statement.compiled(DIALECT).sql
    bindings = dict.fromkeys(re.findall(r":(\w+)", sql), 1)
    return [row[3] for row in connection.execute(f"EXPLAIN QUERY PLAN {sql}", bindings)]


def plan(connection: Connection, statement: Statement) -> str:
    """The same in the form of `PLANS`; a step that is not a search by an index stands as it is."""
    found: list[str] = []
    for step in steps(connection, statement):
        if re.fullmatch(r"(LIST|SCALAR) SUBQUERY \d|MATERIALIZE picked|SCAN picked", step):
            continue  # what was found, or picked, a moment before
        search = re.fullmatch(r"SEARCH (\w+) USING (?:COVERING )?INDEX (\w+) \((.*)\)", step)
        if search is None:
            found.append(step)
        else:
            index = f"{search[1]} key" if search[2].startswith("sqlite_autoindex") else search[2]
            found.append(f"{index} ({search[3]})")
    return "; ".join(found)


def test_the_list_is_complete() -> None:
    written = {name for name, statement in STATEMENTS.items() if statement.compiled(DIALECT).sql.startswith("INSERT")}
    assert STATEMENTS.keys() - written == PLANS.keys() | CLAIMS.keys() | WALKS.keys()
    assert {listing for listing, _ in LISTS} == LISTINGS.keys()


@pytest.mark.parametrize("name", PLANS)
def test_a_statement_goes_by_its_index(connection: Connection, name: str) -> None:
    assert plan(connection, STATEMENTS[name]) == PLANS[name]
    assert not re.search("SCAN|TEMP B-TREE", PLANS[name]), "a walk, or a sort"


@pytest.mark.parametrize("name", CLAIMS)
def test_a_claim_looks_at_the_beginnings_of_its_indexes(connection: Connection, name: str) -> None:
    found = plan(connection, STATEMENTS[name]).split("; ")
    tables = {"runs", "head", *(step.partition(" (")[0] for step in CLAIMS[name])}
    assert sorted(step for step in found if re.search(r" \(.*\?\)$", step)) == sorted(CLAIMS[name])
    assert not [step for step in found if step.startswith("SCAN") and step.split()[1] in tables]


@pytest.mark.parametrize("name", [name for name in STATEMENTS if name not in PLANS | WALKS | CLAIMS])
def test_an_insert_asks_nothing_first(connection: Connection, name: str) -> None:
    assert steps(connection, STATEMENTS[name]) == []


@pytest.mark.parametrize("name", WALKS)
def test_what_may_walk_is_short_by_nature(connection: Connection, name: str) -> None:
    assert any(step.startswith("SCAN") for step in steps(connection, STATEMENTS[name])), "it need not be listed here"


@pytest.mark.parametrize(
    ("listing", "filters"),
    list(LISTS),
)
def test_every_form_of_a_list_is_one_search_in_order(connection: Connection, listing: str, filters: str) -> None:
    for descending, low, high in product((False, True), repeat=3):
        statement = LISTINGS[listing]._select(descending, low, high, tuple(filters.split()), ("id", "body"))
        bounds = " AND position>?" * low + " AND position<?" * high
        first, *joined = plan(connection, statement).split("; ")
        assert first == LISTS[listing, filters].replace(")", f"{bounds})")
        assert all(re.fullmatch(r"\w+ key \((\w+=\?( AND )?)+\)", step) for step in joined), joined


@pytest.mark.parametrize("listing", LISTINGS)
def test_a_cursor_is_found_by_its_key(connection: Connection, listing: str) -> None:
    assert plan(connection, LISTINGS[listing]._cursor).endswith(" key (id=?)")
