"""What other nodes spend: budgets go by the sums in the ledger, which all nodes add to.

What must live here: when those sums are read again. What must not: what a budget is, or SQL.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping

from loomgate import clock
from loomgate.errors import StoreError
from loomgate.gateway.limits import Limits
from loomgate.store.ledger import Spent

log = logging.getLogger(__name__)

_SECONDS = 0.5  # how often; the nodes write what they spent as often as that
_MOST = 500  # keys of one transaction
_DAY = 86_400

Read = Callable[[Iterable[tuple[str, str]], int], Awaitable[list[Spent]]]


class Spending:
    """Reads the sums of the keys whose budgets were asked for lately, so that `Limits` knows what all nodes spent.

    ``parents`` as `Limits.load` has it; ``read`` is `loomgate.store.ledger.Ledger.spent_lately`.
    """

    def __init__(self, limits: Limits, parents: Mapping[str, str], read: Read) -> None:
        self._limits = limits
        self._parents = parents
        self._read = read
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Read from now on."""
        self._task = asyncio.get_running_loop().create_task(self._run(), name="loomgate-spending")

    async def close(self) -> None:
        """Read no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def look(self) -> None:
        """Read the sums once. Raises `StoreError`."""
        asked = self._limits.asked()
        if not asked:
            return
        # What counts under an integration is spent by any of its keys.
        asked |= {key for key, parent in self._parents.items() if parent in asked}
        first = int(clock.now() // _DAY) - 1  # what was spent before midnight may be written after it
        keys = [(workspace, slug) for workspace, _, slug in (id.partition("/") for id in sorted(asked))]
        for start in range(0, len(keys), _MOST):
            self._limits.correct(await self._read(keys[start : start + _MOST], first), self._parents)

    async def _run(self) -> None:
        failed = False
        while True:
            await clock.sleep(_SECONDS)
            try:
                await self.look()
                failed = False
            except StoreError as error:
                if not failed:
                    log.warning("budgets do not know what other nodes spend, the ledger cannot be read: %s", error)
                failed = True
            except Exception:
                log.exception("budgets do not know what other nodes spend")
