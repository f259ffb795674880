"""The ledger: records in and out, pages that a model agrees with, spending that is added once, and forgetting."""

import random

import msgspec
import pytest

from loomgate.errors import ApiError, StoreError
from loomgate.store import Store
from loomgate.store import ledger as ledger_module
from loomgate.store.database import Database
from loomgate.store.ledger import CallQuery, Ledger, Spent, today
from loomgate.store.sqlite import DIALECT
from loomgate.wire.calls import Attempt, CallFacts, CallRecord, new_log_id

pytestmark = pytest.mark.anyio

START = 2_000_000_000.0  # later than any id that another test made in this process


@pytest.fixture
def ledger(store: Store) -> Ledger:
    return store.ledger


_at = [START]


def record(workspace: str = "team", request: bytes | None = b"{}", **facts: object) -> CallRecord:
    _at[0] += 1
    given = {"created_at": _at[0], "seconds": 0.5, "endpoint": "chat", "status": 200} | facts
    _at[0] = max(_at[0], float(given["created_at"]))  # type: ignore[arg-type]
    made = CallFacts(id=new_log_id(float(given["created_at"])), workspace=workspace, **given)  # type: ignore[arg-type]
    return CallRecord(made, request, b'{"ok":true}')


async def ids(ledger: Ledger, **query: object) -> list[str]:
    page = await ledger.page("team", msgspec.convert(query, CallQuery))
    return [facts.id for facts in page.records]


async def test_a_record_comes_back_as_it_was_written(ledger: Ledger) -> None:
    made = record(
        provider="openai",
        model="gpt-4o",
        cost=0.25,
        metadata={"a": "b"},
        attempts=(Attempt("openai", 200, 0.25, "api.openai.com"),),
        request_headers={"x": "y"},
        trace_id="t",
    )
    await ledger.write([made])
    assert await ledger.get("team", made.facts.id) == made
    assert await ledger.get("other", made.facts.id) is None
    assert await ledger.get("team", "nonsense") is None
    page = await ledger.page("team", CallQuery())
    assert page.records == [made.facts]


async def test_a_page_is_newest_first_and_leads_to_the_next(ledger: Ledger) -> None:
    made = [record() for _ in range(25)]
    await ledger.write(made[:10])
    await ledger.write([record("other"), *made[10:]])
    newest_first = [one.facts.id for one in reversed(made)]
    found: list[str] = []
    after: str | None = None
    sizes: list[int] = []
    while True:
        page = await ledger.page("team", CallQuery(limit=10, after=after))
        found += [facts.id for facts in page.records]
        sizes.append(len(page.records))
        after = page.next
        if after is None:
            break
    assert found == newest_first
    assert sizes == [10, 10, 5]


async def test_a_cursor_of_another_workspace_is_refused(ledger: Ledger) -> None:
    foreign = record("other")
    await ledger.write([foreign])
    for cursor in (foreign.facts.id, "nonsense"):
        with pytest.raises(ApiError) as caught:
            await ledger.page("team", CallQuery(after=cursor))
        assert (caught.value.status, caught.value.param) == (400, "after")


