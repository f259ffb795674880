"""The way to Redis (or Valkey): connections with time-outs, many callers' commands sent together, one word for failure.

What must live here: all that knows the client library. What must not: what the commands mean. Whatever goes wrong is
a `RedisAway`; that Redis cannot be reached is logged once, and once more when it is back.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import hiredis
from redis import exceptions
from redis.asyncio import connection as client
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from loomgate import clock
from loomgate.errors import RedisAway

log = logging.getLogger(__name__)

Word = bytes | str | int
Command = tuple[Word, ...]

_CONNECT_SECONDS = 2.0
_HEALTH_SECONDS = 15.0  # a connection that was silent for so long is tried before it is used
_TOGETHER = 1000  # commands in one write
# What says that a connection is of no use any more; the last: uvloop, of one that was reset a moment ago.
_BROKEN = (exceptions.RedisError, OSError, RuntimeError)
_FIRST_WAIT, _LONGEST_WAIT = 0.05, 1.0  # between attempts to reach it


# Its own type says a tuple of one word.
_pack = cast("Callable[[Command], bytes]", hiredis.pack_command)  # pyright: ignore[reportUnknownMemberType]


def _packed(commands: Sequence[Command]) -> bytes:
    # In C: the client's own way takes 3 us for each word, and a look at many streams has hundreds.
    return b"".join([_pack(command) for command in commands])


class Line:
    """One connection, for one task. It is opened by its first use, and again after it broke."""

    def __init__(self, redis: "Redis", connection: Any) -> None:
        self._redis = redis
        self._connection = connection

    @property
    def open(self) -> bool:
        """Whether it is connected, as far as is known."""
        return bool(self._connection.is_connected)

    async def calls(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to ``commands``, sent as one write; a command that was refused has a `RedisAway` for its reply.

        Raises `RedisAway` when the connection breaks, or is silent for too long.
        """
        if not self.open:
            await self._connect()
        try:
            # One time-out for all of it: the client's own one takes a task for each write.
            async with asyncio.timeout(self._redis.seconds):
                return await self._exchange(commands)
        except _BROKEN as error:
            raise await self._broken(error) from None
        except BaseException:
            await self.close()  # replies may be on their way that nobody will read
            raise

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        await self._connection.send_packed_command(_packed(commands))
        replies: list[Any] = []
        for _ in commands:
            try:
                replies.append(await self._connection.read_response(disable_decoding=True))
            except exceptions.ResponseError as refused:
                replies.append(RedisAway(str(refused)))
        return replies

    async def call(self, *command: Word) -> Any:
        """The reply to one command. Raises `RedisAway`."""
        (reply,) = await self.calls([command])
        if isinstance(reply, RedisAway):
            raise reply
        return reply

    async def send(self, commands: Sequence[Command]) -> None:
        """Send ``commands`` and read nothing. Raises `RedisAway`."""
        if not self.open:
            await self._connect()
        try:
            await self._connection.send_packed_command(_packed(commands))
        except _BROKEN as error:
            raise await self._broken(error) from None

    async def read(self, seconds: float) -> Any:
        """The next reply, ``None`` when none comes within ``seconds``. Raises `RedisAway`."""
        try:
            return await self._connection.read_response(disable_decoding=True, timeout=seconds)
        except _BROKEN as error:
            raise await self._broken(error) from None

    async def close(self) -> None:
        """Break it off; what was asked may have been done or not."""
        with suppress(*_BROKEN):
            await self._connection.disconnect(nowait=True)

    async def _connect(self) -> None:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                await self._connection.connect()
        except _BROKEN as error:
            await self.close()
            raise self._redis.lost(error) from None
        self._redis.found()

    async def _broken(self, error: Exception) -> RedisAway:
        await self.close()
        if isinstance(error, TimeoutError | exceptions.TimeoutError | exceptions.BusyLoadingError):
            return self._redis.lost(error)
        return RedisAway(
            str(error) or "the connection broke"
        )  # connections break; the next attempt to connect tells whether it is gone


