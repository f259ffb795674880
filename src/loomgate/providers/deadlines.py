"""How long a call to an endpoint may take, in each of its phases.

What must live here: the deadline of one call, and its words when it has come. What must not: who looks at the clock
(``transport``).
"""

import asyncio
import contextlib
from typing import Literal, Protocol

import msgspec

from loomgate import clock
from loomgate.errors import ProviderError

Phase = Literal["connect", "first_byte", "idle"]


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """Seconds: to get a connection; from sending to the answer's headers; between two pieces; for all of it."""

    connect: float = 10.0
    first_byte: float = 120.0
    idle: float = 120.0
    total: float = 600.0


class Waiting(Protocol):
    """What a deadline can end."""

    def expire(self) -> None:
        """Let whoever waits there know that it has come."""
        ...


class Watch:
    """The deadline of one call: one number, moved as the call proceeds; `Transport` looks after all of them.

    ``due`` is when, on `clock.now`; ``end`` when all of the call has to be over; ``connection`` what the call waits on.
    """

    __slots__ = ("_scope", "_stopped", "connection", "due", "end", "phase", "timeouts")

    def __init__(self, timeouts: Timeouts) -> None:
        now = clock.now()
        self.timeouts = timeouts
        self.end = now + timeouts.total
        self.phase: Phase = "first_byte"
        self.due = min(now + timeouts.first_byte, self.end)
        self.connection: Waiting | None = None
        self._scope: asyncio.Timeout | None = None
        self._stopped = False

    def began(self, at: float) -> None:
        """The call was sent at the time ``at``, before anybody kept watch."""
        self.due -= (gone := max(0.0, clock.now() - at))
        self.end -= gone

    def begin(self, phase: Phase, seconds: float, now: float) -> None:
        """Give the call ``seconds`` from ``now`` on."""
        self.phase = phase
        self.due = min(now + seconds, self.end)

    def scope(self) -> asyncio.Timeout:
        """Wraps what blocks before there is a connection. It has no timer of its own: `fire` ends it."""
        self._scope = asyncio.timeout(None)
        return self._scope

    def fire(self) -> None:
        """It has come."""
        if self.connection is not None:
            self.connection.expire()
        elif self._scope is not None and not self._scope.expired():
            # Between two scopes nobody waits, which reschedule reports.
            with contextlib.suppress(RuntimeError):
                self._scope.reschedule(asyncio.get_running_loop().time())

    def stop(self) -> None:
        """End what blocks before there is a connection: the transport is closed."""
        self._stopped = True
        if self.connection is None:
            self.fire()

    def error(self, host: str = "") -> ProviderError:
        """The words for it."""
        if self._stopped:
            return closed()
        if self.due >= self.end:
            return ProviderError("timeout", f"The endpoint did not finish within {self.timeouts.total:g} seconds.")
        seconds = getattr(self.timeouts, self.phase)
        if self.phase == "connect":
            return ProviderError("connect", f"No connection to {host} within {seconds:g} seconds.")
        what = {"first_byte": "did not begin to answer", "idle": "fell silent"}[self.phase]
        return ProviderError("timeout", f"The endpoint {what} for {seconds:g} seconds.")


def closed() -> ProviderError:
    """What a call ends with that is under way when the transport is closed."""
    return ProviderError("connect", "The connections were closed.")
