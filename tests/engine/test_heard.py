"""What viewers have heard of a message, out of the events that they were told."""

from loomgate.engine.perform import Heard, heard_of
from loomgate.wire.events import DONE, frame, refusal_delta, text_delta

CREATED = frame("thread.message.created", b'{"id":"msg_a","object":"thread.message"}')


def test_a_message_of_which_they_know_nothing() -> None:
    assert heard_of("msg_a", []) is None
    assert heard_of("msg_b", [CREATED, text_delta("msg_a", "Hello", first=True)]) is None


def test_a_message_without_a_word() -> None:
    assert heard_of("msg_a", [CREATED]) == Heard({"text": ""})


def test_its_words_are_put_together_by_kind() -> None:
    told = [
        CREATED,
        text_delta("msg_a", "He", first=True),
        text_delta("msg_b", "other", first=True),
        text_delta("msg_a", "llo", first=False),
        refusal_delta("msg_a", "No", index=1),
        b": a comment\n\n",
        DONE,
    ]
    assert heard_of("msg_a", told) == Heard({"text": "Hello", "refusal": "No"})


def test_one_that_was_created_again_began_anew() -> None:
    told = [CREATED, text_delta("msg_a", "one", first=True), CREATED, text_delta("msg_a", "two", first=True)]
    assert heard_of("msg_a", told) == Heard({"text": "two"})
