"""Threads and messages at rest: tags, places, the limit of messages, and what deleting a thread leaves behind."""

import asyncio
from itertools import product

import msgspec
import pytest
import sqlalchemy as sa
from tests.support.objects import (
    WORKSPACE,
    make_answer,
    make_message,
    make_run,
    make_step,
    make_thread,
)

from loomgate.errors import ApiError, LeaseLost
from loomgate.store import Store, tables
from loomgate.store.database import Database, Statement
from loomgate.store.records import Claimed, Commit
from loomgate.wire.page import PageQuery
from loomgate.wire.runs import Run, RunSpec
from loomgate.wire.threads import MAX_MESSAGES, Thread

pytestmark = pytest.mark.anyio

_t, _m, _r, _s = tables.threads, tables.messages, tables.runs, tables.steps
SET_COUNT = Statement(sa.update(_t).where(_t.c.id == sa.bindparam("key")).values(messages=sa.bindparam("count")))
COUNT = Statement(sa.select(_t.c.messages).where(_t.c.id == sa.bindparam("key")))
PLACES = Statement(
    sa.select(_m.c.position, _m.c.place).where(_m.c.thread_id == sa.bindparam("key")).order_by(_m.c.position)
)


async def rows_left(database: Database, thread: str) -> dict[str, int]:
    """How many rows of each kind name ``thread``."""
    found: dict[str, int] = {}
    for table in (_m, _s, _r, tables.thread_tags, tables.purges):
        counted = Statement(sa.select(sa.func.count()).where(table.c.thread_id == sa.bindparam("key")))
        row = await database.row(counted, key=thread)
        assert row is not None
        found[table.name] = row[0]
    return found


async def new_thread(store: Store, texts: int = 1, rule: str | None = None, workspace: str = WORKSPACE) -> Thread:
    thread = make_thread(rule)
    await store.threads.create(workspace, thread, [make_message(thread.id, str(n)) for n in range(texts)])
    return thread


async def start(store: Store, thread: Thread) -> tuple[Run, Claimed]:
    """A run on ``thread`` that a worker holds."""
    run = make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [])
    (claimed,) = await store.runs.claim("worker", 1, 60)
    assert claimed.row.id == run.id
    return run, claimed


def texts(bodies: list[bytes]) -> list[str]:
    return [msgspec.json.decode(body)["content"][0]["text"]["value"] for body in bodies]


class TestTags:
    """Lists of threads by metadata, an extension (docs/extensions.md)."""

    async def test_a_list_has_the_threads_with_all_pairs(self, store: Store) -> None:
        made = [
            make_thread(metadata={"user": user, "kind": kind})
            for user, kind, _ in product(("ann", "bob"), ("chat", "mail"), range(3))
        ]
        made += [make_thread(metadata={"user": "ann"}), make_thread()]
        for thread in made:
            await store.threads.create(WORKSPACE, thread, [])
        await store.threads.create("other", make_thread(metadata={"user": "ann", "kind": "chat"}), [])

        for tags in ({}, {"user": "ann"}, {"kind": "mail"}, {"user": "bob", "kind": "chat"}, {"user": "eve"}):
            wanted = [thread.id for thread in made if tags.items() <= thread.metadata.items()]
            for order, limit in product(("asc", "desc"), (1, 2, 3, 20)):
                query = PageQuery(order=order, limit=limit)  # type: ignore[arg-type]
                seen: list[str] = []
                while True:
                    page = await store.threads.page(WORKSPACE, query, tags)
                    assert len(page.ids) <= limit
                    assert [msgspec.json.decode(body)["id"] for body in page.bodies] == page.ids
                    seen += page.ids
                    if not page.has_more:
                        break
                    query = msgspec.structs.replace(query, after=page.ids[-1])
                assert seen == (wanted if order == "asc" else wanted[::-1]), (tags, order, limit)

    async def test_before_and_after_bound_a_filtered_list(self, store: Store) -> None:
        made = [make_thread(metadata={"even": str(n % 2 == 0)}) for n in range(8)]
        for thread in made:
            await store.threads.create(WORKSPACE, thread, [])
        query = PageQuery(order="asc", after=made[1].id, before=made[6].id)  # a cursor need not match (LIST-22)
        page = await store.threads.page(WORKSPACE, query, {"even": "True"})
        assert page.ids == [made[2].id, made[4].id]
        query = PageQuery(order="asc", before=made[6].id, limit=1)
        page = await store.threads.page(WORKSPACE, query, {"even": "True"})
        assert (page.ids, page.has_more) == ([made[4].id], True)

    async def test_tags_follow_a_change_of_metadata_and_a_delete(self, store: Store) -> None:
        thread = make_thread(metadata={"user": "ann"})
        await store.threads.create(WORKSPACE, thread, [])

        async def found(**tags: str) -> list[str]:
            return (await store.threads.page(WORKSPACE, PageQuery(), tags)).ids

        await store.threads.modify(
            WORKSPACE, thread.id, lambda before: msgspec.structs.replace(before, metadata={"user": "bob", "new": "1"})
        )
        assert await found(user="ann") == []
        assert await found(user="bob") == await found(new="1") == await found(user="bob", new="1") == [thread.id]
        await store.threads.delete(WORKSPACE, thread.id)
        assert await found(user="bob") == []


