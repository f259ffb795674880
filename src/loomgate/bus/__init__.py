"""What happens now: stream events to their viewers, wake-ups to workers, word of what has changed.

What must live here: delivery, within this process (`local`) or between nodes (`redis`, over `connection`). What must
not: anything that has to outlive it; whoever misses an event finds the same facts in the store. Events of a run are
kept for a while under growing ids, so that a viewer goes on after one of them and misses nothing; a viewer for whom
that is not possible gets the run's present state, and goes on from there (docs/why/streams-across-nodes.md).
"""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from typing import Self

import msgspec


class State(msgspec.Struct, frozen=True):
    """A run's present state as stored: the events that tell it, and whether a stream ends with them (``over``).

    ``held``: a worker has the run in its hands, and may know more than the store.
    """

    events: list[bytes]
    over: bool
    held: bool = False


class Held(msgspec.Struct, frozen=True):
    """The present state of a run in the hands of this process's worker, and the fencing token under which it has it."""

    events: list[bytes]
    fence: int


# Reads a run's present state from the store. What it raises comes out of `Subscription.next`, unless it is of ours.
Look = Callable[[], Awaitable[State]]


class Subscription(ABC):
    """A viewer's way through a run's events: (event id, event bytes), the last one being `DONE`."""

    @abstractmethod
    def ready(self) -> tuple[str, bytes] | None:
        """The next event if it is there already, else ``None``."""

    @abstractmethod
    async def next(self, timeout: float) -> tuple[str, bytes] | None:
        """The next event; ``None`` when there is none within ``timeout`` seconds. After `DONE`: StopAsyncIteration."""

    @abstractmethod
    def close(self) -> None:
        """Stop looking on; harmless when called again."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> tuple[str, bytes]:
        while True:
            found = await self.next(3600)
            if found is not None:
                return found


class Bus(ABC):
    """Channels by run id, and the worker's alarm. Belongs to one event loop; `start` it there and `close` it.

    ``listeners`` hear the ids of runs that somebody else changed; ``on_changed`` hears what is no longer as it was (an
    empty name: anything may be). ``held`` answers for runs in the hands of this process's worker, ``room`` whether it
    would take another one.
    """

    # Whether viewers look on when this process is gone: then its end is not the end of their streams.
    outlives = False

    def __init__(self) -> None:
        self.alarm = asyncio.Event()
        self.listeners: list[Callable[[str], None]] = []
        self.on_changed: list[Callable[[str], None]] = []
        self.held: Callable[[str], Held | None] = lambda _: None
        self.room: Callable[[], bool] = lambda: False

    async def start(self) -> None:  # noqa: B027 - the local one has nothing to start
        """Begin to deliver."""

    async def close(self) -> None:  # noqa: B027
        """Stop delivering; what was published goes out first, if that takes no time to speak of."""

    # Workers

    def poke(self) -> None:
        """Tell a worker that a run may be due: the one of this process, or another if this one has no room."""
        self.alarm.set()

    def signal(self, run_id: str) -> None:
        """Tell the workers that a run one of them may be driving was changed by somebody else."""
        for listener in self.listeners:
            listener(run_id)
        self.alarm.set()

    def changed(self, what: str) -> None:
        """Tell every process, this one too, that ``what`` (a name of the caller's choice) is no longer as it was."""
        for hear in self.on_changed:
            hear(what)

    def deaf(self) -> bool:
        """Whether signals may have been missed since this was last asked."""
        return False

    # Viewers

    @abstractmethod
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
        """Give ``events`` to the run's viewers, present and future. Never waits, never fails.

        ``first``: the run begins with them. ``settled``: their streams end with `DONE` after them. ``fence``: the
        fencing token of the worker that tells them; what is told under an older one from then on is not heard.
        ``after``: the token of the worker whose words they follow, of events that somebody else tells.
        ``viewer``: whose stream begins with them (see `subscribe`).
        """

    async def told(self, run_id: str, fence: int) -> list[bytes] | None:
        """All that viewers of the run were told so far; ``None`` when that is not known, or they are gone with whoever
        told them. For a worker that takes a run over: nothing is heard any more of what an older token than ``fence``
        has to tell."""
        return None

    @abstractmethod
    async def subscribe(self, run_id: str, look: Look, *, fresh: bool = False) -> Subscription:
        """Look on from now: the stream of a request that is about to change the run. It ends at the next `DONE`.

        ``fresh`` for a run that was not created yet; for another one the change is told with ``viewer``.
        """

    @abstractmethod
    async def resume(self, run_id: str, last_event_id: str | None, look: Look) -> Subscription | None:
        """Look on from the event after ``last_event_id``, or from the run's first one, until it settles for good;
        ``None`` when that is not kept."""

    @abstractmethod
    async def attach(self, run_id: str, look: Look) -> Subscription:
        """Look on with the present state first, then from now and until the run settles for good."""

    @abstractmethod
    def drop(self, run_id: str) -> None:
        """Forget a channel that was opened for a run which then was not created."""

    async def join(self, run_id: str, last_event_id: str | None, look: Look) -> Subscription:
        """`resume`, or `attach` when what was asked for is not kept."""
        return await self.resume(run_id, last_event_id, look) or await self.attach(run_id, look)
