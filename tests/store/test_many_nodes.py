"""Many callers on several nodes of one PostgreSQL: nothing is lost or doubled, and nobody deadlocks."""

import asyncio
import random
from contextlib import suppress

import msgspec
import pytest
import sqlalchemy as sa
from tests.support.engines import Databases
from tests.support.objects import WORKSPACE, make_answer, make_message, make_run, make_step, make_thread

from loomgate import clock
from loomgate.errors import ApiError, LeaseLost
from loomgate.store import Store, tables
from loomgate.store.configs import Document
from loomgate.store.database import Statement
from loomgate.store.postgres import PostgresDatabase
from loomgate.store.records import Commit
from loomgate.store.seal import Sealer
from loomgate.wire.page import PageQuery
from loomgate.wire.runs import RunSpec

pytestmark = pytest.mark.anyio

_DEADLOCKS = Statement(sa.text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"))
_m, _s, _r, _key = tables.messages, tables.steps, tables.runs, sa.bindparam("key")
_KEYS = Statement(
    sa.union_all(*(sa.select(t.c.position).where(t.c.thread_id == _key) for t in (_m, _s, _r))).order_by("position")
)


async def test_threads_that_all_change_at_once_stay_whole(databases: Databases) -> None:
    url = await databases.ready()
    nodes = [await PostgresDatabase.open(url, connections=6) for _ in range(3)]
    stores = [Store(node, Sealer(bytes(32)), [], "enqueue") for node in nodes]
    dice = random.Random(1)
    threads = [make_thread() for _ in range(3)]
    for thread in threads:
        await stores[0].threads.create(WORKSPACE, thread, [])
    before = await nodes[0].rows(_DEADLOCKS)
    added: dict[str, list[str]] = {thread.id: [] for thread in threads}
    seen: dict[str, list[str]] = {thread.id: [] for thread in threads}
    changes, done = 0, asyncio.Event()

    async def client(store: Store) -> None:
        nonlocal changes
        for _ in range(12):
            thread = dice.choice(threads).id
            message = make_message(thread)
            match dice.randrange(4):
                case 0:
                    run = make_run(thread)
                    await store.runs.create(WORKSPACE, run, RunSpec(), [message])
                    added[thread].append(message.id)
                case 1:
                    await store.threads.add_message(WORKSPACE, message)
                    added[thread].append(message.id)
                    await store.threads.modify_message(
                        WORKSPACE, thread, message.id, lambda m: msgspec.structs.replace(m, metadata={"seen": "1"})
                    )
                case 2:
                    await store.threads.modify(WORKSPACE, thread, _counted)
                    changes += 1
                case _:
                    page = await store.runs.page(WORKSPACE, thread, PageQuery(limit=1))
                    for id in getattr(page, "ids", []):
                        with suppress(ApiError):
                            await store.runs.cancel(WORKSPACE, thread, id)

    async def worker(store: Store, name: str) -> None:
        while not done.is_set():
            for claimed in await store.runs.claim(name, 4, 15):
                answer = make_answer(claimed.run)
                try:
                    if claimed.run.status == "cancelling":
                        await store.runs.end(claimed.run.id, "cancel", fence=claimed.row.fence)
                        continue
                    step = make_step(claimed.run, answer)
                    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[step], open_messages=[answer]))
                    added[claimed.run.thread_id].append(answer.id)
                    await store.runs.renew([(claimed.run.id, claimed.row.fence)], 15)
                    await store.runs.end(claimed.run.id, "fail", fence=claimed.row.fence)
                except LeaseLost:
                    pass
            await clock.sleep(0.002)

    async def reader(store: Store, thread: str) -> None:
        """Follows the list from cursor to cursor: a commit that comes late must not be passed over."""
        while not done.is_set():
            query = PageQuery(order="asc", limit=5, after=seen[thread][-1] if seen[thread] else None)
            seen[thread] += (await store.threads.messages(WORKSPACE, thread, query, None)).ids
            await clock.sleep(0.002)

    workers = [asyncio.create_task(worker(store, f"w{n}")) for n, store in enumerate(stores)]
    readers = [asyncio.create_task(reader(stores[n], thread.id)) for n, thread in enumerate(threads)]
    await asyncio.gather(*(client(store) for store in stores for _ in range(5)))
    while await stores[0].runs.active():
        await clock.sleep(0.02)
    await clock.sleep(0.05)
    done.set()
    await asyncio.gather(*workers, *readers)

    assert await nodes[0].rows(_DEADLOCKS) == before
    counted = 0
    for thread in threads:
        listed: list[str] = []
        while page := (
            await stores[1].threads.messages(
                WORKSPACE, thread.id, PageQuery(order="asc", limit=100, after=listed[-1] if listed else None), None
            )
        ).ids:
            listed += page
        assert sorted(listed) == sorted(added[thread.id]), "each once"
        assert seen[thread.id] == listed[: len(seen[thread.id])], "whoever follows a list misses nothing"
        keys = [row[0] for row in await nodes[0].rows(_KEYS, key=thread.id)]
        assert keys == list(range(1, len(keys) + 1)), "without a gap"
        body = msgspec.json.decode(await stores[2].threads.body(WORKSPACE, thread.id))
        counted += int(body["metadata"].get("n", 0))
    assert counted == changes, "no change was lost"
    for node in nodes:
        await node.close()
    await databases.drop(url)


def _counted(thread: object) -> object:
    n = int(thread.metadata.get("n", 0)) + 1  # type: ignore[attr-defined]
    return msgspec.structs.replace(thread, metadata={"n": str(n)})  # type: ignore[type-var]


async def test_documents_and_credentials_agree_across_nodes(databases: Databases) -> None:
    url = await databases.ready()
    nodes = [await PostgresDatabase.open(url, connections=6) for _ in range(2)]
    stores = [Store(node, Sealer(bytes(32)), [], "reject") for node in nodes]
    made = await asyncio.gather(
        *(store.configs.add(Document(workspace="w", slug="same", body={})) for store in stores for _ in range(6))
    )
    assert sum(one is not None for one in made) == 1

    def more(found: Document) -> Document:
        return msgspec.structs.replace(found, body={"n": found.body.get("n", 0) + 1}, is_default=True)

    await asyncio.gather(*(store.configs.change("w", "same", more) for store in stores for _ in range(10)))
    found = await stores[0].configs.find("w", "same")
    assert found is not None
    assert found.body == {"n": 20}
    assert len(await stores[0].configs.versions(found)) == 21
    kept = await asyncio.gather(*(store.credentials.keep("w", "secret") for store in stores for _ in range(10)))
    assert len(set(kept)) == 1
    assert await stores[1].credentials.get("w", kept[0]) == "secret"
    for node in nodes:
        await node.close()
    await databases.drop(url)
