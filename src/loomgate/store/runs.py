"""Runs and run steps: created, read and changed by clients; claimed, driven and journaled by workers.

The table is the queue: ``due`` says when a run next needs a worker. A claim stamps a fresh fencing token, and
whatever a worker writes is conditional on it (`LeaseLost` otherwise). Steps are the journal of a run.
"""

from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa

from loomgate import clock
from loomgate.errors import ApiError, LeaseLost, bad_request, not_found
from loomgate.store import rows, tables
from loomgate.store.claims import Queue
from loomgate.store.database import Database, Statement, Tx
from loomgate.store.outbox import Outbox
from loomgate.store.pages import Listing
from loomgate.store.records import Applied, Claimed, Commit, Created, Entry, Journal, Overdue, Submitted
from loomgate.store.rows import Ended, RunRow, encode, millis
from loomgate.store.threads import insert_thread
from loomgate.wire import events, lifecycle
from loomgate.wire.lifecycle import RunVerb
from loomgate.wire.page import Page, PageQuery
from loomgate.wire.runs import Failure, Run, RunSpec, Step, StepToolCall, ToolCallsDetails
from loomgate.wire.threads import Message, Thread

_r, _s, _m, _t = tables.runs, tables.steps, tables.messages, tables.threads
_key: sa.BindParameter[Any] = sa.bindparam("key")
_owner: sa.BindParameter[Any] = sa.bindparam("owner")
_thread: sa.BindParameter[Any] = sa.bindparam("thread")

_INSERT = Statement(sa.insert(_r))
_HAS_USER = Statement(
    sa.select(_m.c.id)
    .where(_m.c.thread_id == _key, _m.c.role == sa.literal_column("'user'"))
    .limit(sa.literal_column("1", sa.Integer))
)
_THREAD = Statement(sa.select(_t.c.id).where(_t.c.id == _key, _t.c.workspace == _owner))
_RUN = Statement(
    sa.select(_r.c.status, _r.c.expires_at, _r.c.body)
    .join(_t, _t.c.id == _r.c.thread_id)
    .where(_r.c.id == _key, _r.c.thread_id == _thread, _t.c.workspace == _owner)
)
_THREAD_OF = Statement(sa.select(_r.c.thread_id).where(_r.c.id == _key))
_SPEC = Statement(sa.select(_r.c.spec).where(_r.c.id == _key))
_PUT_BODY = Statement(sa.update(_r).where(_r.c.id == _key).values(body=sa.bindparam("new_body")))
_LIST = Listing(_r, "thread_id")
_STEP_LIST = Listing(_s, "run_id")
_STEP = Statement(sa.select(_s.c.body).where(_s.c.id == _key, _s.c.run_id == sa.bindparam("run")))
_RENEW = Statement(
    sa.update(_r)
    .where(
        _r.c.id == _key,
        _r.c.fence == sa.bindparam("token"),
        _r.c.status.in_([sa.literal_column(f"'{status}'") for status in sorted(lifecycle.HELD)]),
    )
    .values(due=sa.bindparam("until"))
)
_PARK = Statement(
    sa.update(_r)
    .where(_r.c.id == _key, _r.c.fence == sa.bindparam("token"), _r.c.due.is_not(None))
    .values(due=_r.c.expires_at * 1000, fence=_r.c.fence + 1)
)
_ADOPT = Statement(
    sa.update(_r)
    .where(
        _r.c.due > sa.bindparam("now"),
        sa.or_(
            _r.c.status.in_([sa.literal_column(f"'{s}'") for s in sorted(lifecycle.HELD)]),
            _r.c.expires_at * 1000 <= sa.bindparam("now"),  # claimed to be expired
        ),
    )
    .values(due=sa.bindparam("now"))
)
_STATUS = Statement(sa.select(_r.c.status, _r.c.fence).where(_r.c.id == _key))
_JOURNAL = Statement(sa.select(_s.c.body, _s.c.turn, _s.c.usage).where(_s.c.run_id == _key).order_by(_s.c.position))
_HISTORY = Statement(
    sa.select(_m.c.place, _m.c.position, _m.c.body)
    .where(
        _m.c.thread_id == _key,
        _m.c.place >= sa.bindparam("place"),  # implied by what follows, but PostgreSQL's planner does not see it
        _m.c.place < sa.bindparam("end"),
        sa.or_(
            _m.c.place > sa.bindparam("place"),
            sa.and_(_m.c.place == sa.bindparam("place"), _m.c.position > sa.bindparam("position")),
        ),
    )
    .order_by(_m.c.place, _m.c.position)
    .limit(sa.bindparam("count", type_=sa.Integer))
)
_INSERT_STEP = Statement(sa.insert(_s))
_DROP_STEP = Statement(sa.delete(_s).where(_s.c.id == _key))
_DROP_MESSAGE = Statement(sa.delete(_m).where(_m.c.id == _key))
_MESSAGES_OF = Statement(
    sa.select(_m.c.body)
    .where(
        _m.c.thread_id == sa.select(_r.c.thread_id).where(_r.c.id == _key).scalar_subquery(),
        _m.c.run_id == _key,
    )
    .order_by(_m.c.position)
)
_OPEN_CALLS = Statement(
    sa.select(_s.c.body, _s.c.usage)
    .where(_s.c.run_id == _key, _s.c.status == sa.literal_column("'in_progress'"))
    .order_by(_s.c.position.desc())
)
_ACTIVE_OF_ALL = Statement(sa.select(sa.func.count()).select_from(_r).where(_r.c.due.is_not(None)))

