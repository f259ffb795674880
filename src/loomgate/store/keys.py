"""Who may call, and with whose key models are called: API keys (hashed), virtual keys and credentials (sealed)."""

import hashlib
import hmac
import secrets
from typing import Any

import msgspec
import sqlalchemy as sa

from loomgate import clock
from loomgate.store import tables
from loomgate.store.database import Database, Statement, Tx
from loomgate.store.seal import Sealer
from loomgate.wire.ids import new_id

_k, _v, _c = tables.api_keys, tables.virtual_keys, tables.credentials
_key: sa.BindParameter[Any] = sa.bindparam("key")
_owner: sa.BindParameter[Any] = sa.bindparam("owner")

_ADD = Statement(sa.insert(_k))
_FIND = Statement(
    sa.select(_k.c.id, _k.c.workspace).where(_k.c.digest == sa.bindparam("digest"), _k.c.revoked_at.is_(None))
)
_ANY = Statement(sa.select(_k.c.id).limit(1))
_ALL = Statement(
    sa.select(_k.c.id, _k.c.workspace, _k.c.name, _k.c.hint, _k.c.created_at, _k.c.revoked_at).order_by(
        _k.c.created_at, _k.c.id
    )
)
_REVOKE = Statement(
    sa.update(_k).where(_k.c.id == _key, _k.c.revoked_at.is_(None)).values(revoked_at=sa.bindparam("at"))
)

_ADD_VIRTUAL = Statement(sa.insert(_v))
_VIRTUAL = Statement(
    sa.select(_v.c.provider, _v.c.base_url, _v.c.sealed).where(_v.c.workspace == _owner, _v.c.slug == _key)
)
_VIRTUALS = Statement(
    sa.select(_v.c.workspace, _v.c.slug, _v.c.provider, _v.c.base_url, _v.c.created_at).order_by(
        _v.c.workspace, _v.c.slug
    )
)
_DROP_VIRTUAL = Statement(sa.delete(_v).where(_v.c.workspace == _owner, _v.c.slug == _key))

_ADD_CREDENTIAL = Statement(sa.insert(_c))
_CREDENTIAL = Statement(sa.select(_c.c.sealed).where(_c.c.id == _key, _c.c.workspace == _owner))
_SAME_CREDENTIAL = Statement(sa.select(_c.c.id).where(_c.c.workspace == _owner, _c.c.digest == sa.bindparam("digest")))


class CreatedKey(msgspec.Struct, frozen=True):
    """A new API key; ``secret`` is shown once and cannot be read again."""

    id: str
    secret: str
    workspace: str
    name: str


class KeyRow(msgspec.Struct, frozen=True):
    """An API key as lists show it."""

    id: str
    workspace: str
    name: str
    hint: str
    created_at: int
    revoked_at: int | None


class VirtualKeyRow(msgspec.Struct, frozen=True):
    """A virtual key as lists show it."""

    workspace: str
    slug: str
    provider: str
    base_url: str | None
    created_at: int


class Opened(msgspec.Struct, frozen=True):
    """A virtual key ready for use: never logged, never shown."""

    provider: str
    secret: str
    base_url: str | None


def digest(secret: str) -> bytes:
    """What is stored of an API key. Its 160 random bits need no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).digest()


class Keys:
    """Verbs on API keys."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def create(self, workspace: str, name: str) -> CreatedKey:
        """A new key of ``workspace``: ``sk-lg-`` and 40 hex digits."""
        secret = f"sk-lg-{secrets.token_hex(20)}"
        key = CreatedKey(new_id("key"), secret, workspace, name)
        row = {
            "id": key.id,
            "workspace": workspace,
            "name": name,
            "digest": digest(secret),
            "hint": f"{secret[:8]}…{secret[-4:]}",
            "created_at": clock.timestamp(),
            "revoked_at": None,
        }
        await self._db.write(lambda tx: tx.run(_ADD, **row))
        return key

    async def workspace_of(self, secret: str) -> str | None:
        """The workspace that ``secret`` belongs to, or ``None`` for an unknown or revoked key."""
        row = await self._db.row(_FIND, digest=digest(secret))
        return None if row is None else row[1]

    async def exist(self) -> bool:
        """Was ever a key created? Until then the server trusts whoever is on this machine."""
        return await self._db.row(_ANY) is not None

    async def list(self) -> list[KeyRow]:
        """All keys, the revoked ones included, oldest first."""
        return [KeyRow(*row) for row in await self._db.rows(_ALL)]

    async def revoke(self, id: str) -> bool:
        """Make key ``id`` invalid for good; ``False`` when there is no such valid key."""
        return bool(await self._db.write(lambda tx: tx.run(_REVOKE, key=id, at=clock.timestamp())))


