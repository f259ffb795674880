"""Threads and their messages (BEHAVIOUR sections 6, 7).

Every change to a thread's lists takes the next order key from the thread's row first, which also locks it: so the
order of a list is the order of commits, and of a racing run and message only one can win (LOCK-06).
"""

from collections.abc import Callable
from typing import Any

import msgspec
import sqlalchemy as sa

from loomgate.errors import ApiError, bad_request, not_found
from loomgate.store import rows, tables
from loomgate.store.database import Database, Statement, Tx
from loomgate.store.outbox import Outbox
from loomgate.store.pages import Listing
from loomgate.store.rows import encode
from loomgate.store.workspaces import next_position
from loomgate.wire.page import Page, PageQuery
from loomgate.wire.threads import Message, Thread, ThreadOptions

_t, _tags, _m, _r, _s = tables.threads, tables.thread_tags, tables.messages, tables.runs, tables.steps
_purges = tables.purges
_key: sa.BindParameter[Any] = sa.bindparam("key")
_owner: sa.BindParameter[Any] = sa.bindparam("owner")
_thread: sa.BindParameter[Any] = sa.bindparam("thread")

_INSERT = Statement(sa.insert(_t))
_BODY = Statement(sa.select(_t.c.body).where(_t.c.id == _key, _t.c.workspace == _owner))
_FOR_CHANGE = Statement(
    sa.select(_t.c.body, _t.c.position).where(_t.c.id == _key, _t.c.workspace == _owner).with_for_update()
)
_UPDATE = Statement(
    sa.update(_t).where(_t.c.id == _key).values(body=sa.bindparam("new_body"), on_active_run=sa.bindparam("new_rule"))
)
_DELETE = Statement(sa.delete(_t).where(_t.c.id == _key, _t.c.workspace == _owner))
_TAG = Statement(sa.insert(_tags))
_UNTAG = Statement(sa.delete(_tags).where(_tags.c.thread_id == _key))
_ABORT = [
    Statement(
        sa.update(_r)
        .where(_r.c.thread_id == _key, *condition)
        .values(due=None, holds=None, fence=_r.c.fence + 1)
        .returning(_r.c.id)
    )
    for condition in ((_r.c.holds == _key,), (_r.c.holds.is_(None), _r.c.due.is_not(None)))
]
_PURGE = Statement(sa.insert(_purges))
_PURGED = Statement(sa.delete(_purges).where(_purges.c.thread_id == _key))
_TO_PURGE = Statement(sa.select(_purges.c.thread_id).limit(1))
# Another node may be at it: then the next thread.
_PURGE_NOW = Statement(sa.select(_purges.c.thread_id).limit(1).with_for_update(skip_locked=True))
_PURGE_SOME = [
    Statement(
        sa.delete(table).where(
            table.c.id.in_(
                sa.select(table.c.id).where(table.c.thread_id == _key).limit(sa.bindparam("count", type_=sa.Integer))
            )
        )
    )
    for table in (_m, _s, _r)
]

_message = (
    sa.select(_m.c.body)
    .join(_t, _t.c.id == _m.c.thread_id)
    .where(_m.c.id == _key, _m.c.thread_id == _thread, _t.c.workspace == _owner)
)
_MESSAGE = Statement(_message)
_MESSAGE_FOR_CHANGE = Statement(_message.with_for_update(of=_m))
_DELETE_MESSAGE = Statement(sa.delete(_m).where(_m.c.id == _key, _m.c.thread_id == _thread))
_MESSAGES = Listing(_m, "thread_id")

_decode_thread = msgspec.json.Decoder(Thread).decode


