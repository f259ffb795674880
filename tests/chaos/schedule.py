"""Which fault hits whom and when: pure, and all of it out of one seed.

The same seed gives the same faults at the same times after the start; what the machine does meanwhile is its own.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "pause", "redis", "postgres", "crash", "cut", "refuse", "hold", "lose"]

# How often each comes, out of the sum of all.
_WEIGHTS: dict[Kind, int] = {
    "kill": 8,  # SIGKILL, and a new process ``seconds`` later
    "pause": 5,  # SIGSTOP for ``seconds``
    "redis": 3,  # Redis stops, and is there again, empty, ``seconds`` later
    "postgres": 2,  # PostgreSQL stops as an operator stops it (SIGINT)
    "crash": 1,  # PostgreSQL stops as in a crash (SIGQUIT)
    "cut": 4,  # a node's connections to one of them are reset
    "refuse": 2,  # and new ones as well, for ``seconds``
    "hold": 3,  # nothing comes through for ``seconds``; then it comes late
    "lose": 2,  # nothing comes through for ``seconds``; then the connections are reset
}
SERVERS = ("database", "redis")


@dataclass(frozen=True)
class Fault:
    """``kind`` hits ``victim`` (a node; or a node's way to a server: ``worker-2/redis``) ``at`` seconds after the
    start and lasts ``seconds``."""

    at: float
    kind: Kind
    victim: str
    seconds: float

    def __str__(self) -> str:
        return f"{self.at:7.2f} s  {self.kind:<8} {self.victim:<18} {self.seconds:.2f} s"


def faults(seed: str, nodes: list[str], lease: float, pause: tuple[float, float] = (0.3, 2.5)) -> Iterator[Fault]:
    """Faults without end, in order of time, one every ``pause`` seconds; ``lease`` in seconds.

    PostgreSQL and Redis are not hit again before they are back for a while, or nothing would ever get done.
    """
    chance = random.Random(seed)
    at = 0.0
    quiet: dict[str, float] = {}
    while True:
        at += chance.uniform(*pause)
        (kind,) = chance.choices(list(_WEIGHTS), list(_WEIGHTS.values()))
        node = chance.choice(nodes)
        way = chance.choice(SERVERS)
        share = chance.random()
        if kind in ("postgres", "crash", "redis"):
            victim = "redis" if kind == "redis" else "postgres"
            seconds = share * 2.0
        elif kind in ("kill", "pause"):
            victim = node
            seconds = share * 2.0 if kind == "kill" else lease * (1.2 + 0.8 * share)
        else:
            victim = f"{node}/{way}"
            seconds = 0.0 if kind == "cut" else lease * (0.3 + 1.2 * share)
        if quiet.get(victim, 0.0) > at:
            continue
        quiet[victim] = at + seconds + (6.0 if victim in ("postgres", "redis") else 1.0)
        yield Fault(at, kind, victim, seconds)
