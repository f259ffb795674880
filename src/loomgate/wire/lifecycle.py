"""The state tables: every status of a run, a step and a message, and every way from one to another.

Everything that decides whether a status may change lives here: the SQL guards, the ``*_at`` stamps, the
event names, the diagram in the docs and the property tests are all read off these tables, and no other
file compares status strings. A verb that is not in a table cannot happen (BEHAVIOUR RUN-31, RUN-33).
"""

from typing import Any, Literal, TypeVar

import msgspec

from loomgate.errors import IllegalTransition

RunStatus = Literal[
    "queued",
    "in_progress",
    "requires_action",
    "cancelling",
    "cancelled",
    "failed",
    "completed",
    "incomplete",
    "expired",
]
StepStatus = Literal["in_progress", "cancelled", "failed", "completed", "expired"]
MessageStatus = Literal["in_progress", "incomplete", "completed"]

RunVerb = Literal["start", "ask", "resume", "request_cancel", "cancel", "fail", "complete", "cut", "expire"]
StepVerb = Literal["complete", "fail", "cancel", "expire"]
MessageVerb = Literal["complete", "cut"]


class Transition(msgspec.Struct, frozen=True, kw_only=True):
    """One verb: from which statuses, to which, which time it stamps and which fields it sets to null."""

    sources: tuple[str, ...]
    target: str
    stamp: str | None = None
    clears: tuple[str, ...] = ()


_T = Transition

# BEHAVIOUR RUN-31 (who may follow whom) and RUN-33 (what each status shows).
RUN: dict[RunVerb, Transition] = {
    "start": _T(sources=("queued",), target="in_progress", stamp="started_at"),  # RUN-34: written again each time
    "ask": _T(sources=("in_progress",), target="requires_action"),
    "resume": _T(sources=("requires_action",), target="queued", clears=("required_action",)),
    "request_cancel": _T(
        sources=("queued", "in_progress", "requires_action"), target="cancelling", clears=("required_action",)
    ),
    "cancel": _T(sources=("cancelling",), target="cancelled", stamp="cancelled_at", clears=("expires_at",)),
    "fail": _T(
        sources=("queued", "in_progress", "cancelling"), target="failed", stamp="failed_at", clears=("expires_at",)
    ),
    # From `cancelling`: cancellation is attempted, not guaranteed (RUN-57).
    "complete": _T(
        sources=("in_progress", "cancelling"), target="completed", stamp="completed_at", clears=("expires_at",)
    ),
    "cut": _T(sources=("in_progress", "cancelling"), target="incomplete", stamp="completed_at", clears=("expires_at",)),
    "expire": _T(
        sources=("queued", "in_progress", "requires_action", "cancelling"),
        target="expired",
        clears=("required_action",),  # expires_at is kept
    ),
}

# BEHAVIOUR STEP-16.
STEP: dict[StepVerb, Transition] = {
    "complete": _T(sources=("in_progress",), target="completed", stamp="completed_at"),
    "fail": _T(sources=("in_progress",), target="failed", stamp="failed_at"),
    "cancel": _T(sources=("in_progress",), target="cancelled", stamp="cancelled_at"),
    "expire": _T(sources=("in_progress",), target="expired", stamp="expired_at"),
}

# BEHAVIOUR MSG-13.
MESSAGE: dict[MessageVerb, Transition] = {
    "complete": _T(sources=("in_progress",), target="completed", stamp="completed_at"),
    "cut": _T(sources=("in_progress",), target="incomplete", stamp="incomplete_at"),
}

INITIAL_RUN: RunStatus = "queued"

# What happens to the unfinished step and message of a run that ends by a verb (RUN-42, -43, -58, -95, -98, STEP-16).
# verb of the run -> (verb of the step, reason of the message's incompleteness)
ENDINGS: dict[RunVerb, tuple[StepVerb, str]] = {
    "cancel": ("cancel", "run_cancelled"),
    "expire": ("expire", "run_expired"),
    "fail": ("fail", "run_failed"),
    "cut": ("complete", "max_tokens"),
    # The model finished although a step is open only when a redone turn took another shape; see docs/why/journal.md.
    "complete": ("cancel", "run_cancelled"),
}


def _reachable_only_by_verbs(table: dict[RunVerb, Transition]) -> frozenset[str]:
    return frozenset(source for transition in table.values() for source in transition.sources)


# A run in one of these statuses holds its thread (BEHAVIOUR LOCK-04); no verb leaves the others.
ACTIVE: frozenset[str] = _reachable_only_by_verbs(RUN)
TERMINAL: frozenset[str] = frozenset(t.target for t in RUN.values()) - ACTIVE

# A worker is at it, under a lease.
EXECUTING: frozenset[str] = frozenset({RUN["start"].target})

# A worker holds it under a lease, or soon will: renewing and re-claiming are for these.
HELD: frozenset[str] = EXECUTING | frozenset({RUN["request_cancel"].target})

# A poller's or a stream's wait ends in these (BEHAVIOUR SDK-01, SSE-02).
SETTLED: frozenset[str] = TERMINAL | {"requires_action"}

Obj = TypeVar("Obj", bound=msgspec.Struct)


def step_on(table: dict[Any, Transition], obj: Obj, verb: str, now: int, **fields: Any) -> Obj:
    """``obj`` after ``verb``: new status, its stamp set to ``now`` (seconds), its cleared fields null.

    ``fields`` are set besides (usage, last_error, ...). Raises `IllegalTransition`; ``obj`` is not changed.
    """
    transition = table[verb]
    status: str = obj.status  # pyright: ignore[reportAttributeAccessIssue,reportUnknownVariableType,reportUnknownMemberType]
    if status not in transition.sources:
        raise IllegalTransition(verb, status)  # pyright: ignore[reportUnknownArgumentType]
    changes: dict[str, Any] = dict.fromkeys(transition.clears)
    if transition.stamp is not None:
        changes[transition.stamp] = now
    changes["status"] = transition.target
    changes.update(fields)
    return msgspec.structs.replace(obj, **changes)


def diagram() -> str:
    """The run's state table as a Mermaid diagram, for ``docs/lifecycle.md`` (a test keeps the two equal)."""
    lines = ["stateDiagram-v2", f"    [*] --> {INITIAL_RUN}: create"]
    for verb, transition in RUN.items():
        lines += [f"    {source} --> {transition.target}: {verb}" for source in transition.sources]
    lines += [f"    {status} --> [*]" for status in sorted(TERMINAL)]
    return "\n".join(lines) + "\n"