async def test_filters_agree_with_a_plain_search(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_SCANNED", 7)
    monkeypatch.setattr(ledger_module, "_pages", {})
    dice = random.Random(7)
    made = [
        record(
            status=dice.choice([200, 429, 500]),
            provider=dice.choice(["openai", "anthropic"]),
            model=dice.choice(["a", "b"]),
            trace_id=dice.choice(["t1", "t2", "t3"]),
        )
        for _ in range(60)
    ]
    await ledger.write(made)
    for _ in range(60):
        query: dict[str, object] = {}
        for name, values in (
            ("status", [200, 429, 500, 404]),
            ("provider", ["openai", "anthropic"]),
            ("model", ["a", "b"]),
            ("trace_id", ["t1", "t2", "t3"]),
            ("since", [one.facts.created_at for one in made[::7]]),
            ("until", [one.facts.created_at for one in made[::9]]),
        ):
            if dice.random() < 0.4:
                query[name] = dice.choice(values)
        wanted = [
            one.facts.id
            for one in reversed(made)
            if all(
                one.facts.created_at >= value  # type: ignore[operator]
                if name == "since"
                else one.facts.created_at < value  # type: ignore[operator]
                if name == "until"
                else getattr(one.facts, name) == value
                for name, value in query.items()
            )
        ]
        found: list[str] = []
        after: str | None = None
        for _ in range(100):
            page = await ledger.page("team", msgspec.convert({**query, "limit": 4, "after": after}, CallQuery))
            assert len(page.records) <= 4
            found += [facts.id for facts in page.records]
            after = page.next
            if after is None:
                break
        assert found == wanted, query


async def test_a_search_for_what_is_rare_looks_through_so_much_and_no_more(ledger: Ledger, database: Database) -> None:
    await ledger.write([record(status=500), *(record() for _ in range(20))])
    statement, boundary = ledger_module._page((), ("status",))
    assert boundary is not None
    for one in (statement, boundary):
        made = one.compiled(DIALECT)
        bound = {**made.defaults, "owner": "team", "status": 500, "count": 5}
        plan = [str(row[3]) for row in database._reader.execute("EXPLAIN QUERY PLAN " + made.sql, bound).fetchall()]
        assert any("ix_calls_workspace_id" in step for step in plan), plan
        assert not any("TEMP B-TREE" in step for step in plan), plan


async def test_a_trace_is_found_by_its_index(ledger: Ledger, database: Database) -> None:
    statement, boundary = ledger_module._page(("after",), ("trace_id",))
    assert boundary is None
    made = statement.compiled(DIALECT)
    bound = {**made.defaults, "owner": "team", "trace_id": "t", "after": "x", "count": 5}
    plan = [str(row[3]) for row in database._reader.execute("EXPLAIN QUERY PLAN " + made.sql, bound).fetchall()]
    assert any("ix_calls_workspace_trace_id_id" in step for step in plan), plan


# --- spending ---


async def test_what_virtual_keys_spend_is_added_up_by_day(ledger: Ledger) -> None:
    day = 86_400.0
    start = START // day * day + 40 * day
    await ledger.write(
        [
            record(virtual_key="vk", cost=0.5, prompt_tokens=10, completion_tokens=5, created_at=start + 1),
            record(virtual_key="vk", cost=0.25, prompt_tokens=1, created_at=start + 2),
            record(virtual_key="vk", cost=None, prompt_tokens=100, created_at=start + day),
            record(virtual_key="vk", cost=0.0, cache="HIT", prompt_tokens=7, created_at=start + 3),
            record("other", virtual_key="vk", cost=1.0, created_at=start + 4),
            record(cost=9.0, created_at=start + 5),
            record(virtual_key="idle", cost=0.0, created_at=start + 6),
        ]
    )
    await ledger.write([record(virtual_key="vk", cost=0.25, created_at=start + 7)])
    first = int(start // day)
    assert sorted(await ledger.spending()) == [
        Spent("other", "vk", first, 1.0, 0),
        Spent("team", "vk", first, 1.0, 16),
        Spent("team", "vk", first + 1, 0.0, 100),
    ]
    keys = [("team", "vk"), ("team", "idle"), ("nobody", "vk")]
    assert sorted(await ledger.spent_lately(keys, first + 1)) == [Spent("team", "vk", first + 1, 0.0, 100)]
    assert len(await ledger.spent_lately([*keys, ("other", "vk")], first)) == 3
    await ledger.reset_spending("team", "vk")
    assert [row.workspace for row in await ledger.spending()] == ["other"]


async def test_a_batch_that_is_written_again_counts_once(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """The meter writes a whole batch again when a part of it could not be written."""
    monkeypatch.setattr(ledger_module, "_STEP", 2)
    made = [record(virtual_key="vk", cost=1.0) for _ in range(5)]
    broken = CallRecord(made[2].facts, object())  # type: ignore[arg-type]
    with pytest.raises((TypeError, StoreError)):
        await ledger.write([*made[:2], broken, *made[3:]])
    assert sum(row.cost for row in await ledger.spending()) == 2.0
    await ledger.write(made)
    await ledger.write(made)
    assert sum(row.cost for row in await ledger.spending()) == 5.0
    assert len(await ids(ledger, limit=100)) == 5


async def test_without_a_log_spending_is_kept_all_the_same(ledger: Ledger) -> None:
    made = record(virtual_key="vk", cost=1.0)
    await ledger.write([made], kept=False)
    assert await ids(ledger) == []
    assert [row.cost for row in await ledger.spending()] == [1.0]


def test_today_is_counted_from_the_epoch() -> None:
    assert 20_000 < today() < 60_000


# --- forgetting ---


async def test_old_records_are_forgotten_in_steps(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "_STEP", 4)
    made = [record() for _ in range(10)]
    await ledger.write([*made, record("other")])
    before = made[9].facts.created_at
    steps = [await ledger.forget(before) for _ in range(3)]
    assert steps == [True, True, False]
    assert await ids(ledger) == [made[9].facts.id]
    assert [facts.workspace for facts in (await ledger.page("other", CallQuery())).records] == ["other"]