class Redis:
    """One Redis. `call` and `calls` are for short commands and share a connection; who waits takes a `line`."""

    def __init__(self, url: str, *, seconds: float = 5.0) -> None:
        """``seconds``: how long a reply may take. Opens nothing yet. Raises `ValueError` for what is no Redis's URL."""
        self._pool: client.ConnectionPool = client.ConnectionPool.from_url(  # pyright: ignore[reportUnknownMemberType] - untyped options
            url,
            protocol=2,
            socket_timeout=None,
            socket_connect_timeout=_CONNECT_SECONDS,
            socket_keepalive=True,
            health_check_interval=_HEALTH_SECONDS,
            client_name="loomgate",
            retry=Retry(NoBackoff(), 0),
        )
        self.seconds = seconds
        self.away = False
        self._failures = 0
        self._failed = 0.0
        self._shared = self.line()
        self._waiting: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]] = []
        self._woken = asyncio.Event()
        self._sender: asyncio.Task[None] | None = None

    def line(self) -> Line:
        """A connection of its own; whoever takes it closes it."""
        return Line(self, self._pool.make_connection())

    async def calls(self, commands: Sequence[Command]) -> list[Any]:
        """The replies to ``commands``; one that was refused has a `RedisAway` for its reply. Raises `RedisAway`, and
        at once while Redis is known to be away."""
        if self.away and clock.monotonic() - self._failed < self._wait():
            raise RedisAway("Redis cannot be reached")
        loop = asyncio.get_running_loop()
        if self._sender is None:
            self._sender = loop.create_task(self._send_forever())
        replies: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.append((commands, replies))
        self._woken.set()
        return await replies

    async def call(self, *command: Word) -> Any:
        """The reply to one command. Raises `RedisAway`."""
        (reply,) = await self.calls([command])
        if isinstance(reply, RedisAway):
            raise reply
        return reply

    async def pause(self) -> None:
        """Wait before the next attempt, longer each time while Redis is away."""
        await clock.sleep(self._wait())

    async def close(self) -> None:
        """Break off the shared connection; calls under way raise `RedisAway`."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.wait((self._sender,))
        await self._shared.close()
        for _, replies in self._waiting:
            if not replies.done():
                replies.set_exception(RedisAway("closed"))

    def lost(self, error: Exception) -> RedisAway:
        """Take down that Redis could not be reached."""
        why = str(error) or "no answer in time"
        if not self.away:
            log.warning("Redis cannot be reached, going on without it: %s", why)
        self.away = True
        self._failures += 1
        self._failed = clock.monotonic()
        return RedisAway(why)

    def found(self) -> None:
        """Take down that it could."""
        if self.away:
            log.info("Redis can be reached again")
        self.away = False
        self._failures = 0

    def _wait(self) -> float:
        return min(_FIRST_WAIT * 2 ** min(self._failures, 10), _LONGEST_WAIT)

    async def _send_forever(self) -> None:
        """Send what has gathered, again and again: callers that come meanwhile go together."""
        while True:
            await self._woken.wait()
            self._woken.clear()
            while self._waiting:
                taken, count = 0, 0
                while taken < len(self._waiting) and count < _TOGETHER:
                    count += len(self._waiting[taken][0])
                    taken += 1
                batch, self._waiting = self._waiting[:taken], self._waiting[taken:]
                await self._send(batch)

    async def _send(self, batch: list[tuple[Sequence[Command], asyncio.Future[list[Any]]]]) -> None:
        try:
            replies = await self._shared.calls([command for commands, _ in batch for command in commands])
        except BaseException as error:
            for _, future in batch:
                if not future.done():
                    future.set_exception(RedisAway(str(error)))
            if isinstance(error, RedisAway):
                return
            raise
        at = 0
        for commands, future in batch:
            if not future.done():  # whoever asked may have left
                future.set_result(replies[at : at + len(commands)])
            at += len(commands)


async def facts_of(redis: Redis) -> dict[str, str]:
    """What the server says of itself (``INFO``), by name. Raises `RedisAway`."""
    text: bytes = await redis.call("INFO")
    pairs = (line.partition(":") for line in text.decode("utf-8", "replace").splitlines())
    return {name: value for name, separator, value in pairs if separator}
