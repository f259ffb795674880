"""Looking on at a run whose events are in Redis: what one node has read of it, and each viewer's way through it."""

import asyncio
import secrets
from bisect import bisect_right
from collections import deque
from operator import itemgetter
from typing import TYPE_CHECKING

import msgspec

from loomgate import clock
from loomgate.bus import Look, State, Subscription
from loomgate.bus.entries import GAP, START, STATE, Entry, Order, Place, id_of, no_id, unpacked
from loomgate.errors import LoomgateError, RedisAway
from loomgate.wire.events import DONE

if TYPE_CHECKING:
    from loomgate.bus.redis import RedisBus

_BUFFER = 65536  # bytes of entries from which on what all viewers here have is let go of
_MOST = 1 << 20  # bytes from which on those far behind read the stream again
_ASK_SECONDS = 1.0  # how long the node that drives a run may take to tell its present state
_DOUBT_SECONDS = 5.0  # after so long a silence a viewer asks the store whether the run is over
_AWAY_SECONDS = 1.0  # the same while Redis is away

Row = tuple[Place, list[bytes]]

_place_of = itemgetter(0)


def judged(row: Row, order: Order) -> Entry | None:
    """The entry of ``row``, marked as a gap if something is missing before it; ``None``: it is to be passed over."""
    try:
        entry = unpacked(row[1])
    except (msgspec.MsgspecError, IndexError):
        return Entry("", 0, [], kind=GAP)  # not from us, or from a version that we cannot read
    verdict = order.judge(entry)
    if verdict == "gap":
        return msgspec.structs.replace(entry, kind=entry.kind | GAP)
    return entry if verdict == "next" else None


def _created(event: bytes) -> bytes | None:
    """The id of the object whose creation ``event`` tells, if it does."""
    name, created, data = event[:90].partition(b'.created\ndata: {"id":"')
    return data.partition(b'"')[0] + name if created else None


class Channel:
    """A run that has viewers on this node: ``entries`` holds all that came after ``base``, ``at`` is the last one read.

    ``tail`` is the event id after which a viewer goes on that has all of it; ``server`` the Redis it was read from;
    ``asking`` the mark of the present state that was asked for, and until when it is waited for.
    """

    __slots__ = ("asking", "at", "base", "entries", "key", "order", "run_id", "server", "size", "tail", "viewers")

    def __init__(self, run_id: str, key: str, rows: list[Row], server: bytes | None, *, whole: bool) -> None:
        """``rows``: what of the stream is known already, its last entry at least. ``whole``: the run begins now."""
        self.run_id = run_id
        self.key = key
        self.server = server
        self.viewers: set[RedisSubscription] = set()
        self.asking: tuple[str, float] = ("", 0.0)
        self._begin(rows, whole=whole)

    def _begin(self, rows: list[Row], *, whole: bool) -> None:
        self.at = self.base = START
        self.tail = no_id(START)
        self.entries: list[tuple[Place, Entry]] = []
        self.size = 0
        self.order = Order(whole=whole)
        for row in rows:
            self._judged(row)
        self.base = self.at

    def reset(self) -> None:
        """What was read is not there any more: begin anew, and every viewer with the present state."""
        self._begin([], whole=False)
        for viewer in self.viewers:
            viewer.lose()

    def take(self, row: Row) -> None:
        """Put what the stream holds next before the viewers."""
        entry = self._judged(row)
        if entry is None:
            return
        if entry.kind & STATE and entry.mark == self.asking[0]:
            self.asking = ("", 0.0)
        self.entries.append((self.at, entry))
        self.size += len(row[1][1])
        for viewer in self.viewers:
            viewer.wake()
        if self.size > _BUFFER:
            self._trim()

    def _judged(self, row: Row) -> Entry | None:
        self.at = row[0]
        entry = judged(row, self.order)
        if entry is not None and entry.events:
            self.tail = id_of(self.at, len(entry.events) - 1)
        return entry

    def _trim(self) -> None:
        seen = min((viewer.at for viewer in self.viewers), default=self.at)
        gone = bisect_right(self.entries, seen, key=_place_of)
        if not gone and self.size > _MOST:
            gone = (len(self.entries) + 1) // 2
        if gone:
            self.base = self.entries[gone - 1][0]
            del self.entries[:gone]
            self.size = sum(len(event) for _, entry in self.entries for event in entry.events)


