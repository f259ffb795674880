"""How often what a workspace's administrators declare has changed, so that caches of it notice.

Every change of a virtual key, integration, config or guardrail moves the workspace's number on, in the transaction of
the change itself. Whoever keeps something made of them keeps the number with it and makes it anew when the number is
another. The number is in the database and looked up at most once a second: so a change by another process (a command
line now, another node on a shared database later) is noticed within that second, one by this process at once.
"""

import sqlalchemy as sa

from loomgate import clock
from loomgate.store import tables
from loomgate.store.database import Database, Statement, Tx, upsert

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
_MOST = 10_000  # workspaces


class Generations:
    """The numbers of all workspaces, with a small memory."""

    def __init__(self, database: Database) -> None:
        self._db = database
        self._known: dict[str, tuple[int, float]] = {}

    async def of(self, workspace: str) -> int:
        """The number of ``workspace``, at most a second old; 0 if nothing was ever declared there. Costs a lookup in a
        dict but once a second."""
        now = clock.monotonic()
        found = self._known.get(workspace)
        if found is not None and now < found[1]:
            return found[0]
        row = await self._db.row(_NUMBER, owner=workspace)
        number = 0 if row is None else row[0]
        if len(self._known) >= _MOST:
            self._known.clear()
        self._known[workspace] = (number, now + _SECONDS)
        return number

    def known(self, workspace: str) -> int | None:
        """The number, if it was looked up within the last second."""
        found = self._known.get(workspace)
        return found[0] if found is not None and clock.monotonic() < found[1] else None

    async def moved(self, tx: Tx, workspace: str) -> None:
        """Move the number on, with the transaction of the change."""
        await tx.run(_BUMP, owner=workspace)

    def forget(self, workspace: str) -> None:
        """Look the number up at the next question: called when the change is committed."""
        self._known.pop(workspace, None)
