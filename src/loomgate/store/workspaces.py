"""Workspaces: the border that no key sees across, and the order keys of what lies directly in one."""

import sqlalchemy as sa

from loomgate import clock
from loomgate.store import tables
from loomgate.store.database import Tx, upsert

_t = tables.workspaces
_NEXT = upsert(
    lambda insert: (
        insert(_t)
        .values(id=sa.bindparam("owner"), positions=1, created_at=sa.bindparam("at"))
        .on_conflict_do_update(index_elements=["id"], set_={"positions": _t.c.positions + 1})
        .returning(_t.c.positions)
    )
)


async def next_position(tx: Tx, workspace: str) -> int:
    """The next order key in ``workspace``, which is made on first use; holds its row until the commit."""
    row = await tx.row(_NEXT, owner=workspace, at=clock.timestamp())
    assert row is not None
    return row[0]
