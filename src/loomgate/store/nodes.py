"""What the nodes of one PostgreSQL owe each other: the same seal key, and that one without Redis is alone.

What must live here: what a node checks when it starts, and the lock that it holds while it lives. What must not: the
verbs of the store.

The lock is an advisory one of PostgreSQL's, held by a session of its own: a node with Redis shares it, one without has
it alone. So nobody forgets a `redis_url` unnoticed. It ends with its session, that is with the node, however that ends;
a restart of PostgreSQL ends it too, and then it is taken again.
"""

import asyncio
import hmac
import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import asyncpg
import asyncpg.exceptions as pg
import sqlalchemy as sa

from loomgate import clock
from loomgate.errors import StoreError
from loomgate.store import tables
from loomgate.store.database import Database, Statement, Tx, upsert
from loomgate.store.dsn import arguments
from loomgate.store.postgres import connect
from loomgate.store.seal import Sealer

log = logging.getLogger(__name__)

# --- the lock --------------------------------------------------------------------------------------------------------

# One number for each schema, so that two installations in one database do not meet.
_NUMBER = "hashtextextended('loomgate node ' || coalesce(current_schema(), ''), 0)"
_SECONDS = 2.0  # how often the lock is looked at, and taken again
_PATIENCE = 5.0  # for an answer
_BROKEN = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError, pg.InternalClientError, StoreError)


class Presence:
    """The lock by which a node is seen by others: ``alone``, or together with all that are not alone."""

    def __init__(self, url: str, *, alone: bool) -> None:
        self._arguments = arguments(url)
        self._alone = alone
        self._connection: Any = None
        self._task: asyncio.Task[None] | None = None

    async def take(self, seconds: float) -> None:
        """Take the lock, waiting up to ``seconds`` for a predecessor to be gone. Raises `StoreError` when others have
        it, and when there is no such server."""
        end = clock.monotonic() + seconds
        while not await self._try():
            if clock.monotonic() >= end:
                await self._leave()
                raise StoreError(self._refused())
            await clock.sleep(0.1)

    def keep(self, lost: Callable[[str], None] | None) -> None:
        """Hold on to the lock until `close`. Should others have it after a restart of the database, ``lost`` is called
        with one line that says so, once."""
        self._task = asyncio.get_running_loop().create_task(self._keep(lost), name="loomgate-presence")

    async def close(self) -> None:
        """Let go of the lock."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        await self._leave()

    def _refused(self) -> str:
        place = self._arguments.place
        if self._alone:
            return f"the database {place} is in use by another server: set redis_url on every node (docs/cluster.md)"
        return f"the database {place} is in use by a server without redis_url: stop it, or set its redis_url"

    async def _keep(self, lost: Callable[[str], None] | None) -> None:
        told = gone = False
        while True:
            await clock.sleep(_SECONDS)
            try:
                if self._connection is not None:
                    async with asyncio.timeout(_PATIENCE):
                        await self._connection.execute("SELECT 1")
                    continue
                got = await self._try()
            except _BROKEN as error:
                if not gone:
                    log.warning("the node's lock is lost until the database is back: %s", " ".join(str(error).split()))
                gone = True
                await self._leave()
                continue
            if got:
                gone = told = False
                log.info("the node's lock is taken again")
            elif not told:
                told = True
                log.error("%s", self._refused())
                if lost is not None:
                    lost(self._refused())

    async def _try(self) -> bool:
        if self._connection is None:
            self._connection = await connect(self._arguments)
        function = "pg_try_advisory_lock" if self._alone else "pg_try_advisory_lock_shared"
        async with asyncio.timeout(_PATIENCE):
            got = bool(await self._connection.fetchval(f"SELECT {function}({_NUMBER})"))
        if not got:
            await self._leave()
        return got

    async def _leave(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(*_BROKEN):
                await connection.close(timeout=1.0)


# --- the seal key ----------------------------------------------------------------------------------------------------

_c = tables.credentials
# Not the key of any client: a row that says which seal key the secrets of this database are sealed with. No workspace
# has an empty name.
_SAMPLE, _NOBODY, _TEXT = "seal_check", "", "loomgate"
_key = sa.bindparam("key", type_=sa.Text)
_SEALED = Statement(sa.select(_c.c.sealed).where(_c.c.id == _key))
_one = sa.literal_column("1", sa.Integer)
# What else may be sealed already, in a database that was copied here: by the kind that its context begins with.
_ANY = {
    # Not the sample: another node may leave it at this moment, and it is sealed in a context of its own.
    "credential": Statement(sa.select(_c.c.workspace, _c.c.id, _c.c.sealed).where(_c.c.id != _SAMPLE).limit(_one)),
    **{
        kind: Statement(sa.select(table.c.workspace, table.c.slug, table.c.sealed).limit(_one))
        for kind, table in (("virtual_key", tables.virtual_keys), ("integration", tables.integrations))
    },
}
_ADD = upsert(lambda insert: insert(_c).on_conflict_do_nothing())


async def agree_on_seal(database: Database, sealer: Sealer, place: str) -> None:
    """See that ``sealer`` opens what other nodes have sealed in ``database``; the first node leaves a sample.

    Raises `StoreError` that names ``place`` when the key is another.
    """

    def check(sealed: bytes, context: str) -> None:
        try:
            sealer.open(sealed, context=context)
        except StoreError:
            words = f"seal_key is not the one that the database {place} is sealed with: every node needs that one"
            raise StoreError(words) from None

    if (found := await database.row(_SEALED, key=_SAMPLE)) is None:
        for kind, statement in _ANY.items():
            if (row := await database.row(statement)) is not None:
                check(row[2], f"{kind}:{row[0]}:{row[1]}")
        await _leave_sample(database, sealer)
        found = await database.row(_SEALED, key=_SAMPLE)
    assert found is not None
    check(found[0], _SAMPLE)


async def opens(connection: Any, sealer: Sealer) -> bool | None:
    """Whether ``sealer`` opens what nodes have sealed; ``None`` when there was no node yet. Leaves nothing."""
    sealed = await connection.fetchval("SELECT sealed FROM credentials WHERE id = $1", _SAMPLE)
    if sealed is None:
        return None
    try:
        sealer.open(sealed, context=_SAMPLE)
    except StoreError:
        return False
    return True


async def _leave_sample(database: Database, sealer: Sealer) -> None:
    row = {
        "id": _SAMPLE,
        "workspace": _NOBODY,
        "digest": hmac.digest(sealer.mark, _SAMPLE.encode(), "sha256"),
        "sealed": sealer.seal(_TEXT, context=_SAMPLE),
        "created_at": clock.timestamp(),
    }

    async def work(tx: Tx) -> None:
        await tx.run(_ADD, **row)

    await database.write(work)
