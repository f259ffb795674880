"""The gateway's way to the Redis that the nodes share: for cache and counters, which can do without it.

What must live here: putting the commands of a moment into one trip, the longest wait for it, and leaving a Redis in
peace that does not answer. What must not: what the commands mean, or the client library (``bus/connection``).

Nobody's request fails or hangs because of Redis. A command that is not answered in time, or is refused, has the result
`AWAY`, by which its caller does without; then nothing is asked for a second, and one trip tries whether it is back.
"""

import asyncio
import logging
from collections.abc import Callable
from functools import partial
from hashlib import sha1
from typing import TYPE_CHECKING, Any, Final, final

from loomgate.errors import RedisAway

if TYPE_CHECKING:
    from loomgate.bus.connection import Line, Redis

log = logging.getLogger(__name__)

Argument = str | bytes | int

_PAUSE = 1.0  # seconds for which a Redis that did not answer is not asked
_TRIPS = 8  # under way at a time, each on a connection of its own: what comes meanwhile shares the next one
_COMMANDS = 200  # of one trip
_STALL = 0.01  # a time-out that is so much late tells of our own event loop, not of Redis
_NOTED = 60.0  # seconds between warnings of commands that Redis refuses
_UNKNOWN = "No matching script"  # how it says that it has no script of that digest


@final
class Away:
    """The result of a command that Redis did not answer."""

    def __repr__(self) -> str:
        return "AWAY"


AWAY: Final = Away()


@final
class Script:
    """A Lua script, which Redis keeps by its digest."""

    __slots__ = ("digest", "text")

    def __init__(self, text: str) -> None:
        self.text = text
        self.digest = sha1(text.encode(), usedforsecurity=False).hexdigest()


_Command = tuple[Argument | Script, ...]
_Asked = tuple[_Command, "asyncio.Future[Any] | None"]


