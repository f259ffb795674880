"""The judge: what clients were told, against what is there in the end. Pure; answers every fault that it finds.

What must live here: the notes that clients take (`Notes`), the full read afterwards (`Stored`), and the rules between
them. What must not: requests, processes, waiting. That the rows by themselves are consistent is for
`tests.crash.check` to say.
"""

import copy
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from loomgate.wire import lifecycle
from tests.support.sse import merge

Object = dict[str, Any]
RESYNC = "present state"  # in the comment with which a stream begins anew


@dataclass(frozen=True)
class Script:
    """What a run that answers it writes when it ends by itself: ``texts``; ``calls`` is how many calls each turn
    makes."""

    texts: tuple[str, ...]
    calls: tuple[int, ...] = ()


@dataclass
class Tried:
    """One attempt at making something (``kind``), known by ``tag``, which no other attempt has. ``id``: what it made,
    as its answer said or as was found later; ``None``: no answer came, so it may have happened or not."""

    kind: Literal["thread", "message", "run"]
    tag: str
    thread: str | None = None
    id: str | None = None
    refused: bool = False


@dataclass
class Piece:
    """A part of a stream as it came: an event, a comment, or the place where the connection broke."""

    what: Literal["event", "comment", "break"]
    name: str = ""
    id: str = ""
    data: Any = None


@dataclass
class Stream:
    """All that one viewer of a run saw, over all its connections. ``begins``: with the run's creation, with what was
    submitted, or wherever it joined. ``ended``: it came to its proper end."""

    run: str | None
    begins: Literal["create", "submit", "join"]
    pieces: list[Piece] = field(default_factory=list[Piece])
    ended: bool = False


@dataclass
class Notes:
    """What all clients together were told."""

    tried: dict[str, Tried] = field(default_factory=dict[str, Tried])
    said: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])  # (thread, message), as acknowledged
    scripts: dict[str, Script] = field(default_factory=dict[str, Script])  # by the text of the user's message
    outputs: dict[str, str] = field(default_factory=dict[str, str])  # by call id, from before they were sent
    submitted: set[str] = field(default_factory=set[str])  # call ids whose outputs were acknowledged
    cancelled: set[str] = field(default_factory=set[str])  # runs that somebody tried to cancel
    seen: dict[str, list[str]] = field(default_factory=dict[str, list[str]])  # run -> statuses, in order of asking
    streams: list[Stream] = field(default_factory=list[Stream])
    stuck: list[str] = field(default_factory=list[str])  # what did not happen in time after the faults had stopped
    odd: list[str] = field(default_factory=list[str])  # answers that no careful client expects

    def saw(self, run: Object) -> None:
        """Note the status of a run in an answer."""
        self.seen.setdefault(run["id"], []).append(run["status"])


@dataclass
class Stored:
    """Everything that is there afterwards, as lists in ascending order tell it."""

    messages: dict[str, list[Object]]  # by thread
    runs: dict[str, list[Object]]  # by thread
    steps: dict[str, list[Object]]  # by run
    places: dict[str, int] = field(default_factory=dict[str, int])  # order keys of messages, runs and steps


def judge(notes: Notes, stored: Stored) -> list[str]:
    """Every fault, in words; none: all promises were kept."""
    return [
        *(f"stuck: {what}" for what in notes.stuck),
        *(f"odd: {what}" for what in notes.odd),
        *_attempts(notes, stored),
        *_order(notes, stored),
        *_statuses(notes, stored),
        *_turns(notes, stored),
        *_journal(notes, stored),
        *_locks(stored),
        *_streams(notes, stored),
    ]


def text_of(message: Object) -> str:
    """The text of a message, its parts joined."""
    return "".join(part["text"]["value"] for part in message["content"] if part["type"] == "text")


# --- what was made ----------------------------------------------------------------------------------------------------


