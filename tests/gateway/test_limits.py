"""Budgets and rates of virtual keys: who is let in, who is not, and when again."""

from collections.abc import Iterable
from datetime import UTC, datetime

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate import clock
from loomgate.gateway.limits import Limits, key_id, period_start
from loomgate.gateway.spending import Spending
from loomgate.store.ledger import Spent
from loomgate.wire.limits import KeyLimits, RateLimit, UsageLimits

KEY = key_id("team", "openai-main")


@pytest.fixture(autouse=True)
def _at_the_start_of_an_hour() -> None:  # pyright: ignore[reportUnusedFunction]
    clock.advance(86_400 - clock.now() % 86_400 + 10 * 3600)


def budget(limit: float, **more: object) -> KeyLimits:
    return msgspec.convert({"usage_limits": {"credit_limit": limit, **more}}, KeyLimits)


def rates(*limits: RateLimit) -> KeyLimits:
    return KeyLimits(rate_limits=limits)


def day(year: int, month: int, number: int) -> int:
    return int(datetime(year, month, number, tzinfo=UTC).timestamp()) // 86_400


# --- budgets ---


@pytest.mark.behaviour("GERR-10")
def test_a_budget_that_is_used_up_is_a_412() -> None:
    limits, allowed = Limits(), budget(1.0)
    assert limits.admit(KEY, allowed) is None
    limits.spend(KEY, 0.99, 1000)
    assert limits.admit(KEY, allowed) is None
    limits.spend(KEY, 0.01, 1000)
    refused = limits.admit(KEY, allowed)
    assert refused is not None
    assert (refused.status, refused.code) == (412, "budget_exceeded")
    assert "openai-main" in refused.message
    assert "$1.00 of $1.00" in refused.message
    assert limits.admit(key_id("other", "openai-main"), allowed) is None
    assert limits.admit(KEY, None) is None


def test_a_budget_may_be_of_tokens() -> None:
    limits, allowed = Limits(), budget(2000, type="tokens")
    limits.spend(KEY, 100.0, 1999)
    assert limits.admit(KEY, allowed) is None
    limits.spend(KEY, 0.0, 1)
    refused = limits.admit(KEY, allowed)
    assert refused is not None
    assert "2,000 tokens" in refused.message


def test_a_budget_begins_anew_with_its_period() -> None:
    limits, allowed = Limits(), budget(1.0, periodic_reset_days=1)
    limits.spend(KEY, 5.0, 1)
    assert limits.admit(KEY, allowed) is not None
    clock.advance(86_400)
    assert limits.admit(KEY, allowed) is None
    assert limits.admit(KEY, budget(1.0)) is not None, "one without a reset remembers"


def test_a_budget_outlives_a_restart() -> None:
    today = int(clock.now()) // 86_400
    limits = Limits()
    rows = [Spent("team", "openai-main", today - back, 0.01, 10) for back in range(1000)]
    limits.load(rows)
    assert limits.spent(KEY, UsageLimits()) == pytest.approx(10.0)
    assert limits.spent(KEY, UsageLimits(type="tokens")) == 10_000
    assert limits.spent(KEY, UsageLimits(periodic_reset_days=1)) == pytest.approx(0.01)
    assert limits.admit(KEY, budget(10.0)) is not None
    assert limits.admit(KEY, budget(10.5)) is None
    limits.reset(KEY)
    assert limits.admit(KEY, budget(10.0)) is None


def test_what_other_nodes_spend_counts_once() -> None:
    limits, allowed, today = Limits(), budget(10.0), int(clock.now()) // 86_400
    parents = {KEY: "team/integration/acme"}

    def spent() -> list[float]:
        return [round(limits.spent(id, UsageLimits()), 6) for id in (KEY, parents[KEY])]

    limits.load([Spent("team", "openai-main", today - 1, 1.0, 10)], parents)
    limits.spend_with(parents, KEY, 2.0, 20)
    limits.correct([Spent("team", "openai-main", today - 1, 1.0, 10)], parents)
    assert spent() == [3.0, 3.0]
    # The ledger has what another node spent, but not yet what was spent here.
    limits.correct([Spent("team", "openai-main", today, 1.5, 10)], parents)
    assert spent() == [3.0, 3.0]
    for _ in range(2):
        limits.correct([Spent("team", "openai-main", today, 3.5, 30)], parents)
        assert spent() == [4.5, 4.5]
    assert limits.spent(KEY, UsageLimits(type="tokens")) == 40
    # What was spent before a reset by hand goes on standing in the ledger.
    assert limits.admit(KEY, allowed, since=int(clock.now()) + 1) is None
    limits.correct([Spent("team", "openai-main", today, 4.5, 40)], parents)
    assert spent() == [1.0, 5.5]


