"""How many there were and how many there are: sliding windows and places, of this process or of all nodes together.

What must live here: counting, and the two forms of it, which count alike. What must not: what is counted, whose limits
these are, and what a client is told.

Without Redis one process counts for itself. With it the counts are kept there, under names that expire, by a script
that looks at everything a request needs and counts it only if all of that lets it in; this process counts along, so
that it has something to go by while Redis does not answer. Why it is done so: docs/why/limits.md.
"""

import asyncio
import contextlib
import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from loomgate import clock
from loomgate.gateway.shared import AWAY, Script, Shared

LEASE = 30.0  # seconds after which the place of a node that died is free again
_RENEWED = 10.0  # seconds between renewals of places
_MOST = 20_000  # windows that are kept before old ones are looked for

# What scripts begin with: the time, which is the first argument or, without one, Redis' own.
_NOW = """
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end
"""
# A window is kept as its number, what it has counted, and what the one before it had.
_WINDOWS = """
local function window(key, seconds)
  local number, kept = math.floor(now / seconds), redis.call('GET', key)
  if kept then
    local n, count, before = string.match(kept, '^(%d+) (%d+) (%d+)$')
    if tonumber(n) == number then return number, tonumber(count), tonumber(before) end
    if tonumber(n) == number - 1 then return number, 0, tonumber(count) end
  end
  return number, 0, 0
end
local function keep(key, seconds, number, count, before)
  redis.call('SET', key, string.format('%d %d %d', number, count, before), 'EX', 2 * seconds)
end
"""

# KEYS: windows, then places. ARGV: the time, how many windows; seconds, room and count of each; `most` of each place;
# the lease; who it is. Answers: which of the keys lets nobody in (0: none), the time, count and count before by window.
_ENTER = Script(
    _NOW
    + _WINDOWS
    + """
local windows, refused, at = tonumber(ARGV[2]), 0, 3
local answer, numbers = {0, string.format('%.17g', now)}, {}
for i = 1, windows do
  local seconds, room = tonumber(ARGV[at]), tonumber(ARGV[at + 1])
  local number, count, before = window(KEYS[i], seconds)
  numbers[i], answer[2 * i + 1], answer[2 * i + 2] = number, count, before
  if refused == 0 and count + before * (1 - (now - number * seconds) / seconds) > room then refused = i end
  at = at + 3
end
for i = windows + 1, #KEYS do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', string.format('%.17g', now))
  if refused == 0 and redis.call('ZCARD', KEYS[i]) >= tonumber(ARGV[at]) then refused = i end
  at = at + 1
end
answer[1] = refused
if refused > 0 then return answer end
for i = 1, windows do
  if ARGV[3 * i + 2] == '1' then
    answer[2 * i + 1] = answer[2 * i + 1] + 1
    keep(KEYS[i], tonumber(ARGV[3 * i]), numbers[i], answer[2 * i + 1], answer[2 * i + 2])
  end
end
for i = windows + 1, #KEYS do
  redis.call('ZADD', KEYS[i], string.format('%.17g', now + tonumber(ARGV[at])), ARGV[at + 1])
  redis.call('EXPIRE', KEYS[i], 2 * math.ceil(tonumber(ARGV[at])))
end
return answer
"""
)

# KEYS: windows. ARGV: the time; the seconds of each, and by how much it grows.
_ADD = Script(
    _NOW
    + _WINDOWS
    + """
for i = 1, #KEYS do
  local seconds = tonumber(ARGV[2 * i])
  local number, count, before = window(KEYS[i], seconds)
  keep(KEYS[i], seconds, number, count + tonumber(ARGV[2 * i + 1]), before)
end
"""
)

# KEYS: one place. ARGV: the time, the lease, who still is there.
_STAY = Script(
    _NOW
    + """
for i = 3, #ARGV do redis.call('ZADD', KEYS[1], string.format('%.17g', now + tonumber(ARGV[2])), ARGV[i]) end
redis.call('EXPIRE', KEYS[1], 2 * math.ceil(tonumber(ARGV[2])))
"""
)


class Rate(NamedTuple):
    """At most ``value`` within ``seconds``; with ``counts`` each request is one, else `Counters.add` says how many."""

    name: str
    seconds: int
    value: int
    counts: bool = True

    @property
    def room(self) -> float:
        """The most that there may have been for one more request to be let in."""
        return self.value - 1 if self.counts else math.nextafter(self.value, 0)


class Place(NamedTuple):
    """At most ``most`` at a time."""

    name: str
    most: int


class Stand(NamedTuple):
    """How a window stands: what it has counted, what the one before it had, and seconds since it began."""

    present: int
    before: int
    passed: float

    def used(self, seconds: int) -> float:
        """How many there were within the last ``seconds``, about."""
        return self.present + self.before * (1 - self.passed / seconds)

    def wait(self, seconds: int, room: float) -> float:
        """Seconds until there were at most ``room``, if no more come."""
        if self.present <= room:
            return seconds * (1 - (room - self.present) / self.before) - self.passed if self.before else 0.0
        return seconds - self.passed + seconds * (1 - room / self.present)


class Verdict(NamedTuple):
    """``refused``: which of the rates, or else of the places, lets nobody in now, if one does; ``stands``: how each
    rate's window stands after that."""

    refused: int | None
    stands: Sequence[Stand]


class _Window:
    __slots__ = ("before", "count", "number", "seconds")

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds
        self.number = 0
        self.count = 0
        self.before = 0

    def at(self, now: float) -> Stand:
        # As the script does it, to the last bit.
        number = math.floor(now / self.seconds)
        if number != self.number:
            self.before = self.count if number == self.number + 1 else 0
            self.number, self.count = number, 0
        return Stand(self.count, self.before, now - number * self.seconds)