def _attempts(notes: Notes, stored: Stored) -> Iterator[str]:
    """Whatever was acknowledged is there once; what got no answer is there once or not at all; nothing else is."""
    made: Counter[tuple[str, str]] = Counter()
    ids: dict[str, set[str]] = {"message": set(), "run": set(), "thread": {*stored.messages}}
    twice = Counter(id for rows in [*stored.messages.values(), *stored.runs.values()] for id in (o["id"] for o in rows))
    yield from (f"{id} is listed {count} times" for id, count in twice.items() if count > 1)
    for kind, lists in (("message", stored.messages), ("run", stored.runs)):
        for thread, rows in lists.items():
            for row in rows:
                ids[kind].add(row["id"])
                if kind == "message" and row["role"] != "user":
                    continue
                tag = row["metadata"].get("tag")
                tried = notes.tried.get(f"{kind} {tag}")
                if tried is None:
                    yield f"{kind} {row['id']} of thread {thread} was made by nobody (tag {tag!r})"
                    continue
                made[kind, tag] += 1
                if tried.refused:
                    yield f"{kind} {row['id']} (tag {tag}) is there, although its creation was refused"
    yield from (f"attempt {tag} made {count} {kind}s" for (kind, tag), count in made.items() if count > 1)
    for tried in notes.tried.values():
        if tried.id is not None and tried.id not in ids[tried.kind]:
            yield f"{tried.kind} {tried.id} (tag {tried.tag}) was acknowledged and is lost"
        # A run and the message that came with it are made together or not at all.
        if tried.kind == "run" and f"message {tried.tag}" in notes.tried:
            together = made["run", tried.tag], made["message", tried.tag]
            if together[0] != together[1]:
                yield f"attempt {tried.tag} made {together[0]} runs and {together[1]} messages"


def _order(notes: Notes, stored: Stored) -> Iterator[str]:
    """Messages stand in the order in which they were acknowledged: each was sent after the one before."""
    expected: dict[str, list[str]] = {}
    for thread, id in notes.said:
        expected.setdefault(thread, []).append(id)
    for thread, ids in expected.items():
        acknowledged = set(ids)
        found = [row["id"] for row in stored.messages.get(thread, ()) if row["id"] in acknowledged]
        if found != ids:
            yield f"thread {thread}: messages were acknowledged as {ids}, and stand as {found}"


# --- what became of it ------------------------------------------------------------------------------------------------


def later(status: str) -> set[str]:
    """The statuses in which a run may be that was in ``status`` before."""
    found, new = set[str](), {status}
    while new:
        found |= new
        new = {verb.target for verb in lifecycle.RUN.values() if found & set(verb.sources)} - found
    return found


_LATER = {status: later(status) for status in lifecycle.ACTIVE | lifecycle.TERMINAL}


def _statuses(notes: Notes, stored: Stored) -> Iterator[str]:
    """Every run is over, as its client may expect, and what was once seen of it is never taken back."""
    final = {run["id"]: run["status"] for runs in stored.runs.values() for run in runs}
    for id, status in final.items():
        if status not in lifecycle.TERMINAL:
            yield f"run {id} is {status}, not over"
        elif status != "completed" and not (status == "cancelled" and id in notes.cancelled):
            yield f"run {id} is {status}, which nobody asked for"
    for id, seen in notes.seen.items():
        for before, after in zip(seen, [*seen[1:], final.get(id, "lost")], strict=True):
            if after not in _LATER[before]:
                yield f"run {id} was {before}, and later {after}"


def _of_run(stored: Stored, run: Object) -> list[Object]:
    return [row for row in stored.messages.get(run["thread_id"], ()) if row["run_id"] == run["id"]]


def _turns(notes: Notes, stored: Stored) -> Iterator[str]:
    """A run has written what the newest user message before it says, each text once; what was cut is a beginning."""
    for thread, runs in stored.runs.items():
        users = [row for row in stored.messages.get(thread, ()) if row["role"] == "user"]
        for run in runs:
            before = [row for row in users if stored.places.get(row["id"], 0) < stored.places.get(run["id"], 1)]
            if not before:
                yield f"run {run['id']} began without a message"
                continue
            said = text_of(before[-1])
            expected = notes.scripts.get(said) or Script((f"You said: {said}",))
            own = [text_of(row) for row in _of_run(stored, run)]
            if run["status"] == "completed":
                if own != list(expected.texts):
                    yield f"run {run['id']} has written {own}, expected {list(expected.texts)}"
            elif len(own) > len(expected.texts) or not all(
                whole.startswith(part) for part, whole in zip(own, expected.texts, strict=False)
            ):
                yield f"run {run['id']} ({run['status']}) has written {own}, expected a beginning of {expected.texts}"
            calls = [
                len(step["step_details"]["tool_calls"])
                for step in stored.steps.get(run["id"], ())
                if step["type"] == "tool_calls" and step["status"] != "failed"  # its worker died; done again
            ]
            if run["status"] == "completed" and calls != list(expected.calls):
                yield f"run {run['id']} has made {calls} calls, expected {list(expected.calls)}"


