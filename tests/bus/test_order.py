"""What a viewer may be told next, judged entry by entry."""

import asyncio

from loomgate.bus.connection import Redis
from loomgate.bus.entries import FIRST, Entry, Order
from loomgate.wire.events import DONE
from tests.bus.nodes import Nodes, events, take

WORD = [b"event: a\ndata: b\n\n"]


def judged(*entries: Entry, whole: bool = True) -> list[str]:
    order = Order(whole=whole)
    return [order.judge(entry) for entry in entries]


def test_a_worker_that_died_before_it_told_anything_is_a_gap() -> None:
    """Nothing of it can come, so its number is not there to be missed: its fencing token is."""
    begun = Entry("api", 1, WORD, kind=FIRST)
    assert judged(begun, Entry("two", 1, WORD, 2), Entry("two", 2, WORD, 2)) == ["next", "gap", "next"]
    assert judged(begun, Entry("one", 1, WORD, 1), Entry("two", 1, WORD, 2)) == ["next"] * 3
    assert judged(begun, Entry("one", 1, WORD, 1), Entry("three", 1, WORD, 3)) == ["next", "next", "gap"]
    assert judged(Entry("two", 1, WORD, 2), whole=False) == ["next"], "who came late does not know"


def test_what_follows_a_worker_that_told_nothing_is_a_gap() -> None:
    """Outputs were submitted for calls that nobody was told of."""
    begun = Entry("api", 1, WORD, kind=FIRST)
    submitted = Entry("api", 2, WORD, after=2)  # the token that was moved on when the worker let go
    assert judged(begun, submitted, Entry("two", 1, WORD, 3)) == ["next", "gap", "next"]
    worked = Entry("one", 1, [*WORD, DONE], 1)
    assert judged(begun, worked, submitted, Entry("two", 1, WORD, 3)) == ["next"] * 4
    late = judged(begun, worked, Entry("two", 1, WORD, 3), submitted)
    assert late == ["next"] * 3 + ["gap"], "viewers have heard what the next one said, and not why"


def test_what_comes_after_what_went_on_after_it_is_a_gap() -> None:
    begun, submitted = Entry("api", 1, WORD, kind=FIRST), Entry("api", 2, WORD, after=2)
    one = [Entry("one", 1, WORD, 1), Entry("one", 2, [*WORD, DONE], 1)]
    found = judged(begun, one[0], submitted, one[1], Entry("two", 1, WORD, 3))
    assert found == ["next", "next", "gap", "gap", "next"]
    assert judged(Entry("other", 1, WORD), begun, one[0], whole=False) == ["next", "gap", "next"]
    assert judged(begun, submitted, whole=False) == ["next", "gap"], "it begins with the beginning"


def test_after_the_end_nothing_is_told() -> None:
    begun = Entry("api", 1, WORD, kind=FIRST)
    end = Entry("one", 1, [b"event: thread.run.cancelled\ndata: {}\n\n", DONE], 1)
    assert judged(begun, end, Entry("api", 2, WORD), Entry("api", 3, WORD, after=2)) == ["next", "next", "pass", "pass"]


async def _forgotten(url: str) -> None:
    made = Nodes(url, "order")
    try:
        a, b = await made.add(), await made.add()
        run, viewer = await made.begun(a)
        run.tell(a, fence=1)
        await take(viewer, 2)
        assert await b.told(run.id, 2) == events(1, 2)
        redis = Redis(url)
        await redis.call("DEL", f"{made.prefix}:run:{run.id}")
        await redis.close()
        assert await b.told(run.id, 3) is None, "what it says itself is not the beginning"
        viewer.close()
    finally:
        await made.close()


def test_who_takes_a_run_over_whose_stream_is_gone_knows_nothing(redis_url: str) -> None:
    asyncio.run(_forgotten(redis_url))