class Shared:
    """Commands to ``redis``, each waiting ``seconds`` at most; answers are bytes. For one event loop.

    ``prefix`` is what all names there begin with; `name` puts it in front. ``now`` is the time that scripts go by, in
    seconds since the epoch; ``None``: Redis' own clock, so that nodes whose clocks differ count alike.
    """

    def __init__(
        self, redis: "Redis", prefix: str, *, seconds: float = 0.05, now: Callable[[], float] | None = None
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._seconds = seconds
        self._now = now
        self._queue: list[_Asked] = []
        self._trips: set[asyncio.Task[None]] = set()
        self._lines: list[Line] = []  # those that are in nobody's hands
        self._soon = False
        self._again = 0.0  # when to ask again; 0: it answers
        self._noted = float("-inf")

    def name(self, *words: str) -> str:
        """The name of a key."""
        return ":".join((self._prefix, *words))

    @property
    def now(self) -> str:
        """The first argument of scripts that go by time: seconds, or nothing for Redis' own."""
        return "" if self._now is None else repr(self._now())

    @property
    def away(self) -> bool:
        """Whether it did not answer lately."""
        return self._again > 0.0

    def ask(self, *command: Argument) -> "asyncio.Future[Any]":
        """The answer to ``command``, or `AWAY`. It goes with all others of this moment."""
        return self._asked(command)

    def run(self, script: Script, keys: list[str], *arguments: Argument) -> "asyncio.Future[Any]":
        """What ``script`` returns, or `AWAY`."""
        return self._asked((script, len(keys), *keys, *arguments))

    def tell(self, *command: Argument) -> None:
        """Have ``command`` done, if Redis is there, and do not wait for it."""
        self._put((command, None))

    def start(self, script: Script, keys: list[str], *arguments: Argument) -> None:
        """Have ``script`` run, if Redis is there, and do not wait for it."""
        self._put(((script, len(keys), *keys, *arguments), None))

    async def close(self) -> None:
        """Let what was told go out, if Redis is there, and break off."""
        self._send()
        if self._trips:
            await asyncio.wait(self._trips, timeout=self._seconds)
        for trip in tuple(self._trips):
            trip.cancel()
        await asyncio.gather(*self._trips, return_exceptions=True)
        for line in self._lines:
            await line.close()

    def _asked(self, command: _Command) -> "asyncio.Future[Any]":
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put((command, answer))
        return answer

    def _put(self, asked: _Asked) -> None:
        if self._again:
            loop = asyncio.get_running_loop()
            if loop.time() < self._again or len(self._trips) >= _TRIPS:
                _answer(asked, AWAY)
                return
            self._again = loop.time() + _PAUSE  # this trip tries it; the others go on without
        self._queue.append(asked)
        if not self._soon:
            self._soon = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._soon = False
        while self._queue and len(self._trips) < _TRIPS:
            batch, self._queue = self._queue[:_COMMANDS], self._queue[_COMMANDS:]
            loop = asyncio.get_running_loop()
            trip = loop.create_task(self._carry(batch), name="loomgate-shared")
            self._trips.add(trip)
            end = loop.time() + self._seconds
            timer = loop.call_at(end, self._late, trip, end, True, batch)
            trip.add_done_callback(partial(self._back, timer))

    def _back(self, timer: asyncio.TimerHandle, trip: "asyncio.Task[None]") -> None:
        timer.cancel()
        self._trips.discard(trip)
        if self._queue and not self._soon:
            self._send()

    def _late(self, trip: "asyncio.Task[None]", end: float, first: bool, batch: list[_Asked]) -> None:
        loop = asyncio.get_running_loop()
        if trip.done():
            return
        if first and loop.time() - end > _STALL:
            # We were not there to hear the answer, which may have come long ago.
            end = loop.time() + self._seconds
            loop.call_at(end, self._late, trip, end, False, batch)
            return
        # The trip goes on, and may find it: a connection can take longer than anybody should wait.
        self._lost(batch, f"no answer in {self._seconds * 1000:.0f} ms")

    async def _carry(self, batch: list[_Asked]) -> None:
        line = self._lines.pop() if self._lines else self._redis.line()
        try:
            answers = await self._calls(line, [_sent(command) for command, _ in batch])
            unknown = [at for at, answer in enumerate(answers) if _UNKNOWN in str(answer)]
            if unknown:
                texts = await line.calls([_sent(batch[at][0], whole=True) for at in unknown])
                for at, answer in zip(unknown, texts, strict=True):
                    answers[at] = answer
        except RedisAway as error:
            self._lost(batch, str(error))
            return
        finally:
            self._lines.append(line)
        if self._again:
            self._again = 0.0
            log.info("Redis answers again")
        for asked, answer in zip(batch, answers, strict=True):
            if isinstance(answer, RedisAway):
                self._refused(answer)
                answer = AWAY  # noqa: PLW2901 - as its caller is to see it
            _answer(asked, answer)

    @staticmethod
    async def _calls(line: "Line", commands: list[tuple[Argument, ...]]) -> list[Any]:
        used = line.open
        try:
            return await line.calls(commands)
        except RedisAway:
            if not used:
                raise
            # A connection that was kept is broken after a restart of Redis.
            return await line.calls(commands)

    def _lost(self, batch: list[_Asked], why: str) -> None:
        if not self._again and not self._redis.away:  # which was told already
            log.warning("Redis does not answer in time, going on without it: %s", why)
        self._again = asyncio.get_running_loop().time() + _PAUSE
        batch, self._queue = batch + self._queue, []
        for asked in batch:
            _answer(asked, AWAY)

    def _refused(self, error: Exception) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._noted >= _NOTED:
            self._noted = now
            log.warning("Redis refuses a command, this node goes on without: %s", error)


def _answer(asked: _Asked, answer: Any) -> None:
    future = asked[1]
    if future is not None and not future.done():
        future.set_result(answer)


def _sent(command: _Command, *, whole: bool = False) -> tuple[Argument, ...]:
    script = command[0]
    if not isinstance(script, Script):
        return command  # pyright: ignore[reportReturnType] - a script is first, or there is none
    first = ("EVAL", script.text) if whole else ("EVALSHA", script.digest)
    return (*first, *command[1:])  # pyright: ignore[reportReturnType] - as above
