"""Saved configs and guardrails: a body under a slug, every former state of it kept as a version.

What must live here: the two tables and their statements. What must not: what a body means, or what the settings file
declares beside them (`loomgate.gateway.saved`).

A body is sealed as a whole: a config may name provider keys, a guardrail the headers of a webhook.
"""

import uuid
from collections.abc import Callable
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from loomgate import clock
from loomgate.store import tables
from loomgate.store.database import Database, Row, Statement, Tx
from loomgate.store.generations import Generations
from loomgate.store.seal import Sealer

Kind = Literal["config", "guardrail"]
Status = Literal["active", "archived"]

MOST_VERSIONS = 100  # of one document; the oldest go first

_d, _v = tables.documents, tables.document_versions
_owner: sa.BindParameter[Any] = sa.bindparam("owner")
_kind: sa.BindParameter[Any] = sa.bindparam("of_kind")
_key: sa.BindParameter[Any] = sa.bindparam("key")
_mine = sa.and_(_d.c.workspace == _owner, _d.c.kind == _kind)
_FIELDS = (_d.c.workspace, _d.c.slug, _d.c.id, _d.c.name, _d.c.status, _d.c.is_default, _d.c.version_id)
_MORE = (_d.c.created_at, _d.c.updated_at, _d.c.created_by, _d.c.updated_by, _v.c.sealed)
_whole = sa.select(*_FIELDS, *_MORE).join(_v, _v.c.id == _d.c.version_id)

_BY_SLUG = Statement(_whole.where(_mine, _d.c.slug == _key))
_BY_ID = Statement(_whole.where(_d.c.id == _key, _mine))
_DEFAULT = Statement(_whole.where(_mine, _d.c.is_default))
_OF = Statement(_whole.where(_mine))
_ALL = Statement(_whole.where(_d.c.kind == _kind))
_ADD = Statement(sa.insert(_d))
_ADD_VERSION = Statement(sa.insert(_v))
_NUMBER = Statement(sa.select(sa.func.max(_v.c.number)).where(_v.c.document_id == _key))
_VERSIONS = Statement(
    sa.select(_v.c.id, _v.c.name, _v.c.created_at, _v.c.created_by, _v.c.sealed)
    .where(_v.c.document_id == _key)
    .order_by(_v.c.number.desc())
)
_FORGET = Statement(sa.delete(_v).where(_v.c.document_id == _key, _v.c.number <= sa.bindparam("last")))
_DROP_VERSIONS = Statement(sa.delete(_v).where(_v.c.document_id == _key))
_DROP = Statement(sa.delete(_d).where(_d.c.id == _key))
_CHANGE = Statement(
    sa.update(_d)
    .where(_d.c.id == _key)
    .values(
        {
            name: sa.bindparam(f"new_{name}")
            for name in ("name", "status", "is_default", "version_id", "updated_at", "updated_by")
        }
    )
)
_NO_DEFAULT = Statement(sa.update(_d).where(_mine, _d.c.is_default).values(is_default=False))

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(dict[str, Any]).decode


class Document(msgspec.Struct, frozen=True, kw_only=True):
    """A saved config or guardrail with its present body. Times are in seconds; ``created_by`` is an API key's id."""

    workspace: str
    slug: str
    body: dict[str, Any]
    name: str = ""
    id: str = ""
    status: Status = "active"
    is_default: bool = False
    version_id: str = ""
    created_at: int = 0
    updated_at: int = 0
    created_by: str | None = None
    updated_by: str | None = None

    def __repr__(self) -> str:
        return f"Document(workspace={self.workspace!r}, slug={self.slug!r}, version_id={self.version_id!r})"


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """A state that a document was or is in."""

    id: str
    name: str
    created_at: int
    created_by: str | None
    body: dict[str, Any]

    def __repr__(self) -> str:
        return f"Version(id={self.id!r})"


