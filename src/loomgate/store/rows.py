"""Rows of runs, steps and messages as they are changed inside a transaction: the shared part of every verb.

What must live here: statements that read a run for change, write it back, end it, hand its thread on. What must
not: decisions about when that happens (``engine/``) or answers to clients (``http/``).
"""

from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa

from loomgate import clock
from loomgate.errors import ApiError, bad_request, not_found
from loomgate.store import tables
from loomgate.store.database import Statement, Tx
from loomgate.store.outbox import Outbox
from loomgate.wire import events, lifecycle
from loomgate.wire.lifecycle import RunVerb
from loomgate.wire.runs import Failure, MessageDetails, Run, Step, Usage
from loomgate.wire.threads import MAX_MESSAGES, IncompleteMessage, Message

_r, _s, _m, _t = tables.runs, tables.steps, tables.messages, tables.threads
_key: sa.BindParameter[Any] = sa.bindparam("key")
_owner: sa.BindParameter[Any] = sa.bindparam("owner")

# In the order of `RunRow`'s fields.
COLUMNS = (
    _r.c.id,
    _r.c.workspace,
    _r.c.thread_id,
    _r.c.position,
    _r.c.status,
    _r.c.expires_at,
    _r.c.holds,
    _r.c.due,
    _r.c.fence,
    _r.c.worker,
    _r.c.body,
)
_BY_ID = Statement(sa.select(*COLUMNS).where(_r.c.id == _key).with_for_update())
_HOLDER = Statement(sa.select(*COLUMNS).where(_r.c.holds == _key).with_for_update())
_LOCK = Statement(sa.select(_t.c.id).where(_t.c.id == _key).with_for_update())
_PUT = Statement(
    sa.update(_r)
    .where(_r.c.id == _key)
    .values(
        status=sa.bindparam("new_status"),
        body=sa.bindparam("new_body"),
        due=sa.bindparam("new_due"),
        holds=sa.bindparam("new_holds"),
        fence=sa.bindparam("new_fence"),
    )
)
_PROMOTE = Statement(
    sa.update(_r)
    .where(
        _r.c.id
        == sa.select(_r.c.id)
        .where(
            _r.c.thread_id == _key,
            _r.c.holds.is_(None),
            _r.c.due.is_not(None),
            _r.c.status == sa.literal_column(f"'{lifecycle.INITIAL_RUN}'"),
        )
        .order_by(_r.c.position)
        .limit(sa.literal_column("1", sa.Integer))
        .with_for_update()  # somebody may be ending the one that waits longest at this moment: then the next
        .scalar_subquery()
    )
    .values(holds=_r.c.thread_id, due=sa.bindparam("now"))
    .returning(_r.c.id)
)
_OPEN_STEPS = Statement(
    sa.select(_s.c.body, _s.c.usage).where(_s.c.run_id == _key, _s.c.status == sa.literal_column("'in_progress'"))
)
_ALL_USAGE = Statement(sa.select(_s.c.body, _s.c.usage).where(_s.c.run_id == _key).order_by(_s.c.position))
_PUT_STEP = Statement(
    sa.update(_s)
    .where(_s.c.id == _key)
    .values(status=sa.bindparam("new_status"), body=sa.bindparam("new_body"), usage=sa.bindparam("new_usage"))
)
_MESSAGE = Statement(sa.select(_m.c.body).where(_m.c.id == _key).with_for_update())
_PUT_MESSAGE = Statement(sa.update(_m).where(_m.c.id == _key).values(body=sa.bindparam("new_body")))
_INSERT_MESSAGE = Statement(sa.insert(_m))
_RESERVE = Statement(
    sa.update(_t)
    .where(_t.c.id == _key, _t.c.workspace == _owner)
    .values(positions=_t.c.positions + sa.bindparam("count"), messages=_t.c.messages + sa.bindparam("added"))
    .returning(_t.c.positions, _t.c.messages, _t.c.on_active_run)
)

encode = msgspec.json.Encoder().encode
decode_run = msgspec.json.Decoder(Run).decode
decode_step = msgspec.json.Decoder(Step).decode
decode_message = msgspec.json.Decoder(Message).decode
decode_usage = msgspec.json.Decoder(Usage).decode


def millis(seconds: float) -> int:
    """``seconds`` since the epoch as whole milliseconds, the unit of ``due``."""
    return int(seconds * 1000)


class RunRow(msgspec.Struct):
    """A run's row, read for change."""

    id: str
    workspace: str
    thread_id: str
    position: int
    status: str
    expires_at: int
    holds: str | None
    due: int | None
    fence: int
    worker: str | None
    body: bytes

    @property
    def overdue(self) -> bool:
        """Has ``expires_at`` passed while the run is active? Then it *is* expired (BEHAVIOUR RUN-44)."""
        return self.status in lifecycle.ACTIVE and self.expires_at <= clock.now()


