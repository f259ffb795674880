"""Who may call (API keys, hashed), and the provider keys that clients bring along themselves (credentials, sealed)."""

import hashlib
import hmac
import secrets
from typing import Any, Literal

import msgspec
import sqlalchemy as sa

from loomgate import clock
from loomgate.store import tables
from loomgate.store.database import Database, Statement, Tx, upsert
from loomgate.store.seal import Sealer
from loomgate.wire.ids import new_id

_k, _c = tables.api_keys, tables.credentials
_key: sa.BindParameter[Any] = sa.bindparam("key")
_owner: sa.BindParameter[Any] = sa.bindparam("owner")

_ADD = Statement(sa.insert(_k))
_FIND = Statement(
    sa.select(_k.c.id, _k.c.workspace, _k.c.role).where(
        _k.c.digest == sa.bindparam("digest"), _k.c.revoked_at.is_(None)
    )
)
_ANY = Statement(sa.select(_k.c.id).limit(1))
_ALL = Statement(
    sa.select(_k.c.id, _k.c.workspace, _k.c.name, _k.c.hint, _k.c.created_at, _k.c.revoked_at, _k.c.role).order_by(
        _k.c.created_at, _k.c.id
    )
)
_REVOKE = Statement(
    sa.update(_k).where(_k.c.id == _key, _k.c.revoked_at.is_(None)).values(revoked_at=sa.bindparam("at"))
)

_ADD_CREDENTIAL = upsert(lambda insert: insert(_c).on_conflict_do_nothing(index_elements=[_c.c.workspace, _c.c.digest]))
_CREDENTIAL = Statement(sa.select(_c.c.sealed).where(_c.c.id == _key, _c.c.workspace == _owner))
_SAME_CREDENTIAL = Statement(sa.select(_c.c.id).where(_c.c.workspace == _owner, _c.c.digest == sa.bindparam("digest")))


# What a key may do in its workspace. admin: everything that user may, and the admin routes.
Role = Literal["user", "admin"]


class CreatedKey(msgspec.Struct, frozen=True):
    """A new API key; ``secret`` is shown once and cannot be read again."""

    id: str
    secret: str
    workspace: str
    name: str
    role: Role


class Holder(msgspec.Struct, frozen=True):
    """Whom an API key lets in."""

    id: str
    workspace: str
    role: Role


class KeyRow(msgspec.Struct, frozen=True):
    """An API key as lists show it."""

    id: str
    workspace: str
    name: str
    hint: str
    created_at: int
    revoked_at: int | None
    role: Role


def digest(secret: str) -> bytes:
    """What is stored of an API key. Its 160 random bits need no salt and no slow hash."""
    return hashlib.sha256(secret.encode()).digest()


class Keys:
    """Verbs on API keys."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def create(self, workspace: str, name: str, role: Role = "user") -> CreatedKey:
        """A new key of ``workspace``: ``sk-lg-`` and 40 hex digits."""
        secret = f"sk-lg-{secrets.token_hex(20)}"
        key = CreatedKey(new_id("key"), secret, workspace, name, role)
        row = {
            "id": key.id,
            "workspace": workspace,
            "name": name,
            "digest": digest(secret),
            "hint": f"{secret[:8]}…{secret[-4:]}",
            "created_at": clock.timestamp(),
            "revoked_at": None,
            "role": role,
        }
        await self._db.write(lambda tx: tx.run(_ADD, **row))
        return key

    async def holder(self, secret: str) -> Holder | None:
        """Whom ``secret`` lets in, or ``None`` for an unknown or revoked key."""
        row = await self._db.row(_FIND, digest=digest(secret))
        return None if row is None else Holder(*row)

    async def exist(self) -> bool:
        """Was ever a key created? Until then the server trusts whoever is on this machine."""
        return await self._db.row(_ANY) is not None

    async def list(self) -> list[KeyRow]:
        """All keys, the revoked ones included, oldest first."""
        return [KeyRow(*row) for row in await self._db.rows(_ALL)]

    async def revoke(self, id: str) -> bool:
        """Make key ``id`` invalid for good; ``False`` when there is no such valid key."""
        return bool(await self._db.write(lambda tx: tx.run(_REVOKE, key=id, at=clock.timestamp())))


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
            row = {"id": id, "workspace": workspace, "digest": mark, "sealed": sealed, "created_at": clock.timestamp()}
            await tx.run(_ADD_CREDENTIAL, **row)
            kept = await tx.row(_SAME_CREDENTIAL, owner=workspace, digest=mark)  # by us, or by somebody just before us
            assert kept is not None
            return kept[0]

        return await self._db.write(work)

    async def get(self, workspace: str, id: str) -> str | None:
        """The secret kept under ``id``, or ``None``."""
        row = await self._db.row(_CREDENTIAL, key=id, owner=workspace)
        return None if row is None else self._sealer.open(row[0], context=f"credential:{workspace}:{id}")
