"""A turn that is done again after its worker died: each row of the table in docs/why/journal.md."""

from typing import Any, NamedTuple

import msgspec
import pytest
from tests.support.objects import WORKSPACE, make_message, make_run, make_thread

from loomgate import clock
from loomgate.engine.perform import Outcome, Turn
from loomgate.engine.plan import CallModel, Snapshot, next_move
from loomgate.errors import LeaseLost
from loomgate.store import Store
from loomgate.store.records import Claimed
from loomgate.wire import chat
from loomgate.wire.page import PageQuery
from loomgate.wire.runs import Run, RunSpec, Usage

pytestmark = [pytest.mark.anyio, pytest.mark.behaviour("RUN-99")]

LEASE = 60.0
USAGE = Usage(prompt_tokens=3, completion_tokens=2, total_tokens=5)

TEXT = [chat.TextDelta("Let me "), chat.TextDelta("look.")]
OTHER_TEXT = [chat.TextDelta("One "), chat.TextDelta("moment.")]
CALLS = [
    chat.ToolCallDelta(0, "call_x", "weather"),
    chat.ToolCallDelta(0, None, None, '{"city":"Paris"}'),
    chat.ToolCallDelta(1, "call_y", "time"),
]
STOP, ASK = chat.Finish("stop"), chat.Finish("tool_calls")


class Left(NamedTuple):
    """What is stored of a run: (kind, status) of its steps by id, texts of its messages by id, and its status."""

    status: str
    steps: dict[str, tuple[str, str]]
    texts: dict[str, str]

    @property
    def kinds(self) -> list[tuple[str, str]]:
        return list(self.steps.values())


async def left(store: Store, run: Run) -> Left:
    body = await store.runs.body(WORKSPACE, run.thread_id, run.id)
    assert isinstance(body, bytes)
    journal = await store.runs.journal(run.id)
    page = await store.threads.messages(WORKSPACE, run.thread_id, PageQuery(order="asc"), run.id)
    texts: dict[str, str] = {}
    for message in map(msgspec.json.decode, page.bodies):
        texts[message["id"]] = "".join(part["text"]["value"] for part in message["content"])
    steps = {entry.step.id: (entry.step.type, entry.step.status) for entry in journal.entries}
    return Left(msgspec.json.decode(body)["status"], steps, texts)


async def claim(store: Store) -> Claimed:
    (claimed,) = await store.runs.claim("worker", 1, LEASE)
    return claimed


async def turn_of(store: Store, claimed: Claimed) -> Turn:
    """The turn that the journal calls for, as the worker that holds the run begins it."""
    journal = await store.runs.journal(claimed.row.id)
    move = next_move(Snapshot(claimed.run, journal.entries, clock.now(), claimed.row.expires_at))
    assert isinstance(move, CallModel)
    return Turn(store.runs, claimed.row, claimed.run, move, lambda _: None)


async def interrupted(store: Store, chunks: list[Any]) -> tuple[Run, Turn, Left]:
    """A run whose first worker took ``chunks`` and was heard of no more."""
    thread = make_thread()
    run = make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id)], thread)
    turn = await turn_of(store, await claim(store))
    for chunk in chunks:
        await turn.take(chunk)
    clock.advance(LEASE + 1)
    return run, turn, await left(store, run)


async def again(store: Store, chunks: list[Any], end: chat.Finish) -> Outcome:
    """The next worker does the turn with what the model says this time."""
    turn = await turn_of(store, await claim(store))
    for chunk in chunks:
        await turn.take(chunk)
    return await turn.finish(end, USAGE)


async def test_nothing_open_calls_the_model(store: Store) -> None:
    run, _, before = await interrupted(store, [])
    assert before == Left("in_progress", {}, {})
    await again(store, TEXT, STOP)
    after = await left(store, run)
    assert (after.status, after.kinds) == ("completed", [("message_creation", "completed")])
    assert list(after.texts.values()) == ["Let me look."]


async def test_an_open_message_is_written_again_from_its_start(store: Store) -> None:
    run, _, before = await interrupted(store, TEXT)
    assert before.kinds == [("message_creation", "in_progress")]
    await again(store, OTHER_TEXT, STOP)
    after = await left(store, run)
    assert after.steps.keys() == before.steps.keys()
    assert after.texts == dict.fromkeys(before.texts, "One moment.")
    assert (after.status, after.kinds) == ("completed", [("message_creation", "completed")])


