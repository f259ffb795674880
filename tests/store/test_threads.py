"""Threads: their messages' order and number, lists by metadata, and what a delete leaves."""

import asyncio
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.objects import WORKSPACE, make_answer, make_message, make_run, make_step, make_thread

from loomgate.errors import ApiError, LeaseLost
from loomgate.store import Store
from loomgate.store.database import Database
from loomgate.store.runs import Commit
from loomgate.wire.page import PageQuery
from loomgate.wire.runs import RunSpec
from loomgate.wire.threads import MAX_MESSAGES, Thread

pytestmark = pytest.mark.anyio

ALL = PageQuery(limit=100, order="asc")


async def _messages(store: Store, thread: str, run: str | None = None) -> list[str]:
    return (await store.threads.messages(WORKSPACE, thread, ALL, run)).ids


async def _threads(store: Store, tags: dict[str, str], **query: Any) -> list[str]:
    return (await store.threads.page(WORKSPACE, PageQuery(**query), tags)).ids


async def test_lists_of_threads_by_metadata(store: Store) -> None:
    threads = [make_thread(metadata={"user": str(n % 3), "even": str(n % 2 == 0), "n": str(n)}) for n in range(12)]
    for thread in threads:
        await store.threads.create(WORKSPACE, thread, [])
    await store.threads.create("another", make_thread(metadata={"user": "0"}), [])
    ids = [thread.id for thread in threads][::-1]

    def having(**tags: str) -> list[str]:
        return [id for id in ids if all(t.metadata[k] == v for t in threads if t.id == id for k, v in tags.items())]

    assert await _threads(store, {}, limit=100) == ids
    for tags in ({"user": "0"}, {"user": "1", "even": "True"}, {"user": "2", "even": "False", "n": "5"}):
        found = await _threads(store, tags, limit=100)
        assert found == having(**tags)
        assert found
    assert await _threads(store, {"user": "7"}, limit=100) == []
    assert await _threads(store, {"user": "0", "n": "1"}, limit=100) == []

    page = await store.threads.page(WORKSPACE, PageQuery(limit=3), {"user": "0"})
    assert page.has_more
    rest = await store.threads.page(WORKSPACE, PageQuery(limit=3, after=page.ids[-1]), {"user": "0"})
    assert [*page.ids, *rest.ids] == having(user="0")
    assert not rest.has_more
    other = await store.threads.page(WORKSPACE, PageQuery(limit=3, after=ids[0]), {"user": "0"})
    assert other.ids == page.ids, "a cursor that does not match the filter is a position all the same"


async def test_changed_metadata_is_found_and_the_old_is_not(store: Store) -> None:
    thread = make_thread(metadata={"user": "1", "kind": "a"})
    await store.threads.create(WORKSPACE, thread, [])

    def change(found: Thread) -> Thread:
        return msgspec.structs.replace(found, metadata={"user": "2"})

    await store.threads.modify(WORKSPACE, thread.id, change)
    assert await _threads(store, {"user": "2"}) == [thread.id]
    assert await _threads(store, {"user": "1"}) == await _threads(store, {"kind": "a"}) == []


@pytest.mark.behaviour("THR-02")
async def test_messages_stand_in_the_order_of_their_commits(store: Store) -> None:
    thread = make_thread()
    first = [make_message(thread.id) for _ in range(3)]
    await store.threads.create(WORKSPACE, thread, first)
    more = [make_message(thread.id) for _ in range(20)]
    done: list[str] = []

    async def add(number: int) -> None:
        await store.threads.add_message(WORKSPACE, more[number])
        done.append(more[number].id)

    await asyncio.gather(*(add(number) for number in range(20)))
    assert await _messages(store, thread.id) == [*(message.id for message in first), *done]


