"""Pages against a model: a list in Python, sliced as BEHAVIOUR section 3 says."""

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.objects import WORKSPACE, make_message, make_thread

from loomgate.errors import ApiError
from loomgate.store import Store, schema
from loomgate.store.database import Database
from loomgate.store.seal import Sealer
from loomgate.wire.page import Page, PageQuery

Order = Literal["asc", "desc"]
COUNT = 9
RUN = "run_of_some"


@dataclass
class _Model:
    """The ids of a list, oldest first, and which of them match the filter."""

    ids: list[str]
    matching: set[str]

    def page(self, query: PageQuery, *, filtered: bool = False) -> tuple[list[str], bool]:
        wanted = self.ids if query.order == "asc" else self.ids[::-1]
        start = wanted.index(query.after) + 1 if query.after else 0
        end = wanted.index(query.before) if query.before else len(wanted)
        between = [id for id in wanted[start:end] if not filtered or id in self.matching]
        if query.before and not query.after:
            return between[-query.limit :], len(between) > query.limit
        return between[: query.limit], len(between) > query.limit


@pytest.fixture(scope="module")
def listed(tmp_path_factory: pytest.TempPathFactory) -> "tuple[asyncio.AbstractEventLoop, Store, str, _Model]":
    path: Path = tmp_path_factory.mktemp("pages") / "loomgate.db"
    schema.prepare(path)
    loop = asyncio.new_event_loop()

    async def fill() -> tuple[Store, str, _Model]:
        store = Store(Database(path), Sealer(bytes(32)), [], "reject")
        thread = make_thread()
        ids: list[str] = []
        matching: set[str] = set()
        await store.threads.create(WORKSPACE, thread, [])
        for number in range(COUNT):
            message = make_message(thread.id)
            if number % 3 != 1:
                message.run_id = RUN
                matching.add(message.id)
            await store.threads.add_message(WORKSPACE, message)
            ids.append(message.id)
        return store, thread.id, _Model(ids, matching)

    store, thread, model = loop.run_until_complete(fill())
    yield loop, store, thread, model
    loop.run_until_complete(store.close())
    loop.close()


_index = st.none() | st.integers(0, COUNT - 1)


@pytest.mark.behaviour("LIST-05", "LIST-06", "LIST-07", "LIST-08", "LIST-09", "LIST-10", "LIST-11", "LIST-22")
@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["asc", "desc"]), st.integers(1, COUNT + 1), _index, _index, st.booleans())
def test_every_page_is_the_models(
    listed: "tuple[asyncio.AbstractEventLoop, Store, str, _Model]",
    order: Order,
    limit: int,
    after: int | None,
    before: int | None,
    filtered: bool,
) -> None:
    loop, store, thread, model = listed
    query = PageQuery(
        limit=limit,
        order=order,
        after=None if after is None else model.ids[after],
        before=None if before is None else model.ids[before],
    )
    run = RUN if filtered else None
    page: Page = loop.run_until_complete(store.threads.messages(WORKSPACE, thread, query, run))
    assert (page.ids, page.has_more) == model.page(query, filtered=filtered)
    assert [f'"id":"{id}"'.encode() in body for id, body in zip(page.ids, page.bodies, strict=True)] == [True] * len(
        page.ids
    )


pytestmark = pytest.mark.anyio


async def _ids(store: Store, thread: str, order: Order, limit: int, meanwhile: bool = False) -> list[str]:
    """All ids of a list, page by page; ``meanwhile``: a new element is added between two pages."""
    found: list[str] = []
    after: str | None = None
    while True:
        page = await store.threads.messages(WORKSPACE, thread, PageQuery(limit=limit, order=order, after=after), None)
        found += page.ids
        if not page.has_more:
            return found
        after = page.ids[-1]
        if meanwhile and len(found) < 12:
            await store.threads.add_message(WORKSPACE, make_message(thread))


@pytest.mark.behaviour("LIST-11", "LIST-12", "LIST-19")
@pytest.mark.parametrize("limit", [1, 2, 3, 7, 100])
async def test_paging_skips_and_repeats_nothing_whatever_is_added(store: Store, limit: int) -> None:
    thread = make_thread()
    await store.threads.create(WORKSPACE, thread, [make_message(thread.id) for _ in range(10)])
    before = await _ids(store, thread.id, "asc", 100)
    assert len(set(before)) == 10
    assert await _ids(store, thread.id, "desc", limit, meanwhile=True) == before[::-1], "new ones shift nothing"
    now = await _ids(store, thread.id, "asc", 100)
    assert now[:10] == before
    grown = await _ids(store, thread.id, "asc", limit, meanwhile=True)
    assert grown == await _ids(store, thread.id, "asc", 100), "new ones are found at the end"
    assert await _ids(store, thread.id, "desc", limit) == grown[::-1]


@pytest.mark.behaviour("LIST-13")
@pytest.mark.parametrize("name", ["after", "before"])
async def test_a_cursor_of_elsewhere_is_refused(store: Store, name: str) -> None:
    one, other = make_thread(), make_thread()
    foreign = make_message(other.id)
    await store.threads.create(WORKSPACE, one, [make_message(one.id)])
    await store.threads.create(WORKSPACE, other, [foreign])
    for cursor in (foreign.id, one.id, "msg_nobody"):
        with pytest.raises(ApiError) as refused:
            await store.threads.messages(WORKSPACE, one.id, PageQuery(**{name: cursor}), None)
        assert (refused.value.status, refused.value.param, refused.value.code) == (400, name, "invalid_value")


async def test_a_cursor_that_was_deleted_is_refused(store: Store) -> None:
    thread = make_thread()
    messages = [make_message(thread.id) for _ in range(3)]
    await store.threads.create(WORKSPACE, thread, messages)
    await store.threads.delete_message(WORKSPACE, thread.id, messages[1].id)
    with pytest.raises(ApiError, match="no element with id"):
        await store.threads.messages(WORKSPACE, thread.id, PageQuery(after=messages[1].id), None)


@pytest.mark.behaviour("LIST-04", "LIST-05")
def test_the_envelope() -> None:
    assert Page([], [], False).render() == (
        b'{"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false}'
    )
    assert Page(["a", "b"], [b'{"id":"a"}', b'{"id":"b"}'], True).render() == (
        b'{"object":"list","data":[{"id":"a"},{"id":"b"}],"first_id":"a","last_id":"b","has_more":true}'
    )
