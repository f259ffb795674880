"""The named points of a run's life: where a crash would hurt, if it hurt anywhere.

The crash tests end the process at each of them (``tests/crash``). In a server nobody watches and a point costs a
function call. What must live here: the names and what is true at each. What must not: anything that acts on them.
"""

from collections.abc import Callable
from typing import Literal, get_args

Point = Literal[
    "created",  # the run is stored; nobody was told, no worker was woken
    "claimed",  # a worker has it under a lease; nothing else happened
    "calling",  # the context is built; the model is about to be called
    "opened",  # a step (and its message) is stored; its events did not go out
    "delta",  # a piece of the answer went out
    "checkpointed",  # a long answer's text so far is stored
    "switched",  # text is done and stored, tool calls began in the same turn
    "broken",  # an answer broke off in the middle; its text so far is stored, the turn is done again
    "answered",  # the model has finished; nothing of the end is stored
    "settled",  # the end of the turn is stored; its events did not go out
    "submitted",  # tool outputs are stored; no worker was woken
    "cancelling",  # the request to cancel is stored; no worker was told
    "ended",  # a cancelled or expired run is stored as such; its events did not go out
]
POINTS: tuple[Point, ...] = get_args(Point)

_watcher: Callable[[Point], None] | None = None


def watch(watcher: Callable[[Point], None] | None) -> None:
    """Have ``watcher`` called at every point reached in this process from now on (tests only)."""
    global _watcher
    _watcher = watcher


def reached(point: Point) -> None:
    """A run has come to ``point``."""
    if _watcher is not None:
        _watcher(point)
