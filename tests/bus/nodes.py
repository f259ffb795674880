"""Nodes for tests: buses in one process over one Redis, and runs that are nothing but numbers told in turn."""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from loomgate import clock
from loomgate.bus import Bus, Held, State, Subscription
from loomgate.bus.connection import Redis
from loomgate.bus.local import LocalBus
from loomgate.bus.redis import RedisBus
from loomgate.wire.events import DONE, frame

PRESENT = b": this is the present state\n\n"


def event(number: int, size: int = 0) -> bytes:
    return frame("thread.message.delta", b"%d" % number + b"." * size)


def events(*numbers: int) -> list[bytes]:
    return [event(n) for n in numbers]


def state_of(number: int) -> list[bytes]:
    """The present state of a run whose last event was ``number``."""
    return [PRESENT, frame("thread.run.in_progress", b"%d" % number)]


class Run:
    """A run as the store and its worker know it: the number of its last event, who drives it, whether it is over."""

    def __init__(self, id: str) -> None:
        self.id = id
        self.told = 0
        self.driver: Bus | None = None
        self.over = False
        self.looks = 0

    async def look(self) -> State:
        self.looks += 1
        await asyncio.sleep(0)
        return State(state_of(self.told), over=self.over, held=self.driver is not None and not self.over)

    def tell(self, bus: Bus, count: int = 1, *, settled: bool = False, size: int = 0, **how: Any) -> None:
        """Let ``bus`` tell the next ``count`` events."""
        numbers = range(self.told + 1, self.told + count + 1)
        self.told += count
        self.over = self.over or settled
        bus.publish(self.id, [event(n, size) for n in numbers], settled=settled, **how)


class Nodes:
    """Buses over one Redis, and the runs that they drive."""

    def __init__(self, url: str | None, prefix: str = "test") -> None:
        self.url = url
        self.prefix = prefix
        self.runs: dict[str, Run] = {}
        self.buses: list[Bus] = []
        self._redis: list[Redis] = []

    async def add(self, *, seconds: float = 60, size: int = 1 << 20, patience: float = 5.0) -> Bus:
        """Another node."""
        bus: Bus
        if self.url is None:
            bus = LocalBus(retention_seconds=seconds, retention_bytes=size)
        else:
            redis = Redis(self.url, seconds=patience)
            self._redis.append(redis)
            bus = RedisBus(redis, prefix=self.prefix, retention_seconds=seconds, retention_bytes=size)

        def held(run_id: str) -> Held | None:
            run = self.runs.get(run_id)
            return Held(state_of(run.told), 1) if run is not None and run.driver is bus and not run.over else None

        bus.held = held
        await bus.start()
        self.buses.append(bus)
        return bus

    def run(self, id: str = "run_one") -> Run:
        """A run that nobody drives yet."""
        run = self.runs[id] = Run(id)
        return run

    async def begun(self, bus: Bus, id: str = "run_one", count: int = 1) -> tuple[Run, Subscription]:
        """A new run with ``count`` events, driven by ``bus``, and the viewer who saw it begin."""
        run = self.run(id)
        viewer = await bus.subscribe(id, run.look, fresh=True)
        run.driver = bus
        run.tell(bus, count, first=True, fence=1)
        return run, viewer

    async def close(self) -> None:
        for bus in self.buses:
            await bus.close()
        for redis in self._redis:
            await redis.close()


@asynccontextmanager
async def nodes(url: str | None, prefix: str = "test") -> AsyncGenerator[Nodes, None]:
    made = Nodes(url, prefix)
    try:
        yield made
    finally:
        await made.close()


async def take(viewer: Subscription | None, count: int, seconds: float = 8) -> list[tuple[str, bytes]]:
    """The next ``count`` events with their ids."""
    assert viewer is not None
    found: list[tuple[str, bytes]] = []
    async with asyncio.timeout(seconds):
        while len(found) < count:
            got = await viewer.next(seconds)
            if got is not None:
                found.append(got)
    return found


async def told(viewer: Subscription | None, count: int) -> list[bytes]:
    return [data for _, data in await take(viewer, count)]


async def whole(viewer: Subscription | None, seconds: float = 12) -> list[bytes]:
    """All that a viewer gets until its stream ends."""
    assert viewer is not None
    async with asyncio.timeout(seconds):
        return [data async for _, data in viewer]


async def soon(met: Callable[[], bool] | Callable[[], Awaitable[bool]], seconds: float = 8) -> None:
    """Wait until ``met``."""
    end = clock.monotonic() + seconds
    while clock.monotonic() < end:
        answer = met()
        if answer if isinstance(answer, bool) else await answer:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it did not come to be")


def numbers(found: list[bytes]) -> list[int]:
    """The numbers of plain events and states, in order; a comment and ``done`` have none."""
    parsed: list[int] = []
    for data in found:
        if data == DONE or data.startswith(b":"):
            continue
        digits = data.split(b"data: ")[1].strip().rstrip(b".")
        parsed.append(int(digits))
    return parsed