class Ended(msgspec.Struct, frozen=True):
    """A run that reached the end of its life, or of a turn: the events to publish, and which run may start now."""

    run: Run
    body: bytes
    events: list[bytes]
    promoted: str | None = None


class Reserved(msgspec.Struct, frozen=True):
    """Order keys taken in a thread: the first of them, and the thread's own rule for what an active run meets."""

    first: int
    on_active_run: str | None


async def reserve(tx: Tx, workspace: str, thread: str, count: int, messages: int) -> Reserved:
    """Take ``count`` order keys in ``thread`` for ``messages`` new messages and what else is new; locks the thread.

    Raises a 404 `ApiError`, and a 400 when the thread would pass its 100,000 messages (BEHAVIOUR MSG-15).
    """
    row = await tx.row(_RESERVE, key=thread, owner=workspace, count=count, added=messages)
    if row is None:
        raise not_found("thread", thread)
    last, total, rule = row
    if messages > 0 and total > MAX_MESSAGES:
        raise bad_request(f"Thread {thread} is full: a thread holds at most {MAX_MESSAGES} messages.")
    return Reserved(last - count + 1, rule)


async def insert_messages(tx: Tx, messages: list[Message], first: int, *, place: int | None = None) -> list[bytes]:
    """Store ``messages`` under the order keys from ``first`` on; answers their bodies.

    ``place`` is where they stand for the model: at their own keys (``None``), or where their run stands.
    """
    bodies = [encode(message) for message in messages]
    await tx.insert(
        _INSERT_MESSAGE,
        [
            {
                "id": message.id,
                "thread_id": message.thread_id,
                "position": first + offset,
                "run_id": message.run_id,
                "place": first + offset if place is None else place,
                "role": message.role,
                "body": body,
            }
            for offset, (message, body) in enumerate(zip(messages, bodies, strict=True))
        ],
    )
    return bodies


async def lock_thread(tx: Tx, thread: str) -> bool:
    """Lock the thread until the commit, as `reserve` does; ``False`` when there is none.

    Whoever may end a run does so before it locks the run: so who holds the thread changes only under its lock.
    """
    return await tx.row(_LOCK, key=thread) is not None


async def run_row(tx: Tx, id: str) -> RunRow | None:
    """The run's row, locked until the commit."""
    row = await tx.row(_BY_ID, key=id)
    return None if row is None else RunRow(*row)


async def holder(tx: Tx, thread: str) -> RunRow | None:
    """The run that holds ``thread`` (BEHAVIOUR LOCK-04), locked until the commit."""
    row = await tx.row(_HOLDER, key=thread)
    return None if row is None else RunRow(*row)


async def put_step(tx: Tx, step: Step, usage: Usage | None = None) -> bytes:
    """Write ``step`` back; ``usage`` is kept beside it while it is open. Answers the body."""
    body = encode(step)
    await tx.run(
        _PUT_STEP,
        key=step.id,
        new_status=step.status,
        new_body=body,
        new_usage=None if usage is None else encode(usage),
    )
    return body


async def put_written(tx: Tx, message: Message) -> bytes:
    """`put_message` for a run that writes it: metadata that a client gave it meanwhile stays (BEHAVIOUR LOCK-07)."""
    found = await tx.row(_MESSAGE, key=message.id)
    if found is not None:
        message = msgspec.structs.replace(message, metadata=decode_message(found[0]).metadata)
    return await put_message(tx, message)


async def put_message(tx: Tx, message: Message) -> bytes:
    """Write ``message`` back; answers the body. A message that was deleted meanwhile stays deleted (LOCK-08)."""
    body = encode(message)
    await tx.run(_PUT_MESSAGE, key=message.id, new_body=body)
    return body


async def change_run(
    tx: Tx, outbox: Outbox, row: RunRow, verb: RunVerb, *, fence: int | None = None, **fields: object
) -> Ended:
    """Carry ``verb`` out on a run and write it back; ``fields`` are set besides.

    A terminal status gives the thread, which has to be locked for it, to the next run that waits for it. ``fence``
    replaces the fencing token (what a worker still writes with the old one is refused). Raises `IllegalTransition`.
    """
    now = clock.now()
    run = lifecycle.step_on(lifecycle.RUN, decode_run(row.body), verb, int(now), **fields)
    body = encode(run)
    terminal = run.status in lifecycle.TERMINAL
    if terminal:
        due = None
    elif run.status in lifecycle.SETTLED:
        due = millis(row.expires_at)  # the client's turn: a worker comes by when the time is over
    elif row.status in lifecycle.EXECUTING:
        due = row.due  # its worker goes on under its lease
    else:
        due = millis(now)
    holds = None if terminal else row.holds
    await tx.run(
        _PUT,
        key=row.id,
        new_status=run.status,
        new_body=body,
        new_due=due,
        new_holds=holds,
        new_fence=row.fence if fence is None else fence,
    )
    await outbox.record(tx, row.workspace, row.id, f"thread.run.{run.status}", body)
    promoted = None
    if terminal and row.holds is not None:
        next_run = await tx.row(_PROMOTE, key=row.thread_id, now=millis(now))
        promoted = None if next_run is None else next_run[0]
    return Ended(run, body, [events.run_event(run, body)], promoted)


