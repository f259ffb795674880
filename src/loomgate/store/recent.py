"""What was looked up a moment ago, so that neither each request asks the database nor its absence ends every request.

What must live here: how long something counts that was looked up. What must not: what it is.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

from loomgate import clock
from loomgate.errors import StoreAway, StoreBusy

T = TypeVar("T")

_PATIENCE = 0.25  # seconds for the database to answer before what is known counts a while longer


class Recent(Generic[T]):
    """Answers of ``look`` by key: each counts for ``fresh`` seconds; for ``stale`` seconds in all while the database
    does not answer. Of a ``None`` nothing is kept. At most ``most`` keys are."""

    def __init__(
        self, look: Callable[[str], Awaitable[T | None]], *, fresh: float, stale: float = 600.0, most: int = 10_000
    ) -> None:
        self._look = look
        self._fresh = fresh
        self._stale = stale
        self._most = most
        self._known: dict[str, tuple[T, float]] = {}
        self._asked: dict[str, tuple[asyncio.Task[T | None], float]] = {}

    def known(self, key: str) -> T | None:
        """The answer if it still counts; costs a lookup in a dict."""
        found = self._known.get(key)
        return found[0] if found is not None and clock.monotonic() < found[1] + self._fresh else None

    async def get(self, key: str) -> T | None:
        """The answer, looked up if need be. Raises what ``look`` raises, unless what is known may count for it."""
        now = clock.monotonic()
        found = self._known.get(key)
        if found is not None and now < found[1] + self._fresh:
            return found[0]
        if (asked := self._asked.get(key)) is None:
            task = asyncio.get_running_loop().create_task(self._ask(key, now))
            asked = self._asked[key] = (task, now)
            task.add_done_callback(lambda task: self._over(key, task))
        task, since = asked
        if found is None or now >= found[1] + self._stale:
            return await asyncio.shield(task)
        await asyncio.wait((task,), timeout=max(0.0, since + _PATIENCE - now))
        if not task.done():
            return found[0]
        try:
            return task.result()
        except (StoreAway, StoreBusy):
            return found[0]

    def forget(self, key: str) -> None:
        """Look it up at the next question, whatever is being looked up now."""
        self._known.pop(key, None)
        self._asked.pop(key, None)

    async def _ask(self, key: str, since: float) -> T | None:
        value = await self._look(key)
        if self._asked.get(key, (None, 0.0))[0] is asyncio.current_task():
            if value is None:
                self._known.pop(key, None)
            else:
                if len(self._known) >= self._most:
                    self._known.clear()
                self._known[key] = (value, since)
        return value

    def _over(self, key: str, task: "asyncio.Task[T | None]") -> None:
        if self._asked.get(key, (None, 0.0))[0] is task:
            del self._asked[key]
        if not task.cancelled():
            task.exception()  # who still waits for it gets it
