"""The ledger: the log of calls through the gateway, and what each virtual key has spent.

What must live here: writing batches of records, reading them back, forgetting old ones. What must not: what a record
holds (``wire/calls``), or when anything is written or forgotten (``gateway/meter``, ``app``).
"""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import msgspec
import msgspec.structs
import sqlalchemy as sa

from loomgate import clock
from loomgate.errors import bad_request
from loomgate.store import tables
from loomgate.store.database import Database, Row, Statement, Tx, some_of, upsert
from loomgate.wire.calls import CallFacts, CallRecord, first_log_id

_c, _s = tables.calls, tables.spending
_DAY = 86_400
_STEP = 100  # records, or rows, that one transaction takes: bounds how long the event loop is held
_SCANNED = 5_000  # records of a workspace that one page of a filtered list looks through

_owner: sa.BindParameter[Any] = sa.bindparam("owner")
_key: sa.BindParameter[Any] = sa.bindparam("key")
_count = sa.bindparam("count", type_=sa.Integer)

_ADD = Statement(sa.insert(_c))
# What a row says of its call: `_facts` puts together what is in columns of its own and what is in the body.
_FACTS = (_c.c.id, _c.c.status, _c.c.provider, _c.c.model, _c.c.trace_id, _c.c.body)
_GET = Statement(sa.select(*_FACTS, _c.c.request, _c.c.response).where(_c.c.workspace == _owner, _c.c.id == _key))
_FORGET = Statement(
    sa.delete(_c).where(some_of(_c.c.id, sa.select(_c.c.id).where(_c.c.id < sa.bindparam("before")).limit(_count)))
)


def _upsert(insert: Callable[[sa.Table], Any]) -> sa.ClauseElement:
    made = insert(_s)
    return made.on_conflict_do_update(
        index_elements=[_s.c.workspace, _s.c.virtual_key, _s.c.day],
        set_={"cost": _s.c.cost + made.excluded.cost, "tokens": _s.c.tokens + made.excluded.tokens},
    )


_SPEND = upsert(_upsert)
_SPENT = Statement(sa.select(_s.c.workspace, _s.c.virtual_key, _s.c.day, _s.c.cost, _s.c.tokens))
_LATELY = Statement(
    sa.select(_s.c.workspace, _s.c.virtual_key, _s.c.day, _s.c.cost, _s.c.tokens).where(
        _s.c.workspace == _owner, _s.c.virtual_key == _key, _s.c.day >= sa.bindparam("first", type_=sa.Integer)
    )
)
_RESET = Statement(sa.delete(_s).where(_s.c.workspace == _owner, _s.c.virtual_key == _key))

_FILTERS = ("status", "provider", "model", "trace_id")


class CallQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which records: newest first, older than the record ``after``, ended in ``[since, until)`` (seconds), and equal in
    what is given of the rest."""

    limit: int = 20
    after: str | None = None
    since: float | None = None
    until: float | None = None
    status: int | None = None
    provider: str | None = None
    model: str | None = None
    trace_id: str | None = None


class CallPage(msgspec.Struct, frozen=True):
    """One page: ``next`` is the ``after`` of the page that follows, ``None`` at the end. A page of a filtered list may
    have fewer records than asked for, or none, and yet a ``next``: it looks through so many and no more."""

    records: list[CallFacts]
    next: str | None


class Spent(NamedTuple):
    """What a virtual key spent on a day (UTC, days since the epoch): USD, and tokens."""

    workspace: str
    virtual_key: str
    day: int
    cost: float
    tokens: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(CallFacts).decode


class Ledger:
    """Verbs on the log of calls."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def write(self, records: list[CallRecord], *, kept: bool = True) -> None:
        """Add ``records`` and what they cost to what their virtual keys spent; ``kept`` false: only the latter.

        In transactions of some each, so that nobody else waits long for the event loop. A record that is there already
        (a batch that is written again after a failure) is not added twice, nor what it cost.
        """
        for start in range(0, len(records), _STEP):
            part = records[start : start + _STEP]

            async def work(tx: Tx, part: list[CallRecord] = part) -> None:
                if kept and await tx.row(_GET, owner=part[0].facts.workspace, key=part[0].facts.id) is not None:
                    return
                if kept:
                    await tx.insert(_ADD, [_row(record) for record in part])
                await tx.insert(_SPEND, _spendings(part))

            await self._db.write(work)

    async def get(self, workspace: str, id: str) -> CallRecord | None:
        """The record ``id`` with its bodies, or ``None``."""
        row = await self._db.row(_GET, owner=workspace, key=id)
        return None if row is None else CallRecord(_facts(workspace, row[:6]), row[6], row[7])

    async def page(self, workspace: str, query: CallQuery) -> CallPage:
        """Records without their bodies. Raises a 400 `ApiError` when ``after`` is no record of ``workspace``."""
        if query.after is not None and await self._db.row(_GET, owner=workspace, key=query.after) is None:
            raise bad_request(
                f"Invalid 'after': no log with id '{query.after[:100]}' in this list.", "after", "invalid_value"
            )
        given = {name: value for name in _FILTERS if (value := getattr(query, name)) is not None}
        bounds = {
            name: value
            for name, value in (
                ("after", query.after),
                ("since", None if query.since is None else first_log_id(query.since)),
                ("until", None if query.until is None else first_log_id(query.until)),
            )
            if value is not None
        }
        statement, boundary = _page(tuple(bounds), tuple(given))

        async def work(tx: Tx) -> CallPage:
            rows = await tx.rows(statement, owner=workspace, count=query.limit + 1, **bounds, **given)
            found = rows[: query.limit]
            records = [_facts(workspace, row) for row in found]
            if len(rows) > query.limit:
                return CallPage(records, found[-1][0])
            if boundary is None:
                return CallPage(records, None)
            trace = {"trace_id": query.trace_id} if query.trace_id is not None else {}
            end = await tx.row(boundary, owner=workspace, **bounds, **trace)
            return CallPage(records, None if end is None else end[0])

        return await self._db.read(work)

    async def forget(self, before: float) -> bool:
        """Drop some records of calls that ended before the time ``before``; ``True`` when there may be more."""
        first = first_log_id(before)
        return await self._db.write(lambda tx: tx.run(_FORGET, before=first, count=_STEP)) == _STEP

    async def spending(self) -> list[Spent]:
        """What every virtual key spent on every day."""
        return [Spent(*row) for row in await self._db.rows(_SPENT)]

    async def spent_lately(self, keys: Iterable[tuple[str, str]], first: int) -> list[Spent]:
        """What these virtual keys (workspace and slug) spent on each day from ``first`` on (days since the epoch)."""

        async def work(tx: Tx) -> list[Spent]:
            return [
                Spent(*row) for key in keys for row in await tx.rows(_LATELY, owner=key[0], key=key[1], first=first)
            ]

        return await self._db.look(work)

    async def reset_spending(self, workspace: str, virtual_key: str) -> None:
        """Forget what ``virtual_key`` has spent."""
        await self._db.write(lambda tx: tx.run(_RESET, owner=workspace, key=virtual_key))


