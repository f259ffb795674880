"""What happens now, inside this process: stream events to their viewers, wake-ups to workers.

What must live here: delivery. What must not: anything that has to outlive the process; whoever misses an event
finds the same facts in the store. Events of a run are kept for a while under growing ids, so that a viewer
subscribes from an id and misses nothing; when the id is gone, `subscribe` says so.
"""

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable

from loomgate import clock
from loomgate.wire.events import DONE

_OVERHEAD = 120  # bytes that a kept event costs besides its own


class _Channel:
    """The events of one run: ``base`` is the number of the first one still kept; 1 is the run's very first event."""

    __slots__ = ("base", "events", "idle_since", "size", "viewers", "waiting")

    def __init__(self, base: int) -> None:
        self.base = base
        self.events: list[bytes] = []
        self.size = 0
        self.viewers = 0
        self.waiting: set[asyncio.Event] = set()
        self.idle_since: float | None = None

    @property
    def last(self) -> int:
        return self.base + len(self.events) - 1


class Subscription:
    """A viewer's way through a run's events: (event id, event bytes), the last one being `DONE`."""

    def __init__(self, bus: "Bus", run_id: str, channel: _Channel, after: int, *, first_done: bool) -> None:
        self._bus = bus
        self._run_id = run_id
        self._channel = channel
        self._at = after
        self._first_done = first_done
        self._over = False
        self._prelude: deque[bytes] = deque()
        self._woken = asyncio.Event()
        channel.viewers += 1
        channel.waiting.add(self._woken)

    def begin(self, prelude: list[bytes], *, over: bool) -> None:
        """Give ``prelude`` first, its end under the id of the last event before; ``over``: and nothing after it."""
        self._prelude.extend(prelude)
        if over:
            self._prelude.append(DONE)

    def ready(self) -> tuple[str, bytes] | None:
        """The next event if it is there already, else ``None``."""
        channel = self._channel
        if self._prelude:
            event = self._prelude.popleft()
            if event is DONE:
                self.close()
            # Who breaks off inside it has not seen all of the state: its id is one that gets the state once more.
            return self._bus.id_of(self._at) if not self._prelude else self._bus.no_id, event
        while self._at < channel.last:
            self._at = max(self._at, channel.base - 1) + 1
            event = channel.events[self._at - channel.base]
            if event is DONE:
                if not self._first_done and self._at < channel.last:
                    continue  # the run went on after it had waited for its client
                self.close()
            return self._bus.id_of(self._at), event
        return None

    async def next(self, timeout: float) -> tuple[str, bytes] | None:
        """The next event; ``None`` when there is none within ``timeout`` seconds. After `DONE`: StopAsyncIteration."""
        if self._over:
            raise StopAsyncIteration
        found = self.ready()
        if found is not None:
            return found
        self._woken.clear()
        try:
            # Not `wait_for`: before Python 3.12 it drops a cancellation that comes together with an event.
            async with asyncio.timeout(timeout):
                await self._woken.wait()
        except TimeoutError:
            return None
        return self.ready()

    def __aiter__(self) -> "Subscription":
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        while True:
            found = await self.next(3600)
            if found is not None:
                return found

    def close(self) -> None:
        """Stop looking on; harmless when called again."""
        if not self._over:
            self._over = True
            self._channel.viewers -= 1
            self._channel.waiting.discard(self._woken)
            self._bus.left(self._run_id, self._channel)


