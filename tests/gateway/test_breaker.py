"""Circuits: when they open, when they close, and that they stay few."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate import clock
from loomgate.gateway.breaker import WINDOW, Breakers
from loomgate.wire.policy import Breaker

THREE = Breaker(failure_threshold=3)


class Time:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def breakers(time: Time) -> Breakers:
    return Breakers(time)


@pytest.mark.behaviour("CB-02")
def test_a_circuit_opens_when_failures_exceed_the_threshold_and_closes_after_the_cooldown(
    time: Time, breakers: Breakers
) -> None:
    for _ in range(3):
        breakers.note("a", 503, THREE)
        assert breakers.admits("a")
    breakers.note("a", 503, THREE)
    assert not breakers.admits("a")
    assert breakers.admits("b")
    time.now += 29.9
    assert not breakers.admits("a")
    time.now += 0.1
    assert breakers.admits("a")
    breakers.note("a", 503, THREE)  # counting has begun anew
    assert breakers.admits("a")


@pytest.mark.behaviour("CB-02")
def test_a_circuit_opens_when_the_rate_exceeds_the_percentage_after_enough_requests(breakers: Breakers) -> None:
    rate = Breaker(failure_threshold_percentage=20, minimum_requests=10)
    for status in [503] * 9:
        breakers.note("a", status, rate)
    assert breakers.admits("a")
    breakers.note("a", 503, rate)
    assert not breakers.admits("a")
    for status in [200] * 8 + [503] * 2:
        breakers.note("b", status, rate)
    assert breakers.admits("b")  # 20 of 100 does not exceed 20
    breakers.note("b", 503, rate)
    assert not breakers.admits("b")


@pytest.mark.behaviour("CB-01")
def test_what_counts_as_a_failure(breakers: Breakers) -> None:
    once = Breaker(failure_threshold=1)
    for status in (200, 400, 429, 500):  # the default is above 500
        for _ in range(5):
            breakers.note("a", status, once)
    assert breakers.admits("a")
    chosen = Breaker(failure_threshold=1, failure_status_codes=[401, 429, 500])
    for status in (503, 503, 429, 401):
        assert breakers.admits("b")
        breakers.note("b", status, chosen)
    assert not breakers.admits("b")


@pytest.mark.behaviour("CB-01")
def test_the_cooldown_is_in_milliseconds(time: Time, breakers: Breakers) -> None:
    breaker = Breaker(failure_threshold=1, cooldown_interval=600_000)
    breakers.note("a", 503, breaker)
    breakers.note("a", 503, breaker)
    time.now += 599
    assert not breakers.admits("a")
    time.now += 1
    assert breakers.admits("a")


def test_failures_far_apart_do_not_open_a_circuit(time: Time, breakers: Breakers) -> None:
    for _ in range(20):
        breakers.note("a", 503, THREE)
        assert breakers.admits("a")
        time.now += WINDOW / 2


def test_failures_of_an_open_circuit_do_not_keep_it_open(time: Time, breakers: Breakers) -> None:
    for _ in range(4):
        breakers.note("a", 503, THREE)
    time.now += 29
    breakers.note("a", 503, THREE)  # it was used because all were open
    time.now += 1
    assert breakers.admits("a")


def test_the_clock_of_the_product_is_the_default() -> None:
    breakers = Breakers()
    for _ in range(4):
        breakers.note("a", 503, THREE)
    assert not breakers.admits("a")
    clock.advance(30)
    assert breakers.admits("a")


def test_the_least_lately_used_circuits_are_forgotten(time: Time) -> None:
    breakers = Breakers(time, most=100)
    for _ in range(4):
        breakers.note("kept", 503, THREE)
    for index in range(1_000):
        breakers.note(index, 503, THREE)
        breakers.note("kept", 200, THREE)
    assert len(breakers._circuits) == 100  # pyright: ignore[reportPrivateUsage]
    assert not breakers.admits("kept")


def test_a_cooldown_outlives_the_window_in_which_it_began(time: Time, breakers: Breakers) -> None:
    breakers.note("a", 200, THREE)
    time.now += 290
    for _ in range(4):
        breakers.note("a", 503, THREE)
    time.now += 15  # the window is over, the cooldown is not
    breakers.note("a", 200, THREE)  # it was used because all were open
    assert not breakers.admits("a")


@given(st.integers(1, 5), st.lists(st.tuples(st.booleans(), st.floats(0, 40)), max_size=60))
@settings(max_examples=200, deadline=None)
def test_a_threshold_equals_the_model(threshold: int, story: list[tuple[bool, float]]) -> None:
    time = Time()
    breakers = Breakers(time)
    breaker = Breaker(failure_threshold=threshold, cooldown_interval=60_000)
    failures: list[float] = []
    began: float | None = None
    opened: float | None = None
    for failed, later in story:
        time.now += later
        if opened is not None and time.now >= opened + 60:
            began = opened = None
            failures = []
        assert breakers.admits("a") == (opened is None)
        breakers.note("a", 503 if failed else 200, breaker)
        if opened is not None:
            continue
        if began is None or time.now - began > WINDOW:
            began, failures = time.now, []
        if failed:
            failures.append(time.now)
            if len(failures) > threshold:
                opened = time.now
