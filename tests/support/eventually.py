"""Waiting, from a test's thread, for something that another thread or process does; never for time to pass."""

import threading
from collections.abc import Callable
from typing import TypeVar

from loomgate import clock

T = TypeVar("T")


def eventually(look: Callable[[], T], *, patience: float = 10.0) -> T:
    """What ``look()`` answers as soon as that is true; fails after ``patience`` real seconds."""
    end = clock.monotonic() + patience
    while not (found := look()):
        assert clock.monotonic() < end, "what was waited for did not happen"
        threading.Event().wait(0.005)
    return found