_decode_spec = msgspec.json.Decoder(RunSpec).decode


def _locked(thread: str, run: str) -> ApiError:
    return bad_request(f"Thread {thread} already has an active run {run}.")  # LOCK-03


class Runs:
    """Verbs on runs and steps. ``workspace`` is the caller's: another one's id is unknown."""

    def __init__(self, database: Database, outbox: Outbox, default_rule: str) -> None:
        self._db = database
        self._outbox = outbox
        self._default_rule = default_rule
        self.queue = Queue(database)

    # What clients do

    async def create(
        self, workspace: str, run: Run, spec: RunSpec, messages: list[Message], thread: Thread | None = None
    ) -> Created:
        """Queue ``run`` with its additional ``messages`` (RUN-08), in a new ``thread`` if one is given (RUN-12).

        Raises 404 for the thread, LOCK-03 (400) while a run is active and the thread's rule is to reject, and
        400 ``invalid_thread`` when there is nothing to answer (RUN-13). Nothing is kept of a refused run (LOCK-11).
        """

        async def work(tx: Tx) -> Created:
            thread_body = None
            if thread is not None:
                position = len(messages) + 1
                thread_body = await insert_thread(tx, workspace, thread, messages, positions=position)
                meeting = rows.Meeting()
            else:
                reserved = await rows.reserve(tx, workspace, run.thread_id, len(messages) + 1, len(messages))
                rule = reserved.on_active_run or self._default_rule
                meeting = await rows.meet(tx, self._outbox, run.thread_id, rule, _locked)
                await rows.insert_messages(tx, messages, reserved.first)
                position = reserved.first + len(messages)
            if not run.instructions and await tx.row(_HAS_USER, key=run.thread_id) is None:
                raise bad_request(
                    "Run creation requires a Thread with a user message or an assistant with instructions.",
                    code="invalid_thread",
                )
            body = encode(run)
            expires_at = run.expires_at or 0
            await tx.run(
                _INSERT,
                id=run.id,
                workspace=workspace,
                thread_id=run.thread_id,
                position=position,
                status=run.status,
                expires_at=expires_at,
                holds=None if meeting.waits else run.thread_id,
                due=millis(expires_at if meeting.waits else clock.now()),
                fence=0,
                worker=None,
                spec=encode(spec),
                body=body,
            )
            for name in ("created", run.status):  # two events, as in a stream
                await self._outbox.record(tx, workspace, run.id, f"thread.run.{name}", body)
            return Created(body, meeting.changed, meeting.waits, thread_body)

        return await self._db.write(work)

    async def body(self, workspace: str, thread: str, id: str) -> bytes | Overdue:
        """The stored body, or `Overdue`. Raises a 404 `ApiError` of the thread or of the run (RUN-81)."""
        row = await self._db.row(_RUN, key=id, thread=thread, owner=workspace)
        if row is None:
            if await self._db.row(_THREAD, key=thread, owner=workspace) is None:
                raise not_found("thread", thread)
            raise not_found("run", id)
        status, expires_at, body = row
        if status in lifecycle.ACTIVE and expires_at <= clock.now():
            return Overdue([id])
        return body

    async def page(self, workspace: str, thread: str, query: PageQuery) -> Page | Overdue:
        """One page of the thread's runs, or `Overdue`. Raises a 404 `ApiError` of the thread."""

        async def work(tx: Tx) -> Page | Overdue:
            if await tx.row(_THREAD, key=thread, owner=workspace) is None:
                raise not_found("thread", thread)
            found, has_more = await _LIST.rows(tx, thread, query, ("id", "body", "status", "expires_at"))
            now = clock.now()
            overdue = [row[0] for row in found if row[3] <= now and row[2] in lifecycle.ACTIVE]
            if overdue:
                return Overdue(overdue)
            return Page([row[0] for row in found], [row[1] for row in found], has_more)

        return await self._db.look(work)

    async def modify(self, workspace: str, thread: str, id: str, change: Callable[[Run], Run]) -> bytes | Overdue:
        """Replace a terminal run by what ``change`` makes of it (RUN-85, RUN-86, RUN-89).

        Answers the new body, or `Overdue`. Raises 404, and 400 while the run is active.
        """

        async def work(tx: Tx) -> bytes | Overdue:
            row = await self._for_client(tx, workspace, thread, id)
            if row.overdue:
                return Overdue([id])
            if row.status in lifecycle.ACTIVE:
                raise bad_request(f"Cannot update run with status '{row.status}'.")
            body = encode(change(rows.decode_run(row.body)))
            await tx.run(_PUT_BODY, key=id, new_body=body)
            return body

        return await self._db.write(work)

    async def cancel(self, workspace: str, thread: str, id: str) -> Ended | Overdue:
        """Ask for the run's end: it is `cancelling` until its worker, or the next one, ends it (RUN-50 to RUN-54).

        Answers the run as it is then, or `Overdue`. Raises 404, and 400 in a status that cannot be cancelled
        (RUN-55, RUN-56).
        """

        async def work(tx: Tx) -> Ended | Overdue:
            row = await self._for_client(tx, workspace, thread, id)
            if row.overdue:
                return Overdue([id])
            if row.status not in lifecycle.RUN["request_cancel"].sources:
                raise bad_request(f"Cannot cancel run with status '{row.status}'.")
            return await rows.change_run(tx, self._outbox, row, "request_cancel")

        return await self._db.write(work)

    async def submit(self, workspace: str, thread: str, id: str, outputs: list[tuple[str, str]]) -> Submitted | Overdue:
        """Give the run the (call id, output) pairs it waits for; it is `queued` again (RUN-60 to RUN-70).

        Answers the run as it is then, or `Overdue`. Raises 404, and 400 in a wrong status (RUN-64) or when the ids are
        not exactly those expected (RUN-65, -66).
        """

        async def work(tx: Tx) -> Submitted | Overdue:
            row = await self._for_client(tx, workspace, thread, id)
            if row.overdue:
                return Overdue([id])
            if row.status not in lifecycle.RUN["resume"].sources:
                raise bad_request(f'Runs in status "{row.status}" do not accept tool outputs.')
            found = await tx.row(_OPEN_CALLS, key=id)
            if found is None:
                raise LeaseLost(f"run {id} waits for outputs but has no open step")
            step = rows.decode_step(found[0])
            assert isinstance(step.step_details, ToolCallsDetails)
            calls = step.step_details.tool_calls
            expected, given = [call.id for call in calls], [call_id for call_id, _ in outputs]
            if sorted(expected) != sorted(given):
                raise bad_request(f"Expected tool outputs for call_ids {expected}, got {given}")
            by_id = dict(outputs)
            answered = [
                StepToolCall(call.id, msgspec.structs.replace(call.function, output=by_id[call.id])) for call in calls
            ]
            usage = None if found[1] is None else rows.decode_usage(found[1])
            step = lifecycle.step_on(
                lifecycle.STEP,
                step,
                "complete",
                clock.timestamp(),
                step_details=ToolCallsDetails(answered),
                usage=usage,
            )
            await rows.put_step(tx, step)
            resumed = await rows.change_run(tx, self._outbox, row, "resume")
            return Submitted(resumed.body, [events.step_event(step, row.expires_at), *resumed.events], row.fence)

        return await self._db.write(work)

    async def _for_client(self, tx: Tx, workspace: str, thread: str, id: str) -> RunRow:
        row = await rows.run_row(tx, id)
        known = await tx.row(_THREAD, key=thread, owner=workspace) is not None
        if not known:
            raise not_found("thread", thread)
        if row is None or row.thread_id != thread:
            raise not_found("run", id)
        return row

    async def steps(self, workspace: str, thread: str, id: str, query: PageQuery) -> Page | Overdue:
        """One page of the run's steps; a step of an active run shows the run's ``expires_at`` (STEP-18)."""
        run = await self.body(workspace, thread, id)
        if isinstance(run, Overdue):
            return run
        page = await self._db.read(lambda tx: _STEP_LIST.page(tx, id, query))
        return Page(page.ids, [_shown(body, run) for body in page.bodies], page.has_more)

    async def step(self, workspace: str, thread: str, id: str, step: str) -> bytes | Overdue:
        """The body of one step. Raises a 404 `ApiError` of the thread, the run or the step (STEP-19)."""
        run = await self.body(workspace, thread, id)
        if isinstance(run, Overdue):
            return run
        row = await self._db.row(_STEP, key=step, run=id)
        if row is None:
            raise not_found("step", step)
        return _shown(row[0], run)

    async def spec(self, id: str) -> RunSpec:
        """The private half of a run that exists."""
        row = await self._db.row(_SPEC, key=id)
        assert row is not None
        return _decode_spec(row[0])

    # What workers do

    async def claim(self, worker: str, count: int, lease_seconds: float, workspace_runs: int = 0) -> list[Claimed]:
        """Up to ``count`` runs that are due, each under a fresh fencing token for ``lease_seconds``.

        Workspaces take turns, and none gets more than ``workspace_runs`` into workers' hands (0: no limit). A queued
        run that holds its thread is started (RUN-34); others are handed over as they are: cancelling, past their time,
        or left behind by a worker that is gone.
        """
        offer = await self.queue.offer(count, workspace_runs)
        if offer is None:
            return []

        async def work(tx: Tx) -> list[Claimed]:
            claimed: list[Claimed] = []
            until = millis(clock.now() + lease_seconds)
            for found in await self.queue.take(tx, offer, count, worker, until):
                row = RunRow(*found[:11])
                spec = _decode_spec(found[11])
                startable = row.holds is not None and row.status in lifecycle.RUN["start"].sources
                if startable and not row.overdue:
                    ended = await rows.start_run(tx, self._outbox, row)
                    claimed.append(Claimed(row, ended.run, ended.body, spec, ended.events))
                else:
                    claimed.append(Claimed(row, rows.decode_run(row.body), row.body, spec, []))
            return claimed

        return await self._db.write(work)

    async def seconds_to_next(self) -> float:
        """Seconds until some run next needs a worker; infinity when none will before somebody makes a move."""
        return (await self.queue.next_due()) / 1000 - clock.now()

    async def renew(self, held: list[tuple[str, int]], lease_seconds: float) -> list[str]:
        """Renew the leases of ``held`` (run id, fencing token); answers the ids whose token is void."""
        until = millis(clock.now() + lease_seconds)

        async def work(tx: Tx) -> list[str]:
            return [id for id, fence in held if not await tx.run(_RENEW, key=id, token=fence, until=until)]

        return await self._db.write(work)

    async def hand_back(self, held: list[tuple[str, int]]) -> None:
        """Make runs due at once for whoever comes next: a worker that stops gives its leases up."""
        await self.renew(held, 0)

    async def park(self, row: RunRow) -> None:
        """Put a claimed run back that has nothing for a worker to do before its ``expires_at``. The token moves on."""
        await self._db.write(lambda tx: tx.run(_PARK, key=row.id, token=row.fence))

    async def adopt(self) -> int:
        """Make every leased run due at once; answers how many. Only for the one process that may use this database:
        whoever held those leases is gone."""
        return await self._db.write(lambda tx: tx.run(_ADOPT, now=millis(clock.now())))

    async def status(self, id: str, fence: int | None = None) -> str | None:
        """The stored status of a run; ``None`` when it is gone, or when ``fence`` is given and no longer its token."""
        row = await self._db.row(_STATUS, key=id)
        return None if row is None or fence not in (None, row[1]) else row[0]

    async def journal(self, id: str) -> Journal:
        """What run ``id`` has done so far."""

        async def work(tx: Tx) -> Journal:
            entries = [
                Entry(rows.decode_step(body), turn, None if usage is None else rows.decode_usage(usage))
                for body, turn, usage in await tx.rows(_JOURNAL, key=id)
            ]
            written = [rows.decode_message(body) for (body,) in await tx.rows(_MESSAGES_OF, key=id)]
            return Journal(entries, {message.id: message for message in written})

        return await self._db.read(work)

    async def history(
        self, thread: str, before: int, after: tuple[int, int], count: int
    ) -> list[tuple[int, int, bytes]]:
        """Up to ``count`` messages of the thread that stand before place ``before`` and after (place, position)
        ``after``, oldest first: (place, position, body)."""
        place, position = after
        found = await self._db.rows(_HISTORY, key=thread, end=before, place=place, position=position, count=count)
        return [(row[0], row[1], row[2]) for row in found]

    async def apply(self, row: RunRow, commit: Commit) -> Applied:
        """Write one move of the worker that holds ``row``. One that ends the run or waits for its client moves the
        fencing token on: the run has left the worker's hands.

        Raises `LeaseLost` when the fencing token is not the current one, and `IllegalTransition` when the run's status
        changed meanwhile and no longer allows the verb (somebody asked to cancel it); nothing is written then.
        """

        async def work(tx: Tx) -> Applied:
            current, first = await self._mine(tx, row, commit)
            for id in commit.drop_steps:
                await tx.run(_DROP_STEP, key=id)
            gone = 0
            for id in commit.drop_messages:
                gone += await tx.run(_DROP_MESSAGE, key=id)
            if gone < len(commit.drop_messages):  # the client had deleted some of them, which counted them off
                await rows.reserve(tx, row.workspace, row.thread_id, 0, len(commit.drop_messages) - gone)
            bodies: dict[str, bytes] = {}
            if commit.open_messages:
                written = await rows.insert_messages(
                    tx, commit.open_messages, first + len(commit.open_steps), place=row.position
                )
                bodies.update(zip((message.id for message in commit.open_messages), written, strict=True))
            if commit.open_steps:
                opened = [_step_row(step, first + offset, commit.turn) for offset, step in enumerate(commit.open_steps)]
                await tx.insert(_INSERT_STEP, opened)
            for message in commit.put_messages:
                bodies[message.id] = await rows.put_written(tx, message)
            for step, usage in commit.put_steps:
                await rows.put_step(tx, step, usage)
            if commit.verb is None:
                return Applied(rows.decode_run(current.body), current.body, bodies)
            fields = dict(commit.fields)
            if lifecycle.RUN[commit.verb].target in lifecycle.TERMINAL:
                fields["usage"] = await rows.usage_of(tx, row.id)
            # Out of its worker's hands: whoever did not hear that this was committed can do nothing to it any more.
            leaves = lifecycle.RUN[commit.verb].target in lifecycle.SETTLED
            fence = current.fence + 1 if leaves else None
            ended = await rows.change_run(tx, self._outbox, current, commit.verb, fence=fence, **fields)
            return Applied(ended.run, ended.body, bodies, ended.promoted)

        return await self._db.write(work)

    async def _mine(self, tx: Tx, row: RunRow, commit: Commit) -> tuple[RunRow, int]:
        """The row as it is now, and the first order key for what ``commit`` opens; the thread, if it changes, and the
        run are locked. Raises `LeaseLost`."""
        first, refusal = 0, None
        if commit.open_steps or commit.open_messages or commit.drop_messages:
            new = len(commit.open_steps) + len(commit.open_messages)
            added = len(commit.open_messages) - len(commit.drop_messages)
            try:
                first = (await rows.reserve(tx, row.workspace, row.thread_id, new, added)).first
            except ApiError as error:  # the thread is full, or gone, and so is the lease
                refusal = error
        elif commit.verb is not None and lifecycle.RUN[commit.verb].target in lifecycle.TERMINAL:
            await rows.lock_thread(tx, row.thread_id)
        current = await rows.run_row(tx, row.id)
        if current is None or current.fence != row.fence:
            raise LeaseLost(row.id)
        if refusal is not None:
            raise refusal
        return current, first

    async def end(
        self, id: str, verb: RunVerb, *, fence: int | None = None, failure: Failure | None = None
    ) -> Ended | None:
        """End a run with what is stored of it: with ``fence`` as its worker (`LeaseLost` if it is void), without it as
        somebody who found it past its time. ``None`` when the run is gone or its status does not allow ``verb``."""

        async def work(tx: Tx) -> Ended | None:
            place = await tx.row(_THREAD_OF, key=id)
            if place is not None:
                await rows.lock_thread(tx, place[0])
            row = await rows.run_row(tx, id)
            if row is None or (fence is not None and row.fence != fence):
                if fence is not None:
                    raise LeaseLost(id)
                return None
            if row.status not in lifecycle.RUN[verb].sources or (verb == "expire" and not row.overdue):
                return None
            return await rows.end_run(tx, self._outbox, row, verb, failure)

        return await self._db.write(work)

    async def active(self) -> int:
        """How many runs are not terminal."""
        row = await self._db.row(_ACTIVE_OF_ALL)
        return 0 if row is None else row[0]


def _step_row(step: Step, position: int, turn: int) -> dict[str, Any]:
    return {
        "id": step.id,
        "thread_id": step.thread_id,
        "run_id": step.run_id,
        "position": position,
        "turn": turn,
        "status": step.status,
        "usage": None,
        "body": encode(step),
    }


def _shown(step: bytes, run: bytes) -> bytes:
    decoded = rows.decode_run(run)
    if decoded.status in lifecycle.TERMINAL:
        return step
    return encode(msgspec.structs.replace(rows.decode_step(step), expires_at=decoded.expires_at))
