"""What was looked up counts for a while, and longer while the database does not answer."""

import asyncio

import pytest

from loomgate.errors import StoreAway, StoreError
from loomgate.store.recent import Recent

pytestmark = pytest.mark.anyio


class Source:
    """Answers with ``value``, or raises it, after ``seconds``; counts the questions."""

    def __init__(self) -> None:
        self.value: str | Exception | None = "a"
        self.seconds = 0.0
        self.asked = 0

    async def look(self, key: str) -> str | None:
        self.asked += 1
        value = self.value
        await asyncio.sleep(self.seconds)
        if isinstance(value, Exception):
            raise value
        return value


async def test_it_is_asked_once_while_it_counts() -> None:
    source = Source()
    recent = Recent(source.look, fresh=60)
    assert await asyncio.gather(*(recent.get("k") for _ in range(5))) == ["a"] * 5
    assert (recent.known("k"), source.asked) == ("a", 1)
    recent.forget("k")
    assert recent.known("k") is None
    source.value = "b"
    assert await recent.get("k") == "b"


async def test_nothing_is_kept_of_none() -> None:
    source = Source()
    recent = Recent(source.look, fresh=0)
    assert await recent.get("k") == "a"
    source.value = None
    assert await recent.get("k") is None
    source.value = StoreAway("away")
    with pytest.raises(StoreAway):
        await recent.get("k")


async def test_what_is_known_counts_while_the_database_is_away_or_slow() -> None:
    source = Source()
    recent = Recent(source.look, fresh=0, stale=60)
    assert await recent.get("k") == "a"
    source.value = StoreAway("away")
    assert await recent.get("k") == "a"
    source.value, source.seconds = "b", 0.4
    assert await recent.get("k") == "a"  # it is not waited for
    await asyncio.sleep(0.45)
    source.seconds = 0
    assert await recent.get("k") == "b"
    source.value = StoreError("refused")
    with pytest.raises(StoreError, match="refused"):
        await recent.get("k")


async def test_what_is_too_old_counts_no_more() -> None:
    source = Source()
    recent = Recent(source.look, fresh=0, stale=0)
    assert await recent.get("k") == "a"
    source.value = StoreAway("away")
    with pytest.raises(StoreAway):
        await recent.get("k")


async def test_an_answer_from_before_a_change_is_not_kept() -> None:
    source = Source()
    source.seconds = 0.05
    recent = Recent(source.look, fresh=60)
    early = asyncio.create_task(recent.get("k"))
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    recent.forget("k")
    source.value = "b"
    assert await recent.get("k") == "b"
    assert await early == "a"
    assert recent.known("k") == "b"
