"""Whether a virtual key may be used once more: its budget and its rates (GERR-10).

What must live here: what each key has used, in memory, and the answer to a key that has used enough. What must not:
where limits are kept, prices, or how requests are counted (``counters``). What a budget has seen outlives a restart,
since the ledger adds up what calls cost (`Limits.load`); rates begin anew, unless they are counted in Redis.
"""

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta

from loomgate import clock
from loomgate.errors import ApiError
from loomgate.gateway.config import Budget
from loomgate.gateway.counters import Counters, Rate, Verdict
from loomgate.store.ledger import Spent
from loomgate.wire.limits import KeyLimits, RateLimit, UsageLimits

log = logging.getLogger(__name__)

_DAY = 86_400
_EPOCH = date(1970, 1, 1)
_ROUNDING = 1e-9  # USD that many small sums may be off
_SECONDS = {"rpm": 60, "rph": 3_600, "rpd": _DAY}
_UNIT = {"rpm": "minute", "rph": "hour", "rpd": "day"}
_DAYS_TOLD = 3
_DAYS_KEPT = 400  # what was spent earlier counts for budgets without a reset only, as one sum


def key_id(workspace: str, slug: str) -> str:
    """How a virtual key is called here."""
    return f"{workspace}/{slug}"


class _Used:
    __slots__ = ("alerted", "days", "earlier", "limits", "period", "rates", "reset", "told")

    def __init__(self) -> None:
        self.days: dict[int, list[float]] = {}  # day -> [USD, tokens]
        self.earlier = [0.0, 0.0]
        # Those of the last days as the ledger has them, or will: also what was spent before a reset by hand.
        self.told: dict[int, list[float]] = {}
        self.limits: KeyLimits | None = None
        self.rates: tuple[Rate, ...] = ()  # of these limits
        # The sum since the first day of the present period, kept up to date: (first day, day of the sum, USD, tokens)
        self.period: tuple[int, list[float]] | None = None
        self.alerted = -1
        self.reset = 0

    def forget(self, first: int) -> None:
        """Forget what was spent before the day ``first``; 0: all of it."""
        self.days = {day: sum for day, sum in self.days.items() if first and day >= first}
        self.earlier, self.period, self.alerted = [0.0, 0.0], None, -1

    def add(self, day: int, cost: float, tokens: int) -> None:
        sum = self.days.get(day)
        if sum is None:
            sum = self.days[day] = [0.0, 0.0]
            if len(self.days) > _DAYS_KEPT:
                old = self.days.pop(min(self.days))
                self.earlier = [self.earlier[0] + old[0], self.earlier[1] + old[1]]
        sum[0] += cost
        sum[1] += tokens
        told = self.told.get(day)
        if told is None:
            told = self.told[day] = [0.0, 0.0]
            if len(self.told) > _DAYS_TOLD:
                del self.told[min(self.told)]
        told[0] += cost
        told[1] += tokens
        if self.period is not None and day >= self.period[0]:
            self.period[1][0] += cost
            self.period[1][1] += tokens

    def since(self, first: int) -> list[float]:
        """USD and tokens from the day ``first`` on (0: ever)."""
        if self.period is None or self.period[0] != first:
            sums = [list(self.earlier) if first == 0 else [0.0, 0.0]]
            sums += [sum for day, sum in self.days.items() if day >= first]
            self.period = (first, [math.fsum(each) for each in zip(*sums, strict=True)])
        return self.period[1]


