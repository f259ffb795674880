"""What the model sees of a thread and of its run, and what of the run's settings goes with it."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from tests.support.objects import WORKSPACE, make_answer, make_message, make_run, make_step, make_thread

from loomgate.engine import context
from loomgate.engine.context import build, spoken
from loomgate.engine.plan import CallModel
from loomgate.store import Store, schema
from loomgate.store.database import Database
from loomgate.store.runs import Commit, Entry, Journal
from loomgate.store.seal import Sealer
from loomgate.wire import chat
from loomgate.wire.runs import FunctionStepCall, Run, RunSpec, StepToolCall, ToolCallsDetails, Truncation
from loomgate.wire.threads import ImageUrlIn, ImageUrlPart, RefusalContent, Text, TextContent, Thread
from loomgate.wire.tools import Function, FunctionChoice, FunctionTool, JsonObjectFormat, NamedFunction

pytestmark = pytest.mark.anyio

TURN = CallModel(1, None, None, True)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    schema.prepare(tmp_path / "x.db")
    store = Store(Database(tmp_path / "x.db", synchronous="normal"), Sealer(bytes(32)), [], "enqueue")
    yield store
    await store.close()


async def _thread(store: Store, *texts: str) -> Thread:
    """A thread in which user and assistant take turns."""
    thread = make_thread()
    roles = ("user", "assistant")
    messages = [make_message(thread.id, text, role=roles[n % 2]) for n, text in enumerate(texts)]
    await store.threads.create(WORKSPACE, thread, messages)
    return thread


async def _run(store: Store, thread: Thread, *additional: str, **fields: Any) -> tuple[Run, int]:
    """A new run, and its order key."""
    run = make_run(thread.id, **fields)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id, text) for text in additional])
    claimed = {one.row.id: one for one in await store.runs.claim("w", 10, 15)}
    return run, claimed[run.id].row.position


async def _build(
    store: Store, run: Run, position: int, journal: Journal | None = None, move: CallModel = TURN, **fields: Any
) -> chat.Chat | None:
    spec = RunSpec(**fields)
    return await build(store.runs, run, spec, position, journal or Journal([], {}), move, {"tiny": 40})


def _said(call: chat.Chat | None) -> list[tuple[str, Any]]:
    assert call is not None
    return [(message.role, message.content) for message in call.messages]


@pytest.mark.behaviour("RUN-08", "MSG-20")
async def test_instructions_then_the_thread_then_additional_messages(store: Store) -> None:
    thread = await _thread(store, "One.", "Two.", "Three.")
    run, position = await _run(store, thread, "Four.", "Five.", instructions="Hum.")
    assert _said(await _build(store, run, position)) == [
        ("system", "Hum."),
        ("user", "One."),
        ("assistant", "Two."),
        ("user", "Three."),
        ("user", "Four."),
        ("user", "Five."),
    ]
    run.instructions = None
    assert _said(await _build(store, run, position))[0] == ("user", "One.")


async def test_an_answer_stands_where_its_run_does_and_later_messages_belong_to_the_next(store: Store) -> None:
    thread = await _thread(store, "France?")
    first = make_run(thread.id)
    await store.runs.create(WORKSPACE, first, RunSpec(), [])
    (claimed,) = await store.runs.claim("w", 1, 15)
    await store.threads.add_message(WORKSPACE, make_message(thread.id, "Spain?"))
    assert _said(await _build(store, first, claimed.row.position)) == [("user", "France?")]
    answer = make_answer(first, "Paris.")
    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[make_step(first, answer)], open_messages=[answer]))
    assert _said(await _build(store, first, claimed.row.position)) == [("user", "France?")], "not its own words"
    await store.runs.apply(claimed.row, Commit(verb="complete"))
    second, position = await _run(store, thread)
    seen = _said(await _build(store, second, position))
    assert seen == [("user", "France?"), ("assistant", "Paris."), ("user", "Spain?")]


def _entry(run: Run, turn: int, *calls: tuple[str, str, str | None]) -> Entry:
    step = make_step(run)
    step.step_details = ToolCallsDetails(
        [StepToolCall(id, FunctionStepCall(name, '{"a":1}', output)) for id, name, output in calls]
    )
    return Entry(step, turn)


@pytest.mark.behaviour("STEP-04", "STEP-05")
async def test_a_runs_own_turns_come_last_each_with_its_words_calls_and_outputs(store: Store) -> None:
    thread = await _thread(store, "Go.")
    run, position = await _run(store, thread)
    words = make_answer(run, "One moment.")
    journal = Journal(
        [
            Entry(make_step(run, words), 1),
            _entry(run, 1, ("call_a", "look", "yes"), ("call_b", "count", "")),
            _entry(run, 2, ("call_c", "look", "no")),
            _entry(run, 3, ("call_d", "look", None)),
        ],
        {words.id: words},
    )
    call = await _build(store, run, position, journal)
    assert call is not None
    assert call.messages[1:] == [
        chat.ChatMessage(
            role="assistant",
            content="One moment.",
            tool_calls=[chat.ToolCall("call_a", "look", '{"a":1}'), chat.ToolCall("call_b", "count", '{"a":1}')],
        ),
        chat.ChatMessage(role="tool", content="yes", tool_call_id="call_a"),
        chat.ChatMessage(role="tool", content="", tool_call_id="call_b"),
        chat.ChatMessage(role="assistant", tool_calls=[chat.ToolCall("call_c", "look", '{"a":1}')]),
        chat.ChatMessage(role="tool", content="no", tool_call_id="call_c"),
    ], "a call without its output, and words without calls, belong to a turn that is done again"
    deleted = await _build(store, run, position, Journal(journal.entries, {}))
    assert deleted is not None
    assert deleted.messages[1].content is None, "a message that a client deleted is not said again"


@pytest.mark.behaviour("MSG-04", "MSG-05")
def test_a_message_as_the_model_sees_it() -> None:
    image = ImageUrlPart(ImageUrlIn("https://example.com/a.png", "low"))
    assert spoken("user", [TextContent(Text("A")), TextContent(Text("B"))]) == chat.ChatMessage(
        role="user", content="A\nB"
    )
    assert spoken("user", [TextContent(Text("A")), image, TextContent(Text("B"))]) == chat.ChatMessage(
        role="user",
        content=[
            chat.TextPart("A"),
            chat.ImagePart(chat.ImageUrl("https://example.com/a.png", "low")),
            chat.TextPart("B"),
        ],
    )
    assert spoken("assistant", [image, TextContent(Text("A"))]) == chat.ChatMessage(role="assistant", content="A")
    assert spoken("assistant", [RefusalContent("No.")]) == chat.ChatMessage(role="assistant", refusal="No.")
    assert spoken("assistant", [TextContent(Text("A")), RefusalContent("No.")]) == chat.ChatMessage(
        role="assistant", content="A", refusal="No."
    )
    assert spoken("assistant", [TextContent(Text(""))]) is None
    assert spoken("assistant", []) is None


@pytest.mark.behaviour("RUN-18", "RUN-19")
async def test_last_messages_are_the_newest(store: Store) -> None:
    thread = await _thread(store, *(f"M{n}" for n in range(7)))
    run, position = await _run(store, thread, "M7", instructions="Hum.")
    for count in (1, 3, 8, 50):
        run.truncation_strategy = Truncation(type="last_messages", last_messages=count)
        said = [content for _, content in _said(await _build(store, run, position))]
        assert said == ["Hum.", *[f"M{n}" for n in range(8)][-count:]]


@pytest.mark.behaviour("RUN-19")
async def test_auto_leaves_out_the_middle(store: Store) -> None:
    texts = [f"Number {n} " + "word " * 20 for n in range(40)]
    thread = await _thread(store, *texts)
    run, position = await _run(store, thread)
    move = CallModel(1, 400, None, True)
    said = [content for _, content in _said(await _build(store, run, position, move=move))]
    assert 3 < len(said) < 40
    assert said[0] == texts[0], "how it began"
    assert said[1:] == texts[-len(said) + 1 :], "and the newest without a gap"


@pytest.mark.behaviour("RUN-96")
async def test_when_not_even_the_newest_fits_there_is_no_call(store: Store) -> None:
    thread = await _thread(store, "word " * 500)
    run, position = await _run(store, thread)
    assert await _build(store, run, position, move=CallModel(1, 300, None, True)) is None
    assert await _build(store, run, position, move=CallModel(1, 3000, None, True)) is not None


async def test_the_models_window_bounds_the_prompt(store: Store) -> None:
    thread = await _thread(store, *["word " * 10] * 9)
    run, position = await _run(store, thread, model="tiny")
    call = await _build(store, run, position)
    assert call is not None
    assert len(call.messages) < 9


@pytest.mark.behaviour("RUN-93", "RUN-21", "RUN-22", "RSN-03")
async def test_what_goes_with_the_messages(store: Store) -> None:
    thread = await _thread(store, "Go.")
    run, position = await _run(store, thread)
    plain = await _build(store, run, position)
    assert plain is not None
    bare = chat.Chat(model="scripted", messages=plain.messages)
    assert plain == bare, "nothing that nobody chose"
    run.tools = [FunctionTool(Function(name="look", parameters={"type": "object"}))]
    run.tool_choice = FunctionChoice(NamedFunction("look"))
    run.parallel_tool_calls = False
    run.response_format = JsonObjectFormat()
    run.reasoning_effort = "low"
    full = await _build(store, run, position, move=CallModel(1, None, 77, True), temperature=0.5, top_p=0.25)
    assert full == chat.Chat(
        model="scripted",
        messages=plain.messages,
        tools=[chat.FunctionTool(name="look", parameters={"type": "object"})],
        tool_choice=chat.NamedFunction("look"),
        parallel_tool_calls=False,
        response_format={"type": "json_object"},
        temperature=0.5,
        top_p=0.25,
        max_completion_tokens=77,
        reasoning_effort="low",
    )
    free = await _build(store, run, position, move=CallModel(2, None, None, False))
    assert free is not None
    assert free.tool_choice is None, "the choice holds for the first turn alone"


async def test_a_long_thread_is_read_in_turns_with_others(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(context, "_CHUNK", 5)
    thread = await _thread(store, *(f"M{n}" for n in range(40)))
    run, position = await _run(store, thread)
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    task = asyncio.create_task(others())
    call = await _build(store, run, position)
    task.cancel()
    assert call is not None
    assert [message.content for message in call.messages] == [f"M{n}" for n in range(40)]
    assert turns >= 8
