"""The bus within one process: the embedded default. Events are kept in memory, for a while and up to a size."""

import asyncio
from collections import OrderedDict, deque

from loomgate import clock
from loomgate.bus import Bus, Look, Subscription
from loomgate.wire.events import DONE

_OVERHEAD = 120  # bytes that a kept event costs besides its own
_ERROR = b"event: error\n"
_LOOKS = 3  # how often the store is read for a state that moves meanwhile


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


class LocalSubscription(Subscription):
    """A viewer of a channel of this process."""

    def __init__(self, bus: "LocalBus", run_id: str, channel: _Channel, after: int, *, first_done: bool) -> None:
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

    def catch_up(self) -> int:
        """Pass over what is there; the number of the last event of it."""
        self._at = self._channel.last
        return self._at

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
            elif not self._first_done and self._at + 1 < channel.last and event.startswith(_ERROR):
                continue  # a worker let go of the run, and it went on
            return self._bus.id_of(self._at), event
        return None

    async def next(self, timeout: float) -> tuple[str, bytes] | None:
        """The next event, within ``timeout`` seconds."""
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

    def close(self) -> None:
        """Stop looking on."""
        if not self._over:
            self._over = True
            self._channel.viewers -= 1
            self._channel.waiting.discard(self._woken)
            self._bus.left(self._run_id, self._channel)


class LocalBus(Bus):
    """Channels by run id, kept for ``retention_seconds`` after they settled, up to ``retention_bytes`` in all."""

    def __init__(self, *, retention_seconds: float, retention_bytes: int) -> None:
        super().__init__()
        self._channels: OrderedDict[str, _Channel] = OrderedDict()
        self._retention_seconds = retention_seconds
        self._retention_bytes = retention_bytes
        self._size = 0
        self._highest = 0  # the highest number of an event that is kept no more
        # Ids start anew with each process; this part tells a viewer from before that its id is gone.
        self._epoch = f"{int(clock.now() * 1000):x}"

    def id_of(self, number: int) -> str:
        """The event id of event ``number`` of a channel, such as ``19a9c1f3b2d-17``."""
        return f"{self._epoch}-{number}"

    @property
    def no_id(self) -> str:
        """An event id that stands for no event of a channel."""
        return f"{self._epoch}-state"

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
        """Keep ``events`` and wake the viewers; see `Bus.publish`. ``fence``, ``after`` and ``viewer`` are for more
        than one process."""
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

    async def told(self, run_id: str, fence: int) -> list[bytes] | None:
        """The events of a run whose channel has all of them; see `Bus.told`. So this process's worker knows when it
        claims what its own lapsed lease had given free."""
        channel = self._channels.get(run_id)
        if channel is None or channel.base > 1:
            return None
        return [event for event in channel.events if event is not DONE]

    async def subscribe(self, run_id: str, look: Look, *, fresh: bool = False) -> LocalSubscription:
        """Look on from now; see `Bus.subscribe`."""
        channel = self._channels.get(run_id) or self._open(run_id, whole=fresh)
        return LocalSubscription(self, run_id, channel, channel.last, first_done=True)

    async def resume(self, run_id: str, last_event_id: str | None, look: Look) -> LocalSubscription | None:
        """Look on from an event on; see `Bus.resume`."""
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
        return LocalSubscription(self, run_id, channel, after, first_done=False)

    async def attach(self, run_id: str, look: Look) -> LocalSubscription:
        """Look on with the present state first; see `Bus.attach`. Raises what ``look`` raises."""
        # At one moment: what the viewer is shown, and from where on it follows. Nothing is lost or told twice between.
        held = self.held(run_id)
        channel = self._channels.get(run_id) or self._open(run_id, whole=False)
        viewer = LocalSubscription(self, run_id, channel, channel.last, first_done=False)
        if held is not None:
            viewer.begin(held.events, over=False)
            return viewer
        try:
            # What is told while the store is read may be in the state already, or not: then it is read again.
            looks = 0
            while True:
                before, looks = viewer.catch_up(), looks + 1
                state = await look()
                if channel.last == before or looks == _LOOKS:
                    break
        except BaseException:
            viewer.close()
            raise
        viewer.begin(state.events, over=state.over)
        return viewer

    def drop(self, run_id: str) -> None:
        """Forget a channel; see `Bus.drop`."""
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