async def test_a_runs_messages_stand_where_the_run_does_for_the_model(store: Store) -> None:
    thread = make_thread("enqueue")
    asked = make_message(thread.id, "France?")
    run = make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [asked], thread)
    (claimed,) = await store.runs.claim("w", 1, 15)
    later = make_message(thread.id, "Spain?")
    await store.threads.add_message(WORKSPACE, later)
    answer = make_answer(run, "Paris.")
    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[make_step(run, answer)], open_messages=[answer]))
    assert await _messages(store, thread.id) == [asked.id, later.id, answer.id]
    assert await _messages(store, thread.id, run.id) == [answer.id]
    seen = await store.runs.history(thread.id, 1 << 40, (0, 0), 10)
    assert [msgspec.json.decode(body)["id"] for _, _, body in seen] == [asked.id, answer.id, later.id]
    before = await store.runs.history(thread.id, claimed.row.position, (0, 0), 10)
    assert [msgspec.json.decode(body)["id"] for _, _, body in before] == [asked.id], "nothing that came after it"


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 7), st.integers(0, 15))
def test_history_is_whole_in_chunks_of_any_size(chunk: int, count: int) -> None:
    async def work() -> None:
        import tempfile
        from pathlib import Path

        from loomgate.store import schema
        from loomgate.store.seal import Sealer

        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "x.db"
            schema.prepare(path)
            store = Store(Database(path, synchronous="normal"), Sealer(bytes(32)), [], "reject")
            thread = make_thread()
            messages = [make_message(thread.id) for _ in range(count)]
            await store.threads.create(WORKSPACE, thread, messages)
            found: list[str] = []
            after = (0, 0)
            while part := await store.runs.history(thread.id, 1 << 40, after, chunk):
                found += [msgspec.json.decode(body)["id"] for _, _, body in part]
                after = part[-1][:2]
            assert found == [message.id for message in messages]
            await store.close()

    asyncio.run(work())


async def _count(database: Database, thread: str) -> int:
    return next(iter(database._reader.execute("SELECT messages FROM threads WHERE id = ?", (thread,))))[0]


@pytest.mark.behaviour("MSG-15", "LIM-12")
async def test_a_full_thread_takes_no_message_more(store: Store, database: Database) -> None:
    thread = make_thread()
    first = make_message(thread.id)
    await store.threads.create(WORKSPACE, thread, [first])
    database._writer.execute("UPDATE threads SET messages = ? WHERE id = ?", (MAX_MESSAGES - 1, thread.id))
    await store.threads.add_message(WORKSPACE, make_message(thread.id))
    for refused in (
        lambda: store.threads.add_message(WORKSPACE, make_message(thread.id)),
        lambda: store.runs.create(WORKSPACE, make_run(thread.id), RunSpec(), [make_message(thread.id)]),
    ):
        with pytest.raises(ApiError, match="at most 100000 messages") as error:
            await refused()
        assert error.value.status == 400
    assert await _count(database, thread.id) == MAX_MESSAGES
    await store.threads.delete_message(WORKSPACE, thread.id, first.id)
    await store.threads.add_message(WORKSPACE, make_message(thread.id))


async def test_the_number_of_messages_is_that_of_the_rows(store: Store, database: Database) -> None:
    thread = make_thread()
    run = make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id)], thread)
    (claimed,) = await store.runs.claim("w", 1, 15)
    one, other = make_answer(run), make_answer(run)
    steps = [make_step(run, one), make_step(run, other)]
    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=steps, open_messages=[one, other]))
    assert await _count(database, thread.id) == 3
    await store.threads.delete_message(WORKSPACE, thread.id, one.id)
    with pytest.raises(ApiError):
        await store.threads.delete_message(WORKSPACE, thread.id, one.id)
    assert await _count(database, thread.id) == 2
    dropped = Commit(turn=1, drop_steps=[step.id for step in steps], drop_messages=[one.id, other.id])
    await store.runs.apply(claimed.row, dropped)
    assert await _count(database, thread.id) == 1 == len(await _messages(store, thread.id))


