"""Assistants: stored whole, listed by workspace (BEHAVIOUR section 7)."""

from collections.abc import Callable

import msgspec
import sqlalchemy as sa

from loomgate.errors import not_found
from loomgate.store import tables
from loomgate.store.database import Database, Statement, Tx
from loomgate.store.pages import Listing
from loomgate.store.workspaces import next_position
from loomgate.wire.assistants import Assistant
from loomgate.wire.page import Page, PageQuery

_t = tables.assistants
_INSERT = Statement(sa.insert(_t))
_row = sa.select(_t.c.body, _t.c.private).where(_t.c.id == sa.bindparam("key"), _t.c.workspace == sa.bindparam("owner"))
_ROW = Statement(_row)
_FOR_CHANGE = Statement(_row.with_for_update())
_UPDATE = Statement(
    sa.update(_t)
    .where(_t.c.id == sa.bindparam("key"))
    .values(body=sa.bindparam("new_body"), private=sa.bindparam("new_private"))
)
_DELETE = Statement(sa.delete(_t).where(_t.c.id == sa.bindparam("key"), _t.c.workspace == sa.bindparam("owner")))
_LIST = Listing(_t, "workspace")

_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Assistant).decode


class Sampling(msgspec.Struct, omit_defaults=True, frozen=True):
    """The sampling values that somebody chose; the others are shown as 1.0 but not sent (BEHAVIOUR RSN-03)."""

    temperature: float | None = None
    top_p: float | None = None


_decode_sampling = msgspec.json.Decoder(Sampling).decode


class Assistants:
    """Verbs on assistants. ``workspace`` is the caller's: another one's id is unknown."""

    def __init__(self, database: Database) -> None:
        self._db = database

    async def create(self, workspace: str, assistant: Assistant, sampling: Sampling) -> bytes:
        """Store a new assistant; answers its body."""
        body = _encode(assistant)

        async def work(tx: Tx) -> None:
            position = await next_position(tx, workspace)
            row = {
                "id": assistant.id,
                "workspace": workspace,
                "position": position,
                "private": _encode(sampling),
                "body": body,
            }
            await tx.run(_INSERT, **row)

        await self._db.write(work)
        return body

    async def body(self, workspace: str, id: str) -> bytes:
        """The stored body. Raises a 404 `ApiError`."""
        row = await self._db.row(_ROW, key=id, owner=workspace)
        if row is None:
            raise not_found("assistant", id)
        return row[0]

    async def get(self, workspace: str, id: str) -> tuple[Assistant, Sampling]:
        """The assistant and its chosen sampling values. Raises a 404 `ApiError`."""
        row = await self._db.row(_ROW, key=id, owner=workspace)
        if row is None:
            raise not_found("assistant", id)
        return _decode(row[0]), _decode_sampling(row[1])

    async def modify(
        self, workspace: str, id: str, change: Callable[[Assistant, Sampling], tuple[Assistant, Sampling]]
    ) -> bytes:
        """Replace the assistant by what ``change`` makes of it, in one transaction; answers the new body."""

        async def work(tx: Tx) -> bytes:
            row = await tx.row(_FOR_CHANGE, key=id, owner=workspace)
            if row is None:
                raise not_found("assistant", id)
            assistant, sampling = change(_decode(row[0]), _decode_sampling(row[1]))
            body = _encode(assistant)
            await tx.run(_UPDATE, key=id, new_body=body, new_private=_encode(sampling))
            return body

        return await self._db.write(work)

    async def delete(self, workspace: str, id: str) -> None:
        """Forget the assistant; its threads and runs stay (ASST-08). Raises a 404 `ApiError`."""

        async def work(tx: Tx) -> None:
            if not await tx.run(_DELETE, key=id, owner=workspace):
                raise not_found("assistant", id)

        await self._db.write(work)

    async def page(self, workspace: str, query: PageQuery) -> Page:
        """One page of the workspace's assistants."""
        return await self._db.look(lambda tx: _LIST.page(tx, workspace, query))
