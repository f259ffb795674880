"""Which runs a worker gets next: fair between workspaces, within their limits, and cheap however long the queue is.

What must live here: the statements of a claim, and the order in which runs are given out. What must not: what a worker
does with a run, or when it asks for one (``engine/``).

Two kinds of runs are given out (docs/why/leases.md). What somebody has to come back to goes first: a lease that has
lapsed, a run to be cancelled or past its time. Then queued runs, in turns: each workspace's next run, by how many it
has in workers' hands already.
"""

# ruff: noqa: S608 - all that is put into a statement's text is constant

from typing import Any

import msgspec
import sqlalchemy as sa

from loomgate import clock
from loomgate.store import rows, tables
from loomgate.store.database import Database, Row, Statement, Tx
from loomgate.store.rows import millis
from loomgate.wire import lifecycle

_r = tables.runs
WORKSPACES = 64  # looked at in one claim, in turns when there are more
# So many candidates for each run that is wanted: other workers may have locked the first ones at this moment.
_SPARE = 4
_WINDOWS = 8  # looked at in one go while all their workspaces are at their limits
# The name of the lock under which places are counted, among PostgreSQL's advisory locks: "loom", "clai".
_COUNTING = (0x6C6F6F6D, 0x636C6169)

# Text, since it is read more easily than what would build it. The conditions are those of partial indexes; all that is
# put in are constants. ``value`` runs over the workspaces whose names are given.
_RUNNING, _CANCELLING = (lifecycle.RUN[verb].target for verb in ("start", "request_cancel"))
_SOME_WORKSPACES = f"""
    WITH RECURSIVE found (workspace, number) AS (
        SELECT min(workspace), 1 FROM runs WHERE {tables.QUEUED} AND workspace > :after
        UNION ALL
        SELECT (SELECT min(workspace) FROM runs WHERE {tables.QUEUED} AND workspace > found.workspace), number + 1
        FROM found WHERE workspace IS NOT NULL AND number < :workspaces
    )
    SELECT workspace FROM found WHERE workspace IS NOT NULL"""
# A started run keeps its place until it is over, also while its lease has lapsed and nobody has come back to it yet;
# one to be cancelled has none once nobody is at it.
_TAKEN = f"""
    SELECT value AS workspace,
        (SELECT count(*) FROM runs
         WHERE {tables.HELD} AND workspace = value AND status = '{_RUNNING}')
        + (SELECT count(*) FROM runs
           WHERE {tables.HELD} AND workspace = value AND status = '{_CANCELLING}' AND due > :now) AS places
    FROM """
_FIRST = f"""
    FROM runs WHERE {tables.QUEUED} AND workspace = taken.workspace AND due <= :now ORDER BY due LIMIT :depth"""
_CANDIDATES = {
    engine: f"""
    WITH taken AS MATERIALIZED ({_TAKEN} {names}),
    turns AS (
        SELECT head.id, head.due,
            places + row_number() OVER (PARTITION BY taken.workspace ORDER BY head.due, head.id) - 1 AS turn
        FROM taken {heads}
    ),
    owed AS (SELECT id, due FROM runs WHERE {tables.OWED} AND due <= :now ORDER BY due LIMIT :spare),
    late AS (
        SELECT id, due FROM runs WHERE {tables.QUEUED} AND expires_at <= :seconds AND due <= :now
        ORDER BY expires_at LIMIT :spare
    ),
    candidates AS (
        SELECT id, due, -1 AS turn FROM owed UNION ALL SELECT id, due, -1 FROM late
        UNION ALL SELECT id, due, turn FROM turns WHERE :most = 0 OR turn < :most
    )"""
    for engine, names, heads in (
        ("sqlite", "json_each(:names)", f"JOIN runs AS head ON head.id IN (SELECT id {_FIRST})"),
        (
            "postgresql",
            "json_array_elements_text(CAST(:names AS json)) AS value",
            f"CROSS JOIN LATERAL (SELECT id, due {_FIRST}) AS head",
        ),
    )
}
_CLAIMED = f"""
    UPDATE runs SET fence = fence + 1, worker = :by, due = :until WHERE id %s
    RETURNING {", ".join(column.name for column in rows.COLUMNS)}, spec"""


def _text(sql: str) -> sa.TextClause:
    types: dict[str, Any] = {"after": sa.Text, "names": sa.Text, "by": sa.Text}
    made = sa.text(sql)
    return made.bindparams(*(sa.bindparam(name, type_=types.get(name, sa.BigInteger)) for name in made._bindparams))  # pyright: ignore[reportPrivateUsage]


