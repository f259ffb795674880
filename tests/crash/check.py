"""Is a database consistent? Every row of it is read, after its server stopped; nothing is asked of the server's code.

What must live here: what has to be true of any database at any time, and the stricter rest for one whose runs have all
ended. What must not: expectations of a test. The rules are BEHAVIOUR sections 4 to 6 and docs/why/journal.md.
"""

import json
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ACTIVE = {"queued", "in_progress", "requires_action", "cancelling"}
TERMINAL = {"cancelled", "failed", "completed", "incomplete", "expired"}

# RUN-33: per status, the fields that are set (True), null (False), or either (absent).
_RUN_FIELDS: dict[str, dict[str, bool]] = {
    status: {
        "expires_at": status in ACTIVE | {"expired"},
        "cancelled_at": status == "cancelled",
        "failed_at": status == "failed",
        "completed_at": status in {"completed", "incomplete"},
        "required_action": status == "requires_action",
        "last_error": status == "failed",
        "incomplete_details": status == "incomplete",
        "usage": status in TERMINAL,
    }
    | ({"started_at": True} if status in {"in_progress", "requires_action", "completed", "incomplete"} else {})
    for status in ACTIVE | TERMINAL
}

# STEP-16, STEP-08: likewise.
_STEP_FIELDS: dict[str, dict[str, bool]] = {
    status: {
        "completed_at": status == "completed",
        "cancelled_at": status == "cancelled",
        "failed_at": status == "failed",
        "expired_at": status == "expired",
        "last_error": status == "failed",
        "expires_at": False,  # as stored (STEP-18)
    }
    | ({"usage": status == "completed"} if status in {"in_progress", "completed"} else {})
    for status in ("in_progress", "completed", "cancelled", "failed", "expired")
}

# MSG-13: likewise.
_MESSAGE_FIELDS: dict[str, dict[str, bool]] = {
    status: {
        "completed_at": status == "completed",
        "incomplete_at": status == "incomplete",
        "incomplete_details": status == "incomplete",
    }
    for status in ("in_progress", "completed", "incomplete")
}

# STEP-16, RUN-95: what a run's end leaves of a step that was open then, besides completed ones.
_STEP_ENDS = {"cancelled": "cancelled", "failed": "failed", "expired": "expired"}
# MSG-13: and of a message. A filter (RUN-92) may cut a message of a completed or failed run.
_MESSAGE_ENDS = {
    "cancelled": {"run_cancelled"},
    "failed": {"run_failed", "content_filter"},
    "expired": {"run_expired"},
    "incomplete": {"max_tokens"},
    "completed": {"content_filter"},
}


class Database:
    """All rows of a database, bodies decoded; threads that were deleted and what is left of them stand aside."""

    def __init__(self, path: Path) -> None:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            self.integrity = [row[0] for row in connection.execute("PRAGMA integrity_check")]
            tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
            self._rows = {
                table: [dict(row) for row in connection.execute(f"SELECT * FROM {table}")]  # noqa: S608 - its own names
                for table in tables
            }
        for rows in self._rows.values():
            for row in rows:
                if "body" in row:
                    row["body"] = json.loads(row["body"])
        self.threads = {row["id"]: row for row in self._rows["threads"]}
        deleted = {row["thread_id"] for row in self._rows["purges"]}
        self.runs = self._of_threads("runs", deleted)
        self.steps = self._of_threads("steps", deleted)
        self.messages = self._of_threads("messages", deleted)
        self.deliveries = self._rows["deliveries"]

    def _of_threads(self, table: str, deleted: set[str]) -> list[Row]:
        rows = [row for row in self._rows[table] if row["thread_id"] not in deleted]
        orphans = [row["id"] for row in rows if row["thread_id"] not in self.threads]
        assert not orphans, f"{table} without a thread: {orphans}"
        return sorted(rows, key=lambda row: (row["thread_id"], row["position"]))


def _fields(kind: str, body: Row, rules: dict[str, dict[str, bool]]) -> None:
    assert body["status"] in rules, f"{kind} {body['id']} is {body['status']}"
    for name, wanted in rules[body["status"]].items():
        found = body[name] is not None
        assert found == wanted, f"{kind} {body['id']} is {body['status']}, but its {name} is {body[name]!r}"