class RedisSubscription(Subscription):
    """A viewer of a run. ``at`` is the last entry it has taken up."""

    def __init__(self, bus: "RedisBus", channel: Channel, look: Look, at: Place, *, first_done: bool) -> None:
        self._bus = bus
        self._channel = channel
        self._look = look
        self.at = at
        self._first_done = first_done
        self._pending: deque[tuple[str, bytes]] = deque()
        self._page: deque[tuple[Place, Entry]] = deque()  # read from the stream itself
        self._order: Order | None = None  # of what was read so
        self._lost = False  # the present state has to come before anything else
        self._told = False
        self._created: set[bytes | None] = set()  # ids of what this viewer was told the creation of
        self._mark = ""  # of the entry that this stream begins with
        self._fence = 0
        self._early: list[Entry] = []  # what is to be told after it, but came before
        self._last: Entry | None = None
        self._unsure = False  # began with what is stored of a run whose worker may know more
        self._certain = False  # that the `DONE` at hand is the end
        self._suspects = False  # that the run is over and nobody said so
        self._look_at = clock.monotonic() + _DOUBT_SECONDS
        self._over = False
        self._woken = asyncio.Event()
        channel.viewers.add(self)

    # What the bus does to it

    def wake(self) -> None:
        """Something may be there."""
        self._woken.set()

    def lose(self) -> None:
        """What comes next is not known to follow: begin anew."""
        self._lost = True
        self.at = self._channel.at
        self._page.clear()
        self._order = None
        self._woken.set()

    def begin_with(self, mark: str, after: int) -> None:
        """Begin with the entry with ``mark``. Of what comes before, that is of before which was told under the fencing
        token ``after`` or an older one; the next worker may have been quicker than the node that woke it."""
        self._mark = mark
        self._fence = after or self._channel.order.fence

    def go_on(self, rows: list[Row], index: int) -> None:
        """Begin after the ``index``-th event of the first one of ``rows``, then with the others."""
        order = self._order = Order(whole=False)  # until it is seen that it begins with the beginning
        for row in rows:
            entry = judged(row, order)
            if entry is not None:
                self._page.append((row[0], entry))
        if index >= 0 and self._page:
            self.at, entry = self._page.popleft()
            if not entry.kind & STATE:
                self._pending.extend((id_of(self.at, i), entry.events[i]) for i in range(index + 1, len(entry.events)))
            self._last = entry

    # What the viewer does

    def ready(self) -> tuple[str, bytes] | None:
        """The next event if it is there already, else ``None``."""
        while True:
            if self._pending:
                found = self._pending[0]
                if found[1] == DONE and not (self._first_done or self._certain):
                    if not self._goes_on():
                        return None  # whether it is the end is for `next` to find out
                    self._pending.popleft()
                    continue
                self._pending.popleft()
                self._told = True
                if (made := _created(found[1])) is not None:
                    if made in self._created:
                        continue  # told again after a state, by a worker that does the turn again
                    self._created.add(made)
                if found[1] == DONE:
                    self.close()
                return found
            if self._lost or not self._advance():
                return None

    async def next(self, timeout: float) -> tuple[str, bytes] | None:
        """The next event, within ``timeout`` seconds; finding a way to go on may take a moment longer."""
        end = clock.monotonic() + timeout
        while not self._over:
            found = self.ready()
            if found is not None:
                return found
            left = end - clock.monotonic()
            if left <= 0:
                return None
            self._woken.clear()
            if self._pending:
                await self._find_end()
            elif self._lost:
                await self._recover(left)
            elif self._behind:
                await self._turn_page()
            else:
                await self._wait(left)
        raise StopAsyncIteration

    def close(self) -> None:
        """Stop looking on."""
        if not self._over:
            self._over = True
            self._channel.viewers.discard(self)
            self._bus.left(self._channel)

    # Pieces

    @property
    def _behind(self) -> bool:
        return self.at < self._channel.base

    def _following(self) -> tuple[Place, Entry] | None:
        """What comes next, of what this node has read."""
        if self._page:
            return self._page[0]
        if self._behind:
            return None
        entries = self._channel.entries
        if not entries or entries[-1][0] <= self.at:
            return None
        return entries[bisect_right(entries, self.at, key=_place_of)]

    def _goes_on(self) -> bool:
        """Whether the run goes on after the `DONE` at hand, as far as this node knows."""
        while (found := self._following()) is not None and (found[1].kind & STATE or not found[1].events):
            if found[1].kind & GAP:
                return True
            self._take(found)
        return found is not None

    def _take(self, found: tuple[Place, Entry]) -> None:
        if self._page:
            self._page.popleft()
        self.at = found[0]

    def _advance(self) -> bool:
        """Take up the next entry; ``False`` when there is none."""
        found = self._following()
        if found is None:
            return False
        self._take(found)
        at, entry = found
        self._look_at = clock.monotonic() + _DOUBT_SECONDS
        self._suspects = self._certain = False
        # What ends the run tells all of its open message.
        unsure = self._unsure and entry.fence and not entry.settles and not entry.kind & STATE
        begins = bool(self._mark) and entry.mark == self._mark  # what is missing before it is not this viewer's
        if (entry.kind & GAP and not begins) or unsure:
            self.lose()
            self.at = max(self.at, at)
        elif entry.kind & STATE:
            pass
        elif self._mark in ("", entry.mark):
            self._mark = ""
            self._last = entry
            self._pending.extend((id_of(at, index), event) for index, event in enumerate(entry.events))
            if self._early:
                late = [event for _, event in self._pending] + [e for early in self._early for e in early.events]
                self._early.clear()
                self._begin(late, no_id(at), id_of(at, len(entry.events) - 1))
        elif entry.fence > self._fence:
            self._early.append(entry)
        return True

    async def _wait(self, seconds: float) -> None:
        now = clock.monotonic()
        if self._bus.away:
            self._look_at = min(self._look_at, now + _AWAY_SECONDS)
        if not await self._sleep(min(seconds, self._look_at - now)) and clock.monotonic() >= self._look_at:
            await self._doubt()

    async def _sleep(self, seconds: float) -> bool:
        """Wait to be woken; ``False`` if that did not happen in time."""
        try:
            # Not `wait_for`: before Python 3.12 it drops a cancellation that comes together with an event.
            async with asyncio.timeout(max(seconds, 0)):
                await self._woken.wait()
        except TimeoutError:
            return False
        return True

    async def _stored(self) -> State | None:
        try:
            return await self._look()
        except LoomgateError:
            return None  # the store has its own troubles: ask again later

    async def _doubt(self) -> None:
        """After a long silence: a run that is over without having said so ends here all the same. Whoever should have
        said it may have died between its commit and its word, or Redis forgot it."""
        self._look_at = clock.monotonic() + (_AWAY_SECONDS if self._bus.away else _DOUBT_SECONDS)
        held = self._bus.held(self._channel.run_id)
        if held is not None:
            if self._bus.away:
                self._stop_gap(State(held.events, over=False))
            return
        state = await self._stored()
        if state is None:
            self._suspects = False
        elif self._bus.away:
            self._stop_gap(state)
        elif not state.over:
            self._suspects = False
        elif self._suspects:
            self._begin_with_state(state)
        else:
            self._suspects = True
            self._look_at = clock.monotonic() + _AWAY_SECONDS

    async def _find_end(self) -> None:
        """Find out whether anything follows the `DONE` at hand."""
        try:
            rows = await self._bus.rows(self._channel.run_id, self.at, 8)
        except RedisAway:
            rows = []
        last = self._last
        for at, fields in rows:
            if at <= self.at:
                continue
            entry = judged((at, fields), Order(whole=False))
            again = entry is not None and last is not None and (entry.by, entry.number) == (last.by, last.number)
            if entry is not None and entry.events and not again and not entry.kind & STATE:
                self._pending.popleft()
                return
        self._certain = True

    async def _turn_page(self) -> None:
        """Read on in the stream itself: this node does not hold any more what this viewer needs."""
        try:
            rows = await self._bus.rows(self._channel.run_id, self.at)
        except RedisAway:
            await self._sleep(_AWAY_SECONDS)
            if self._bus.away and clock.monotonic() >= self._look_at:
                await self._doubt()
            return
        if self.at != START:
            if not rows or rows[0][0] != self.at:
                self.lose()
                return
            if self._order is None:
                self._order = Order(whole=False)
                judged(rows[0], self._order)
            del rows[0]
        elif self._order is None:
            self._order = Order(whole=True)
        if not rows:
            self.lose()
            return
        assert self._order is not None
        for row in rows:
            entry = judged(row, self._order)
            if entry is not None:
                self._page.append((row[0], entry))
        if not self._page:
            self.at = rows[-1][0]

    async def _recover(self, seconds: float) -> None:
        """Get the present state, and go on from where it was taken."""
        if not self._bus.away:
            await self._take_state()
            return
        state = await self._stored()
        if state is None or not self._stop_gap(state):
            await self._sleep(min(seconds, _AWAY_SECONDS))

    def _stop_gap(self, state: State) -> bool:
        """While Redis is away: end the stream of a run that is over; show another one to who has seen nothing yet."""
        if self._told and not state.over:
            return False
        self._begin_with_state(state)
        self._lost = not state.over  # there will be more to tell when Redis is back
        return True

    async def _take_state(self) -> None:
        asked = False
        state: State | None = None
        for _ in range(4):
            at = self._channel.at
            state = await self._stored()
            if state is None:
                await self._sleep(_AWAY_SECONDS)
                return
            if state.held and not state.over and not asked:
                asked = True
                if await self._asked():
                    return
            elif self._channel.at == at:
                break  # nobody told anything while the store was read
        if state is not None and not self._bus.away:
            self.at = self._channel.at
            self._begin_with_state(state)

    async def _asked(self) -> bool:
        """Ask the worker that drives the run for its present state; ``False`` when no answer has come.

        The answer is an entry of the stream: its place there is where this viewer goes on.
        """
        self.at = self._channel.at
        now = clock.monotonic()
        mark, end = self._channel.asking
        if end <= now:
            mark, end = self._channel.asking = secrets.token_hex(4), now + _ASK_SECONDS
            self._bus.ask(self._channel.run_id, mark)
        while (left := end - clock.monotonic()) > 0:
            while (found := self._following()) is not None:
                self._take(found)
                at, entry = found
                if entry.kind & STATE and entry.mark == mark:
                    self._lost = self._unsure = False
                    self._last = entry
                    self._begin(entry.events, no_id(at), id_of(at, len(entry.events) - 1))
                    return True
                if entry.settles:
                    return False
            self._woken.clear()
            await self._sleep(left)
        return False

    def _begin_with_state(self, state: State) -> None:
        self._lost = False
        self._certain = state.over
        self._unsure = state.held and not state.over
        events = [*state.events, DONE] if state.over else state.events
        self._begin(events, no_id(self.at), self._channel.tail)

    def _begin(self, events: list[bytes], inside: str, end: str) -> None:
        """Tell ``events``; who breaks off inside of them has not seen all of the state, and gets it once more."""
        self._mark = ""
        self._early.clear()
        # What this viewer knows of is not created again: the Node SDK (7.55) throws at that.
        events = [event for event in events[:-1] if _created(event) not in self._created] + events[-1:]
        self._pending.clear()
        self._pending.extend((inside, event) for event in events[:-1])
        self._pending.extend((end, event) for event in events[-1:])
        self._look_at = clock.monotonic() + _DOUBT_SECONDS
        self._suspects = False