@pytest.mark.anyio
async def test_sums_are_read_again_of_the_keys_that_are_in_use() -> None:
    limits, today = Limits(), int(clock.now()) // 86_400
    parents = {KEY: "team/integration/acme", "team/b": "team/integration/acme", "team/c": "team/integration/other"}
    read: list[tuple[list[tuple[str, str]], int]] = []

    async def ledger(keys: Iterable[tuple[str, str]], first: int) -> list[Spent]:
        read.append((list(keys), first))
        return [Spent("team", "b", today, 7.0, 0)]

    spending = Spending(limits, parents, ledger)
    await spending.look()
    assert read == []
    assert limits.admit("team/integration/acme", budget(7.0)) is None
    await spending.look()
    assert read == [([("team", "b"), ("team", "integration/acme"), ("team", "openai-main")], today - 1)]
    assert limits.admit("team/integration/acme", budget(7.0)) is not None
    assert limits.spent("team/b", UsageLimits()) == 7.0


def test_an_alert_is_logged_once_a_period(caplog: pytest.LogCaptureFixture) -> None:
    limits, allowed = Limits(), budget(10.0, alert_threshold=5, periodic_reset_days=1)
    limits.spend(KEY, 6.0, 1)
    for _ in range(3):
        assert limits.admit(KEY, allowed) is None
    assert len(caplog.records) == 1
    assert "openai-main" in caplog.text
    clock.advance(86_400)
    limits.spend(KEY, 6.0, 1)
    assert limits.admit(KEY, allowed) is None
    assert len(caplog.records) == 2


@pytest.mark.parametrize(
    ("usage", "now", "first"),
    [
        ({}, (2026, 11, 21), 0),
        ({"periodic_reset": "monthly"}, (2026, 11, 21), day(2026, 11, 1)),
        ({"periodic_reset": "monthly"}, (2026, 11, 1), day(2026, 11, 1)),
        ({"periodic_reset": "weekly"}, (2026, 11, 21), day(2026, 11, 15)),  # a Saturday, and the Sunday before
        ({"periodic_reset": "weekly"}, (2026, 11, 22), day(2026, 11, 22)),
        (
            {"periodic_reset": "monthly", "next_usage_reset_at": "2026-05-31T00:00:00Z"},
            (2026, 11, 21),
            day(2026, 10, 31),
        ),
        (
            {"periodic_reset": "monthly", "next_usage_reset_at": "2026-05-31T00:00:00Z"},
            (2027, 3, 1),
            day(2027, 2, 28),
        ),
        (
            {"periodic_reset": "monthly", "next_usage_reset_at": "2026-12-15T00:00:00Z"},
            (2027, 1, 3),
            day(2026, 12, 15),
        ),
        (
            {"periodic_reset_days": 30, "next_usage_reset_at": "2026-12-01T00:00:00Z"},
            (2026, 11, 21),
            day(2026, 11, 1),
        ),
        ({"periodic_reset": "weekly", "next_usage_reset_at": "2026-12-02"}, (2026, 11, 21), day(2026, 11, 18)),
        ({"next_usage_reset_at": "2026-11-20T12:00:00Z"}, (2026, 11, 21), day(2026, 11, 20)),
        ({"next_usage_reset_at": "2026-12-01T00:00:00+02:00"}, (2026, 11, 21), 0),
    ],
)
def test_when_a_period_began(usage: dict[str, object], now: tuple[int, int, int], first: int) -> None:
    if isinstance(at := usage.get("next_usage_reset_at"), str) and "T" not in at:
        usage = {**usage, "next_usage_reset_at": f"{at}T00:00:00"}  # without a zone: UTC
    limits = msgspec.convert(usage, UsageLimits)
    assert period_start(limits, datetime(*now, 13, 0, tzinfo=UTC).timestamp()) == first


