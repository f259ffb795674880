"""The field tables of BEHAVIOUR RUN-33 (runs), STEP-16 (steps) and MSG-13 (messages) as data, and how to hold them.

A rule says of a field in a status: ``null``, ``set``, or ``kept`` (what it was in the status before). Objects are
the decoded JSON of any answer or event.
"""

from typing import Any

NULL, SET, KEPT = "null", "set", "kept"

_RUN_COLUMNS = (
    "started_at expires_at cancelled_at failed_at completed_at required_action last_error incomplete_details usage"
).split()
_RUN_ROWS = {
    "queued": "kept set null null null null null null null",
    "in_progress": "set kept null null null null null null null",
    "requires_action": "kept kept null null null set null null null",
    "cancelling": "kept kept null null null null null null null",
    "cancelled": "kept null set null null null null null set",
    "failed": "kept null null set null null set null set",
    "completed": "kept null null null set null null null set",
    "incomplete": "kept null null null set null null set set",
    "expired": "kept kept null null null null null null set",
}
RUN: dict[str, dict[str, str]] = {
    status: dict(zip(_RUN_COLUMNS, row.split(), strict=True)) for status, row in _RUN_ROWS.items()
}

# A status in which a run can be only after it was started (BEHAVIOUR RUN-31).
_STARTED = {"in_progress", "requires_action", "completed", "incomplete"}

_STEP_COLUMNS = "cancelled_at completed_at expired_at failed_at last_error".split()
_STEP_ROWS = {
    "in_progress": "null null null null null",
    "cancelled": "set null null null null",
    "completed": "null set null null null",
    "expired": "null null set null null",
    "failed": "null null null set set",
}
STEP: dict[str, dict[str, str]] = {
    status: dict(zip(_STEP_COLUMNS, row.split(), strict=True)) for status, row in _STEP_ROWS.items()
}

MESSAGE: dict[str, dict[str, str]] = {
    "in_progress": {"completed_at": NULL, "incomplete_at": NULL, "incomplete_details": NULL},
    "completed": {"completed_at": SET, "incomplete_at": NULL, "incomplete_details": NULL},
    "incomplete": {"completed_at": NULL, "incomplete_at": SET, "incomplete_details": SET},
}


def _wrong(table: dict[str, dict[str, str]], found: dict[str, Any]) -> list[str]:
    said = f"{found['id']} {found['status']}"
    wrong: list[str] = []
    for field, rule in table[found["status"]].items():
        if field not in found:
            wrong.append(f"{said}: {field} is missing")
        elif rule in (NULL, SET) and (found[field] is None) != (rule == NULL):
            wrong.append(f"{said}: {field} should be {rule}, is {found[field]!r}")
    return wrong


def wrong_run(run: dict[str, Any], ttl: int = 600) -> list[str]:
    """What is wrong with one run by itself; ``ttl`` is its life time in seconds (RUN-02)."""
    wrong = _wrong(RUN, run)
    said = f"{run['id']} {run['status']}"
    if run["expires_at"] is not None and run["expires_at"] != run["created_at"] + ttl:
        wrong.append(f"{said}: expires_at should be created_at + {ttl}")
    if run["status"] == "expired" and run["expires_at"] is None:
        wrong.append(f"{said}: expires_at should be kept")
    if run["status"] in _STARTED and run["started_at"] is None:
        wrong.append(f"{said}: started_at should be set")
    if run["usage"] is not None and run["usage"]["total_tokens"] != (
        run["usage"]["prompt_tokens"] + run["usage"]["completion_tokens"]
    ):
        wrong.append(f"{said}: total_tokens is not the sum")
    return wrong


def wrong_change(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What is wrong with ``after`` when the same run was ``before``, one status earlier: the fields that are kept."""
    return [
        f"{after['id']} {before['status']} -> {after['status']}: {field} should stay {before[field]!r}, "
        f"is {after[field]!r}"
        for field, rule in RUN[after["status"]].items()
        if rule == KEPT and after[field] != before[field]
    ]


def wrong_step(step: dict[str, Any]) -> list[str]:
    """What is wrong with a step by itself (STEP-08, STEP-16)."""
    wrong = _wrong(STEP, step)
    if step["status"] == "in_progress" and step["usage"] is not None:
        wrong.append(f"{step['id']}: usage should be null while in progress")
    if step["status"] == "completed" and step["usage"] is None:
        wrong.append(f"{step['id']}: usage should be set when completed")
    if step["last_error"] is not None and step["last_error"]["code"] not in ("server_error", "rate_limit_exceeded"):
        wrong.append(f"{step['id']}: last_error has the code {step['last_error']['code']}")
    return wrong


def wrong_message(message: dict[str, Any]) -> list[str]:
    """What is wrong with a message by itself (MSG-12, MSG-13)."""
    return _wrong(MESSAGE, message)
