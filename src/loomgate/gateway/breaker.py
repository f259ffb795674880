"""Which targets are left out for a while because they fail (GATEWAY CB-01 to CB-05).

What must live here: counting. What must not: which target is tried instead (``gateway/route``).
"""

from collections.abc import Callable, Hashable

from loomgate import clock
from loomgate.wire.policy import Breaker

# Failures count against each other when they lie within this many seconds (or the cooldown, if that is longer): three
# in a minute are an outage, three in a month are not, and a rate over a month of successes would never rise.
WINDOW = 300.0


class _Circuit:
    __slots__ = ("began", "failures", "open_until", "requests")

    def __init__(self, began: float) -> None:
        self.began = began
        self.requests = 0
        self.failures = 0
        self.open_until = 0.0


class Breakers:
    """The circuits of one process, by key; ``now`` gives seconds. The ``most`` lately used are remembered."""

    def __init__(self, now: Callable[[], float] = clock.now, most: int = 10_000) -> None:
        self._now = now
        self._most = most
        self._circuits: dict[Hashable, _Circuit] = {}

    def admits(self, key: Hashable) -> bool:
        """Whether calls may go to the target of ``key``: its circuit is closed, or its cooldown is over (CB-02)."""
        circuit = self._circuits.get(key)
        return circuit is None or circuit.open_until <= self._now()

    def note(self, key: Hashable, status: int, breaker: Breaker) -> None:
        """An answer of the target of ``key`` had ``status``; ``breaker`` says what that means."""
        now = self._now()
        cooldown = breaker.cooldown_interval / 1000
        circuit = self._circuits.pop(key, None)
        # An open circuit stays as it is until its cooldown is over, however long ago its window began.
        if circuit is None or (
            circuit.open_until <= now and (circuit.open_until > 0 or now - circuit.began > max(WINDOW, cooldown))
        ):
            circuit = _Circuit(now)
        self._circuits[key] = circuit  # the last one used is the last one to be forgotten
        if len(self._circuits) > self._most:
            del self._circuits[next(iter(self._circuits))]
        if circuit.open_until > now:
            return  # every target was open and one had to be used (CB-03): the cooldown does not begin anew
        circuit.requests += 1
        codes = breaker.failure_status_codes
        if status in codes if codes is not None else status > 500:
            circuit.failures += 1
            if _is_too_much(circuit, breaker):
                circuit.open_until = now + cooldown


def _is_too_much(circuit: _Circuit, breaker: Breaker) -> bool:
    if breaker.failure_threshold is not None and circuit.failures > breaker.failure_threshold:
        return True
    percentage = breaker.failure_threshold_percentage
    return (
        percentage is not None
        and circuit.requests >= (breaker.minimum_requests or 1)
        and 100 * circuit.failures > percentage * circuit.requests
    )
