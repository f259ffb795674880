"""What clients change while a run is written: theirs stays theirs, and what is counted is what is there."""

import msgspec
import pytest
import sqlalchemy as sa
from tests.support.objects import WORKSPACE, make_answer, make_message, make_run, make_step, make_thread

from loomgate import clock
from loomgate.errors import ApiError
from loomgate.store import Store, tables
from loomgate.store.database import Database, Statement
from loomgate.store.records import Claimed, Commit, Overdue
from loomgate.wire.page import PageQuery
from loomgate.wire.runs import Run, RunSpec

pytestmark = pytest.mark.anyio

COUNT = Statement(sa.select(tables.threads.c.messages).where(tables.threads.c.id == sa.bindparam("key")))


async def _started(store: Store) -> tuple[Run, Claimed]:
    thread = make_thread()
    run = make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id)], thread)
    (claimed,) = await store.runs.claim("w", 1, 15)
    return run, claimed


async def _count(database: Database, thread: str) -> int:
    row = await database.row(COUNT, key=thread)
    assert row is not None
    return row[0]


@pytest.mark.behaviour("LOCK-07")
async def test_metadata_given_to_a_message_that_is_being_written_is_kept(store: Store) -> None:
    run, claimed = await _started(store)
    answer = make_answer(run)
    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[make_step(run, answer)], open_messages=[answer]))
    await store.threads.modify_message(
        WORKSPACE, run.thread_id, answer.id, lambda found: msgspec.structs.replace(found, metadata={"seen": "1"})
    )
    written = msgspec.structs.replace(make_answer(run, "Hi."), id=answer.id)
    applied = await store.runs.apply(claimed.row, Commit(put_messages=[written]))
    body = await store.threads.message_body(WORKSPACE, run.thread_id, answer.id)
    assert applied.bodies[answer.id] == body, "events tell what is stored"
    shown = msgspec.json.decode(body)
    assert shown["metadata"] == {"seen": "1"}
    assert shown["content"][0]["text"]["value"] == "Hi."


@pytest.mark.behaviour("LOCK-08")
async def test_a_message_that_goes_twice_is_counted_once(store: Store, database: Database) -> None:
    run, claimed = await _started(store)
    one, other = make_answer(run), make_answer(run)
    steps = [make_step(run, one), make_step(run, other)]
    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=steps, open_messages=[one, other]))
    assert await _count(database, run.thread_id) == 3
    await store.threads.delete_message(WORKSPACE, run.thread_id, one.id)
    with pytest.raises(ApiError):
        await store.threads.delete_message(WORKSPACE, run.thread_id, one.id)
    assert await _count(database, run.thread_id) == 2
    dropped = Commit(turn=1, drop_steps=[step.id for step in steps], drop_messages=[one.id, other.id])
    await store.runs.apply(claimed.row, dropped)
    assert await _count(database, run.thread_id) == 1
    assert len((await store.threads.messages(WORKSPACE, run.thread_id, PageQuery(), None)).ids) == 1


@pytest.mark.behaviour("RUN-44")
async def test_whoever_meets_a_run_past_its_time_is_told_so(store: Store) -> None:
    run, _ = await _started(store)
    clock.advance(597)  # times are whole seconds
    assert await store.runs.end(run.id, "expire") is None, "not before its time"
    clock.advance(4)
    place = (WORKSPACE, run.thread_id, run.id)
    overdue = Overdue([run.id])
    assert await store.runs.body(*place) == overdue
    assert await store.runs.page(WORKSPACE, run.thread_id, PageQuery()) == overdue
    assert await store.runs.steps(*place, PageQuery()) == overdue
    assert await store.runs.cancel(*place) == overdue
    assert await store.runs.submit(*place, []) == overdue
    assert await store.runs.modify(*place, lambda found: found) == overdue
    assert await store.runs.status(run.id) == "in_progress", "ending it, and telling its viewers, is the engine's"
    ended = await store.runs.end(run.id, "expire")
    assert ended is not None
    assert ended.run.status == "expired"
    with pytest.raises(ApiError, match="Cannot cancel run with status 'expired'"):
        await store.runs.cancel(*place)


async def test_a_void_claim_has_no_status(store: Store) -> None:
    run, claimed = await _started(store)
    assert await store.runs.status(run.id, claimed.row.fence) == "in_progress"
    await store.threads.delete(WORKSPACE, run.thread_id)
    assert await store.runs.status(run.id, claimed.row.fence) is None
    assert await store.runs.status("run_nobody") is None
