"""What a viewer may be told next, judged entry by entry."""

from loomgate.bus.entries import STATE, Entry, Order
from loomgate.wire.events import DONE, error_event

WORD = [b"event: a\ndata: b\n\n"]


def judged(*entries: Entry) -> list[str]:
    order = Order(whole=True)
    return [order.judge(entry) for entry in entries]


def test_a_worker_that_takes_a_run_over_in_the_middle_is_a_gap() -> None:
    told = judged(Entry("api", 1, WORD), Entry("one", 1, WORD, 1), Entry("two", 1, WORD, 2), Entry("two", 2, WORD, 2))
    assert told == ["next", "next", "gap", "next"]


def test_a_worker_that_goes_on_where_another_one_ended_is_none() -> None:
    ended = Entry("one", 1, [*WORD, DONE], 1)
    told = judged(Entry("api", 1, WORD), ended, Entry("api", 2, WORD), Entry("two", 1, WORD, 2))
    assert told == ["next"] * 4


def test_a_worker_that_could_not_go_on_has_ended_nothing() -> None:
    gave_up = Entry("one", 1, [*WORD, error_event("The server has lost its database."), DONE], 1)
    assert judged(gave_up, Entry("one", 2, WORD, 2)) == ["next", "gap"]


def test_the_words_of_the_one_before_are_passed_over_and_change_nothing() -> None:
    first, late = Entry("one", 1, WORD, 1), Entry("one", 2, [*WORD, DONE], 1)
    told = judged(first, Entry("two", 1, WORD, 2), late, Entry("two", 2, WORD, 2), Entry("three", 1, WORD, 3))
    assert told == ["next", "gap", "pass", "next", "gap"]


def test_the_present_state_is_told_by_the_worker_that_has_the_run() -> None:
    told = judged(Entry("one", 1, WORD, 1), Entry("one", 2, WORD, 1, STATE), Entry("two", 1, WORD, 2))
    assert told == ["next", "next", "gap"]
