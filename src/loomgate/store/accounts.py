"""Ways to vendors, sealed: virtual keys (which Portkey also calls providers) and the integrations they are made from.

What must live here: the two tables and what a row amounts to when it is used. What must not: what the settings file
declares beside them (`loomgate.gateway.saved`), or whether somebody may change a row.

Sealed at rest are the key and all provider data, each for its own row: moved to another row, they do not open.
"""

import uuid
from collections.abc import Callable, Mapping
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from loomgate import clock
from loomgate.store import tables
from loomgate.store.database import Database, Row, Statement, Tx
from loomgate.store.generations import Generations
from loomgate.store.seal import Sealer
from loomgate.wire.admin import ModelAccess, provider_data
from loomgate.wire.limits import KeyLimits

_owner: sa.BindParameter[Any] = sa.bindparam("owner")
_key: sa.BindParameter[Any] = sa.bindparam("key")

_encode = msgspec.json.Encoder().encode
_decode_fields = msgspec.json.Decoder(dict[str, Any]).decode


class About(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is no secret about a row. Times are in seconds since the epoch.

    ``trusted``: the operator of the server made it, so its address may be a private one. ``usage_since``: when usage
    was last reset by hand. ``models`` are an integration's exceptions to ``allow_all_models``; ``enabled`` is false
    when its workspace may not use it.
    """

    note: str | None = None
    limits: KeyLimits = KeyLimits()
    expires_at: int | None = None
    usage_since: int | None = None
    trusted: bool = False
    models: list[ModelAccess] = []
    allow_all_models: bool = True
    enabled: bool = True


_decode_about = msgspec.json.Decoder(About).decode


class Account(msgspec.Struct, frozen=True, kw_only=True):
    """One row, opened. ``data`` are provider data as they were given (`wire.admin.provider_data` reads them)."""

    workspace: str
    slug: str
    provider: str
    secret: str = ""
    base_url: str | None = None
    id: str = ""
    name: str = ""
    integration: str | None = None
    data: dict[str, Any] = {}
    about: About = About()
    created_at: int = 0
    updated_at: int = 0

    def __repr__(self) -> str:
        return f"Account(workspace={self.workspace!r}, slug={self.slug!r}, provider={self.provider!r})"


class Budget(msgspec.Struct, frozen=True):
    """Limits and whose they are: spending is counted under ``id``, from ``since`` (seconds) at the earliest.

    ``id`` is the workspace, a slash and the slug of a virtual key, or ``integration:`` and the slug of an integration.
    """

    id: str
    limits: KeyLimits
    since: int | None = None


class Opened(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual key ready for use: never logged, never shown.

    ``provider`` is a vendor of the catalogue or a provider that the settings declare; ``options`` are provider data
    under their config names (GATEWAY CFG-27). ``lent``: the integration is not stored, so it is the provider of this
    name in the settings, and the secret is that one's. ``base_url`` may only be a private address if ``trusted``.
    ``budgets``: its own limits and its integration's. ``models``: which models it may call, by name; for all others
    ``all_models`` says it.
    """

    provider: str
    secret: str
    base_url: str | None
    slug: str = ""
    id: str = ""
    integration: str | None = None
    lent: bool = False
    options: Mapping[str, Any] = {}
    headers: Mapping[str, str] = {}
    budgets: tuple[Budget, ...] = ()
    expires_at: int | None = None
    trusted: bool = False
    models: Mapping[str, bool] = {}
    all_models: bool = True

    def allows(self, model: str) -> bool:
        """May ``model`` be called with it?"""
        return self.models.get(model, self.all_models)

    def expired(self) -> bool:
        """Is its time over?"""
        return self.expires_at is not None and clock.now() >= self.expires_at

    def __repr__(self) -> str:
        return f"Opened(slug={self.slug!r}, provider={self.provider!r}, base_url={self.base_url!r})"


def opened(account: Account, integration: Account | None) -> Opened:
    """``account`` ready for use, with what it takes from the integration that it was made from."""
    source = account if integration is None else integration
    data = provider_data(source.data)
    accounts = (account,) if integration is None else (account, integration)
    return Opened(
        provider=source.provider,
        secret=source.secret,
        base_url=data.base_url or source.base_url,
        slug=account.slug,
        id=account.id,
        integration=account.integration,
        lent=account.integration is not None and integration is None,
        options=data.options,
        headers=data.headers,
        budgets=tuple(
            Budget(f"{one.workspace}/{of}{one.slug}", one.about.limits, one.about.usage_since)
            for one, of in zip(accounts, ("", "integration:"), strict=False)
            if one.about.limits != KeyLimits()
        ),
        expires_at=account.about.expires_at,
        trusted=source.about.trusted,
        models={model.slug: model.enabled for model in source.about.models},
        all_models=source.about.allow_all_models,
    )


Kind = Literal["virtual_key", "integration"]

_TABLES: dict[Kind, sa.Table] = {"virtual_key": tables.virtual_keys, "integration": tables.integrations}
_COLUMNS = [column.name for column in tables.virtual_keys.columns]
_INTEGRATION = _COLUMNS.index("integration")
_CHANGING = ("provider", "base_url", "sealed", "name", "data", "about", "updated_at")


def _each(make: Callable[[sa.Table], sa.ClauseElement]) -> dict[Kind, Statement]:
    return {kind: Statement(make(table)) for kind, table in _TABLES.items()}


_ADD = _each(sa.insert)
_BY_SLUG = _each(lambda t: sa.select(t).where(t.c.workspace == _owner, t.c.slug == _key))
_BY_ID = _each(lambda t: sa.select(t).where(t.c.id == _key, t.c.workspace == _owner))
_ALL = _each(sa.select)
_OF = _each(lambda t: sa.select(t).where(t.c.workspace == _owner))
_CHANGE = _each(
    lambda t: (
        sa.update(t)
        .where(t.c.workspace == _owner, t.c.slug == _key)
        .values({name: sa.bindparam(f"new_{name}") for name in _CHANGING})
    )
)
_DROP = _each(lambda t: sa.delete(t).where(t.c.workspace == _owner, t.c.slug == _key))
_MADE_FROM = Statement(
    sa.select(tables.virtual_keys.c.slug).where(
        tables.virtual_keys.c.workspace == _owner, tables.virtual_keys.c.integration == _key
    )
)


class Accounts:
    """Verbs on the rows of one kind. ``workspace`` is the caller's: another one's rows do not exist for it."""

    kind: Kind

    def __init__(self, database: Database, sealer: Sealer, generations: Generations) -> None:
        self._db = database
        self._sealer = sealer
        self._generations = generations

    async def add(self, account: Account) -> Account | None:
        """Store ``account`` under a new id, now; ``None`` when its workspace has that slug already."""
        now = clock.timestamp()
        made = msgspec.structs.replace(
            account, id=str(uuid.uuid4()), name=account.name or account.slug, created_at=now, updated_at=now
        )
        row = self._row(made)

        async def work(tx: Tx) -> Account | None:
            await self._generations.moved(tx, made.workspace)
            if await tx.row(_BY_SLUG[self.kind], owner=made.workspace, key=made.slug) is not None:
                return None
            await tx.run(_ADD[self.kind], **row)
            return made

        done = await self._db.write(work)
        self._generations.forget(made.workspace)
        return done

    async def find(self, workspace: str, key: str) -> Account | None:
        """The row whose slug or id is ``key``, opened, or ``None``."""
        row = await self._db.read(lambda tx: self._row_of(tx, workspace, key))
        return None if row is None else self._opened(row)

    async def _row_of(self, tx: Tx, workspace: str, key: str) -> Row | None:
        """Of a slug that is another row's id, the slug counts."""
        found = await tx.row(_BY_SLUG[self.kind], owner=workspace, key=key)
        return found if found is not None else await tx.row(_BY_ID[self.kind], owner=workspace, key=key)

    async def list(self, workspace: str | None = None, *, secrets: bool = False) -> list[Account]:
        """All rows (of ``workspace``, the newest first); without key and provider data unless ``secrets``."""
        if workspace is None:
            rows = await self._db.rows(_ALL[self.kind])
        else:
            rows = await self._db.rows(_OF[self.kind], owner=workspace)
        found = [self._opened(row, secrets=secrets) for row in rows]
        return sorted(found, key=lambda row: (row.workspace, -row.created_at, row.slug))

    async def change(self, workspace: str, key: str, change: Callable[[Account], Account]) -> Account | None:
        """Replace the row whose slug or id is ``key`` by what ``change`` makes of it; ``None`` if there is none.

        Its slug, id, integration and creation stay. What ``change`` raises is raised here and nothing is changed.
        """

        async def work(tx: Tx) -> Account | None:
            await self._generations.moved(tx, workspace)
            row = await self._row_of(tx, workspace, key)
            if row is None:
                return None
            before = self._opened(row)
            after = msgspec.structs.replace(change(before), updated_at=clock.timestamp())
            new = self._row(after)
            await tx.run(
                _CHANGE[self.kind], owner=workspace, key=before.slug, **{f"new_{name}": new[name] for name in _CHANGING}
            )
            return after

        done = await self._db.write(work)
        self._generations.forget(workspace)
        return done

    async def delete(self, workspace: str, slug: str) -> bool:
        """Forget the row; ``False`` when there is none of this slug."""

        async def work(tx: Tx) -> bool:
            await self._generations.moved(tx, workspace)
            return bool(await tx.run(_DROP[self.kind], owner=workspace, key=slug))

        done = await self._db.write(work)
        self._generations.forget(workspace)
        return done

    def _contexts(self, workspace: str, slug: str) -> tuple[str, str]:
        return f"{self.kind}:{workspace}:{slug}", f"{self.kind}_data:{workspace}:{slug}"

    def _row(self, account: Account) -> dict[str, Any]:
        for_key, for_data = self._contexts(account.workspace, account.slug)
        seal = self._sealer.seal
        return {
            "workspace": account.workspace,
            "slug": account.slug,
            "provider": account.provider,
            "base_url": account.base_url,
            "sealed": seal(account.secret, context=for_key),
            "created_at": account.created_at,
            "id": account.id,
            "name": account.name,
            "integration": account.integration,
            "data": seal(_encode(account.data).decode(), context=for_data) if account.data else None,
            "about": _encode(account.about),
            "updated_at": account.updated_at,
        }

    def _opened(self, row: Row, *, secrets: bool = True) -> Account:
        given = dict(zip(_COLUMNS, row, strict=True))
        sealed, data = given.pop("sealed"), given.pop("data")
        if secrets:
            for_key, for_data = self._contexts(given["workspace"], given["slug"])
            given["secret"] = self._sealer.open(sealed, context=for_key)
            given["data"] = {} if data is None else _decode_fields(self._sealer.open(data, context=for_data))
        given["about"] = _decode_about(given["about"])
        return Account(**given)


class Integrations(Accounts):
    """Accounts with vendors, from which virtual keys are made."""

    kind = "integration"

    async def users(self, workspace: str, slug: str) -> list[str]:
        """The slugs of the virtual keys that were made from the integration ``slug``."""
        return sorted(row[0] for row in await self._db.rows(_MADE_FROM, owner=workspace, key=slug))


class VirtualKeys(Accounts):
    """A way to a vendor under a slug that clients name; what Portkey calls a provider is the same."""

    kind = "virtual_key"

    async def create(
        self,
        workspace: str,
        slug: str,
        provider: str,
        secret: str,
        base_url: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> bool:
        """Store ``secret`` of ``provider`` under ``slug``, as the operator; ``False`` when the slug is taken."""
        account = Account(
            workspace=workspace,
            slug=slug,
            provider=provider,
            secret=secret,
            base_url=base_url,
            data=data or {},
            about=About(trusted=True),
        )
        return await self.add(account) is not None

    async def get(self, workspace: str, slug: str) -> Opened | None:
        """The key under ``slug``, opened for use with what its integration lends it; ``None`` when there is none.

        ``None`` also when the integration does not let the workspace use it.
        """

        async def work(tx: Tx) -> tuple[Row | None, Row | None]:
            row = await tx.row(_BY_SLUG["virtual_key"], owner=workspace, key=slug)
            if row is None or (source := row[_INTEGRATION]) is None:
                return row, None
            return row, await tx.row(_BY_SLUG["integration"], owner=workspace, key=source)

        row, source = await self._db.read(work)
        if row is None:
            return None
        account = self._opened(row)
        integration = None if source is None else self._integrations._opened(source)
        if integration is not None and not integration.about.enabled:
            return None
        return opened(account, integration)

    def __init__(
        self, database: Database, sealer: Sealer, generations: Generations, integrations: Integrations
    ) -> None:
        super().__init__(database, sealer, generations)
        self._integrations = integrations
