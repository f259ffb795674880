"""What the verbs on runs take and give (``runs.py``): a run created, claimed, journaled, committed. No SQL."""

from typing import Any

import msgspec

from loomgate.store.rows import Ended, RunRow
from loomgate.wire.lifecycle import RunVerb
from loomgate.wire.runs import Run, RunSpec, Step, Usage
from loomgate.wire.threads import Message


class Created(msgspec.Struct, frozen=True):
    """A new run: its body, the body of the thread made with it, and the runs whose status its arrival changed."""

    body: bytes
    changed: list[Ended]
    waits: bool = False
    thread_body: bytes | None = None


class Claimed(msgspec.Struct):
    """A run in a worker's hands: the row as claimed, the run as it is now, and the events its start gave."""

    row: RunRow
    run: Run
    body: bytes
    spec: RunSpec
    events: list[bytes]


class Entry(msgspec.Struct):
    """A step of a run's journal: the step, its model turn (from 1), and the tokens of an open step."""

    step: Step
    turn: int
    usage: Usage | None = None


class Journal(msgspec.Struct):
    """What a run has done so far, in order, and the messages it has written by id."""

    entries: list[Entry]
    messages: dict[str, Message]


class Commit(msgspec.Struct, kw_only=True):
    """All that one move of a worker changes, written together or not at all."""

    verb: RunVerb | None = None
    fields: dict[str, Any] = {}
    turn: int = 0
    open_steps: list[Step] = []
    open_messages: list[Message] = []
    put_steps: list[tuple[Step, Usage | None]] = []
    put_messages: list[Message] = []
    drop_steps: list[str] = []
    drop_messages: list[str] = []


class Applied(msgspec.Struct, frozen=True):
    """The run after a commit, its body, the messages' bodies by id, and which run may start now."""

    run: Run
    body: bytes
    bodies: dict[str, bytes]
    promoted: str | None = None


class Submitted(msgspec.Struct, frozen=True):
    """A run that goes on with its tool outputs: its body, and the events to publish; ``fence`` is the token of the
    worker that made the calls."""

    body: bytes
    events: list[bytes]
    fence: int


class Overdue(msgspec.Struct, frozen=True):
    """Ids of runs that were found active past their time: end them, tell their viewers, then try again (RUN-44)."""

    ids: list[str]
