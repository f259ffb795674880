"""Keyset pages against a model in Python that knows the whole list: every combination of cursors, order and limit."""

import asyncio
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.support.objects import WORKSPACE, make_message, make_run, make_step, make_thread
from tests.support.schema import check_list

from loomgate.errors import ApiError
from loomgate.store import Store, schema
from loomgate.store.records import Commit
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase
from loomgate.wire.page import Page, PageQuery
from loomgate.wire.runs import RunSpec


class Shelf(NamedTuple):
    """A store, and the loop that it belongs to."""

    store: Store
    runner: asyncio.Runner

    def page(self, thread: str, query: PageQuery, run_id: str | None = None) -> Page:
        return self.runner.run(self.store.threads.messages(WORKSPACE, thread, query, run_id))

    def thread(self, marks: Sequence[str | None]) -> tuple[str, list[str]]:
        """A new thread with a message for each mark, the run that wrote it; answers its id and theirs."""
        thread = make_thread()
        messages = [
            make_message(thread.id, str(n), run_id=mark and self.run(thread.id, mark)) for n, mark in enumerate(marks)
        ]
        self.runner.run(self.store.threads.create(WORKSPACE, thread, messages))
        return thread.id, [message.id for message in messages]

    @staticmethod
    def run(thread: str, mark: str) -> str:
        """The id of the run that wrote the messages of ``thread`` with ``mark``: a run has one thread."""
        return f"run_{mark}_of_{thread}"

    def add(self, thread: str) -> str:
        message = make_message(thread)
        self.runner.run(self.store.threads.add_message(WORKSPACE, message))
        return message.id

    def delete(self, thread: str, id: str) -> None:
        self.runner.run(self.store.threads.delete_message(WORKSPACE, thread, id))


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shelf]:
    path = tmp_path_factory.mktemp("pages") / "loomgate.db"
    schema.prepare(path)
    with asyncio.Runner() as runner:

        async def opened() -> Store:
            return Store(SqliteDatabase(path, synchronous="normal"), Sealer(bytes(32)), [], "reject")

        store = runner.run(opened())
        yield Shelf(store, runner)
        runner.run(store.close())


def model(
    everything: Sequence[str], query: PageQuery, matching: frozenset[str] | None = None
) -> tuple[list[str], bool]:
    """The page of ``everything`` (oldest first), and whether more follows: LIST-05 to -10 and -22, word for word."""
    asked = list(everything) if query.order == "asc" else list(reversed(everything))
    start = asked.index(query.after) + 1 if query.after else 0
    end = asked.index(query.before) if query.before else len(asked)
    span = [id for id in asked[start:end] if matching is None or id in matching]
    if query.before and not query.after:
        return span[-query.limit :], len(span) > query.limit
    return span[: query.limit], len(span) > query.limit


def holds(page: Page, wanted: tuple[list[str], bool]) -> None:
    assert (page.ids, page.has_more) == wanted
    rendered: dict[str, Any] = msgspec.json.decode(page.render())
    check_list(rendered)
    assert [element["id"] for element in rendered["data"]] == wanted[0]
    assert rendered["first_id"] == (wanted[0][0] if wanted[0] else None)
    assert rendered["last_id"] == (wanted[0][-1] if wanted[0] else None)
    assert rendered["has_more"] is wanted[1]


@pytest.mark.behaviour("LIST-01", "LIST-04", "LIST-05", "LIST-06", "LIST-07", "LIST-08", "LIST-09", "LIST-10")
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_every_page_of_a_short_list(shelf: Shelf, count: int) -> None:
    thread, ids = shelf.thread([None] * count)
    cursors = [None, *ids]
    for order, after, before, limit in product(("asc", "desc"), cursors, cursors, range(1, count + 3)):
        query = PageQuery(order=order, after=after, before=before, limit=limit)  # type: ignore[arg-type]
        holds(shelf.page(thread, query), model(ids, query))


@pytest.mark.behaviour("LIST-11")
def test_one_order_is_the_exact_reverse_of_the_other(shelf: Shelf) -> None:
    """All messages of one creation share their second, so only insertion can tell them apart."""
    thread, ids = shelf.thread([None] * 30)
    for order, wanted in (("asc", ids), ("desc", ids[::-1])):
        query = PageQuery(order=order, limit=7)  # type: ignore[arg-type]
        seen: list[str] = []
        while True:
            page = shelf.page(thread, query)
            seen += page.ids
            if not page.has_more:
                break
            query = msgspec.structs.replace(query, after=page.ids[-1])
        assert seen == wanted


@settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.behaviour("LIST-17", "LIST-18", "LIST-22")
def test_a_filter_applies_before_the_limit_and_any_element_is_a_cursor(shelf: Shelf, data: st.DataObject) -> None:
    marks = data.draw(st.lists(st.sampled_from([None, "a", "b"]), max_size=12))
    thread, ids = shelf.thread(marks)
    gone = data.draw(st.sets(st.sampled_from(ids), max_size=4)) if ids else set[str]()
    for id in gone:
        shelf.delete(thread, id)  # leaves a gap in the order keys
    left = [id for id in ids if id not in gone]
    cursor = st.sampled_from([None, *left])
    run = data.draw(st.sampled_from([None, "a", "b", "unknown"]))
    query = PageQuery(
        order=data.draw(st.sampled_from(["asc", "desc"])),  # type: ignore[arg-type]
        after=data.draw(cursor),
        before=data.draw(cursor),
        limit=data.draw(st.integers(1, 13)),
    )
    of_run = frozenset(id for id, mark in zip(ids, marks, strict=True) if mark == run)
    holds(
        shelf.page(thread, query, run and shelf.run(thread, run)), model(left, query, None if run is None else of_run)
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
@pytest.mark.behaviour("LIST-11", "LIST-12")
def test_paging_is_stable_while_the_list_changes(shelf: Shelf, data: st.DataObject) -> None:
    """New elements never shift the pages of a client on its way down; going up they come at the end; none is seen
    twice, and of those that stay none is skipped."""
    thread, begun = shelf.thread([None] * data.draw(st.integers(1, 15)))
    order = data.draw(st.sampled_from(["asc", "desc"]))
    limit = data.draw(st.integers(1, 5))
    everything, gone, seen = list(begun), set[str](), list[str]()
    after: str | None = None
    for _ in range(40):
        page = shelf.page(thread, PageQuery(order=order, after=after, limit=limit))  # type: ignore[arg-type]
        seen += page.ids
        if not page.has_more:
            break
        after = page.ids[-1]
        for change in data.draw(st.lists(st.sampled_from(["add", "delete"]), max_size=3)):
            if change == "add" and len(everything) < 30:
                everything.append(shelf.add(thread))
            elif others := [id for id in everything if id not in gone and id != after]:
                victim = data.draw(st.sampled_from(others))
                gone.add(victim)
                shelf.delete(thread, victim)
    else:
        pytest.fail("the client never came to the end")
    assert len(seen) == len(set(seen))
    rank = [everything.index(id) for id in seen]
    assert rank == sorted(rank, reverse=order == "desc")
    stay = [id for id in (everything if order == "asc" else begun) if id not in gone]
    assert set(stay) <= set(seen)
    if order == "desc":
        assert set(seen) <= set(begun)


@pytest.mark.behaviour("LIST-13")
@pytest.mark.parametrize("name", ["after", "before"])
def test_a_cursor_of_another_list_is_refused(shelf: Shelf, name: str) -> None:
    thread, ids = shelf.thread([None, None])
    _, elsewhere = shelf.thread([None])
    shelf.delete(thread, ids[0])
    for cursor in (elsewhere[0], ids[0], "msg_unknown"):
        with pytest.raises(ApiError) as caught:
            shelf.page(thread, PageQuery(**{name: cursor}))
        error = caught.value
        assert (error.status, error.type, error.param, error.code) == (
            400,
            "invalid_request_error",
            name,
            "invalid_value",
        )
        assert cursor in error.message


@pytest.mark.behaviour("LIST-23")
def test_a_list_of_an_unknown_parent_is_a_404_of_the_parent(shelf: Shelf) -> None:
    with pytest.raises(ApiError, match="No thread found with id 'thread_unknown'") as caught:
        shelf.page("thread_unknown", PageQuery())
    assert caught.value.status == 404


@pytest.mark.behaviour("RUN-82", "STEP-07")
def test_runs_and_steps_are_paged_by_the_same_rules(shelf: Shelf) -> None:
    runs = shelf.store.runs
    thread, _ = shelf.thread([None])
    made: list[str] = []

    async def fill() -> list[str]:
        for _ in range(4):
            run = make_run(thread)
            await runs.create(WORKSPACE, run, RunSpec(), [])
            made.append(run.id)
            (claimed,) = [one for one in await runs.claim("w", 10, 60) if one.row.id == run.id]
            if len(made) < 4:
                await runs.end(run.id, "fail", fence=claimed.row.fence)
        steps = [make_step(run) for _ in range(4)]
        for turn, step in enumerate(steps, start=1):
            await runs.apply(claimed.row, Commit(turn=turn, open_steps=[step]))
        return [step.id for step in steps]

    steps = shelf.runner.run(fill())
    for order, n, m, limit in product(("asc", "desc"), (None, 0, 1, 3), (None, 0, 2, 3), (1, 2, 5)):
        for ids, page in (
            (made, lambda query: runs.page(WORKSPACE, thread, query)),
            (steps, lambda query: runs.steps(WORKSPACE, thread, made[-1], query)),
        ):
            after, before = (None if at is None else ids[at] for at in (n, m))
            query = PageQuery(order=order, after=after, before=before, limit=limit)  # type: ignore[arg-type]
            found = shelf.runner.run(page(query))
            assert isinstance(found, Page)
            holds(found, model(ids, query))
