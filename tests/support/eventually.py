"""Waiting, from a test's thread, for something that another thread or process does; never for time to pass."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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


@contextmanager
def passing(step: float = 2.0, most: float = 400.0) -> Iterator[None]:
    """Time passes quickly meanwhile, ``most`` seconds in all: for a wait of which nobody can tell when it begins."""
    over = threading.Event()

    def push() -> None:
        left = most
        while left > 0 and not over.wait(0.02):
            clock.advance(step)
            left -= step

    thread = threading.Thread(target=push, name="passing")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