class TestDelete:
    @pytest.mark.behaviour("THR-05", "LOCK-09")
    async def test_all_of_a_deleted_thread_is_unknown_at_once(self, store: Store) -> None:
        thread = await new_thread(store)
        run, claimed = await start(store, thread)
        step = make_step(run)
        await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[step]))
        (message,) = (await store.threads.messages(WORKSPACE, thread.id, PageQuery(), None)).ids

        await store.threads.delete(WORKSPACE, thread.id)
        for question in (
            store.threads.body(WORKSPACE, thread.id),
            store.threads.delete(WORKSPACE, thread.id),
            store.threads.message_body(WORKSPACE, thread.id, message),
            store.threads.messages(WORKSPACE, thread.id, PageQuery(), None),
            store.threads.add_message(WORKSPACE, make_message(thread.id)),
            store.threads.delete_message(WORKSPACE, thread.id, message),
            store.runs.body(WORKSPACE, thread.id, run.id),
            store.runs.page(WORKSPACE, thread.id, PageQuery()),
            store.runs.steps(WORKSPACE, thread.id, run.id, PageQuery()),
            store.runs.step(WORKSPACE, thread.id, run.id, step.id),
            store.runs.cancel(WORKSPACE, thread.id, run.id),
            store.runs.create(WORKSPACE, make_run(thread.id), RunSpec(), []),
        ):
            with pytest.raises(ApiError, match=f"No thread found with id '{thread.id}'") as caught:
                await question
            assert caught.value.status == 404

    @pytest.mark.behaviour("LOCK-09")
    async def test_its_active_runs_are_aborted_the_one_that_holds_it_and_those_that_wait(self, store: Store) -> None:
        thread = await new_thread(store, rule="enqueue")
        ended, claimed = await start(store, thread)
        await store.runs.end(ended.id, "fail", fence=claimed.row.fence)
        holding, claimed = await start(store, thread)
        waiting = [make_run(thread.id) for _ in range(2)]
        for run in waiting:
            assert (await store.runs.create(WORKSPACE, run, RunSpec(), [])).waits

        aborted = await store.threads.delete(WORKSPACE, thread.id)
        assert sorted(aborted) == sorted([holding.id, *(run.id for run in waiting)])
        with pytest.raises(LeaseLost):
            await store.runs.apply(claimed.row, Commit(verb="complete"))
        with pytest.raises(LeaseLost):
            await store.runs.end(holding.id, "cancel", fence=claimed.row.fence)
        assert await store.runs.claim("worker", 10, 60) == []
        assert await store.runs.active() == 0

    async def test_rows_go_in_steps_of_a_bounded_size(self, store: Store, database: Database) -> None:
        kept = await new_thread(store, 3)
        thread = await new_thread(store, 25)
        run, claimed = await start(store, thread)
        for turn in range(1, 8):
            await store.runs.apply(claimed.row, Commit(turn=turn, open_steps=[make_step(run)]))
        assert await store.threads.purge(10) is False, "nothing was deleted yet"
        await store.threads.delete(WORKSPACE, thread.id)

        left = await rows_left(database, thread.id)
        assert left == {"messages": 25, "steps": 7, "runs": 1, "thread_tags": 0, "purges": 1}
        rounds = 0
        while await store.threads.purge(10):
            rounds += 1
            now = await rows_left(database, thread.id)
            assert all(left[name] - now[name] <= 10 for name in ("messages", "steps", "runs"))
            left = now
        assert rounds == 4, "three for 25 messages, and one that finds nothing"
        assert set(left.values()) == {0}
        assert (await rows_left(database, kept.id))["messages"] == 3

    async def test_a_thread_of_another_workspace_is_unknown(self, store: Store) -> None:
        thread = await new_thread(store, workspace="other")
        for question in (
            store.threads.body(WORKSPACE, thread.id),
            store.threads.delete(WORKSPACE, thread.id),
            store.threads.modify(WORKSPACE, thread.id, lambda before: before),
            store.threads.messages(WORKSPACE, thread.id, PageQuery(), None),
            store.threads.add_message(WORKSPACE, make_message(thread.id)),
        ):
            with pytest.raises(ApiError) as caught:
                await question
            assert caught.value.status == 404
        assert (await store.threads.page(WORKSPACE, PageQuery(), {})).ids == []
        assert (await store.threads.page("other", PageQuery(), {})).ids == [thread.id]