_NEXT_DUE = Statement(sa.select(sa.func.min(_r.c.due)).where(_r.c.due.is_not(None)))
_WAITING = Statement(
    sa.select(sa.func.count(), sa.func.min(_r.c.due)).select_from(_r).where(_r.c.due <= sa.bindparam("now"))
)
_NAMES = Statement(_text(_SOME_WORKSPACES))
_ANY = Statement(
    _text(f"{_CANDIDATES['sqlite']} SELECT 1 FROM candidates LIMIT 1"),
    postgresql=lambda: _text(f"{_CANDIDATES['postgresql']} SELECT 1 FROM candidates LIMIT 1"),
)
_CLAIM = Statement(
    _text(f"""{_CANDIDATES["sqlite"]},
    claimed AS (SELECT id FROM candidates ORDER BY turn, due, id LIMIT :count)
    {_CLAIMED % "IN (SELECT id FROM claimed)"}"""),
    # Locked one by one until there are enough, and looked at once more under the lock: somebody may have been faster.
    # In forms that leave the planner no choice: what it expects to find would let it read all runs that are due.
    postgresql=lambda: _text(f"""{_CANDIDATES["postgresql"]},
    claimed AS (
        SELECT locked.id FROM (SELECT id FROM candidates ORDER BY turn, due, id) AS candidate
        CROSS JOIN LATERAL (
            SELECT id FROM runs WHERE id = candidate.id AND due <= :now FOR UPDATE SKIP LOCKED
        ) AS locked LIMIT :count
    )
    {_CLAIMED % "= ANY (ARRAY(SELECT id FROM claimed))"}"""),
)
# Who counts places excludes others who do, until the commit. SQLite has one writer anyway.
_ALONE = Statement(
    _text("SELECT 1"),
    postgresql=lambda: _text("SELECT pg_advisory_xact_lock({}, {})".format(*_COUNTING)),
)
_CLOCK = Statement(
    _text("SELECT NULL"),
    postgresql=lambda: _text("SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000 AS bigint)"),
)


class Offer(msgspec.Struct, frozen=True):
    """Workspaces (names, as JSON) whose queued runs are looked at, and how many of each; up to ``most`` runs of each
    may be in workers' hands (0: any number)."""

    names: str
    depth: int
    most: int


class Queue:
    """What is due, in the order in which workers get it."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._after = ""  # the workspace that was looked at last
        self._rounds = 0  # how often all of them were looked at in vain
        self._blocked = False

    async def next_due(self) -> float:
        """When some run next needs a worker, in milliseconds; infinity: never, or not before somebody else's move,
        since all queued runs wait for their workspaces' limits."""
        return float("inf") if self._blocked else await self._next_due()

    async def _next_due(self) -> float:
        row = await self._db.row(_NEXT_DUE)
        return float("inf") if row is None or row[0] is None else row[0]

    async def offer(self, count: int, most: int) -> Offer | None:
        """Where ``count`` runs can be claimed; ``None`` when nothing is due. Only reads."""
        self._blocked = False
        if await self._next_due() > millis(clock.now()):
            return None
        for _ in range(_WINDOWS):
            names = await self._names()
            depth = min(_SPARE * count, -(-_SPARE * count // max(1, len(names))))
            offer = Offer(msgspec.json.encode(names).decode(), depth, most)
            if not most or await self._db.row(_ANY, **_looked_at(offer, count)) is not None:
                self._rounds = 0
                return offer
            if len(names) < WORKSPACES:
                self._rounds = 2
            if self._rounds >= 2:  # the first round may have begun in the middle
                self._rounds = 0
                self._blocked = True
                break
        return None

    async def waiting(self) -> tuple[int, float]:
        """How many runs wait for a worker, and for how many seconds the oldest does. Walks the index of them all."""
        now = clock.now()
        row = await self._db.row(_WAITING, now=millis(now))
        return (0, 0.0) if row is None or row[1] is None else (row[0], max(0.0, now - row[1] / 1000))

    async def clock_ahead(self) -> float:
        """By how many seconds this host's clock is ahead of the database's, to half the time that asking takes."""
        found: list[tuple[float, float]] = []
        for _ in range(3):
            before = clock.now()
            row = await self._db.row(_CLOCK)
            after = clock.now()
            if row is None or row[0] is None:
                return 0.0  # they are one
            found.append((after - before, (before + after) / 2 - row[0] / 1000))
        return min(found)[1]

    async def _names(self) -> list[str]:
        """The workspaces whose turn it is, of those that have queued runs."""
        found = [name for (name,) in await self._db.rows(_NAMES, after=self._after, workspaces=WORKSPACES)]
        if len(found) < WORKSPACES and self._after:
            self._rounds += 1
            more = await self._db.rows(_NAMES, after="", workspaces=WORKSPACES - len(found))
            found = list(dict.fromkeys([*found, *(name for (name,) in more)]))
        self._after = found[-1] if len(found) == WORKSPACES else ""
        return found

    async def take(self, tx: Tx, offer: Offer, count: int, worker: str, until: int) -> list[Row]:
        """Claim up to ``count`` runs of ``offer`` for ``worker``, each under a fresh fencing token until ``until``
        (milliseconds): their columns as in `rows.RunRow`, and their spec."""
        if offer.most:
            await tx.row(_ALONE)
        return await tx.rows(_CLAIM, by=worker, until=until, count=count, **_looked_at(offer, count))


def _looked_at(offer: Offer, count: int) -> dict[str, Any]:
    now = clock.now()
    return {
        "names": offer.names,
        "depth": offer.depth,
        "most": offer.most,
        "now": millis(now),
        "seconds": int(now),
        "spare": _SPARE * count,
    }