@pytest.mark.behaviour("MSG-14")
async def test_what_was_checkpointed_is_seen_until_it_is_written_again(store: Store) -> None:
    thread = make_thread()
    run = make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id)], thread)
    turn = await turn_of(store, await claim(store))
    for text in ("The first ", "second's text. ", "More."):
        await turn.take(chat.TextDelta(text))
        clock.advance(2 if text.startswith("The") else 0)
    before = await left(store, run)
    assert list(before.texts.values()) == ["The first second's text. "]
    clock.advance(LEASE + 1)
    await again(store, OTHER_TEXT, STOP)
    assert (await left(store, run)).texts == dict.fromkeys(before.texts, "One moment.")


async def test_an_open_message_is_dropped_when_the_model_now_calls_tools(store: Store) -> None:
    run, _, before = await interrupted(store, TEXT)
    await again(store, CALLS, ASK)
    after = await left(store, run)
    assert (after.status, after.kinds, after.texts) == ("requires_action", [("tool_calls", "in_progress")], {})
    assert not after.steps.keys() & before.steps.keys()


async def test_an_open_tool_step_is_filled(store: Store) -> None:
    run, _, before = await interrupted(store, CALLS[:2])
    assert before.kinds == [("tool_calls", "in_progress")]
    outcome = await again(store, CALLS, ASK)
    after = await left(store, run)
    assert after == Left("requires_action", before.steps, {})
    assert outcome.run.required_action is not None
    calls = outcome.run.required_action.submit_tool_outputs.tool_calls
    assert [(call.function.name, call.function.arguments) for call in calls] == [
        ("weather", '{"city":"Paris"}'),
        ("time", ""),
    ]


async def test_an_open_tool_step_is_dropped_when_the_model_now_writes(store: Store) -> None:
    run, _, before = await interrupted(store, CALLS)
    await again(store, TEXT, STOP)
    after = await left(store, run)
    assert (after.status, after.kinds) == ("completed", [("message_creation", "completed")])
    assert not after.steps.keys() & before.steps.keys()
    assert list(after.texts.values()) == ["Let me look."]


async def test_a_finished_message_is_kept_and_its_text_not_taken_again(store: Store) -> None:
    run, _, before = await interrupted(store, [*TEXT, *CALLS[:1]])
    assert before.kinds == [("message_creation", "completed"), ("tool_calls", "in_progress")]
    await again(store, [*OTHER_TEXT, *CALLS], ASK)
    assert await left(store, run) == Left("requires_action", before.steps, before.texts)
    assert list(before.texts.values()) == ["Let me look."]


async def test_a_finished_message_is_all_when_no_call_comes(store: Store) -> None:
    run, _, before = await interrupted(store, [*TEXT, *CALLS[:1]])
    await again(store, OTHER_TEXT, STOP)
    after = await left(store, run)
    assert (after.status, after.kinds) == ("completed", [("message_creation", "completed")])
    assert after.steps.keys() < before.steps.keys()
    assert after.texts == before.texts


@pytest.mark.parametrize("chunks", [[], TEXT, CALLS, [*TEXT, *CALLS]], ids=["nothing", "text", "calls", "text-calls"])
async def test_a_worker_that_comes_back_late_changes_nothing(store: Store, chunks: list[Any]) -> None:
    run, late, _ = await interrupted(store, chunks)
    await again(store, OTHER_TEXT, STOP)
    after = await left(store, run)
    with pytest.raises(LeaseLost):
        await late.finish(ASK if CALLS[0] in chunks else STOP, USAGE)
    assert await left(store, run) == after


async def test_dying_again_and_again_doubles_nothing(store: Store) -> None:
    run, _, first = await interrupted(store, TEXT)
    for chunks in (TEXT[:1], OTHER_TEXT, []):
        turn = await turn_of(store, await claim(store))
        for chunk in chunks:
            await turn.take(chunk)
        clock.advance(LEASE + 1)
        assert (await left(store, run)).steps == first.steps
    await again(store, TEXT, STOP)
    after = await left(store, run)
    assert (after.steps.keys(), after.texts) == (first.steps.keys(), dict.fromkeys(first.texts, "Let me look."))