def today() -> int:
    """The present day (UTC, days since the epoch)."""
    return clock.timestamp() // _DAY


def _facts(workspace: str, row: Row) -> CallFacts:
    id, status, provider, model, trace_id, body = row
    return msgspec.structs.replace(
        _decode(body), id=id, workspace=workspace, status=status, provider=provider, model=model, trace_id=trace_id
    )


def _row(record: CallRecord) -> dict[str, Any]:
    facts = record.facts
    # What has a column is not in the body as well: twice as many short records fit into a page.
    rest = msgspec.structs.replace(facts, id="", workspace="", status=0, provider="", model="", trace_id="")
    return {
        "id": facts.id,
        "workspace": facts.workspace,
        "status": facts.status,
        "provider": facts.provider,
        "model": facts.model,
        "trace_id": facts.trace_id,
        "body": _encode(rest),
        "request": record.request,
        "response": record.response,
    }


def _spendings(records: list[CallRecord]) -> list[dict[str, Any]]:
    sums: dict[tuple[str, str, int], list[float]] = {}
    for record in records:
        facts = record.facts
        if facts.virtual_key and not facts.cache.endswith("HIT"):
            sum = sums.setdefault((facts.workspace, facts.virtual_key, int(facts.created_at // _DAY)), [0.0, 0])
            sum[0] += facts.cost or 0.0
            sum[1] += facts.prompt_tokens + facts.completion_tokens
    return [
        {"workspace": workspace, "virtual_key": key, "day": day, "cost": cost, "tokens": int(tokens)}
        for (workspace, key, day), (cost, tokens) in sorted(sums.items())  # in one order, or two nodes may deadlock
        if cost or tokens
    ]


_Pages = dict[tuple[tuple[str, ...], tuple[str, ...]], tuple[Statement, Statement | None]]
_pages: _Pages = {}


def _page(bounds: tuple[str, ...], given: tuple[str, ...]) -> tuple[Statement, Statement | None]:
    """The statement of a page with these bounds and filters; for a filter without an index also one that gives the id
    at which the search of this page ends, and the next one goes on."""
    made = _pages.get((bounds, given))
    if made is not None:
        return made
    query = sa.select(*_FACTS).where(_c.c.workspace == _owner)
    if "after" in bounds:
        query = query.where(_c.c.id < sa.bindparam("after"))
    if "since" in bounds:
        query = query.where(_c.c.id >= sa.bindparam("since"))
    if "until" in bounds:
        query = query.where(_c.c.id < sa.bindparam("until"))
    if "trace_id" in given:  # it has an index of its own
        query = query.where(_c.c.trace_id == sa.bindparam("trace_id"))
    query = query.order_by(_c.c.id.desc())
    searched = [name for name in given if name != "trace_id"]
    boundary = None
    if searched:
        scan = query.limit(_literal(_SCANNED)).subquery()
        boundary = Statement(query.with_only_columns(_c.c.id).limit(_literal(1)).offset(_literal(_SCANNED - 1)))
        query = sa.select(*(scan.c[column.name] for column in _FACTS)).order_by(scan.c.id.desc())
        query = query.where(*(scan.c[name] == sa.bindparam(name) for name in searched))
    made = _pages[bounds, given] = (Statement(query.limit(_count)), boundary)
    return made


def _literal(number: int) -> sa.ColumnElement[int]:
    return sa.literal_column(str(number), sa.Integer)