class Documents:
    """Verbs on the documents of one kind. ``workspace`` is the caller's: another one's do not exist for it."""

    def __init__(self, database: Database, sealer: Sealer, generations: Generations, kind: Kind) -> None:
        self._db = database
        self._sealer = sealer
        self._generations = generations
        self._kind: Kind = kind

    async def add(self, document: Document) -> Document | None:
        """Store ``document`` under a new id, now; ``None`` when its workspace has that slug already."""
        now = clock.timestamp()
        made = msgspec.structs.replace(
            document,
            id=str(uuid.uuid4()),
            version_id=str(uuid.uuid4()),
            name=document.name or document.slug,
            created_at=now,
            updated_at=now,
            updated_by=document.created_by,
        )

        async def work(tx: Tx) -> Document | None:
            await self._generations.moved(tx, made.workspace)
            if await tx.row(_BY_SLUG, owner=made.workspace, of_kind=self._kind, key=made.slug) is not None:
                return None
            if made.is_default:
                await tx.run(_NO_DEFAULT, owner=made.workspace, of_kind=self._kind)
            row = msgspec.structs.asdict(made)
            del row["body"]
            await tx.run(_ADD, kind=self._kind, **row)
            await self._keep(tx, made)
            return made

        done = await self._db.write(work)
        self._generations.forget(made.workspace)
        return done

    async def find(self, workspace: str, key: str) -> Document | None:
        """The document whose slug or id is ``key``, archived or not, or ``None``."""
        row = await self._db.read(lambda tx: self._row_of(tx, workspace, key))
        return None if row is None else self._opened(row)

    async def _row_of(self, tx: Tx, workspace: str, key: str) -> Row | None:
        """Of a slug that is another document's id, the slug counts."""
        found = await tx.row(_BY_SLUG, owner=workspace, of_kind=self._kind, key=key)
        return found if found is not None else await tx.row(_BY_ID, owner=workspace, of_kind=self._kind, key=key)

    async def get(self, workspace: str, slug: str) -> Document | None:
        """The document of this slug for use; ``None`` when there is none or it is archived."""
        row = await self._db.row(_BY_SLUG, owner=workspace, of_kind=self._kind, key=slug)
        found = None if row is None else self._opened(row)
        return found if found is not None and found.status == "active" else None

    async def default(self, workspace: str) -> Document | None:
        """The workspace's default document, unless it is archived."""
        row = await self._db.row(_DEFAULT, owner=workspace, of_kind=self._kind)
        found = None if row is None else self._opened(row)
        return found if found is not None and found.status == "active" else None

    async def change(
        self, workspace: str, key: str, change: Callable[[Document], Document], by: str | None = None
    ) -> Document | None:
        """Replace the document whose slug or id is ``key`` by what ``change`` makes of it; ``None`` if there is none.

        Every change is a new version, and the former one is kept. ``by`` is the API key that asked for it. What
        ``change`` raises is raised here and nothing is changed.
        """

        async def work(tx: Tx) -> Document | None:
            await self._generations.moved(tx, workspace)
            row = await self._row_of(tx, workspace, key)
            if row is None:
                return None
            before = self._opened(row)
            after = msgspec.structs.replace(
                change(before), version_id=str(uuid.uuid4()), updated_at=clock.timestamp(), updated_by=by
            )
            if after.is_default and not before.is_default:
                await tx.run(_NO_DEFAULT, owner=workspace, of_kind=self._kind)
            await self._keep(tx, after)
            await tx.run(
                _CHANGE,
                key=before.id,
                new_name=after.name,
                new_status=after.status,
                new_is_default=after.is_default,
                new_version_id=after.version_id,
                new_updated_at=after.updated_at,
                new_updated_by=by,
            )
            return after

        done = await self._db.write(work)
        self._generations.forget(workspace)
        return done

    async def versions(self, document: Document) -> list[Version]:
        """The states that ``document`` was in, the present one first; at most `MOST_VERSIONS`."""
        return [
            Version(id=id, name=name, created_at=at, created_by=by, body=self._body(document.workspace, id, sealed))
            for id, name, at, by, sealed in await self._db.rows(_VERSIONS, key=document.id)
        ]

    async def delete(self, workspace: str, key: str) -> bool:
        """Forget the document whose slug or id is ``key``, and its versions; ``False`` when there is none."""

        async def work(tx: Tx) -> bool:
            await self._generations.moved(tx, workspace)
            row = await self._row_of(tx, workspace, key)
            if row is None:
                return False
            await tx.run(_DROP, key=row[_ID])
            await tx.run(_DROP_VERSIONS, key=row[_ID])
            return True

        done = await self._db.write(work)
        self._generations.forget(workspace)
        return done

    async def list(self, workspace: str | None = None) -> list[Document]:
        """All documents (of ``workspace``, the newest first)."""
        if workspace is None:
            rows = await self._db.rows(_ALL, of_kind=self._kind)
        else:
            rows = await self._db.rows(_OF, owner=workspace, of_kind=self._kind)
        found = [self._opened(row) for row in rows]
        return sorted(found, key=lambda one: (one.workspace, -one.created_at, one.slug))

    async def _keep(self, tx: Tx, document: Document) -> None:
        row = await tx.row(_NUMBER, key=document.id)
        number = (row[0] if row is not None and row[0] is not None else 0) + 1
        body = _encode(document.body).decode()
        await tx.run(
            _ADD_VERSION,
            id=document.version_id,
            document_id=document.id,
            number=number,
            name=document.name,
            sealed=self._sealer.seal(body, context=self._context(document.workspace, document.version_id)),
            created_at=document.updated_at,
            created_by=document.updated_by,
        )
        await tx.run(_FORGET, key=document.id, last=number - MOST_VERSIONS)

    def _context(self, workspace: str, version: str) -> str:
        return f"{self._kind}:{workspace}:{version}"

    def _body(self, workspace: str, version: str, sealed: bytes) -> dict[str, Any]:
        return _decode(self._sealer.open(sealed, context=self._context(workspace, version)))

    def _opened(self, row: Row) -> Document:
        *fields, sealed = row
        given: dict[str, Any] = dict(zip(_NAMES, fields, strict=True))
        given["is_default"] = bool(given["is_default"])
        return Document(**given, body=self._body(given["workspace"], given["version_id"], sealed))


_NAMES = [column.name for column in (*_FIELDS, *_MORE)][:-1]
_ID = _NAMES.index("id")
