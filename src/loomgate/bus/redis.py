"""The bus between nodes, over Redis or Valkey: a stream per run, one reader for all viewers here, messages by pub/sub.

Several nodes tell of one run, so the order is the one of its stream in Redis, for every viewer, also on the node that
drives the run. Redis is never needed: whoever cannot be told finds the facts in the store.
"""

import asyncio
import logging
import secrets
from collections.abc import Coroutine
from typing import Any

import msgspec

from loomgate.bus import Bus, Look, Subscription
from loomgate.bus.connection import Line, Redis, Word
from loomgate.bus.entries import FIRST, GAP, START, STATE, Order, Place, parsed, place
from loomgate.bus.publisher import Publisher
from loomgate.bus.viewing import Channel, RedisSubscription, Row, judged
from loomgate.errors import RedisAway
from loomgate.wire.events import DONE

log = logging.getLogger(__name__)

_BLOCK_MS = 2000  # how long one look at the streams waits for something new
_COUNT = 256  # entries of one stream in one look
_PAGE = 100  # entries of a stream that a viewer reads for itself
_LAST = 8  # entries that a viewer from now on looks back at, to know who told them
_CALL_SECONDS = 1.0  # longest wait for Redis within a client's request
_QUIET_SECONDS = 10.0  # of no message, before the connection is tried
_FLUSH_SECONDS = 1.0  # for what is unsent when the node stops

_message = msgspec.msgpack.Encoder().encode
_heard = msgspec.msgpack.Decoder(tuple[str, str, str]).decode


