"""What a model call carries of a thread: the promises of ``fit``, for any thread and any limit."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate.engine.truncate import Fitted, fit
from loomgate.wire.chat import ChatMessage


def _cost(message: ChatMessage) -> int:
    assert isinstance(message.content, str)
    return int(message.content.rpartition(":")[2])


def _bound(message: ChatMessage) -> int:
    return 2 * _cost(message)


def _never(*_: object) -> int:
    raise AssertionError("counted exactly without need")


def _of(costs: list[int], name: str = "h", roles: list[Any] | None = None) -> list[ChatMessage]:
    return [
        ChatMessage(role=roles[i] if roles else "user", content=f"{name}{i}:{cost}") for i, cost in enumerate(costs)
    ]


def _fit(
    head: list[ChatMessage],
    history: list[ChatMessage],
    tail: list[ChatMessage],
    limit: int,
    last: int | None = None,
    fixed: int = 0,
    cost: Callable[[ChatMessage], int] = _cost,
    bound: Callable[[ChatMessage], int] = _bound,
) -> Fitted | None:
    return fit(
        head,
        history,
        tail,
        last_messages=last,
        limit=limit,
        fixed=lambda: fixed,
        fixed_bound=2 * fixed,
        cost=cost,
        bound=bound,
    )


def _names(fitted: Fitted | None) -> list[str]:
    assert fitted is not None
    return [str(message.content).partition(":")[0] for message in fitted.messages]


_head = st.lists(st.integers(0, 20), max_size=2).map(lambda costs: _of(costs, "s"))
_tail = st.lists(st.integers(0, 20), max_size=3).map(lambda costs: _of(costs, "t"))
_history = st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["user", "assistant"])), max_size=12).map(
    lambda rows: _of([cost for cost, _ in rows], roles=[role for _, role in rows])
)
_limit = st.integers(0, 200)
_last = st.none() | st.integers(1, 14)
_fixed = st.integers(0, 20)


def _total(messages: list[ChatMessage], fixed: int) -> int:
    return fixed + sum(map(_cost, messages))


@given(_head, _history, _tail, _limit, _last, _fixed)
def test_the_promises(
    head: list[ChatMessage],
    history: list[ChatMessage],
    tail: list[ChatMessage],
    limit: int,
    last: int | None,
    fixed: int,
) -> None:
    fitted = _fit(head, history, tail, limit, last, fixed)
    indispensable = [*head, *history[-1:], *tail]
    if _total(indispensable, fixed) > limit:
        assert fitted is None
        return
    assert fitted is not None
    total = _total(fitted.messages, fixed)
    assert total <= limit, "within the limit"
    assert fitted.tokens in (None, total), "tokens are exact or not given"
    middle = fitted.messages[len(head) : len(fitted.messages) - len(tail)]
    assert fitted.messages[: len(head)] == head, "the head is whole"
    assert fitted.messages[len(head) + len(middle) :] == tail, "the tail is whole and last"
    assert middle[-1:] == history[-1:], "the newest message is sent"
    kept = [history.index(message) for message in middle]
    assert kept == sorted(set(kept)), "a subset, in order, nothing twice"
    assert fitted.dropped == len(history) - len(middle)

    allowed = history if last is None else history[-last:]
    if _total([*head, *allowed, *tail], fixed) <= limit:
        assert middle == allowed, "nothing more is left out than asked if it fits"
    elif last is not None:
        assert middle == history[-len(middle) :], "the newest"
        assert len(middle) < last, "no more than asked"
    if last is None and len(middle) < len(history):
        first_user = next((i for i, message in enumerate(history) if message.role == "user"), None)
        nearest = max(set(range(len(history))) - set(kept))
        stretch = list(range(nearest + 1, len(history)))
        assert kept in (stretch, [first_user, *stretch]), "the opening at most, a gap, the newest"
        assert total + _cost(history[nearest]) > limit, "the newest of those left out would not have fitted"


@given(_head, _history, _tail, _limit, _limit, _last, _fixed)
def test_a_larger_limit_never_loses_a_message_unless_the_opening_is_won(
    head: list[ChatMessage],
    history: list[ChatMessage],
    tail: list[ChatMessage],
    one: int,
    other: int,
    last: int | None,
    fixed: int,
) -> None:
    small = _fit(head, history, tail, min(one, other), last, fixed)
    large = _fit(head, history, tail, max(one, other), last, fixed)
    if small is None:
        return
    assert large is not None
    opening = next((message for message in history if message.role == "user"), None)
    if last is None and opening not in small.messages and opening in large.messages:
        return
    assert set(_names(small)) <= set(_names(large))
    assert small.dropped >= large.dropped


@given(_history, _limit, _last)
def test_counts_are_lazy(history: list[ChatMessage], limit: int, last: int | None) -> None:
    counted: list[ChatMessage] = []

    def cost(message: ChatMessage) -> int:
        counted.append(message)
        return _cost(message)

    fitted = _fit([], history, [], limit, last, cost=cost)
    if fitted is not None and fitted.tokens is not None:
        # The chosen ones, the one that did not fit, and an opening that got no preference.
        assert len(counted) <= len(fitted.messages) + 2


def test_nothing_is_counted_when_the_bounds_fit() -> None:
    fitted = _fit(_of([1]), _of([2, 3, 4]), _of([5]), 30, cost=_never)
    assert fitted == Fitted([*_of([1]), *_of([2, 3, 4]), *_of([5])], 0, None)


def test_auto_keeps_the_opening_and_drops_the_middle() -> None:
    fitted = _fit(_of([5], "s"), _of([10] * 6), _of([5], "t"), 50)
    assert _names(fitted) == ["s0", "h0", "h3", "h4", "h5", "t0"]
    assert fitted is not None
    assert (fitted.dropped, fitted.tokens) == (2, 50)


def test_an_opening_that_would_take_more_than_half_of_the_room_gets_no_preference() -> None:
    # 10 for the newest; a room of 60 pays for an opening of 30, not of 31.
    assert _names(_fit([], _of([30, *[10] * 6]), [], 70)) == ["h0", "h3", "h4", "h5", "h6"]
    assert _names(_fit([], _of([31, *[10] * 7]), [], 70)) == [f"h{i}" for i in range(1, 8)]


def test_a_greeting_before_the_opening_is_the_first_to_go() -> None:
    history = _of([10, 10, 10, 10], roles=["assistant", "user", "assistant", "user"])
    assert _names(_fit([], history, [], 30)) == ["h1", "h2", "h3"]
    assert _names(_fit([], history, [], 29)) == ["h2", "h3"]


def test_last_messages_sends_only_the_newest() -> None:
    assert _names(_fit([], _of([1] * 5), [], 1000, last=2)) == ["h3", "h4"]
    fitted = _fit([], _of([10] * 5), [], 35, last=4)
    assert _names(fitted) == ["h2", "h3", "h4"], "no preference for the oldest of the four"
    assert fitted is not None
    assert fitted.dropped == 2


def test_nothing_to_send_of_an_empty_thread() -> None:
    assert _fit(_of([3]), [], _of([4]), 7) == Fitted([*_of([3]), *_of([4])], 0, 7)
    assert _fit(_of([3]), [], _of([4]), 6) is None


def test_tools_count_against_the_limit() -> None:
    assert _fit([], _of([5]), [], 10, fixed=5) is not None
    assert _fit([], _of([5]), [], 10, fixed=6) is None


@pytest.mark.parametrize("last", [0, -1])
def test_fewer_than_one_message_is_refused(last: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        _fit([], _of([1]), [], 10, last=last)


def test_a_thread_of_100_000_messages_costs_a_few_counts_and_few_bounds() -> None:
    history = [ChatMessage(role="user", content=f"h{i}:10") for i in range(100_000)]
    counted = bounded = 0

    def cost(message: ChatMessage) -> int:
        nonlocal counted
        counted += 1
        return _cost(message)

    def bound(message: ChatMessage) -> int:
        nonlocal bounded
        bounded += 1
        return _bound(message)

    fitted = _fit([], history, [], 1000, cost=cost, bound=bound)
    assert fitted is not None
    assert (len(fitted.messages), fitted.dropped, fitted.tokens) == (100, 99_900, 1000)
    assert counted == 101
    assert bounded == 51