class VirtualKeys:
    """Verbs on virtual keys: a provider's key under a slug, sealed at rest."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._db = database
        self._sealer = sealer

    async def create(self, workspace: str, slug: str, provider: str, secret: str, base_url: str | None = None) -> bool:
        """Store ``secret`` of ``provider`` under ``slug``; ``False`` when the workspace has that slug already."""
        sealed = self._sealer.seal(secret, context=f"virtual_key:{workspace}:{slug}")

        async def work(tx: Tx) -> bool:
            if await tx.row(_VIRTUAL, owner=workspace, key=slug) is not None:
                return False
            await tx.run(
                _ADD_VIRTUAL,
                workspace=workspace,
                slug=slug,
                provider=provider,
                base_url=base_url,
                sealed=sealed,
                created_at=clock.timestamp(),
            )
            return True

        return await self._db.write(work)

    async def get(self, workspace: str, slug: str) -> Opened | None:
        """The key under ``slug``, opened for use; ``None`` when there is none."""
        row = await self._db.row(_VIRTUAL, owner=workspace, key=slug)
        if row is None:
            return None
        provider, base_url, sealed = row
        return Opened(provider, self._sealer.open(sealed, context=f"virtual_key:{workspace}:{slug}"), base_url)

    async def list(self, workspace: str | None = None) -> list[VirtualKeyRow]:
        """All virtual keys (of ``workspace``), without their secrets."""
        found = [VirtualKeyRow(*row) for row in await self._db.rows(_VIRTUALS)]
        return [row for row in found if workspace in (None, row.workspace)]

    async def delete(self, workspace: str, slug: str) -> bool:
        """Forget the key; ``False`` when there is none."""
        return bool(await self._db.write(lambda tx: tx.run(_DROP_VIRTUAL, owner=workspace, key=slug)))


class Credentials:
    """Clients' own provider keys, sealed so that a run outlives the request that brought them."""

    def __init__(self, database: Database, sealer: Sealer) -> None:
        self._db = database
        self._sealer = sealer

    async def keep(self, workspace: str, secret: str) -> str:
        """Seal ``secret``; answers the id to find it by, the same one for the same secret."""
        mark = hmac.digest(self._sealer.mark, f"{workspace}:{secret}".encode(), "sha256")
        known = await self._db.row(_SAME_CREDENTIAL, owner=workspace, digest=mark)
        if known is not None:
            return known[0]
        id = new_id("cred")
        sealed = self._sealer.seal(secret, context=f"credential:{workspace}:{id}")

        async def work(tx: Tx) -> str:
            again = await tx.row(_SAME_CREDENTIAL, owner=workspace, digest=mark)
            if again is not None:
                return again[0]
            await tx.run(
                _ADD_CREDENTIAL, id=id, workspace=workspace, digest=mark, sealed=sealed, created_at=clock.timestamp()
            )
            return id

        return await self._db.write(work)

    async def get(self, workspace: str, id: str) -> str | None:
        """The secret kept under ``id``, or ``None``."""
        row = await self._db.row(_CREDENTIAL, key=id, owner=workspace)
        return None if row is None else self._sealer.open(row[0], context=f"credential:{workspace}:{id}")
