"""The outbox: webhook calls, written in the same transaction as the status change they tell of.

What must live here: which calls are owed, in which order, and what became of them. What must not: HTTP, or when a call
is tried again (``engine/webhooks.py``).

For each endpoint, the calls about one run form a queue. Only its first is ever due; the one after it becomes due in
the transaction that ends the first, so no claim has to look past calls that must wait.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING

import msgspec
import sqlalchemy as sa

from loomgate import clock
from loomgate.store import tables
from loomgate.store.database import Database, Statement, Tx, some_of
from loomgate.wire.ids import new_id

if TYPE_CHECKING:
    from loomgate.settings import Webhook

_t = tables.deliveries
_ahead = _t.alias("ahead")
_key, _count = sa.bindparam("key", type_=sa.Text), sa.bindparam("count", type_=sa.Integer)
_now = sa.bindparam("now", type_=sa.BigInteger)
_one = sa.literal_column("1", sa.Integer)

_INSERT = Statement(sa.insert(_t))
# The lock makes whoever is ending that call wait for us, or us for them: else neither would wake the new one.
_LAST = Statement(
    sa.select(_t.c.position)
    .where(_t.c.endpoint == _key, _t.c.run_id == sa.bindparam("run"), _t.c.ended_at.is_(None))
    .order_by(_t.c.position.desc())
    .limit(_one)
    .with_for_update()
)
_CLAIM = Statement(
    sa.update(_t)
    .where(
        some_of(
            _t.c.id,
            sa.select(_t.c.id).where(_t.c.endpoint == _key, _t.c.due <= _now).order_by(_t.c.due).limit(_count),
        )
    )
    .values(due=sa.bindparam("until"), attempts=_t.c.attempts + 1)
    .returning(_t.c.id, _t.c.run_id, _t.c.attempts, _t.c.payload)
)
_NEXT_DUE = Statement(sa.select(sa.func.min(_t.c.due)).where(_t.c.endpoint == _key, _t.c.due.is_not(None)))
# ``attempts`` is the fencing token: whoever claimed the call after us has counted on.
_mine = sa.and_(_t.c.id == _key, _t.c.ended_at.is_(None), _t.c.attempts == sa.bindparam("token"))
_RETRY = Statement(sa.update(_t).where(_mine).values(due=sa.bindparam("next"), outcome=sa.bindparam("why")))
_RELEASE = Statement(sa.update(_t).where(_mine).values(due=_now, attempts=_t.c.attempts - 1))
_END = Statement(
    sa.update(_t)
    .where(_t.c.id == _key, _t.c.ended_at.is_(None))
    .values(
        due=sa.null(),
        ended_at=sa.bindparam("at"),
        outcome=sa.bindparam("why"),
        payload=sa.func.coalesce(sa.bindparam("stub", type_=sa.LargeBinary), _t.c.payload),
    )
    .returning(_t.c.endpoint, _t.c.run_id)
)
_ADVANCE = Statement(
    sa.update(_t)
    .where(
        _t.c.id
        == sa.select(_ahead.c.id)
        .where(
            _ahead.c.endpoint == _key,
            _ahead.c.run_id == sa.bindparam("run"),
            _ahead.c.ended_at.is_(None),
            _ahead.c.due.is_(None),
        )
        .order_by(_ahead.c.position)
        .limit(_one)
        .scalar_subquery()
    )
    .values(due=_now)
)
_OLD = Statement(sa.select(_t.c.id).where(_t.c.ended_at < sa.bindparam("before")).limit(_one))
_FORGET = Statement(
    sa.delete(_t).where(
        some_of(_t.c.id, sa.select(_t.c.id).where(_t.c.ended_at < sa.bindparam("before")).limit(_count))
    )
)
_NEXT_ENDPOINT = Statement(sa.select(sa.func.min(_t.c.endpoint)).where(_t.c.endpoint > _key, _t.c.ended_at.is_(None)))
_DISOWN = Statement(
    sa.delete(_t).where(
        some_of(
            _t.c.id,
            sa.select(_t.c.id)
            .where(_t.c.endpoint == _key, _t.c.ended_at.is_(None), _t.c.created_at < sa.bindparam("before"))
            .limit(_count),
        )
    )
)
_STEP = 500  # rows that housekeeping takes in one transaction


class Endpoint(msgspec.Struct, frozen=True):
    """A receiver of webhooks as the store knows it: whose runs it hears of, and of which events (empty: all)."""

    id: str
    workspace: str
    events: frozenset[str] = frozenset()

    def hears(self, workspace: str, event: str) -> bool:
        """Is ``event`` of a run in ``workspace`` for this endpoint?"""
        return self.workspace == workspace and (not self.events or event in self.events)


def endpoints_of(hooks: "Sequence[Webhook]") -> list[Endpoint]:
    """The endpoints of the configured ``hooks``, in their order.

    An id stays the same as long as URL and workspace do, so that a new secret or other events take nothing from an
    endpoint that is owed to it; equals are told apart by their order. It does not show the URL.
    """
    seen: Counter[tuple[str, str]] = Counter()
    found: list[Endpoint] = []
    for hook in hooks:
        place = (hook.workspace, hook.url)
        seen[place] += 1
        digest = hashlib.sha256(f"{hook.workspace}\n{hook.url}\n{seen[place]}".encode()).hexdigest()
        found.append(Endpoint(f"wh_{digest[:24]}", hook.workspace, frozenset(hook.events)))
    return found


class Delivery(msgspec.Struct, frozen=True):
    """A webhook call to make now; ``attempts`` counts this one."""

    id: str
    run_id: str
    attempts: int
    payload: bytes


class Outbox:
    """Calls owed to the configured endpoints."""

    def __init__(self, database: Database, endpoints: Sequence[Endpoint]) -> None:
        self._db = database
        self._endpoints = tuple(endpoints)
        self._listener: Callable[[str], None] | None = None

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """The endpoints that calls are recorded for."""
        return self._endpoints

    def listen(self, listener: Callable[[str], None] | None) -> None:
        """Call ``listener`` with an endpoint's id whenever it is owed a new call; ``None``: no more.

        A `claim` that begins then sees the call, a mere read may not.
        """
        self._listener = listener

    async def record(self, tx: Tx, workspace: str, run_id: str, event: str, body: bytes) -> None:
        """Owe every endpoint that hears of ``event`` (such as ``thread.run.completed``) a call with the run's ``body``.

        The run's row has to be locked by ``tx``: it orders the run's events.
        """
        payload: bytes | None = None
        for endpoint in self._endpoints:
            if not endpoint.hears(workspace, event):
                continue
            now = clock.now()
            if payload is None:
                payload = b'{"type":"%b","timestamp":"%b","data":%b}' % (event.encode(), _rfc3339(now), body)
            last = await tx.row(_LAST, key=endpoint.id, run=run_id)
            await tx.run(
                _INSERT,
                id=new_id("evt"),
                endpoint=endpoint.id,
                run_id=run_id,
                position=1 if last is None else last[0] + 1,
                attempts=0,
                created_at=int(now),
                due=int(now * 1000) if last is None else None,
                ended_at=None,
                outcome=None,
                payload=payload,
            )
            if self._listener is not None:
                tx.then(partial(self._listener, endpoint.id))

    async def claim(self, endpoint: str, count: int, lease_seconds: float) -> list[Delivery]:
        """Up to ``count`` calls to ``endpoint`` that are due; nobody else gets them for ``lease_seconds``."""
        now = clock.now()
        until = int((now + lease_seconds) * 1000)
        rows = await self._db.write(
            lambda tx: tx.rows(_CLAIM, key=endpoint, now=int(now * 1000), count=count, until=until)
        )
        return [Delivery(*row) for row in rows]

    async def seconds_to_next(self, endpoint: str) -> float:
        """Seconds until a call to ``endpoint`` is due or its lease is over; infinity when there is none."""
        row = await self._db.row(_NEXT_DUE, key=endpoint)
        return float("inf") if row is None or row[0] is None else row[0] / 1000 - clock.now()

    async def retry(self, delivery: Delivery, seconds: float, why: str) -> None:
        """Try again in ``seconds``; ``why`` says what went wrong. Without effect if somebody else has claimed it."""
        due = int((clock.now() + seconds) * 1000)
        await self._db.write(lambda tx: tx.run(_RETRY, key=delivery.id, token=delivery.attempts, next=due, why=why))

    async def release(self, deliveries: Sequence[Delivery]) -> None:
        """Give claimed calls back that were not made to their end: they are due, and the attempts do not count."""

        async def work(tx: Tx) -> None:
            for delivery in deliveries:
                await tx.run(_RELEASE, key=delivery.id, token=delivery.attempts, now=int(clock.now() * 1000))

        await self._db.write(work)

    async def end(self, delivery: Delivery, outcome: str, *, delivered: bool) -> None:
        """Never make this call again; ``outcome`` says why. The run's next event for the endpoint is due at once.

        The payload is kept of a call that was not ``delivered``, for somebody who looks into it.
        """

        stub = b"" if delivered else None

        async def work(tx: Tx) -> None:
            row = await tx.row(_END, key=delivery.id, at=clock.timestamp(), why=outcome, stub=stub)
            if row is not None:
                await tx.run(_ADVANCE, key=row[0], run=row[1], now=int(clock.now() * 1000))

        await self._db.write(work)

    async def forget(self, before: int) -> bool:
        """Drop some calls that ended before the time ``before`` (seconds); ``True`` when there may be more."""
        if await self._db.row(_OLD, before=before) is None:
            return False
        return await self._db.write(lambda tx: tx.run(_FORGET, before=before, count=_STEP)) == _STEP

    async def disown(self, before: int) -> int:
        """Drop calls recorded before ``before`` (seconds) that are owed to endpoints no longer configured; answers
        how many."""
        known = {endpoint.id for endpoint in self._endpoints}
        dropped, name = 0, ""
        while (row := await self._db.row(_NEXT_ENDPOINT, key=name)) is not None and row[0] is not None:
            name = row[0]
            while name not in known:
                gone = await self._db.write(lambda tx, key=name: tx.run(_DISOWN, key=key, before=before, count=_STEP))
                dropped += gone
                if gone < _STEP:
                    break
        return dropped


def _rfc3339(seconds: float) -> bytes:
    """``seconds`` since the epoch as Standard Webhooks shows a payload's time: 2026-11-20T12:00:00.123Z."""
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z").encode()
