"""Reads our event streams as strictly as we promise to write them, and checks what the SDKs rely on.

Framing is BEHAVIOUR SSE-01, the rules between events SSE-02, -03, -07 and -20 to -26. Each event's own shape is
`schema.check_event`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

from tests.support import schema


class Event(NamedTuple):
    """One event as it stood in the stream: its name and its data, still text."""

    name: str
    data: str


_PLAIN = (
    "thread.run.queued",
    "thread.run.in_progress",
    "thread.run.step.created",
    "thread.run.step.in_progress",
    "thread.message.created",
    "thread.message.in_progress",
    "thread.message.delta",
    "thread.message.completed",
    "thread.run.step.completed",
    "thread.run.completed",
    "done",
)

# The exact sequences of BEHAVIOUR 10.3 as `names` gives them; a function run has two streams.
SEQUENCES: dict[str, list[str]] = {
    "SSE-40": ["thread.run.created", *_PLAIN],
    "SSE-41": ["thread.created", "thread.run.created", *_PLAIN],
    "SSE-42/1": [
        "thread.run.created",
        "thread.run.queued",
        "thread.run.in_progress",
        "thread.run.step.created",
        "thread.run.step.in_progress",
        "thread.run.step.delta",
        "thread.run.requires_action",
        "done",
    ],
    "SSE-42/2": ["thread.run.step.completed", *_PLAIN],
}

_DELTAS = {"thread.message.delta", "thread.run.step.delta"}
_RUN_END = {"completed", "incomplete", "failed", "cancelled", "expired"}


def parse(body: bytes) -> list[Event]:
    """The events of a stream without ids. Raises `AssertionError` at the first line that SSE-01 and SSE-08 forbid."""
    return [event for _, event in _blocks(body, ids=False)]


def parse_with_ids(body: bytes) -> list[tuple[str, Event]]:
    """As `parse`, for a stream in which every event has one ``id:`` line (``done`` may lack it: its id is then '')."""
    return _blocks(body, ids=True)


def _blocks(body: bytes, *, ids: bool) -> list[tuple[str, Event]]:
    text = body.decode()
    if "\r" in text:
        raise AssertionError("SSE-01: a carriage return in a stream")
    if not text.endswith("\n\n"):
        raise AssertionError(f"SSE-01: the stream breaks off: {text[-100:]!r}")
    found: list[tuple[str, Event]] = []
    for block in text[:-2].split("\n\n"):
        lines = [line for line in block.split("\n") if not line.startswith(":")]
        if not lines:
            continue  # A keep-alive (SSE-08).
        given = [line.removeprefix("id: ") for line in lines if line.startswith("id: ")]
        rest = [line for line in lines if not line.startswith("id: ")]
        if given and not ids:
            raise AssertionError(f"SSE-01: an id line: {block!r}")
        if len(rest) != 2 or not rest[0].startswith("event: ") or not rest[1].startswith("data: "):
            raise AssertionError(f"SSE-01: expected one 'event: ' and one 'data: ' line, got {block!r}")
        event = Event(rest[0].removeprefix("event: "), rest[1].removeprefix("data: "))
        if ids and (len(given) > 1 or (not any(given) and event.name != "done")):
            raise AssertionError(f"expected one id line, got {block!r}")
        found.append((given[0] if given else "", event))
    return found


def names(events: Iterable[tuple[str, Any]]) -> list[str]:
    """The events' names, with each row of equal deltas as one: the form of BEHAVIOUR 10.3's sequences."""
    found: list[str] = []
    for name, _ in events:
        if not (name in _DELTAS and found and found[-1] == name):
            found.append(name)
    return found


def merge(into: dict[str, Any], delta: dict[str, Any], place: str = "delta") -> None:
    """Merge a delta as the SDKs do (BEHAVIOUR SSE-22), in place.

    Strings are joined, numbers added, list items merged by ``index``; ``index`` and ``type`` are overwritten. Raises
    `AssertionError` for an item without an integer index, a gap, or a constant sent again.
    """
    for key, value in delta.items():
        old = into.get(key)
        if key in ("id", "name") and old is not None:
            raise AssertionError(f"SSE-22: {place}.{key} is sent again, clients would read {old}{value}")
        if isinstance(value, list):
            if old is None:
                into[key] = []
            _merge_items(into[key], cast("list[Any]", value), f"{place}.{key}")
        elif isinstance(value, dict):
            merge(into.setdefault(key, {}), cast("dict[str, Any]", value), f"{place}.{key}")
        elif old is None or key in ("index", "type"):
            if key == "type" and old is not None and old != value:
                raise AssertionError(f"SSE-22: {place}.type changes from {old} to {value}")
            into[key] = value
        elif value is not None:
            into[key] = old + value


def _merge_items(items: list[Any], more: Sequence[Any], place: str) -> None:
    for item in more:
        index: Any = cast("dict[str, Any]", item).get("index") if isinstance(item, dict) else None
        if not isinstance(index, int) or isinstance(index, bool):
            raise AssertionError(f"SSE-22: an item of {place} has no integer index: {item}")
        if not 0 <= index <= len(items):
            raise AssertionError(f"SSE-22: {place} jumps to index {index} after {len(items)} item(s)")
        if index == len(items):
            items.append({})
        merge(items[index], cast("dict[str, Any]", item), f"{place}[{index}]")


@dataclass
class _Follower:
    """Follows one stream as a client does; every rule between events is one of its methods."""

    seen: list[str] = field(default_factory=list[str])
    run: dict[str, Any] | None = None
    message: str | None = None  # The open message's id,
    content: dict[str, Any] = field(default_factory=dict[str, Any])  # and what its deltas have said so far.
    messages: set[str] = field(default_factory=set[str])
    steps: dict[str, dict[str, Any]] = field(default_factory=dict[str, dict[str, Any]])  # Open, created in this stream.
    ended: set[str] = field(default_factory=set[str])

    def take(self, name: str, data: Any) -> None:
        if "done" in self.seen:
            raise AssertionError(f"SSE-02: {name} after done")
        if "error" in self.seen and name != "done":
            raise AssertionError(f"SSE-53: {name} after error: only done may follow")
        kind, _, verb = name.rpartition(".")
        if name == "thread.created":
            if self.seen:
                raise AssertionError("SSE-41: thread.created is not the first event")
        elif kind == "thread.run":
            self._run(verb, data)
        elif kind == "thread.run.step":
            self._step(verb, data)
        elif kind == "thread.message":
            self._message(verb, data)
        self.seen.append(name)

    def _run(self, verb: str, run: dict[str, Any]) -> None:
        expected = "queued" if verb == "created" else verb
        if run["status"] != expected:
            raise AssertionError(f"SSE-07: thread.run.{verb} shows status {run['status']!r}")
        if self.run is not None and self.run["id"] != run["id"]:
            raise AssertionError(f"thread.run.{verb} is about another run: {run['id']}, not {self.run['id']}")
        if self.run is not None and self.run["status"] in _RUN_END | {"requires_action"}:
            raise AssertionError(f"SDK-05: thread.run.{verb} after the run event {self.run['status']}")
        if verb == "created" and self.run is not None:
            raise AssertionError("thread.run.created is not the first run event")
        if verb in _RUN_END:
            self._nothing_open(f"thread.run.{verb}", [*self.steps])
        if verb == "requires_action":
            self._nothing_open("thread.run.requires_action", [])
            self._required_action(run)
        self.run = run

    def _nothing_open(self, name: str, steps: list[str]) -> None:
        if self.message is not None or steps:
            raise AssertionError(f"{name} while still open: message {self.message}, steps {steps}")

    def _required_action(self, run: dict[str, Any]) -> None:
        if run["required_action"] is None:
            raise AssertionError("RUN-60: thread.run.requires_action has no required_action")
        asked = run["required_action"]["submit_tool_outputs"]["tool_calls"]
        said = [_told(call) for step in self.steps.values() for call in _calls(step) if call["type"] == "function"]
        if self.steps and [_told(call) for call in asked] != said:
            raise AssertionError(f"RUN-61: the deltas told of the calls {said}, required_action asks for {asked}")

    def _step(self, verb: str, step: dict[str, Any]) -> None:
        id = step["id"]
        if id in self.ended or (verb == "created" and id in self.steps):
            raise AssertionError(f"thread.run.step.{verb} for {id}, which is ended or was created already")
        if verb == "created":
            self._status("thread.run.step.created", step, "in_progress")
            if self.steps:
                # The Node SDK (7.55) throws here, as it does for two open messages.
                raise AssertionError(f"thread.run.step.created for {id} while {[*self.steps]} is open")
            if step["type"] == "tool_calls" and step["step_details"]["tool_calls"]:
                raise AssertionError("STEP-03: thread.run.step.created already has tool calls")
            self.steps[id] = {}
            return
        if verb in ("delta", "in_progress") and id not in self.steps:
            raise AssertionError(f"SSE-20: thread.run.step.{verb} for {id}, which this stream did not create")
        if verb == "delta":
            self._step_delta(self.steps[id], step["delta"])
            return
        self._status(f"thread.run.step.{verb}", step, verb)
        if verb != "in_progress":
            self.ended.add(id)
            said = [_told(call) for call in _calls(self.steps.pop(id, {}))]
            final = [_told(call) for call in step["step_details"].get("tool_calls", ())]
            if said and said != final:
                raise AssertionError(f"SSE-26: the deltas told of the calls {said}, the step has {final}")

    def _step_delta(self, sum: dict[str, Any], delta: dict[str, Any]) -> None:
        known = len(_calls(sum))
        merge(sum, delta)
        for call in _calls(sum)[known:]:
            if not call.get("id") or (call["type"] == "function" and not call["function"].get("name")):
                raise AssertionError(f"SSE-42: the first delta of a call lacks its id or name: {call}")

    def _message(self, verb: str, message: dict[str, Any]) -> None:
        id, name = message["id"], f"thread.message.{verb}"
        if verb == "created":
            self._status(name, message, "in_progress")
            if self.message is not None:
                raise AssertionError(f"SSE-25: {name} for {id} while {self.message} is open")
            if id in self.messages:
                raise AssertionError(f"{name} for {id} a second time")
            if message["content"]:
                raise AssertionError(f"SSE-40: {name} already has content")
            self.message, self.content = id, {}
            self.messages.add(id)
            return
        if id != self.message:
            raise AssertionError(f"SSE-21: {name} for {id}, but the open message is {self.message}")
        if verb == "delta":
            self._message_delta(message["delta"])
            return
        self._status(name, message, verb)
        if verb != "in_progress":
            self._same_content(message["content"])
            self.message = None

    def _message_delta(self, delta: dict[str, Any]) -> None:
        if "role" in delta:
            raise AssertionError("SSE-24: a message delta carries a role")
        known = len(self.content.get("content", ()))
        for part in delta.get("content", ()):
            annotations = part.get("text", {}).get("annotations")
            first = part.get("index") == known
            known += first
            if part["type"] == "text" and first and annotations is None:
                raise AssertionError(f"SSE-23: the first delta of a text has no annotations: {part}")
            if part["type"] == "text" and not first and annotations == []:
                raise AssertionError(f"SSE-23: a later delta has empty annotations: {part}")
        merge(self.content, delta)

    def _same_content(self, final: list[dict[str, Any]]) -> None:
        said = [_plain_part(part) for part in self.content.get("content", ())]
        if said != final:
            raise AssertionError(f"SSE-26: the deltas add up to {said}, the message has {final}")

    def _status(self, name: str, data: dict[str, Any], expected: str) -> None:
        if data["status"] != expected:
            raise AssertionError(f"SSE-07: {name} shows status {data['status']!r}")

    def finish(self) -> None:
        if not self.seen or self.seen[-1] != "done":
            raise AssertionError(f"SSE-02: the last event is {self.seen[-1:]}, not done")
        if "error" in self.seen:
            return
        if self.run is None or self.run["status"] not in _RUN_END | {"requires_action"}:
            status = self.run["status"] if self.run else None
            raise AssertionError(
                f"SDK-05: the stream ends with the run's last event {status}, neither over nor waiting"
            )


def _calls(sum: dict[str, Any]) -> list[dict[str, Any]]:
    return sum.get("step_details", {}).get("tool_calls", [])


def _told(call: dict[str, Any]) -> tuple[str, ...]:
    """What deltas tell of a call; a function's output is not among it, since it comes from the client."""
    if call["type"] == "function":
        return (call["id"], call["function"]["name"], call["function"]["arguments"])
    if call["type"] == "code_interpreter":
        return (call["id"], call["code_interpreter"]["input"])
    return (call["id"],)