def _journal(notes: Notes, stored: Stored) -> Iterator[str]:
    """Steps: outputs are those submitted, messages are those written, stamps and usage fit the run's."""
    answered = set[str]()
    for thread, runs in stored.runs.items():
        messages = {row["id"]: row for row in stored.messages.get(thread, ())}
        for run in runs:
            steps = stored.steps.get(run["id"], [])
            yield from _stamps(run, steps)
            if run["status"] in lifecycle.TERMINAL and run["usage"] is not None:
                total = sum(step["usage"]["total_tokens"] for step in steps if step["usage"] is not None)
                if total != run["usage"]["total_tokens"]:
                    yield f"run {run['id']} used {run['usage']['total_tokens']} tokens, its steps {total}"
            written: list[str] = []
            for step in steps:
                if step["type"] == "message_creation":
                    written.append(step["step_details"]["message_creation"]["message_id"])
                    continue
                for call in step["step_details"]["tool_calls"]:
                    output = call["function"]["output"]
                    if output is not None:
                        answered.add(call["id"])
                        if output != notes.outputs.get(call["id"]):
                            yield f"call {call['id']} has the output {output!r}, not the one that was submitted"
                    elif step["status"] == "completed":
                        yield f"step {step['id']} is completed without the output of {call['id']}"
            own = [row["id"] for row in messages.values() if row["run_id"] == run["id"]]
            if written != own:
                yield f"run {run['id']}: its steps wrote {written}, its messages are {own}"
    yield from (f"the output of {id} was acknowledged and is lost" for id in notes.submitted - answered)


_ENDS = ("completed_at", "cancelled_at", "failed_at", "expired_at")


def _end(row: Object) -> int | None:
    return max((row[name] for name in _ENDS if row.get(name) is not None), default=None)


def _stamps(run: Object, steps: list[Object]) -> Iterator[str]:
    name = {"completed": "completed_at", "cancelled": "cancelled_at", "failed": "failed_at"}.get(run["status"])
    if name is not None and run[name] is None:
        yield f"run {run['id']} is {run['status']} without {name}"
    over = _end(run)
    for step in steps:
        ended = _end(step)
        if ended is None:
            yield f"step {step['id']} of run {run['id']} ({run['status']}) is {step['status']}, without an end"
        elif over is not None and not run["created_at"] <= step["created_at"] <= ended <= over:
            yield f"step {step['id']} ({step['created_at']} to {ended}) is not within run {run['id']}, over at {over}"


def _locks(stored: Stored) -> Iterator[str]:
    """Runs of a thread come one after the other: what one writes stands before all that the next one writes."""
    for thread, runs in stored.runs.items():
        last, whose, over = 0, "", 0
        for run in runs:
            places = [
                stored.places[step["id"]] for step in stored.steps.get(run["id"], ()) if step["id"] in stored.places
            ]
            if places and min(places) < last:
                yield f"thread {thread}: run {run['id']} wrote before {whose} was over"
            last, whose = max([last, *places]), run["id"] if places else whose
            began = run["started_at"]
            if began is not None and began < over:
                yield f"thread {thread}: run {run['id']} began at {began}, the one before it was over at {over}"
            over = max(over, _end(run) or 0)


# --- what viewers saw -------------------------------------------------------------------------------------------------