class Counters:
    """Windows and places by name. Without ``shared`` those of this process, and all of it is synchronous."""

    def __init__(self, shared: Shared | None = None, *, lease: float = LEASE) -> None:
        self.shared = shared
        self._lease = lease
        self._windows: dict[str, _Window] = {}
        self._places: dict[str, set[str]] = {}
        self._renewing: asyncio.Task[None] | None = None

    def enter_here(self, rates: Sequence[Rate], places: Sequence[Place] = (), who: str = "") -> Verdict:
        """Let one in, and count it, if nothing that this process has counted stands against it.

        ``who`` takes the ``places``, until it is said to `leave`.
        """
        now = clock.now()
        windows = [self._window(rate.name, rate.seconds) for rate in rates]
        stands = [window.at(now) for window in windows]
        for at, (rate, stand) in enumerate(zip(rates, stands, strict=True)):
            if stand.used(rate.seconds) > rate.room:
                return Verdict(at, stands)
        for at, place in enumerate(places):
            if len(self._places.get(place.name, ())) >= place.most:
                return Verdict(len(rates) + at, stands)
        self._let_in(rates, windows, places, who)
        return Verdict(None, [window.at(now) for window in windows])

    async def enter(self, rates: Sequence[Rate], places: Sequence[Place] = (), who: str = "") -> Verdict:
        """As `enter_here`, by what all nodes have counted; by that of this process while Redis does not answer."""
        shared = self.shared
        if shared is None:
            return self.enter_here(rates, places, who)
        arguments: list[Any] = [shared.now, len(rates)]
        for rate in rates:
            arguments += (rate.seconds, repr(float(rate.room)), "1" if rate.counts else "0")
        arguments += [place.most for place in places]
        keys = [shared.name("rate", rate.name) for rate in rates] + [shared.name("at", place.name) for place in places]
        try:
            found = await shared.run(_ENTER, keys, *arguments, repr(self._lease), who)
        except asyncio.CancelledError:
            self._gone(places, who)  # it may have been let in by now
            raise
        if found is AWAY:
            return self.enter_here(rates, places, who)
        now = float(found[1])
        stands = [
            Stand(found[2 + 2 * at], found[3 + 2 * at], now - math.floor(now / rate.seconds) * rate.seconds)
            for at, rate in enumerate(rates)
        ]
        if found[0]:
            return Verdict(found[0] - 1, stands)
        windows = [self._window(rate.name, rate.seconds) for rate in rates]
        here = clock.now()
        for window in windows:
            window.at(here)
        self._let_in(rates, windows, places, who)
        return Verdict(None, stands)

    def leave(self, places: Iterable[Place], who: str) -> None:
        """``who`` is there no longer."""
        for place in places:
            found = self._places.get(place.name)
            if found is not None:
                found.discard(who)
                if not found:
                    del self._places[place.name]
        self._gone(places, who)

    def add(self, amounts: Iterable[tuple[Rate, int]]) -> None:
        """Count so many for each of these rates."""
        now = clock.now()
        keys: list[str] = []
        arguments: list[Any] = []
        for rate, amount in amounts:
            window = self._window(rate.name, rate.seconds)
            window.at(now)
            window.count += amount
            keys.append(rate.name)
            arguments += (rate.seconds, amount)
        if self.shared is not None and keys:
            self.shared.start(_ADD, [self.shared.name("rate", key) for key in keys], self.shared.now, *arguments)

    def forget(self, rates: Iterable[Rate]) -> None:
        """Begin these rates anew."""
        for rate in rates:
            self._windows.pop(rate.name, None)
            if self.shared is not None:
                self.shared.tell("DEL", self.shared.name("rate", rate.name))

    async def close(self) -> None:
        """Renew no more, and let go out what Redis was told."""
        if self._renewing is not None:
            self._renewing.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._renewing
        if self.shared is not None:
            await self.shared.close()

    def _window(self, name: str, seconds: int) -> _Window:
        found = self._windows.get(name)
        if found is None:
            if len(self._windows) >= _MOST:
                now = clock.now()
                self._windows = {
                    name: one for name, one in self._windows.items() if now // one.seconds - one.number <= 1
                }
            found = self._windows[name] = _Window(seconds)
        return found

    def _let_in(self, rates: Sequence[Rate], windows: Sequence[_Window], places: Sequence[Place], who: str) -> None:
        # Two rates may share a window.
        for window in {rate.name: window for rate, window in zip(rates, windows, strict=True) if rate.counts}.values():
            window.count += 1
        for place in places:
            self._places.setdefault(place.name, set()).add(who)
        if places and self.shared is not None and self._renewing is None:
            renewing = self._renew(self.shared)
            self._renewing = asyncio.get_running_loop().create_task(renewing, name="loomgate-places")

    def _gone(self, places: Iterable[Place], who: str) -> None:
        if self.shared is not None:
            for place in places:
                self.shared.tell("ZREM", self.shared.name("at", place.name), who)

    async def _renew(self, shared: Shared) -> None:
        """Say of everybody who is here that they are, as long as anybody is; a Redis that was away learns of it too."""
        while True:
            await asyncio.sleep(self._lease * _RENEWED / LEASE)
            if not self._places:
                self._renewing = None
                return
            said = {name: list(there) for name, there in self._places.items()}
            await asyncio.gather(
                *(
                    shared.run(_STAY, [shared.name("at", name)], shared.now, repr(self._lease), *there)
                    for name, there in said.items()
                )
            )
            for name, there in said.items():  # who left meanwhile may have been put back
                for who in set(there) - self._places.get(name, set()):
                    shared.tell("ZREM", shared.name("at", name), who)