def _plain_part(part: dict[str, Any]) -> dict[str, Any]:
    """A summed-up content part as the finished message has it: no ``index``, no ``quote`` (BEHAVIOUR ANN-05)."""
    plain = {key: value for key, value in part.items() if key != "index"}
    if plain["type"] == "text":
        plain["text"] = {**plain["text"], "annotations": [_plain_annotation(a) for a in plain["text"]["annotations"]]}
    return plain


def _plain_annotation(annotation: dict[str, Any]) -> dict[str, Any]:
    plain = {key: value for key, value in annotation.items() if key != "index"}
    if plain["type"] == "file_citation":
        plain["file_citation"] = {key: value for key, value in plain["file_citation"].items() if key != "quote"}
    return plain


def check_events(events: Iterable[tuple[str, str]]) -> list[tuple[str, Any]]:
    """Check parsed events one by one and against each other; gives (name, parsed data) for each.

    For a viewer that came back with ``Last-Event-ID`` pass what it saw before the break followed by what it got after:
    together they must be one whole stream. Raises `AssertionError` with the event's number.
    """
    follower = _Follower()
    found: list[tuple[str, Any]] = []
    for number, (name, data) in enumerate(events):
        try:
            parsed = schema.check_event(name, data)
            follower.take(name, parsed)
        except AssertionError as error:
            before = ", ".join(follower.seen[-4:])
            raise AssertionError(f"event {number} ({name}) after [{before}]: {error}") from None
        found.append((name, parsed))
    follower.finish()
    return found


def check_stream(body: bytes, *, ids: bool = False) -> list[tuple[str, Any]]:
    """Check a whole stream's bytes; gives (name, parsed data) for each event. ``ids``: each has an ``id:`` line."""
    return check_events(event for _, event in _blocks(body, ids=ids))