def check_consistent(path: Path, *, ended: bool = False) -> Database:
    """Check the database file ``path``, whose server has stopped. ``ended``: every run has to be terminal.

    Raises `AssertionError`; answers what was read, for checks of one's own.
    """
    found = Database(path)
    assert found.integrity == ["ok"]
    steps: dict[str, list[Row]] = defaultdict(list)
    for step in found.steps:
        steps[step["run_id"]].append(step)
    messages = {row["id"]: row for row in found.messages}
    runs = {row["id"]: row for row in found.runs}
    assert not set(steps) - set(runs), "steps without a run"
    _check_positions(found)
    for run in found.runs:
        _check_run(run, steps[run["id"]], messages)
        assert run["body"]["status"] in TERMINAL or not ended, f"run {run['id']} is {run['body']['status']}"
    _check_locks(found)
    named = Counter(
        step["body"]["step_details"]["message_creation"]["message_id"]
        for step in found.steps
        if step["body"]["type"] == "message_creation"
    )
    for row in found.messages:
        _check_message(row, runs, named)
    return found


def _check_positions(found: Database) -> None:
    taken: dict[str, Counter[int]] = defaultdict(Counter)
    for row in [*found.runs, *found.steps, *found.messages]:
        taken[row["thread_id"]][row["position"]] += 1
    written = Counter(row["thread_id"] for row in found.messages)
    for id, thread in found.threads.items():
        twice = [position for position, count in taken[id].items() if count > 1]
        assert not twice, f"thread {id}: order keys {twice} are taken twice"
        assert all(1 <= position <= thread["positions"] for position in taken[id]), f"thread {id}: keys out of range"
        assert thread["messages"] == written[id], f"thread {id} counts {thread['messages']} messages of {written[id]}"
    _check_order("message", found.messages)
    _check_order("run", found.runs)


def _check_order(kind: str, rows: Iterable[Row]) -> None:
    last: dict[str, int] = {}
    for row in rows:
        created, parent = row["body"]["created_at"], row["thread_id"] if kind != "step" else row["run_id"]
        assert created >= last.get(parent, 0), f"{kind} {row['id']} is older than the one before it"
        last[parent] = created


def _check_locks(found: Database) -> None:
    holders: Counter[str] = Counter()
    waiting: set[str] = set()
    for run in found.runs:
        status, due, holds = run["body"]["status"], run["due"], run["holds"]
        about = f"run {run['id']} ({status}, due {due}, holds {holds})"
        assert run["body"]["id"] == run["id"], about
        assert run["body"]["thread_id"] == run["thread_id"], about
        assert run["status"] == status, f"{about}: its column says {run['status']}"
        assert holds in {None, run["thread_id"]}, about
        assert (due is None) == (status in TERMINAL), f"{about}: due exactly while active"
        if status in TERMINAL:
            assert holds is None, f"{about}: a run that has ended holds its thread"
            continue
        assert run["expires_at"] == run["body"]["expires_at"], about
        if holds is None:
            assert status in {"queued", "cancelling"}, f"{about}: at work without holding its thread"
            if status == "queued":
                waiting.add(run["thread_id"])
        else:
            holders[holds] += 1
        if status == "requires_action":
            assert due <= run["expires_at"] * 1000 or run["fence"] > 0, about
    assert all(count == 1 for count in holders.values()), f"threads held more than once: {holders}"
    # Nothing else would ever wake them before they expire.
    assert waiting <= set(holders), f"runs wait for nobody in {waiting - set(holders)}"


