"""Which messages of a thread a model call can carry: pure, no tokenizer of its own, nothing awaited.

What lives here: the choice (BEHAVIOUR RUN-18, RUN-19, RUN-96). What must not: counting (callables bring it),
building messages from a thread, deciding what a limit is (the model's window and the run's budget, RUN-93).

What is left out
----------------
Always sent: the head (instructions), the newest message of the thread, the tail (this run's own tool rounds).
The tokens left beside those are the *room* for the rest of the thread.

``auto`` leaves out the middle. The *opening*, the thread's first user message, is sent if it costs at most half of
the room; then messages are added from the newest backwards until one does not fit. What is sent is thus the
opening, a gap, and an unbroken stretch up to the newest message (what stands before the opening, such as a greeting
by the assistant, counts as older than the gap and is sent only if nothing else is left out). An opening of more
than half of the room would pay for one old message with many recent ones: it gets no preference then, and what is
sent is simply the newest messages.

``last_messages: n`` first leaves out all but the n newest; if those do not fit, the oldest of them go too. The
opening has no preference: the client asked for the newest.

Cost: bounds are asked first and exact costs only if the bounds do not fit, newest first and no further than the
limit reaches. So a thread of 100,000 messages costs one pass of bounds at most (it ends where the limit is passed)
and exact counts for about as many tokens as the limit has.
"""

from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from typing import NamedTuple

from loomgate.wire.chat import ChatMessage

Measure = Callable[[ChatMessage], int]


class Fitted(NamedTuple):
    """What to send: head, the chosen messages of the thread (oldest first), tail.

    ``dropped``: how many messages of the thread were left out, for whichever reason. ``tokens``: exact prompt
    tokens, fixed ones included; ``None`` if bounds sufficed and nothing was counted.
    """

    messages: list[ChatMessage]
    dropped: int
    tokens: int | None


def _within(bounds: Iterable[int], limit: int) -> bool:
    total = 0
    for bound in bounds:
        total += bound
        if total > limit:
            return False
    return total <= limit


def _opening(older: Sequence[ChatMessage], room: int, cost: Measure) -> tuple[int, int] | None:
    """Index and cost of the opening, if there is one and it costs at most half of ``room``."""
    for index, message in enumerate(older):
        if message.role == "user":
            price = cost(message)
            return (index, price) if 2 * price <= room else None
    return None


def _choose(
    older: Sequence[ChatMessage], room: int, cost: Measure, *, prefer_opening: bool
) -> tuple[list[ChatMessage], int]:
    """The messages of ``older`` (the thread without its newest) to send, oldest first, and what they cost."""
    opening, spent = (_opening(older, room, cost) if prefer_opening else None) or (-1, 0)
    first = len(older)
    while first > 0:
        price = 0 if first - 1 == opening else cost(older[first - 1])
        if spent + price > room:
            break
        first -= 1
        spent += price
    preferred = [older[opening]] if 0 <= opening < first else []
    return [*preferred, *older[first:]], spent


def fit(
    head: Sequence[ChatMessage],
    history: Sequence[ChatMessage],
    tail: Sequence[ChatMessage],
    *,
    last_messages: int | None,
    limit: int,
    fixed: Callable[[], int],
    fixed_bound: int,
    cost: Measure,
    bound: Measure,
) -> Fitted | None:
    """Choose what to send within ``limit`` prompt tokens; ``None`` if not even the indispensable fits (RUN-96).

    ``history``: the thread's messages, oldest first, each of which can be left out alone (no tool rounds: those of
    this run are the ``tail``, and earlier runs' are not part of a thread). ``last_messages``: n of that truncation
    strategy, ``None`` for ``auto``. ``fixed``: tokens of the call that are not messages (tools, priming), asked
    once and only when counting; ``cost``: exact tokens of a message. ``fixed_bound`` and ``bound``: at least those,
    cheap. Raises `ValueError` if ``last_messages`` is less than 1.
    """
    if last_messages is not None and last_messages < 1:
        raise ValueError("last_messages: expected a whole number of at least 1")
    kept = history if last_messages is None else history[-last_messages:]
    bounds = (bound(message) for part in (head, tail, reversed(kept)) for message in part)
    if _within(chain((fixed_bound,), bounds), limit):
        return Fitted([*head, *kept, *tail], len(history) - len(kept), None)

    older, newest = kept[:-1], kept[-1:]
    needed = fixed() + sum(cost(message) for part in (head, newest, tail) for message in part)
    if needed > limit:
        return None
    chosen, spent = _choose(older, limit - needed, cost, prefer_opening=last_messages is None)
    sent = [*chosen, *newest]
    return Fitted([*head, *sent, *tail], len(history) - len(sent), needed + spent)
