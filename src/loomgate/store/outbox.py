"""The outbox: webhook calls, written in the same transaction as the status change they tell of.

What must live here: which calls are owed, and what became of them. What must not: HTTP (``engine/webhooks.py``).
"""

from collections.abc import Sequence

import msgspec
import sqlalchemy as sa

from loomgate import clock
from loomgate.store import tables
from loomgate.store.database import Database, Statement, Tx
from loomgate.wire.ids import new_id

_t = tables.deliveries
_INSERT = Statement(sa.insert(_t))
_CLAIM = Statement(
    sa.update(_t)
    .where(
        _t.c.id.in_(
            sa.select(_t.c.id)
            .where(_t.c.due <= sa.bindparam("now"))
            .order_by(_t.c.due)
            .limit(sa.bindparam("count", type_=sa.Integer))
            .with_for_update(skip_locked=True)
        )
    )
    .values(due=sa.bindparam("until"), attempts=_t.c.attempts + 1)
    .returning(_t.c.id, _t.c.endpoint, _t.c.attempts, _t.c.payload)
)
_RETRY = Statement(
    sa.update(_t).where(_t.c.id == sa.bindparam("key")).values(due=sa.bindparam("next"), outcome=sa.bindparam("why"))
)
_END = Statement(
    sa.update(_t)
    .where(_t.c.id == sa.bindparam("key"))
    .values(due=None, ended_at=sa.bindparam("at"), outcome=sa.bindparam("why"))
)
_FORGET = Statement(sa.delete(_t).where(_t.c.ended_at < sa.bindparam("before")))


class Endpoint(msgspec.Struct, frozen=True):
    """Where webhooks go: the URL, whose runs it hears of, and of which events (empty: all)."""

    url: str
    workspace: str
    events: frozenset[str] = frozenset()

    def hears(self, workspace: str, event: str) -> bool:
        """Is ``event`` of a run in ``workspace`` for this endpoint?"""
        return self.workspace == workspace and (not self.events or event in self.events)


class Delivery(msgspec.Struct, frozen=True):
    """A webhook call to make now; ``attempts`` counts this one."""

    id: str
    endpoint: str
    attempts: int
    payload: bytes


class Outbox:
    """Calls owed to the configured endpoints."""

    def __init__(self, database: Database, endpoints: Sequence[Endpoint]) -> None:
        self._db = database
        self._endpoints = endpoints

    async def record(self, tx: Tx, workspace: str, run_id: str, event: str, body: bytes) -> None:
        """Owe every endpoint that hears of ``event`` (``thread.run.<status>``) a call with the run's ``body``."""
        for endpoint in self._endpoints:
            if endpoint.hears(workspace, event):
                now = clock.now()
                payload = b'{"type":"%b","timestamp":%d,"data":%b}' % (event.encode(), int(now), body)
                await tx.run(
                    _INSERT,
                    id=new_id("evt"),
                    endpoint=endpoint.url,
                    run_id=run_id,
                    position=int(now * 1000),
                    attempts=0,
                    due=int(now * 1000),
                    ended_at=None,
                    outcome=None,
                    payload=payload,
                )

    async def claim(self, count: int, lease_seconds: float) -> list[Delivery]:
        """Up to ``count`` calls that are due; nobody else gets them for ``lease_seconds``."""
        now = int(clock.now() * 1000)
        rows = await self._db.write(
            lambda tx: tx.rows(_CLAIM, now=now, count=count, until=now + int(lease_seconds * 1000))
        )
        return [Delivery(*row) for row in rows]

    async def retry(self, id: str, seconds: float, why: str) -> None:
        """Try again in ``seconds``; ``why`` says what went wrong."""
        due = int((clock.now() + seconds) * 1000)
        await self._db.write(lambda tx: tx.run(_RETRY, key=id, next=due, why=why))

    async def end(self, id: str, outcome: str) -> None:
        """Never call again: it was delivered, or given up; ``outcome`` says which."""
        await self._db.write(lambda tx: tx.run(_END, key=id, at=clock.timestamp(), why=outcome))

    async def forget(self, before: int) -> None:
        """Drop calls that ended before the time ``before`` (seconds)."""
        await self._db.write(lambda tx: tx.run(_FORGET, before=before))