async def start_run(tx: Tx, outbox: Outbox, row: RunRow) -> Ended:
    """`start` a run that was just claimed; its lease (``due``) stays as the claim set it."""
    run = lifecycle.step_on(lifecycle.RUN, decode_run(row.body), "start", clock.timestamp())
    body = encode(run)
    await tx.run(
        _PUT,
        key=row.id,
        new_status=run.status,
        new_body=body,
        new_due=row.due,
        new_holds=row.holds,
        new_fence=row.fence,
    )
    row.status, row.body = run.status, body
    await outbox.record(tx, row.workspace, row.id, f"thread.run.{run.status}", body)
    return Ended(run, body, [events.run_event(run, body)])


async def usage_of(tx: Tx, run_id: str) -> Usage:
    """The sum of the run's steps (BEHAVIOUR RUN-37), open ones included."""
    parts: list[Usage | None] = []
    for body, kept in await tx.rows(_ALL_USAGE, key=run_id):
        parts.append(decode_usage(kept) if kept is not None else decode_step(body).usage)
    return Usage.of(*parts)


class Meeting(msgspec.Struct):
    """What a new run or message found in its thread: whether it has to wait, and whom that ended or interrupted."""

    waits: bool = False
    changed: list[Ended] = []


async def meet(tx: Tx, outbox: Outbox, thread: str, rule: str, refusal: Callable[[str, str], ApiError]) -> Meeting:
    """Apply the thread's ``rule`` (``reject``, ``enqueue``, ``interrupt``) to a newcomer while a run is active.

    The thread has to be locked. A holder whose time is over is expired on the way (BEHAVIOUR RUN-46). Raises what
    ``refusal(thread, run)`` makes.
    """
    meeting = Meeting()
    while (row := await holder(tx, thread)) is not None:
        if row.overdue:
            meeting.changed.append(await end_run(tx, outbox, row, "expire"))
            continue
        if rule == "reject":
            raise refusal(thread, row.id)
        if rule == "interrupt" and row.status in lifecycle.RUN["request_cancel"].sources:
            meeting.changed.append(await change_run(tx, outbox, row, "request_cancel"))
        meeting.waits = True
        break
    return meeting


async def end_run(tx: Tx, outbox: Outbox, row: RunRow, verb: RunVerb, failure: Failure | None = None) -> Ended:
    """End a run by ``verb`` with what is stored of it: open steps and messages are closed as ENDINGS says.

    The thread has to be locked. The fencing token moves on, so a worker that still holds the run writes nothing more.
    Answers the events in the order of BEHAVIOUR SSE-48, -49, -51.
    """
    step_verb, reason = lifecycle.ENDINGS[verb]
    now = clock.timestamp()
    told: list[bytes] = []
    usage = await usage_of(tx, row.id)
    for body, kept in await tx.rows(_OPEN_STEPS, key=row.id):
        step = decode_step(body)
        if isinstance(step.step_details, MessageDetails):
            told += await _cut_message(tx, step.step_details.message_creation.message_id, reason, now)
        fields: dict[str, object] = {"usage": decode_usage(kept) if kept is not None else None}
        if step_verb == "fail":
            fields["last_error"] = _step_failure(failure)
        step = lifecycle.step_on(lifecycle.STEP, step, step_verb, now, **fields)
        await put_step(tx, step)
        told.append(events.step_event(step, row.expires_at))
    changes: dict[str, object] = {"usage": usage}
    if failure is not None:
        changes["last_error"] = failure
    ended = await change_run(tx, outbox, row, verb, fence=row.fence + 1, **changes)
    return msgspec.structs.replace(ended, events=told + ended.events)


async def _cut_message(tx: Tx, id: str, reason: str, now: int) -> list[bytes]:
    found = await tx.row(_MESSAGE, key=id)
    if found is None:
        return []
    message = decode_message(found[0])
    if message.status not in lifecycle.MESSAGE["cut"].sources:
        return []
    details = IncompleteMessage(reason)
    message = lifecycle.step_on(lifecycle.MESSAGE, message, "cut", now, incomplete_details=details)
    return [events.message_event(message, await put_message(tx, message))]


def _step_failure(failure: Failure | None) -> Failure:
    """A step's ``last_error`` knows only two codes (BEHAVIOUR RUN-90)."""
    if failure is None:
        return Failure("server_error", "Sorry, something went wrong.")
    return failure if failure.code == "rate_limit_exceeded" else Failure("server_error", failure.message)