def _check_run(run: Row, steps: list[Row], messages: dict[str, Row]) -> None:
    body = run["body"]
    status = body["status"]
    _fields("run", body, _RUN_FIELDS)
    _check_order("step", steps)
    turns: dict[int, list[str]] = defaultdict(list)
    for step in steps:
        detail = step["body"]
        assert step["status"] == detail["status"], f"step {step['id']}: its column says {step['status']}"
        assert detail["run_id"] == run["id"]
        assert detail["thread_id"] == run["thread_id"]
        assert detail["assistant_id"] == body["assistant_id"]
        _fields("step", detail, _STEP_FIELDS)
        if detail["status"] == "failed" and step is not steps[-1]:
            assert detail["last_error"]["code"] in {"server_error", "rate_limit_exceeded"}
            continue  # its answer broke off, and another attempt took its place
        if detail["status"] != "completed":
            expected = _STEP_ENDS.get(status, "in_progress")
            assert detail["status"] == expected, f"step {step['id']} is {detail['status']} in a run that is {status}"
            assert status not in {"completed", "incomplete"}, f"step {step['id']} is open in a run that is {status}"
            assert step is steps[-1] or detail["status"] != "in_progress", f"step {step['id']} is open, not the last"
        if detail["type"] == "tool_calls":
            _check_calls(run, step)
        else:
            _check_written(run, step, messages)
        turns[step["turn"]].append(detail["type"])
    assert list(turns) == list(range(1, len(turns) + 1)), f"run {run['id']}: turns {list(turns)}"
    shapes = [["message_creation"], ["tool_calls"], ["message_creation", "tool_calls"]]
    assert all(turn in shapes for turn in turns.values()), f"run {run['id']}: turns {dict(turns)}"
    # A turn that called nothing is the last one.
    assert all("tool_calls" in turns[turn] for turn in list(turns)[:-1]), f"run {run['id']}: turns {dict(turns)}"
    if status in TERMINAL:
        _check_usage(body, [step["body"]["usage"] for step in steps if step["body"]["usage"] is not None])
    if status == "requires_action":
        required = body["required_action"]["submit_tool_outputs"]["tool_calls"]
        open_calls = steps[-1]["body"]["step_details"]["tool_calls"]
        assert required, f"run {run['id']} requires nothing"
        assert [(c["id"], c["function"]["name"], c["function"]["arguments"]) for c in required] == [
            (c["id"], c["function"]["name"], c["function"]["arguments"]) for c in open_calls
        ], f"run {run['id']} requires other calls than its step shows"
        assert steps[-1]["usage"] is not None, f"run {run['id']}: the tokens of its open step are not kept"


def _check_calls(run: Row, step: Row) -> None:
    calls = step["body"]["step_details"]["tool_calls"]
    ids = [call["id"] for call in calls]
    assert len(set(ids)) == len(ids), f"step {step['id']}: {ids}"
    answered = {call["function"]["output"] is not None for call in calls}
    if step["body"]["status"] == "completed" and run["body"]["status"] != "incomplete":
        assert answered == {True}, f"step {step['id']} is completed without all outputs"
    elif step["body"]["status"] != "completed":
        assert True not in answered, f"step {step['id']} is {step['body']['status']}, but has outputs"


def _check_written(run: Row, step: Row, messages: dict[str, Row]) -> None:
    id = step["body"]["step_details"]["message_creation"]["message_id"]
    if id not in messages:
        return  # deleted by a client (MSG-18); a test that deletes none compares the whole list
    message = messages[id]
    assert message["run_id"] == run["id"], f"message {id} is not of run {run['id']}"
    status = message["body"]["status"]
    if status == "in_progress":
        assert step["body"]["status"] == "in_progress", f"message {id} is open in a step that is not"
    elif status == "completed":
        assert step["body"]["status"] == "completed", f"message {id} is done in a step that is not"
    else:
        reason = message["body"]["incomplete_details"]["reason"]
        assert reason in _MESSAGE_ENDS.get(run["body"]["status"], ()), f"message {id}: {reason}"


def _check_usage(run: Row, parts: list[Row]) -> None:
    """RUN-37, RUN-38."""
    for name in ("prompt_tokens", "completion_tokens", "total_tokens"):
        assert run["usage"][name] == sum(part[name] for part in parts), f"run {run['id']}: {name} is not its steps' sum"
    for group, name in (("prompt_token_details", "cached_tokens"), ("completion_tokens_details", "reasoning_tokens")):
        assert run["usage"][group][name] == sum(part[group][name] for part in parts), f"run {run['id']}: {name}"


def _check_message(row: Row, runs: dict[str, Row], named: Counter[str]) -> None:
    body = row["body"]
    assert body["id"] == row["id"]
    assert body["thread_id"] == row["thread_id"]
    assert body["role"] == row["role"]
    assert body["run_id"] == row["run_id"]
    _fields("message", body, _MESSAGE_FIELDS)
    if row["run_id"] is None:
        assert row["place"] == row["position"]
        assert body["status"] == "completed"
        assert named[row["id"]] == 0
        return
    run = runs.get(row["run_id"])
    assert run is not None, f"message {row['id']} is of no run"
    assert body["role"] == "assistant"
    assert body["assistant_id"] == run["body"]["assistant_id"]
    assert row["place"] == run["position"], f"message {row['id']} does not stand where its run does"
    assert row["position"] > run["position"]
    assert named[row["id"]] == 1, f"message {row['id']} is written by {named[row['id']]} steps"
    if run["body"]["status"] in TERMINAL:
        assert body["status"] != "in_progress", f"message {row['id']} is open, its run {run['body']['status']}"