@pytest.mark.behaviour("LOCK-07")
async def test_a_clients_metadata_on_a_message_in_progress_is_kept(store: Store) -> None:
    thread = make_thread()
    run = make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id)], thread)
    (claimed,) = await store.runs.claim("w", 1, 15)
    answer = make_answer(run)
    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[make_step(run, answer)], open_messages=[answer]))
    await store.threads.modify_message(
        WORKSPACE, thread.id, answer.id, lambda found: msgspec.structs.replace(found, metadata={"seen": "1"})
    )
    await store.runs.apply(claimed.row, Commit(put_messages=[make_answer(run, "Hi.")]))
    written = msgspec.structs.replace(make_answer(run, "Hi."), id=answer.id)
    await store.runs.apply(claimed.row, Commit(put_messages=[written]))
    shown = msgspec.json.decode(await store.threads.message_body(WORKSPACE, thread.id, answer.id))
    assert shown["metadata"] == {"seen": "1"}
    assert shown["content"][0]["text"]["value"] == "Hi."


@pytest.mark.behaviour("THR-05", "LOCK-09")
async def test_a_deleted_thread_is_gone_at_once_and_its_rows_in_steps(store: Store, database: Database) -> None:
    thread = make_thread("enqueue", metadata={"a": "b"})
    run, waiting = make_run(thread.id), make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id) for _ in range(7)], thread)
    await store.runs.create(WORKSPACE, waiting, RunSpec(), [make_message(thread.id)])
    (claimed,) = await store.runs.claim("w", 5, 15)
    answer = make_answer(run)
    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[make_step(run, answer)], open_messages=[answer]))
    assert sorted(await store.threads.delete(WORKSPACE, thread.id)) == sorted([run.id, waiting.id])
    with pytest.raises(ApiError, match="No thread found"):
        await store.threads.delete(WORKSPACE, thread.id)
    for unknown in (
        lambda: store.threads.body(WORKSPACE, thread.id),
        lambda: store.threads.messages(WORKSPACE, thread.id, ALL, None),
        lambda: store.threads.message_body(WORKSPACE, thread.id, answer.id),
        lambda: store.threads.add_message(WORKSPACE, make_message(thread.id)),
        lambda: store.runs.body(WORKSPACE, thread.id, run.id),
        lambda: store.runs.page(WORKSPACE, thread.id, ALL),
        lambda: store.runs.cancel(WORKSPACE, thread.id, run.id),
    ):
        with pytest.raises(ApiError, match="No thread found"):
            await unknown()
    assert await _threads(store, {"a": "b"}) == []
    with pytest.raises(LeaseLost):
        await store.runs.apply(claimed.row, Commit(put_messages=[answer]))
    assert await store.runs.status(run.id, claimed.row.fence) is None
    assert await store.runs.claim("w", 5, 15) == []

    steps = 0
    while await store.threads.purge(3):
        steps += 1
    assert steps >= 3
    for table in ("messages", "steps", "runs", "thread_tags", "purges", "threads"):
        assert list(database._reader.execute(f"SELECT * FROM {table}")) == [], table  # noqa: S608


@pytest.mark.behaviour("MSG-17", "MSG-19")
async def test_a_message_is_known_in_its_own_thread_and_workspace(store: Store) -> None:
    one, other = make_thread(), make_thread()
    message = make_message(one.id)
    await store.threads.create(WORKSPACE, one, [message])
    await store.threads.create(WORKSPACE, other, [])
    for workspace, thread, text in (
        (WORKSPACE, other.id, "No message found"),
        (WORKSPACE, "thread_nobody", "No thread found"),
        ("another", one.id, "No thread found"),
    ):
        for verb in (
            lambda w=workspace, t=thread: store.threads.message_body(w, t, message.id),
            lambda w=workspace, t=thread: store.threads.modify_message(w, t, message.id, lambda found: found),
            lambda w=workspace, t=thread: store.threads.delete_message(w, t, message.id),
        ):
            with pytest.raises(ApiError, match=text):
                await verb()
    await store.threads.delete_message(WORKSPACE, one.id, message.id)
    with pytest.raises(ApiError, match="No message found"):
        await store.threads.message_body(WORKSPACE, one.id, message.id)