@pytest.mark.behaviour("MSG-15", "LIM-12")
class TestLimit:
    """The counter of a thread stands for its 100,000 messages, so it is set instead of writing them."""

    async def filled(self, store: Store, database: Database, count: int) -> Thread:
        thread = await new_thread(store, 0)
        await database.write(lambda tx: tx.run(SET_COUNT, key=thread.id, count=count))
        return thread

    async def test_the_last_message_fits_and_one_more_is_refused(self, store: Store, database: Database) -> None:
        assert MAX_MESSAGES == 100_000
        thread = await self.filled(store, database, 99_999)
        last = make_message(thread.id)
        await store.threads.add_message(WORKSPACE, last)
        with pytest.raises(ApiError, match="at most 100000 messages") as caught:
            await store.threads.add_message(WORKSPACE, make_message(thread.id))
        assert (caught.value.status, caught.value.type) == (400, "invalid_request_error")
        assert (await store.threads.messages(WORKSPACE, thread.id, PageQuery(), None)).ids == [last.id]
        assert await database.row(COUNT, key=thread.id) == (100_000,)

        await store.threads.delete_message(WORKSPACE, thread.id, last.id)
        await store.threads.add_message(WORKSPACE, make_message(thread.id))

    async def test_a_runs_additional_messages_count(self, store: Store, database: Database) -> None:
        thread = await self.filled(store, database, 99_999)
        run = make_run(thread.id, instructions="Be brief.")
        messages = [make_message(thread.id) for _ in range(2)]
        with pytest.raises(ApiError, match="at most 100000 messages"):
            await store.runs.create(WORKSPACE, run, RunSpec(), messages)
        assert (await store.threads.messages(WORKSPACE, thread.id, PageQuery(), None)).ids == []
        assert await store.runs.active() == 0
        await store.runs.create(WORKSPACE, run, RunSpec(), messages[:1])

    async def test_what_a_run_writes_counts_too(self, store: Store, database: Database) -> None:
        thread = await new_thread(store)
        run, claimed = await start(store, thread)
        answer = make_answer(run)
        commit = Commit(turn=1, open_steps=[make_step(run, answer)], open_messages=[answer])
        await store.runs.apply(claimed.row, commit)
        assert await database.row(COUNT, key=thread.id) == (2,)

    async def test_a_delete_that_finds_nothing_changes_no_count(self, store: Store, database: Database) -> None:
        thread, other = await new_thread(store, 2), await new_thread(store, 1)
        (elsewhere,) = (await store.threads.messages(WORKSPACE, other.id, PageQuery(), None)).ids
        for id in ("msg_unknown", elsewhere):
            with pytest.raises(ApiError, match="No message found") as caught:
                await store.threads.delete_message(WORKSPACE, thread.id, id)
            assert caught.value.status == 404
        assert await database.row(COUNT, key=thread.id) == (2,)