def _streams(notes: Notes, stored: Stored) -> Iterator[str]:
    runs = {run["id"]: run for rows in stored.runs.values() for run in rows}
    messages = {row["id"]: row for rows in stored.messages.values() for row in rows}
    for number, stream in enumerate(notes.streams):
        viewer = _Viewer(stream, runs, messages, stored)
        about = f"stream {number} of run {stream.run} ({stream.begins})"
        faults = list(viewer.faults())
        yield from (f"{about}: {fault}" for fault in faults)
        if faults:
            yield f"{about} was: {_outline(stream)}"


def _outline(stream: Stream) -> str:
    """The stream in short: names without their beginning, rows of deltas as one."""
    words: list[str] = []
    for piece in stream.pieces:
        word = "ANEW" if piece.what == "comment" else piece.name.removeprefix("thread.") or "BREAK"
        word += f"@{piece.id}" if piece.id and "delta" not in word else ""
        if not (word.endswith("delta") and words[-1:] == [word]):
            words.append(word)
    return ", ".join(words)


class _Viewer:
    """Follows one stream; every rule between its events is here. It begins anew where the stream does."""

    def __init__(self, stream: Stream, runs: dict[str, Object], messages: dict[str, Object], stored: Stored) -> None:
        self._stream, self._runs, self._messages, self._stored = stream, runs, messages, stored
        self._status: str | None = None
        self._done = False
        self._created = set[str]()  # over this connection: SDKs throw at what is created again
        self._anew(state=False)

    def _anew(self, *, state: bool) -> None:
        self._state = state  # it began with the present state
        self._ids = set[str]()
        self._message: str | None = None
        self._content: Object = {}
        self._made = set[str]()  # messages and steps created since, or shown by the state
        self._ended = set[str]()
        self._steps: list[str] = []  # told of since, in order
        self._calls: dict[str, Object] = {}

    def faults(self) -> Iterator[str]:
        """What is wrong with it."""
        for piece in self._stream.pieces:
            if piece.what == "break":
                self._created.clear()
            elif piece.what == "comment":
                if RESYNC in (piece.name or ""):
                    yield from self._gapless()
                    self._anew(state=True)
            else:
                if piece.id and not piece.id.endswith("-state"):
                    if piece.id in self._ids:
                        yield f"the event {piece.id} ({piece.name}) is told twice"
                    self._ids.add(piece.id)
                yield from self._take(piece.name, piece.data)
        if self._stream.ended:
            yield from self._gapless()
            yield from self._finish()

    def _take(self, name: str, data: Any) -> Iterator[str]:
        if self._done:
            yield f"{name} after done"
        kind, _, verb = name.rpartition(".")
        if name == "done":
            self._done = True
        elif kind == "thread.run":
            yield from self._run(verb, data)
        elif kind == "thread.run.step":
            yield from self._step(verb, data)
        elif kind == "thread.message":
            yield from self._told(verb, data)

    def _run(self, verb: str, run: Object) -> Iterator[str]:
        status = run["status"]
        if status != ("queued" if verb == "created" else verb):
            yield f"thread.run.{verb} shows {status}"
        if self._stream.run is not None and run["id"] != self._stream.run:
            yield f"thread.run.{verb} is about {run['id']}"
        if self._status is not None and status not in _LATER[self._status]:
            yield f"thread.run.{verb} after {self._status}"
        if status in lifecycle.TERMINAL and self._message is not None:
            yield f"thread.run.{verb} while message {self._message} is open"
        self._status = status

    def _step(self, verb: str, step: Object) -> Iterator[str]:
        id = step["id"]
        if id not in self._steps:
            self._steps.append(id)
        if verb == "created":
            if id in self._made | self._created:
                yield f"step {id} is created a second time"
            self._made.add(id)
            self._created.add(id)
        if self._state and verb in ("created", "in_progress") and id not in self._calls:
            self._made.add(id)
            self._calls[id] = _shown(step["step_details"])
        elif verb == "created":
            pass
        elif id in self._ended:
            yield f"thread.run.step.{verb} of {id}, which has ended"
        elif verb in ("delta", "in_progress"):
            if id not in self._made:
                yield f"thread.run.step.{verb} of {id}, which was not created"
            if verb == "delta":
                yield from self._merged(self._calls.setdefault(id, {}), step["delta"])
        else:
            self._ended.add(id)
            told = self._calls.get(id, {}).get("step_details", {}).get("tool_calls")
            if told and verb == "completed":
                found = [(call["id"], call["function"]["arguments"]) for call in step["step_details"]["tool_calls"]]
                if [(call["id"], call["function"]["arguments"]) for call in told] != found:
                    yield f"the deltas of step {id} told {told}, it has {found}"

    def _told(self, verb: str, message: Object) -> Iterator[str]:
        id = message["id"]
        if verb == "created" or (self._state and verb == "in_progress" and id not in self._made):
            if self._message is not None:
                yield f"message {id} is created while {self._message} is open"
            if id in self._made | (self._created if verb == "created" else set()):
                yield f"message {id} is created a second time"
            if message["content"] and not self._state:
                yield f"message {id} is created with content"
            self._made.add(id)
            if verb == "created":
                self._created.add(id)
            self._message, self._content = id, {"content": _indexed(message["content"])}
        elif id != self._message:
            yield f"thread.message.{verb} of {id}, but {self._message} is open"
        elif verb == "delta":
            yield from self._merged(self._content, message["delta"])
        elif verb != "in_progress":
            said = "".join(part["text"]["value"] for part in self._content["content"])
            # Who began anew with what was stored may hear the rest at the end alone, but nothing out of its place.
            told_later = self._state and text_of(message).startswith(said)
            # A run that is cut while no worker has it ends with what was stored last, up to a second before.
            taken_back = verb == "incomplete" and said.startswith(text_of(message))
            if said != text_of(message) and not told_later and not taken_back:
                yield f"the deltas of message {id} say {said!r}, at its end it says {text_of(message)!r}"
            stored = self._messages.get(id)
            if stored is None or text_of(stored) != text_of(message) or stored["status"] != verb:
                yield f"message {id} was told as {verb} {text_of(message)!r}, and is stored as {stored}"
            self._message = None

    def _merged(self, into: Object, delta: Object) -> Iterator[str]:
        try:
            merge(into, delta)
        except AssertionError as error:
            yield str(error)

    def _gapless(self) -> Iterator[str]:
        """Steps told of stand next to each other in the journal: none between them was skipped."""
        if self._stream.run is None:
            return
        stored = [step["id"] for step in self._stored.steps.get(self._stream.run, ())]
        told = [id for id in self._steps if id in stored]
        if not told:
            return
        first = stored.index(told[0])
        if stored[first : first + len(told)] != told:
            yield f"told of the steps {told}, the journal has {stored}"
        if self._stream.begins != "submit" and not self._state and first:
            yield f"began with the step {told[0]}, the journal with {stored[0]}"
        for id in self._ended & set(told):
            if self._stored_step(id)["status"] == "in_progress":
                yield f"step {id} was told to be over, and is not"

    def _stored_step(self, id: str) -> Object:
        assert self._stream.run is not None
        return next(step for step in self._stored.steps[self._stream.run] if step["id"] == id)

    def _finish(self) -> Iterator[str]:
        if not self._done:
            yield "it ended without done"
        if self._status not in lifecycle.SETTLED:
            yield f"it ended while the run was {self._status}"
            return
        if self._status == "requires_action" or self._stream.run is None:
            return
        run = self._runs.get(self._stream.run)
        if run is None or run["status"] != self._status:
            yield f"it ended with {self._status}, the run is {run and run['status']}"
        last = [step["id"] for step in self._stored.steps.get(self._stream.run, ())][-1:]
        if last and not self._state and self._steps[-1:] != last:
            yield f"it ended with the step {self._steps[-1:]}, the journal with {last}"


def _indexed(content: Iterable[Object]) -> list[Object]:
    """The parts of a message as deltas would have told them."""
    return [{"index": index, **copy.deepcopy(part)} for index, part in enumerate(content)]


def _shown(details: Object) -> Object:
    if details["type"] != "tool_calls":
        return {}
    calls = [
        {"index": index, **call, "function": {**call["function"], "output": None}}
        for index, call in enumerate(details["tool_calls"])
    ]
    return {"step_details": {"type": "tool_calls", "tool_calls": calls}}