class _Tagged(Listing):
    """Threads of a workspace whose metadata has certain pairs: the filter ``k0``, ``v0``, ``k1``, … names them."""

    def _base(self, columns: tuple[str, ...], filters: tuple[str, ...]) -> tuple[sa.Select[Any], sa.ColumnElement[int]]:
        if not filters:
            return super()._base(columns, filters)
        tags = [_tags.alias(f"t{n}") for n in range(len(filters) // 2)]
        query = sa.select(*(_t.c[name] for name in columns)).join(tags[0], tags[0].c.thread_id == _t.c.id)
        for n, tag in enumerate(tags):
            if n:
                query = query.join(
                    tag, sa.and_(tag.c.position == tags[0].c.position, tag.c.workspace == tags[0].c.workspace)
                )
            query = query.where(tag.c.key == sa.bindparam(f"k{n}"), tag.c.value == sa.bindparam(f"v{n}"))
        return query.where(tags[0].c.workspace == sa.bindparam("parent")), tags[0].c.position


_LIST = _Tagged(_t, "workspace")


def _rule(thread: Thread) -> str | None:
    options = thread.loomgate
    return (options.on_active_run or None) if isinstance(options, ThreadOptions) else None


def _locked(thread: str, run: str) -> ApiError:
    return bad_request(f"Can't add messages to {thread} while a run {run} is active.")  # LOCK-02


async def insert_thread(
    tx: Tx, workspace: str, thread: Thread, messages: list[Message], *, positions: int | None = None
) -> bytes:
    """Store a new thread with its first messages (THR-02); answers its body.

    ``positions``: how many of its order keys are given, if more than to the messages.
    """
    body = encode(thread)
    await rows.insert_messages(tx, messages, 1)
    position = await next_position(tx, workspace)
    await tx.run(
        _INSERT,
        id=thread.id,
        workspace=workspace,
        position=position,
        positions=len(messages) if positions is None else positions,
        messages=len(messages),
        on_active_run=_rule(thread),
        body=body,
    )
    await _tag(tx, workspace, thread, position)
    return body


async def _tag(tx: Tx, workspace: str, thread: Thread, position: int) -> None:
    pairs = [
        {"workspace": workspace, "key": key, "value": value, "position": position, "thread_id": thread.id}
        for key, value in thread.metadata.items()
    ]
    await tx.insert(_TAG, pairs)


class Threads:
    """Verbs on threads and messages. ``workspace`` is the caller's: another one's id is unknown."""

    def __init__(self, database: Database, outbox: Outbox, default_rule: str) -> None:
        self._db = database
        self._outbox = outbox
        self._default_rule = default_rule

    async def create(self, workspace: str, thread: Thread, messages: list[Message]) -> bytes:
        """Store a new thread; answers its body."""
        return await self._db.write(lambda tx: insert_thread(tx, workspace, thread, messages))

    async def body(self, workspace: str, id: str) -> bytes:
        """The stored body. Raises a 404 `ApiError`."""
        row = await self._db.row(_BODY, key=id, owner=workspace)
        if row is None:
            raise not_found("thread", id)
        return row[0]

    async def modify(self, workspace: str, id: str, change: Callable[[Thread], Thread]) -> bytes:
        """Replace the thread by what ``change`` makes of it, in one transaction; answers the new body."""

        async def work(tx: Tx) -> bytes:
            row = await tx.row(_FOR_CHANGE, key=id, owner=workspace)
            if row is None:
                raise not_found("thread", id)
            before = _decode_thread(row[0])
            thread = change(before)
            body = encode(thread)
            await tx.run(_UPDATE, key=id, new_body=body, new_rule=_rule(thread))
            if thread.metadata != before.metadata:
                await tx.run(_UNTAG, key=id)
                await _tag(tx, workspace, thread, row[1])
            return body

        return await self._db.write(work)

    async def delete(self, workspace: str, id: str) -> list[str]:
        """Forget the thread (THR-05). Its active runs lose their fencing token (LOCK-09); answers their ids.

        From now on everything in it is unknown; the rows themselves go later, by `purge`.
        """

        async def work(tx: Tx) -> list[str]:
            if not await tx.run(_DELETE, key=id, owner=workspace):
                raise not_found("thread", id)
            aborted = [row[0] for statement in _ABORT for row in await tx.rows(statement, key=id)]
            await tx.run(_UNTAG, key=id)
            await tx.run(_PURGE, thread_id=id)
            return aborted

        return await self._db.write(work)

    async def purge(self, count: int = 500) -> bool:
        """Remove up to ``count`` rows of each kind of one deleted thread; ``False`` when nothing is left to do."""

        async def work(tx: Tx) -> bool:
            row = await tx.row(_PURGE_NOW)
            if row is None:
                return False
            removed = [await tx.run(statement, key=row[0], count=count) for statement in _PURGE_SOME]
            if not any(removed):
                await tx.run(_PURGED, key=row[0])
            return True

        if await self._db.row(_TO_PURGE) is None:
            return False
        return await self._db.write(work)

    async def page(self, workspace: str, query: PageQuery, tags: dict[str, str]) -> Page:
        """One page of the workspace's threads, of those whose metadata has all pairs of ``tags`` (an extension)."""
        filters: dict[str, str] = {}
        for n, (key, value) in enumerate(tags.items()):
            filters |= {f"k{n}": key, f"v{n}": value}
        return await self._db.look(lambda tx: _LIST.page(tx, workspace, query, **filters))

    async def add_message(self, workspace: str, message: Message) -> tuple[bytes, list[rows.Ended]]:
        """Append ``message`` to its thread; answers its body and the runs whose status that changed.

        Raises 404, LOCK-02 (400) while a run is active and the thread's rule is to reject, 400 when full.
        """

        async def work(tx: Tx) -> tuple[bytes, list[rows.Ended]]:
            reserved = await rows.reserve(tx, workspace, message.thread_id, 1, 1)
            rule = reserved.on_active_run or self._default_rule
            meeting = await rows.meet(tx, self._outbox, message.thread_id, rule, _locked)
            bodies = await rows.insert_messages(tx, [message], reserved.first)
            return bodies[0], meeting.changed

        return await self._db.write(work)

    async def message_body(self, workspace: str, thread: str, id: str) -> bytes:
        """The stored body. Raises a 404 `ApiError` of the thread or of the message."""
        row = await self._db.row(_MESSAGE, key=id, thread=thread, owner=workspace)
        if row is None:
            await self.body(workspace, thread)
            raise not_found("message", id)
        return row[0]

    async def modify_message(self, workspace: str, thread: str, id: str, change: Callable[[Message], Message]) -> bytes:
        """Replace the message by what ``change`` makes of it, in one transaction; answers the new body."""

        async def work(tx: Tx) -> bytes:
            row = await tx.row(_MESSAGE_FOR_CHANGE, key=id, thread=thread, owner=workspace)
            if row is None:
                known = await tx.row(_BODY, key=thread, owner=workspace) is not None
                raise not_found("message", id) if known else not_found("thread", thread)
            return await rows.put_message(tx, change(rows.decode_message(row[0])))

        return await self._db.write(work)

    async def delete_message(self, workspace: str, thread: str, id: str) -> None:
        """Forget the message (MSG-17), also while a run is active (LOCK-08). Raises a 404 `ApiError`."""

        async def work(tx: Tx) -> None:
            await rows.reserve(tx, workspace, thread, 0, -1)
            if not await tx.run(_DELETE_MESSAGE, key=id, thread=thread):
                raise not_found("message", id)

        await self._db.write(work)

    async def messages(self, workspace: str, thread: str, query: PageQuery, run_id: str | None) -> Page:
        """One page of the thread's messages, of ``run_id`` only if given (LIST-17, -18, -22)."""

        async def work(tx: Tx) -> Page:
            if await tx.row(_BODY, key=thread, owner=workspace) is None:
                raise not_found("thread", thread)
            filters = {} if run_id is None else {"run_id": run_id}
            return await _MESSAGES.page(tx, thread, query, **filters)

        return await self._db.look(work)