class TestOrder:
    """Positions order lists, places order what the model sees: the table of docs/why/order.md."""

    async def test_a_runs_messages_stand_where_the_run_does(self, store: Store, database: Database) -> None:
        thread = make_thread("enqueue")
        await store.threads.create(WORKSPACE, thread, [make_message(thread.id, "Of France?")])
        run, claimed = await start(store, thread)
        await store.threads.add_message(WORKSPACE, make_message(thread.id, "And of Spain?"))
        answer = make_answer(run, "Paris.")
        await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[make_step(run, answer)], open_messages=[answer]))
        second = make_run(thread.id)
        await store.runs.create(WORKSPACE, second, RunSpec(), [])

        listed = await store.threads.messages(WORKSPACE, thread.id, PageQuery(order="asc"), None)
        assert texts(listed.bodies) == ["Of France?", "And of Spain?", "Paris."]
        assert await database.rows(PLACES, key=thread.id) == [(1, 1), (3, 3), (5, 2)]

        before_first = await store.runs.history(thread.id, claimed.row.position, (0, 0), 10)
        assert texts([body for _, _, body in before_first]) == ["Of France?"]
        before_second = await store.runs.history(thread.id, 6, (0, 0), 10)
        assert texts([body for _, _, body in before_second]) == ["Of France?", "Paris.", "And of Spain?"]
        assert [(place, position) for place, position, _ in before_second] == [(1, 1), (2, 5), (3, 3)]

    async def test_history_goes_on_from_where_it_stopped(self, store: Store) -> None:
        thread = await new_thread(store, 7)
        seen: list[str] = []
        after = (0, 0)
        while found := await store.runs.history(thread.id, 100, after, 3):
            seen += texts([body for _, _, body in found])
            after = found[-1][:2]
        assert seen == list("0123456")

    async def test_a_position_is_never_given_again(self, store: Store, database: Database) -> None:
        thread = await new_thread(store, 2)
        listed = (await store.threads.messages(WORKSPACE, thread.id, PageQuery(order="asc"), None)).ids
        await store.threads.delete_message(WORKSPACE, thread.id, listed[-1])
        await store.threads.add_message(WORKSPACE, make_message(thread.id))
        assert await database.rows(PLACES, key=thread.id) == [(1, 1), (3, 3)]

    @pytest.mark.behaviour("LIST-11", "THR-02")
    async def test_writers_at_once_get_positions_of_their_own(self, store: Store, database: Database) -> None:
        thread = await new_thread(store, 3)
        await asyncio.gather(*(store.threads.add_message(WORKSPACE, make_message(thread.id)) for _ in range(40)))
        assert await database.rows(PLACES, key=thread.id) == [(n, n) for n in range(1, 44)]
        oldest = await store.threads.messages(WORKSPACE, thread.id, PageQuery(order="asc", limit=3), None)
        assert texts(oldest.bodies) == ["0", "1", "2"]


async def test_tags_may_hold_whatever_json_may(store: Store) -> None:
    pairs = [{"a\0b": "x\0"}, {"a\0b": "x"}, {"ab": "x\0"}, {"\ufdd0": "\ufdd00"}, {"k" * 64: "\U0001f600" * 512}]
    made = []
    for metadata in pairs:
        thread = msgspec.structs.replace(make_thread(), metadata=metadata)
        await store.threads.create(WORKSPACE, thread, [])
        made.append(thread.id)
    for metadata, id in zip(pairs, made, strict=True):
        assert (await store.threads.page(WORKSPACE, PageQuery(), metadata)).ids == [id]
    with pytest.raises(ApiError, match="No thread found"):
        await store.threads.body(WORKSPACE, "thread_\0")