class Limits:
    """What virtual keys have used, and whether they may go on. All but `load` is cheap.

    Rates are counted by ``counters``: for all nodes, if those are shared (`shared`); then `admitted` alone asks them.
    """

    def __init__(self, counters: Counters | None = None) -> None:
        self._counters = counters or Counters()
        self._used: dict[str, _Used] = {}
        self._asked: set[str] = set()
        self._began = clock.now()

    @property
    def shared(self) -> bool:
        """Whether rates are counted for all nodes: then use `admitted`."""
        return self._counters.shared is not None

    def load(self, spent: Iterable[Spent], parents: Mapping[str, str] = {}) -> None:
        """Begin with what the ledger says was spent before: `loomgate.store.ledger.Ledger.spending`.

        ``parents``: for some keys, under which other id their spending counts as well (that of an integration).
        """
        self._used.clear()
        for row in sorted(spent, key=lambda row: row.day):
            id = key_id(row.workspace, row.virtual_key)
            for each in (id, parents.get(id)):
                if each is not None:
                    self._of(each).add(row.day, row.cost, row.tokens)

    def admit(self, virtual_key_id: str, limits: KeyLimits | None, since: int | None = None) -> ApiError | None:
        """``None``, and the request counts; or why the key may not be used: 412 (budget), 429 (rate, with Retry-After).

        A request is let in as long as there is anything left: what it will cost is not known yet. ``since`` (seconds)
        is when its usage was reset by hand: what was spent earlier is forgotten, though not what was spent on that
        very day by an earlier process.
        """
        if limits is None:
            return None
        rates = self._within_budget(virtual_key_id, limits, since)
        if isinstance(rates, ApiError):
            return rates
        return _refused(rates, self._counters.enter_here(rates)) if rates else None

    async def admitted(self, budgets: Sequence[Budget]) -> ApiError | None:
        """`admit` for all of ``budgets`` at once: none of their rates counts a request that one of them refuses."""
        rates: list[Rate] = []
        for budget in budgets:
            found = self._within_budget(budget.id, budget.limits, budget.since)
            if isinstance(found, ApiError):
                return found
            rates += found
        return _refused(rates, await self._counters.enter(rates)) if rates else None

    def _within_budget(self, id: str, limits: KeyLimits, since: int | None) -> ApiError | tuple[Rate, ...]:
        """The rates that hold as well; or why the budget lets nobody in."""
        used = self._of(id)
        if since is not None and since > used.reset:
            used.forget(0 if since >= self._began else int(since // _DAY))
            used.reset = since
        if limits.usage_limits is not None:
            self._asked.add(id)
            refused = self._budget(id, used, limits.usage_limits, clock.now())
            if refused is not None:
                return refused
        if used.limits is not limits:
            used.limits = limits
            used.rates = tuple(_rate(id, rate) for rate in limits.rate_limits)
        return used.rates

    def spend(self, virtual_key_id: str, cost: float, tokens: int) -> None:
        """A call with the key has cost ``cost`` USD and used ``tokens``."""
        used = self._of(virtual_key_id)
        used.add(int(clock.now() // _DAY), cost, tokens)
        rates = {rate.name: rate for rate in used.rates if not rate.counts}
        if rates:
            self._counters.add([(rate, tokens) for rate in rates.values()])

    def spend_with(self, parents: Mapping[str, str], virtual_key_id: str, cost: float, tokens: int) -> None:
        """`spend`, and the same for the id that ``parents`` has for the key."""
        self.spend(virtual_key_id, cost, tokens)
        if (parent := parents.get(virtual_key_id)) is not None:
            self.spend(parent, cost, tokens)

    def spent(self, virtual_key_id: str, usage: UsageLimits) -> float:
        """USD or tokens, as ``usage.type`` counts, that the key has used in the present period of ``usage``."""
        used = self._used.get(virtual_key_id)
        if used is None:
            return 0.0
        return used.since(period_start(usage, clock.now()))[usage.type == "tokens"]

    def reset(self, virtual_key_id: str) -> None:
        """Forget what the key has used; `loomgate.store.ledger.Ledger.reset_spending` does it for good."""
        used = self._used.pop(virtual_key_id, None)
        if used is not None:
            self._counters.forget(used.rates)

    def asked(self) -> set[str]:
        """The ids whose budgets were asked for since this was last called."""
        asked, self._asked = self._asked, set()
        return asked

    def correct(self, spent: Iterable[Spent], parents: Mapping[str, str]) -> None:
        """The ledger has ``spent``, of the last days, to which other nodes have added: what was not known counts too.

        What was spent here and is not written yet goes on counting.
        """
        for row in spent:
            id = key_id(row.workspace, row.virtual_key)
            told = self._of(id).told.get(row.day, (0.0, 0.0))
            cost, tokens = max(0.0, row.cost - told[0]), int(max(0, row.tokens - told[1]))
            if cost > _ROUNDING or tokens:
                for each in (id, parents.get(id)):
                    if each is not None:
                        self._of(each).add(row.day, cost, tokens)

    def _of(self, virtual_key_id: str) -> _Used:
        found = self._used.get(virtual_key_id)
        if found is None:
            found = self._used[virtual_key_id] = _Used()
        return found

    def _budget(self, id: str, used: _Used, usage: UsageLimits, now: float) -> ApiError | None:
        first = period_start(usage, now)
        spent = used.since(first)[usage.type == "tokens"]
        if usage.alert_threshold is not None and spent >= usage.alert_threshold and used.alerted != first:
            used.alerted = first
            log.warning("virtual key %s has used %s: its alert threshold is reached", id, _amount(usage, spent))
        if usage.credit_limit is None or spent + _ROUNDING < usage.credit_limit:
            return None
        return ApiError(
            412,
            f"The budget of the virtual key '{id.partition('/')[2]}' is used up: {_amount(usage, spent)} of"
            f" {_amount(usage, usage.credit_limit)}. Expected a key with budget left; ask who runs this gateway.",
            type="budget_exceeded",
            code="budget_exceeded",
        )


def _rate(id: str, rate: RateLimit) -> Rate:
    return Rate(f"{id}:{rate.type}:{rate.unit}", _SECONDS[rate.unit], rate.value, rate.type == "requests")


def _refused(rates: Sequence[Rate], verdict: Verdict) -> ApiError | None:
    if verdict.refused is None:
        return None
    rate = rates[verdict.refused]
    seconds = max(1, math.ceil(verdict.stands[verdict.refused].wait(rate.seconds, rate.room)))
    id, kind, unit = rate.name.rsplit(":", 2)
    return ApiError(
        429,
        f"Rate limit of the virtual key '{id.partition('/')[2]}' reached: {rate.value} {kind} a"
        f" {_UNIT[unit]}. Please try again in {seconds} s.",
        type=kind,
        code="rate_limit_exceeded",
        headers={"retry-after": str(seconds)},
    )


def _amount(usage: UsageLimits, amount: float) -> str:
    return f"{amount:,.0f} tokens" if usage.type == "tokens" else f"${amount:,.2f}"


def period_start(usage: UsageLimits, now: float) -> int:
    """The first day (since the epoch, UTC) of the budget's present period; 0 for a budget that is never reset."""
    today = int(now // _DAY)
    anchor = usage.next_usage_reset_at
    first = None
    if anchor is not None:
        first = (anchor.replace(tzinfo=UTC) if anchor.tzinfo is None else anchor.astimezone(UTC)).date()
    if usage.periodic_reset_days is not None or usage.periodic_reset == "weekly":
        length = usage.periodic_reset_days or 7
        # The first Sunday of the epoch was its day 3.
        origin = (first - _EPOCH).days if first is not None else 3 if usage.periodic_reset_days is None else 0
        return today - (today - origin) % length
    if usage.periodic_reset == "monthly":
        return _monthly(_EPOCH + timedelta(today), 1 if first is None else first.day)
    if first is not None and (start := (first - _EPOCH).days) <= today:
        return max(0, start)  # reset once, on that day
    return 0


def _monthly(day: date, on: int) -> int:
    """The last day that was number ``on`` of its month, or the month's last when it has no such day."""
    start = _in_month(day.year, day.month, on)
    if start > day:
        before = day.replace(day=1) - timedelta(1)
        start = _in_month(before.year, before.month, on)
    return (start - _EPOCH).days


def _in_month(year: int, month: int, on: int) -> date:
    following = datetime(year + month // 12, month % 12 + 1, 1, tzinfo=UTC).date()
    return min(date(year, month, 1) + timedelta(on - 1), following - timedelta(1))