class RedisBus(Bus):
    """Streams and messages under the names that begin with ``prefix``; see `Publisher` for what is kept."""

    outlives = True

    def __init__(self, redis: Redis, *, prefix: str, retention_seconds: float, retention_bytes: int) -> None:
        super().__init__()
        self.node = secrets.token_hex(6)
        self._redis = redis
        self._publisher = Publisher(redis, prefix, self.node, seconds=retention_seconds, size=retention_bytes)
        self._channels: dict[str, Channel] = {}
        self._wanted = asyncio.Event()
        self._server: bytes | None = None  # which Redis it is, while that is known
        self._woken_at = "0-0"
        self._hears = False
        self._missed = False  # until somebody asks
        self._broke = False  # the connection, before this one
        self._tasks: list[asyncio.Task[None]] = []

    @property
    def away(self) -> bool:
        """Whether Redis cannot be reached."""
        return self._redis.away

    async def start(self) -> None:
        """Begin to deliver, whether Redis can be reached or not."""
        loop = asyncio.get_running_loop()
        self._publisher.start()
        forever: list[Coroutine[Any, Any, None]] = [self._forever(self._read), self._forever(self._listen)]
        self._tasks = [loop.create_task(task) for task in forever]

    async def close(self) -> None:
        """Send what is unsent within a second, and end."""
        await self._publisher.close(_FLUSH_SECONDS)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    # Workers

    def poke(self) -> None:
        """Tell the worker here that a run may be due; if it has no room, the others."""
        self.alarm.set()
        if not self.room():
            self._say("poke", "", keep=False)

    def signal(self, run_id: str) -> None:
        """Tell the workers, here and on other nodes, that a run was changed by somebody else."""
        super().signal(run_id)
        self._say("signal", run_id, keep=True)

    def changed(self, what: str) -> None:
        """Tell every process that ``what`` is no longer as it was."""
        super().changed(what)
        self._say("changed", what, keep=True)

    def deaf(self) -> bool:
        """Whether signals may have been missed since this was last asked."""
        missed = self._missed or not self._hears
        self._missed = self._missed and not self._hears
        return missed

    def ask(self, run_id: str, mark: str) -> None:
        """Let the worker that drives the run, here or elsewhere, put its present state into the run's stream, in an
        entry with ``mark``."""
        if not self._answer(run_id, mark):
            self._say("ask", f"{run_id} {mark}", keep=False)

    def _answer(self, run_id: str, mark: str) -> bool:
        held = self.held(run_id)
        if held is None:
            return False
        self._publisher.put(run_id, held.events, held.fence, STATE, mark)
        return True

    def _say(self, kind: str, value: str, *, keep: bool) -> None:
        self._publisher.say(_message((kind, self.node, value)), keep=keep)

    def _hear(self, message: bytes) -> None:
        try:
            kind, node, value = _heard(message)
        except msgspec.MsgspecError:
            return  # from a version that says more than we understand
        if node == self.node:
            return
        if kind == "poke":
            if self.room():
                self.alarm.set()
        elif kind == "signal":
            super().signal(value)
        elif kind == "changed":
            super().changed(value)
        elif kind == "ask":
            run_id, _, mark = value.partition(" ")
            self._answer(run_id, mark)

    # Viewers

    def publish(
        self,
        run_id: str,
        events: list[bytes],
        *,
        first: bool = False,
        settled: bool = False,
        fence: int = 0,
        after: int = 0,
        viewer: Subscription | None = None,
    ) -> None:
        """Queue ``events`` for the run's stream; see `Bus.publish`."""
        if not events and not settled:
            return
        mark = ""
        if isinstance(viewer, RedisSubscription):
            mark = secrets.token_hex(4)
            viewer.begin_with(mark, after)
        told = [*events, DONE] if settled else events
        self._publisher.put(run_id, told, fence, FIRST if first else 0, mark, after)

    async def told(self, run_id: str, fence: int) -> list[bytes] | None:
        """What stands in the run's stream, if it does from the beginning on; see `Bus.told`. If it does not, viewers
        that are there begin anew."""
        self._publisher.put(run_id, [], fence)
        found = await self._all_told(run_id)
        if found is None:
            self._publisher.put(run_id, [], fence, GAP)
        return found

    async def _all_told(self, run_id: str) -> list[bytes] | None:
        found: list[bytes] = []
        whole = False
        order, at = Order(whole=True), START
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                await self._publisher.sent(run_id)
                while rows := [row for row in await self.rows(run_id, at) if row[0] > at]:
                    at = rows[-1][0]
                    for row in rows:
                        entry = judged(row, order)
                        whole = whole or (entry is not None and entry.kind & FIRST != 0)
                        if entry is not None and (entry.kind & GAP or not whole):
                            return None
                        if entry is not None and not entry.kind & STATE:
                            found += entry.events
        except (TimeoutError, RedisAway):
            return None
        return found if whole else None

    async def subscribe(self, run_id: str, look: Look, *, fresh: bool = False) -> RedisSubscription:
        """Look on from now; see `Bus.subscribe`."""
        if fresh:
            channel = self._open(run_id, [], whole=True)
            return RedisSubscription(self, channel, look, START, first_done=True)
        return await self._from_now(run_id, look, first_done=True)

    async def attach(self, run_id: str, look: Look) -> RedisSubscription:
        """Look on with the present state first; see `Bus.attach`."""
        viewer = await self._from_now(run_id, look, first_done=False)
        viewer.lose()
        return viewer

    async def resume(self, run_id: str, last_event_id: str | None, look: Look) -> RedisSubscription | None:
        """Look on from an event on; see `Bus.resume`."""
        at, index = START, -1
        if last_event_id is not None:
            wanted = parsed(last_event_id)
            if wanted is None:
                return None
            at, index = wanted
        try:
            rows = await self.rows(run_id, at)
        except RedisAway:
            return None
        entry = judged(rows[0], Order(whole=False)) if rows else None
        if entry is None:
            return None
        if last_event_id is None:
            if not entry.kind & FIRST:
                return None
        elif rows[0][0] != at or index >= len(entry.events):
            return None
        viewer = RedisSubscription(self, self._open(run_id, rows), look, at, first_done=False)
        viewer.go_on(rows, index)
        return viewer

    def drop(self, run_id: str) -> None:
        """Nothing to forget: what has no viewer here is not kept here."""

    def left(self, channel: Channel) -> None:
        """A viewer went; a run without viewers is read no more."""
        if not channel.viewers and self._channels.get(channel.run_id) is channel:
            del self._channels[channel.run_id]

    async def rows(self, run_id: str, at: Place, count: int = _PAGE) -> list[Row]:
        """Entries of the run's stream from the one at ``at`` on. Raises `RedisAway`."""
        return await self._range("XRANGE", run_id, f"{at[0]}-{at[1]}", "+", count)

    async def _range(self, command: str, run_id: str, start: str, end: str, count: int) -> list[Row]:
        try:
            async with asyncio.timeout(_CALL_SECONDS):
                found = await self._redis.call(command, self._publisher.key(run_id), start, end, "COUNT", count)
        except TimeoutError:
            raise RedisAway("no answer in time") from None
        return [(place(id), fields) for id, fields in found]

    async def _from_now(self, run_id: str, look: Look, *, first_done: bool) -> RedisSubscription:
        channel = self._channels.get(run_id)
        lost = False
        if channel is None:
            rows: list[Row] = []
            try:
                rows = await self._range("XREVRANGE", run_id, "+", "-", _LAST)
                rows.reverse()
            except RedisAway:
                lost = True
            channel = self._open(run_id, rows)
        viewer = RedisSubscription(self, channel, look, channel.at, first_done=first_done)
        if lost:
            viewer.lose()
        return viewer

    def _open(self, run_id: str, rows: list[Row], *, whole: bool = False) -> Channel:
        """The run's channel; a new one goes on after ``rows``."""
        channel = self._channels.get(run_id)
        if channel is None:
            channel = Channel(run_id, self._publisher.key(run_id), rows, self._server, whole=whole)
            self._channels[run_id] = channel
            self._wanted.set()
            self._publisher.wake()
        return channel

    # Tasks

    async def _forever(self, work: Any) -> None:
        while True:
            line = self._redis.line()
            try:
                await work(line)
            except RedisAway as error:
                log.debug("a connection to Redis broke: %s", error)
            except Exception:  # whatever it was: a node that hears nothing more would look alive
                log.exception("the bus stumbled; going on")
            finally:
                await line.close()
            await self._redis.pause()

    async def _read(self, line: Line) -> None:
        """Read the streams of all runs with viewers here, until the connection breaks."""
        self._server = None
        while True:
            if not self._channels:
                self._server = None  # what is there when somebody comes next is looked at then
                self._wanted.clear()
                await self._wanted.wait()
            if self._server is None:
                await self._identify(line)
            channels = {channel.key.encode(): channel for channel in self._channels.values()}
            words: list[Word] = ["XREAD", "COUNT", _COUNT, "BLOCK", _BLOCK_MS, "STREAMS", self._publisher.wake_key]
            words += channels
            words.append(self._woken_at)
            words += [f"{channel.at[0]}-{channel.at[1]}" for channel in channels.values()]
            for key, rows in await line.call(*words) or ():
                channel = channels.get(key)
                if channel is None:
                    self._woken_at = rows[-1][0].decode()
                    continue
                for id, fields in rows:
                    channel.take((place(id), fields))

    async def _identify(self, line: Line) -> None:
        """See which Redis this is: what was read from another one may be gone, so its viewers begin anew."""
        info: bytes = await line.call("INFO", "server")
        self._server = next((part for part in info.split(b"\r\n") if part.startswith(b"run_id:")), b"")
        self._woken_at = "0-0"
        for channel in self._channels.values():
            if channel.server not in (None, self._server):
                channel.reset()
            channel.server = self._server

    async def _listen(self, line: Line) -> None:
        """Hear other nodes, until the connection breaks."""
        try:
            await line.call("SUBSCRIBE", self._publisher.topic)
            self._hears = True
            if self._broke:
                super().changed("")
                self.alarm.set()
            tried = False
            while True:
                reply = await line.read(_QUIET_SECONDS)
                if reply is None:
                    if tried:
                        raise self._redis.lost(TimeoutError("no answer to a ping"))
                    await line.send([("PING",)])
                elif reply[0] == b"message":
                    self._hear(reply[2])
                tried = reply is None
        finally:
            self._hears = False
            self._missed = self._broke = True