class Bus:
    """Channels by run id, and the worker's alarm. Belongs to one event loop."""

    def __init__(self, *, retention_seconds: float, retention_bytes: int) -> None:
        self._channels: OrderedDict[str, _Channel] = OrderedDict()
        self._retention_seconds = retention_seconds
        self._retention_bytes = retention_bytes
        self._size = 0
        self._highest = 0  # the highest number of an event that is kept no more
        # Ids start anew with each process; this part tells a viewer from before that its id is gone.
        self._epoch = f"{int(clock.now() * 1000):x}"
        self.alarm = asyncio.Event()
        self.listeners: list[Callable[[str], None]] = []

    def id_of(self, number: int) -> str:
        """The event id of event ``number`` of a channel, such as ``19a9c1f3b2d-17``."""
        return f"{self._epoch}-{number}"

    @property
    def no_id(self) -> str:
        """An event id that stands for no event of a channel."""
        return f"{self._epoch}-state"

    def poke(self) -> None:
        """Tell the worker of this process that a run may be due."""
        self.alarm.set()

    def signal(self, run_id: str) -> None:
        """Tell the workers that a run one of them may be driving was changed by somebody else."""
        for listener in self.listeners:
            listener(run_id)
        self.alarm.set()

    def publish(self, run_id: str, events: list[bytes], *, first: bool = False, settled: bool = False) -> None:
        """Give ``events`` to the run's viewers, present and future.

        ``first``: the run begins with them. ``settled``: their streams end with `DONE` after them.
        """
        if not events and not settled:
            return
        channel = self._channels.get(run_id) or self._open(run_id, whole=first)
        if settled:
            events = [*events, DONE]
        channel.events += events
        grown = sum(map(len, events)) + _OVERHEAD * len(events)
        channel.size += grown
        self._size += grown
        channel.idle_since = clock.now() if settled else None
        if settled:
            self._channels.move_to_end(run_id)
        for woken in channel.waiting:
            woken.set()
        self._trim()

    def subscribe(self, run_id: str, *, fresh: bool = False) -> Subscription:
        """Look on from now: the stream of a request that is about to change the run. It ends at the next `DONE`.

        ``fresh`` for a run that was not created yet.
        """
        channel = self._channels.get(run_id) or self._open(run_id, whole=fresh)
        return Subscription(self, run_id, channel, channel.last, first_done=True)

    def resume(self, run_id: str, last_event_id: str | None) -> Subscription | None:
        """Look on from the event after ``last_event_id``, or from the first one; ``None`` when that is not kept."""
        channel = self._channels.get(run_id)
        if channel is None:
            return None
        after = 0
        if last_event_id is not None:
            epoch, _, number = last_event_id.partition("-")
            if epoch != self._epoch or not number.isdecimal():
                return None
            after = int(number)
        if not channel.base - 1 <= after <= channel.last:
            return None
        return Subscription(self, run_id, channel, after, first_done=False)

    def attach(self, run_id: str) -> Subscription:
        """Look on from now and until the run settles for good: for a viewer who got the present state first."""
        channel = self._channels.get(run_id) or self._open(run_id, whole=False)
        return Subscription(self, run_id, channel, channel.last, first_done=False)

    def drop(self, run_id: str) -> None:
        """Forget a channel that was opened for a run which then was not created."""
        channel = self._channels.pop(run_id, None)
        if channel is not None:
            self._size -= channel.size
            self._highest = max(self._highest, channel.last)

    def left(self, run_id: str, channel: _Channel) -> None:
        """A viewer went: a channel without events that nobody looks at is forgotten."""
        if not channel.viewers and not channel.events and self._channels.get(run_id) is channel:
            self.drop(run_id)

    def _open(self, run_id: str, *, whole: bool) -> _Channel:
        """A channel for the run; one that begins in its middle numbers its events above all that were ever given out,
        so that neither its beginning nor an id from before is taken for one of them."""
        channel = self._channels[run_id] = _Channel(1 if whole else self._highest + 2)
        return channel

    def _trim(self) -> None:
        """Forget settled channels that are old, or the oldest while there is too much; never one with viewers."""
        horizon = clock.now() - self._retention_seconds
        while self._channels:
            oldest = next(iter(self._channels))
            channel = self._channels[oldest]
            old = channel.idle_since is not None and channel.idle_since <= horizon
            if not old and self._size <= self._retention_bytes:
                return
            if channel.viewers or channel.idle_since is None:
                if self._size <= self._retention_bytes or not self._shorten(channel):
                    self._channels.move_to_end(oldest)
                    return
                continue
            self.drop(oldest)

    def _shorten(self, channel: _Channel) -> bool:
        """Forget the older half of a running channel's events; a viewer that far behind gets what is left."""
        half = len(channel.events) // 2
        if half == 0 or channel.viewers:
            return False
        gone = channel.events[:half]
        del channel.events[:half]
        channel.base += half
        freed = sum(map(len, gone)) + _OVERHEAD * len(gone)
        channel.size -= freed
        self._size -= freed
        return True
