"""How often what a workspace's administrators declare has changed, so that caches of it notice.

Every change of a virtual key, integration, config or guardrail moves the workspace's number on, in the transaction of
the change itself. Whoever keeps something made of them keeps the number with it and makes it anew when the number is
another. The number is in the database and looked up at most once a second: so a change by another process (a command
line now, another node on a shared database later) is noticed within that second, one by this process at once.
"""

import sqlalchemy as sa

from loomgate.store import tables
from loomgate.store.database import Database, Statement, Tx, upsert
from loomgate.store.recent import Recent

_t = tables.generations
_BUMP = upsert(
    lambda insert: (
        insert(_t)
        .values(workspace=sa.bindparam("owner"), number=1)
        .on_conflict_do_update(index_elements=["workspace"], set_={"number": _t.c.number + 1})
    )
)
_NUMBER = Statement(sa.select(_t.c.number).where(_t.c.workspace == sa.bindparam("owner")))
_SECONDS = 1.0


class Generations:
    """The numbers of all workspaces, with a small memory, which lasts while the database is away."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._known = Recent(self._number, fresh=_SECONDS)

    async def of(self, workspace: str) -> int:
        """The number of ``workspace``, at most a second old; 0 if nothing was ever declared there. Costs a lookup in a
        dict but once a second."""
        known = self.known(workspace)
        return (await self._known.get(workspace) or 0) if known is None else known

    async def _number(self, workspace: str) -> int:
        row = await self._db.row(_NUMBER, owner=workspace)
        return 0 if row is None else row[0]

    def known(self, workspace: str) -> int | None:
        """The number, if it was looked up within the last second."""
        return self._known.known(workspace)

    async def moved(self, tx: Tx, workspace: str) -> None:
        """Move the number on, with the transaction of the change, which begins with it: until the commit, nobody else
        changes what this workspace declares."""
        await tx.run(_BUMP, owner=workspace)

    def forget(self, workspace: str) -> None:
        """Look the number up at the next question: called when the change is committed."""
        self._known.forget(workspace)