@given(
    st.sampled_from(["monthly", "weekly", None]),
    st.integers(1, 365) | st.none(),
    st.datetimes(timezones=st.just(UTC)) | st.none(),
    st.integers(10**9, 4 * 10**9),
)
def test_a_period_never_begins_in_the_future_nor_lasts_too_long(
    reset: str | None, days: int | None, anchor: datetime | None, now: int
) -> None:
    limits = UsageLimits(periodic_reset=reset, periodic_reset_days=days, next_usage_reset_at=anchor)  # type: ignore[arg-type]
    first = period_start(limits, now)
    today = now // 86_400
    assert 0 <= first <= today
    if reset or days:
        assert today - first < (days or (7 if reset == "weekly" else 31))


# --- rates ---


@pytest.mark.behaviour("GERR-10")
def test_too_many_requests_are_a_429_that_says_when_to_come_back() -> None:
    limits, allowed = Limits(), rates(RateLimit(unit="rpm", value=3))
    for _ in range(3):
        assert limits.admit(KEY, allowed) is None
    refused = limits.admit(KEY, allowed)
    assert refused is not None
    assert (refused.status, refused.type, refused.code) == (429, "requests", "rate_limit_exceeded")
    seconds = int(refused.headers["retry-after"])
    assert 1 <= seconds <= 120
    clock.advance(seconds - 1.5)
    assert limits.admit(KEY, allowed) is not None
    clock.advance(1.5)
    assert limits.admit(KEY, allowed) is None


def test_tokens_count_when_they_are_spent() -> None:
    limits, allowed = Limits(), rates(RateLimit(unit="rph", value=1000, type="tokens"))
    assert limits.admit(KEY, allowed) is None
    limits.spend(KEY, 0.0, 999)
    assert limits.admit(KEY, allowed) is None
    limits.spend(KEY, 0.0, 1)
    refused = limits.admit(KEY, allowed)
    assert refused is not None
    assert refused.type == "tokens"
    clock.advance(int(refused.headers["retry-after"]))
    assert limits.admit(KEY, allowed) is None


def test_all_rates_hold_and_a_refused_request_does_not_count() -> None:
    limits = Limits()
    allowed = rates(RateLimit(unit="rpd", value=100), RateLimit(unit="rpm", value=2))
    assert [limits.admit(KEY, allowed) is None for _ in range(10)] == [True] * 2 + [False] * 8
    clock.advance(180)
    assert [limits.admit(KEY, allowed) is None for _ in range(3)] == [True, True, False]


@given(st.lists(st.floats(0, 20), min_size=1, max_size=200), st.integers(1, 20))
def test_a_minute_never_sees_twice_what_it_may_and_the_wait_is_enough(gaps: list[float], value: int) -> None:
    limits, allowed = Limits(), rates(RateLimit(unit="rpm", value=value))
    let_in: list[float] = []
    for gap in gaps:
        clock.advance(gap)
        refused = limits.admit(KEY, allowed)
        if refused is None:
            let_in.append(clock.now())
    for start in let_in:
        assert sum(start <= at < start + 60 for at in let_in) <= 2 * value
    refused = limits.admit(KEY, allowed)
    if refused is not None:
        clock.advance(int(refused.headers["retry-after"]))
        assert limits.admit(KEY, allowed) is None


# --- shapes ---


@pytest.mark.parametrize(
    "bad",
    [
        {"usage_limits": {"credit_limit": 0}},
        {"usage_limits": {"credit_limit": 1, "type": "money"}},
        {"usage_limits": {"periodic_reset_days": 366}},
        {"usage_limits": {"limit": 1}},
        {"rate_limits": [{"unit": "rps", "value": 1}]},
        {"rate_limits": [{"unit": "rpm", "value": 0}]},
        {"rate_limits": [{"unit": "rpm"}]},
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(bad: dict[str, object]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.convert(bad, KeyLimits)
