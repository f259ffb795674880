"""When a call is tried again: held to a model that plays a whole call."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.gateway.retry import BROKEN, DEFAULT_STATUSES, UNCONNECTED, exhausted_count, wait
from loomgate.wire.policy import Retry

statuses = st.sampled_from([200, 201, 204, 246, 400, 404, 408, 429, 446, 500, 502, 503, 504, 529, UNCONNECTED, BROKEN])


def play(
    retry: Retry | None, answers: list[int], headers: dict[str, str] | None = None, *, repeatable: bool = True
) -> tuple[list[float], int]:
    """The waits of a call whose tries are answered so, and what the header says at the end."""
    waits: list[float] = []
    for tries, status in enumerate(answers, 1):
        seconds = wait(retry, tries, sum(waits), status, headers or {}, repeatable=repeatable)
        if seconds is None:
            return waits, exhausted_count(retry, tries, status)
        waits.append(seconds)
    raise AssertionError("more tries than answers")


@pytest.mark.behaviour("RTY-01", "RTY-04")
def test_the_waits_double() -> None:
    assert play(Retry(attempts=5), [500] * 6) == ([1, 2, 4, 8, 16], -1)
    assert play(Retry(attempts=2), [500, 503, 200]) == ([1, 2], 2)
    assert play(None, [500]) == ([], 0)
    assert play(Retry(attempts=0), [500]) == ([], 0)


@pytest.mark.behaviour("RTY-02")
def test_the_default_statuses() -> None:
    assert {429, 500, 502, 503, 504, 529} == DEFAULT_STATUSES
    for status in range(100, 600):
        assert (wait(Retry(attempts=1), 1, 0, status, {}) is not None) == (status in DEFAULT_STATUSES)


@pytest.mark.behaviour("RTY-03", "RTY-08", "TMO-03")
def test_a_list_replaces_the_default_and_an_empty_one_means_never() -> None:
    retry = Retry(attempts=1, on_status_codes=[408, 446, 246])
    assert play(retry, [500]) == ([], 0)
    assert play(retry, [408, 200]) == ([1], 1)
    assert play(retry, [446, 446]) == ([1], -1)
    assert play(retry, [246, 200]) == ([1], 1)
    for status in (429, 500, UNCONNECTED, BROKEN):
        assert play(Retry(attempts=5, on_status_codes=[]), [status]) == ([], 0)


@pytest.mark.behaviour("RTY-05")
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "7"}, 7),
        ({"retry-after-ms": "1500", "x-ms-retry-after-ms": "2500", "retry-after": "7"}, 1.5),
        ({"x-ms-retry-after-ms": "2500", "retry-after": "7"}, 2.5),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "0.25"}, 0.25),
        ({}, 1),
        ({"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 1),
        ({"retry-after": "-5"}, 1),
        ({"retry-after": "inf"}, 1),
        ({"retry-after": "nan"}, 1),
        ({"retry-after": "1e1"}, 1),
        ({"retry-after": "٣"}, 1),
        ({"retry-after": ""}, 1),
    ],
)
def test_an_endpoint_may_say_how_long(headers: dict[str, str], seconds: float) -> None:
    for retry in (Retry(attempts=3, use_retry_after_headers=True), Retry(attempts=3, use_retry_after_header=True)):
        assert wait(retry, 1, 0, 429, headers) == seconds
        assert wait(retry, 1, 0, 503, headers) == 1  # on 429 only
    assert wait(Retry(attempts=3), 1, 0, 429, headers) == 1  # not asked for


@pytest.mark.behaviour("RTY-06")
def test_nobody_waits_a_minute() -> None:
    retry = Retry(attempts=5, use_retry_after_headers=True)
    assert play(retry, [429], {"retry-after": "60"}) == ([], -1)
    assert play(retry, [429, 429], {"retry-after": "59.9"}) == ([59.9], -1)
    assert play(retry, [429] * 4, {"retry-after": "20"}) == ([20, 20, 20], -1)
    assert play(retry, [429], {"retry-after": "999999999999"}) == ([], -1)


@pytest.mark.behaviour("RTY-09")
def test_success_is_success_whatever_the_list_says_and_other_errors_come_back_at_once() -> None:
    retry = Retry(attempts=5, on_status_codes=[200, 201, 204, 500])
    for status in (200, 201, 204):
        assert play(retry, [status]) == ([], 0)
    assert play(retry, [500, 404]) == ([1], 1)


@pytest.mark.behaviour("RTY-10")
def test_network_failures_are_retried_too() -> None:
    for retry in (Retry(attempts=1), Retry(attempts=1, on_status_codes=[429])):
        for failure in (UNCONNECTED, BROKEN):
            assert play(retry, [failure, 200]) == ([1], 1)
            assert play(retry, [failure, failure]) == ([1], -1)


@pytest.mark.behaviour("RTY-11", "PRX-12")
def test_what_must_not_happen_twice_is_repeated_only_if_it_cannot_have_happened() -> None:
    retry = Retry(attempts=5)
    assert play(retry, [UNCONNECTED, 429, 200], repeatable=False) == ([1, 2], 2)
    for status in (BROKEN, 500, 502, 503, 504, 529):
        assert play(retry, [status], repeatable=False) == ([], -1)


def model(retry: Retry | None, answers: list[int]) -> tuple[int, int]:
    """How often a call is made, and the count of the header, in other words than the code's."""
    attempts = retry.attempts if retry else 0
    codes = set(DEFAULT_STATUSES if not retry or retry.on_status_codes is None else retry.on_status_codes)
    bad = (codes - {200, 201, 202, 203, 204}) | ({UNCONNECTED, BROKEN} if codes else set())
    made = 1
    while made <= attempts and answers[made - 1] in bad:
        made += 1
    if attempts == 0:
        return 1, 0
    return made, -1 if answers[made - 1] in bad else made - 1


@pytest.mark.behaviour("RTY-01", "RTY-03", "RSP-03")
@given(
    st.none()
    | st.builds(Retry, attempts=st.integers(0, 5), on_status_codes=st.none() | st.lists(statuses.filter(bool))),
    st.lists(statuses, min_size=6, max_size=6),
)
def test_counts_equal_the_model(retry: Retry | None, answers: list[int]) -> None:
    waits, count = play(retry, answers)
    assert (len(waits) + 1, count) == model(retry, answers)
    assert waits == [2**n for n in range(len(waits))]
