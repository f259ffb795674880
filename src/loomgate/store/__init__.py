"""Everything durable: one concrete `Store`, its verbs by object, and the only SQL of the project.

What must live here: tables, statements, transactions, migrations, sealing. What must not: HTTP, model calls, or
decisions about when something happens. Every row carries its workspace, directly or through its thread.
"""

import asyncio
import fcntl
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from loomgate.errors import SettingError, StoreError
from loomgate.store.accounts import Integrations, VirtualKeys
from loomgate.store.assistants import Assistants
from loomgate.store.configs import Documents
from loomgate.store.database import Database
from loomgate.store.generations import Generations
from loomgate.store.keys import Credentials, Keys
from loomgate.store.ledger import Ledger
from loomgate.store.outbox import Endpoint, Outbox, endpoints_of
from loomgate.store.runs import Runs
from loomgate.store.schema import check_postgres, prepare, upgrade, upgrade_postgres
from loomgate.store.seal import Sealer, load_key
from loomgate.store.sqlite import SqliteDatabase
from loomgate.store.threads import Threads

if TYPE_CHECKING:
    from loomgate.settings import Settings


_PREDECESSOR_SECONDS = 1.0  # how long a server may take to be gone that was killed a moment ago


class Store:
    """All verbs on what is stored, by object. Belongs to the event loop that it was opened on."""

    def __init__(
        self,
        database: Database,
        sealer: Sealer,
        endpoints: Sequence[Endpoint],
        on_active_run: str,
        *,
        exclusive: bool = False,
    ) -> None:
        self._database = database
        self.exclusive = exclusive  # no other server uses this database
        self.sealer = sealer
        self.outbox = Outbox(database, endpoints)
        self.assistants = Assistants(database)
        self.threads = Threads(database, self.outbox, on_active_run)
        self.runs = Runs(database, self.outbox, on_active_run)
        self.ledger = Ledger(database)
        self.keys = Keys(database)
        self.generations = Generations(database)
        self.integrations = Integrations(database, sealer, self.generations)
        self.virtual_keys = VirtualKeys(database, sealer, self.generations, self.integrations)
        self.configs = Documents(database, sealer, self.generations, "config")
        self.guardrails = Documents(database, sealer, self.generations, "guardrail")
        self.credentials = Credentials(database, sealer)

    @property
    def connections(self) -> tuple[int, int, int] | None:
        """How many connections to PostgreSQL are at work, how many are open besides, and the most there may be."""
        return getattr(self._database, "connections", None)

    async def close(self) -> None:
        """Finish the writes under way and close the database."""
        await self._database.close()


def _folder(settings: "Settings") -> None:
    """Make the data folder for us alone, and check that it can be used."""
    try:
        settings.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        settings.database_path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"cannot use the data folder {settings.data}: {error.strerror}") from None
    if not os.access(settings.data, os.R_OK | os.W_OK | os.X_OK):
        raise StoreError(f"cannot use the data folder {settings.data}: no permission to read and write in it")


def migrate(settings: "Settings") -> tuple[str | None, str]:
    """Bring the database to this version's tables; answers the revision before (``None``: new) and after.

    Raises `StoreError` when the folder or file cannot be used, or was written by a newer version.
    """
    if settings.postgres:
        return asyncio.run(upgrade_postgres(settings.database_url.reveal()))
    _folder(settings)
    return upgrade(settings.database_path)


@asynccontextmanager
async def open_store(
    settings: "Settings", *, exclusive: bool = False, lost: Callable[[str], None] | None = None
) -> AsyncGenerator[Store, None]:
    """The store of ``settings``, migrated; closed on leaving. ``exclusive`` for a server: one per database, unless
    that is a PostgreSQL whose nodes share a Redis. ``lost`` is called with one line should it be so no longer.

    A PostgreSQL database, which others use as well, is not migrated on the way: `migrate` does that.

    Raises `StoreError` (one line: the place and the reason), and `SettingError`.
    """
    if settings.postgres:
        async with _open_postgres(settings, node=exclusive, lost=lost) as store:
            yield store
        return
    _folder(settings)
    path = settings.database_path
    held = lock(path) if exclusive else None
    try:
        await asyncio.to_thread(prepare, path)
        sealer = Sealer(load_key(settings.seal_key.reveal(), settings.data))
        database = SqliteDatabase(path, synchronous=settings.sqlite_synchronous)
        store = Store(database, sealer, endpoints_of(settings.webhooks), settings.active_thread, exclusive=exclusive)
        try:
            yield store
        finally:
            await store.close()
    finally:
        if held is not None:
            os.close(held)


@asynccontextmanager
async def _open_postgres(
    settings: "Settings", *, node: bool, lost: Callable[[str], None] | None
) -> AsyncGenerator[Store, None]:
    from loomgate.store.nodes import Presence, agree_on_seal
    from loomgate.store.postgres import PostgresDatabase

    if not settings.seal_key:
        wanted = "the key that all nodes share (`openssl rand -hex 32` makes one), since the database is a PostgreSQL"
        raise SettingError("seal_key", wanted, "nothing")
    url = settings.database_url.reveal()
    alone = not settings.redis_url
    await check_postgres(url)
    database = await PostgresDatabase.open(
        url,
        connections=settings.database_connections,
        wait_seconds=settings.database_wait_seconds,
        retry_seconds=settings.database_retry_seconds,
    )
    presence = Presence(url, alone=alone) if node else None
    try:
        sealer = Sealer(load_key(settings.seal_key.reveal(), settings.data))
        await agree_on_seal(database, sealer, database.place)
        if presence is not None:
            await presence.take(_PREDECESSOR_SECONDS)
            presence.keep(lost)
        yield Store(database, sealer, endpoints_of(settings.webhooks), settings.active_thread, exclusive=node and alone)
    finally:
        await database.close()
        if presence is not None:
            await presence.close()


def lock(path: Path) -> int:
    """Hold the server's lock beside the database until the descriptor is closed, or the process dies."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StoreError(f"cannot use the database {path}: {error.strerror}") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise StoreError(f"the database {path} is in use by another server") from None
    return descriptor
