"""What the model sees of a thread and of the run itself, and what it is told besides."""

import asyncio
from typing import Any

import msgspec
import pytest
from tests.support.objects import WORKSPACE, make_answer, make_message, make_run, make_step, make_thread

from loomgate.engine import context
from loomgate.engine.plan import CallModel
from loomgate.providers import tokens
from loomgate.store import Store
from loomgate.store.database import Database
from loomgate.store.records import Claimed, Commit, Journal
from loomgate.store.seal import Sealer
from loomgate.wire import chat
from loomgate.wire.runs import FunctionStepCall, Run, RunSpec, StepToolCall, ToolCallsDetails, Truncation
from loomgate.wire.threads import ImageUrlIn, ImageUrlPart, Message, RefusalContent, Text, TextContent
from loomgate.wire.tools import FunctionTool, ResponseFormat, ToolChoice

pytestmark = pytest.mark.anyio

WEATHER = {
    "name": "get_weather",
    "description": "Looks outside.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}


@pytest.fixture
async def store(database: Database) -> Store:
    return Store(database, Sealer(bytes(32)), [], "enqueue")


def a_turn(turn: int = 1, prompt: int | None = None, completion: int | None = None) -> CallModel:
    return CallModel(turn, prompt, completion, turn == 1)


async def thread_of(store: Store, *messages: str | dict[str, Any]) -> str:
    """A thread with these messages, oldest first: texts of a user, or fields."""
    thread = make_thread()
    made = [
        make_message(thread.id, one) if isinstance(one, str) else make_message(thread.id, **one) for one in messages
    ]
    await store.threads.create(WORKSPACE, thread, made)
    return thread.id


async def begin(store: Store, thread: str, **fields: Any) -> tuple[Run, Claimed]:
    run = make_run(thread, **fields)
    await store.runs.create(WORKSPACE, run, RunSpec(), [])
    (claimed,) = await store.runs.claim("worker", 1, 60)
    assert claimed.row.id == run.id
    return claimed.run, claimed


async def build(
    store: Store,
    run: Run,
    claimed: Claimed,
    move: CallModel | None = None,
    *,
    spec: RunSpec | None = None,
    window: int | None = None,
) -> chat.Chat | None:
    """The model call for ``move``, as the worker makes it; ``window``: the model's, in tokens."""
    journal: Journal = await store.runs.journal(run.id)
    windows = {} if window is None else {run.model: window}
    position = claimed.row.position
    return await context.build(store.runs, run, spec or RunSpec(), position, journal, move or a_turn(), windows)


async def asked(store: Store, thread: str, move: CallModel | None = None, **fields: Any) -> chat.Chat:
    run, claimed = await begin(store, thread, **fields)
    call = await build(store, run, claimed, move)
    assert call is not None
    return call


def seen(call: chat.Chat | None) -> list[tuple[str, Any]]:
    assert call is not None
    return [(message.role, message.content) for message in call.messages]


async def answer(store: Store, run: Run, claimed: Claimed, text: str, turn: int = 1) -> Message:
    """The run says ``text`` and has finished saying it."""
    message = msgspec.structs.replace(make_answer(run, text), status="completed", completed_at=1)
    step = msgspec.structs.replace(make_step(run, message), status="completed", completed_at=1)
    await store.runs.apply(claimed.row, Commit(turn=turn, open_steps=[step], open_messages=[message]))
    return message


async def use_tools(store: Store, run: Run, claimed: Claimed, turn: int, *calls: tuple[str, str | None]) -> None:
    """The run calls functions: (call id, output)."""
    details = ToolCallsDetails(
        [StepToolCall(id, FunctionStepCall("get_weather", '{"city":"Paris"}', output)) for id, output in calls]
    )
    step = msgspec.structs.replace(make_step(run), status="completed", completed_at=1, step_details=details)
    await store.runs.apply(claimed.row, Commit(turn=turn, open_steps=[step]))


class TestOrder:
    async def test_instructions_come_first_and_only_if_there_are_any(self, store: Store) -> None:
        thread = await thread_of(store, "Hello.")
        assert seen(await asked(store, thread)) == [("user", "Hello.")]
        other = await thread_of(store, "Hello.")
        assert seen(await asked(store, other, instructions="Be brief.")) == [
            ("system", "Be brief."),
            ("user", "Hello."),
        ]

    @pytest.mark.behaviour("MSG-20")
    async def test_messages_of_one_role_may_follow_each_other(self, store: Store) -> None:
        thread = await thread_of(store, "One.", "Two.", {"text": "Three.", "role": "assistant"}, "Four.")
        assert seen(await asked(store, thread)) == [
            ("user", "One."),
            ("user", "Two."),
            ("assistant", "Three."),
            ("user", "Four."),
        ]

    async def test_answers_follow_what_they_answer(self, store: Store) -> None:
        """docs/why/order.md: a user wrote while a run was active; the model sees it after that run's answer."""
        thread = await thread_of(store, "What is the capital of France?")
        first, claimed = await begin(store, thread)
        await store.threads.add_message(WORKSPACE, make_message(thread, "And of Spain?"))
        assert seen(await build(store, first, claimed)) == [("user", "What is the capital of France?")]
        await answer(store, first, claimed, "Paris.")
        await store.runs.apply(claimed.row, Commit(verb="complete"))
        assert seen(await asked(store, thread)) == [
            ("user", "What is the capital of France?"),
            ("assistant", "Paris."),
            ("user", "And of Spain?"),
        ]

    async def test_a_thread_of_more_than_one_chunk_is_read_whole(self, store: Store) -> None:
        texts = [str(n) for n in range(1203)]
        thread = await thread_of(store, *texts)
        assert [content for _, content in seen(await asked(store, thread))] == texts

    async def test_others_have_their_turn_while_a_long_thread_is_read(
        self, store: Store, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(context, "_CHUNK", 5)
        run, claimed = await begin(store, await thread_of(store, *(str(n) for n in range(40))))
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(others())
        call = await build(store, run, claimed)
        task.cancel()
        assert [content for _, content in seen(call)] == [str(n) for n in range(40)]
        assert turns >= 8

    @pytest.mark.behaviour("RUN-08")
    async def test_additional_messages_come_after_the_threads(self, store: Store) -> None:
        run = make_run(await thread_of(store, "One."))
        more = [make_message(run.thread_id, text) for text in ("Two.", "Three.")]
        await store.runs.create(WORKSPACE, run, RunSpec(), more)
        (claimed,) = await store.runs.claim("worker", 1, 60)
        call = await build(store, run, claimed)
        assert seen(call) == [("user", "One."), ("user", "Two."), ("user", "Three.")]

    @pytest.mark.behaviour("LOCK-08")
    async def test_a_deleted_message_is_not_seen(self, store: Store) -> None:
        thread = make_thread()
        messages = [make_message(thread.id, text) for text in ("One.", "Two.", "Three.")]
        await store.threads.create(WORKSPACE, thread, messages)
        await store.threads.delete_message(WORKSPACE, thread.id, messages[1].id)
        assert seen(await asked(store, thread.id)) == [("user", "One."), ("user", "Three.")]


class TestOwnJournal:
    """What the run itself said, called and was told follows the thread, turn by turn."""

    async def test_calls_are_followed_by_their_outputs(self, store: Store) -> None:
        run, claimed = await begin(store, await thread_of(store, "Weather?"))
        await answer(store, run, claimed, "Let me look.")
        await use_tools(store, run, claimed, 1, ("call_a", "sunny"), ("call_b", ""))
        await use_tools(store, run, claimed, 2, ("call_c", "rain"))
        call = await build(store, run, claimed, a_turn(3))
        assert call is not None
        arguments = '{"city":"Paris"}'
        assert call.messages == [
            chat.ChatMessage(role="user", content="Weather?"),
            chat.ChatMessage(
                role="assistant",
                content="Let me look.",
                tool_calls=[chat.ToolCall(id, "get_weather", arguments) for id in ("call_a", "call_b")],
            ),
            chat.ChatMessage(role="tool", content="sunny", tool_call_id="call_a"),
            chat.ChatMessage(role="tool", content="", tool_call_id="call_b"),
            chat.ChatMessage(role="assistant", tool_calls=[chat.ToolCall("call_c", "get_weather", arguments)]),
            chat.ChatMessage(role="tool", content="rain", tool_call_id="call_c"),
        ]

    async def test_calls_without_an_output_are_left_out(self, store: Store) -> None:
        """They are of a turn that is done again: no vendor takes a call without its output."""
        run, claimed = await begin(store, await thread_of(store, "Weather?"))
        await answer(store, run, claimed, "Let me look.")
        await use_tools(store, run, claimed, 1, ("call_a", None))
        assert seen(await build(store, run, claimed)) == [("user", "Weather?")]

    async def test_calls_of_earlier_runs_are_not_repeated(self, store: Store) -> None:
        thread = await thread_of(store, "Weather?")
        run, claimed = await begin(store, thread)
        await use_tools(store, run, claimed, 1, ("call_a", "sunny"))
        await answer(store, run, claimed, "It is sunny.", 2)
        await store.runs.apply(claimed.row, Commit(verb="complete"))
        await store.threads.add_message(WORKSPACE, make_message(thread, "Thanks."))
        assert seen(await asked(store, thread)) == [
            ("user", "Weather?"),
            ("assistant", "It is sunny."),
            ("user", "Thanks."),
        ]


class TestContent:
    @pytest.mark.behaviour("MSG-04")
    async def test_a_users_images_are_sent_and_texts_beside_them_stay_parts(self, store: Store) -> None:
        content = [
            TextContent(Text("What is this?")),
            ImageUrlPart(ImageUrlIn("https://pictures.example/cat.png", "low")),
            TextContent(Text("And this?")),
            ImageUrlPart(ImageUrlIn("data:image/png;base64,AAAA")),
        ]
        call = await asked(store, await thread_of(store, {"content": content}))
        assert seen(call) == [
            (
                "user",
                [
                    chat.TextPart("What is this?"),
                    chat.ImagePart(chat.ImageUrl("https://pictures.example/cat.png", "low")),
                    chat.TextPart("And this?"),
                    chat.ImagePart(chat.ImageUrl("data:image/png;base64,AAAA", "auto")),
                ],
            )
        ]

    async def test_texts_alone_are_one_string(self, store: Store) -> None:
        content = [TextContent(Text("One.")), TextContent(Text("Two."))]
        assert seen(await asked(store, await thread_of(store, {"content": content}))) == [("user", "One.\nTwo.")]

    async def test_a_refusal_is_told_as_one(self, store: Store) -> None:
        refused = {"role": "assistant", "content": [RefusalContent("I cannot do that.")]}
        mixed = {"role": "assistant", "content": [TextContent(Text("Well.")), RefusalContent("No.")]}
        call = await asked(store, await thread_of(store, "Do it.", refused, "Please.", mixed, "Why?"))
        assert [message for message in call.messages if message.role == "assistant"] == [
            chat.ChatMessage(role="assistant", refusal="I cannot do that."),
            chat.ChatMessage(role="assistant", content="Well.", refusal="No."),
        ]

    async def test_a_message_that_was_cut_before_it_began_is_not_sent(self, store: Store) -> None:
        nothing = {"role": "assistant", "content": [], "status": "incomplete"}
        empty = {"role": "assistant", "content": [TextContent(Text(""))]}
        thread = await thread_of(store, "Hello?", nothing, empty, "Are you there?")
        assert seen(await asked(store, thread)) == [("user", "Hello?"), ("user", "Are you there?")]

    async def test_what_was_said_before_a_cut_is_sent(self, store: Store) -> None:
        cut = {"role": "assistant", "content": [TextContent(Text("Once upon"))], "status": "incomplete"}
        assert ("assistant", "Once upon") in seen(await asked(store, await thread_of(store, "A story.", cut, "Go on.")))


class TestTruncation:
    @pytest.mark.behaviour("RUN-18", "RUN-19", "LIM-11")
    @pytest.mark.parametrize("count", [1, 2, 3, 10, 100])
    async def test_the_newest_messages_and_no_others(self, store: Store, count: int) -> None:
        texts = [str(n) for n in range(10)]
        call = await asked(
            store,
            await thread_of(store, *texts),
            truncation_strategy=Truncation(type="last_messages", last_messages=count),
            instructions="Be brief.",
        )
        assert seen(call) == [("system", "Be brief."), *(("user", text) for text in texts[-count:])]

    @pytest.mark.behaviour("RUN-19")
    async def test_auto_drops_from_the_middle_what_does_not_fit(self, store: Store) -> None:
        """The opening is kept, and an unbroken stretch up to the newest; one more would not have fitted."""
        texts = [f"{n}: " + "weather " * 12 for n in range(40)]
        thread = await thread_of(store, *texts)
        run, claimed = await begin(store, thread, instructions="Be brief.")
        call = await build(store, run, claimed, a_turn(prompt=256))
        assert call is not None
        head, opening, *newest = [str(content) for _, content in seen(call)]
        assert (head, opening) == ("Be brief.", texts[0])
        assert newest == texts[-len(newest) :]
        assert 0 < len(newest) < 39
        assert tokens.count_chat(call) <= 256
        left_out = chat.ChatMessage(role="user", content=texts[-len(newest) - 1])
        assert tokens.count_chat(call) + tokens.count_message(left_out, run.model) > 256

    @pytest.mark.behaviour("RUN-19")
    async def test_the_models_window_bounds_a_run_without_a_budget(self, store: Store) -> None:
        thread = await thread_of(store, *(f"{n}: " + "weather " * 12 for n in range(40)))
        run, claimed = await begin(store, thread)
        whole = await build(store, run, claimed)
        narrow = await build(store, run, claimed, window=512)
        assert whole is not None
        assert narrow is not None
        assert len(whole.messages) == 40
        assert 2 < len(narrow.messages) < 40
        assert tokens.count_chat(narrow) < 512, "and room is left for the answer"
        assert narrow.messages[-1] == whole.messages[-1]

    async def test_this_runs_own_rounds_are_never_dropped(self, store: Store) -> None:
        thread = await thread_of(store, *(f"{n}: " + "weather " * 12 for n in range(40)))
        run, claimed = await begin(store, thread)
        await use_tools(store, run, claimed, 1, ("call_a", "sunny " * 50))
        call = await build(store, run, claimed, a_turn(2, prompt=256))
        assert call is not None
        assert [message.role for message in call.messages[-2:]] == ["assistant", "tool"]
        assert str(call.messages[-3].content).startswith("39: ")
        assert tokens.count_chat(call) <= 256


class TestBudgets:
    @pytest.mark.behaviour("RUN-96")
    async def test_a_prompt_that_cannot_fit_is_none(self, store: Store) -> None:
        long = "weather " * 400
        run, claimed = await begin(store, await thread_of(store, "Hello.", long))
        assert await build(store, run, claimed, a_turn(prompt=256)) is None
        assert await build(store, run, claimed, a_turn(prompt=1000)) is not None

    @pytest.mark.behaviour("RUN-96")
    async def test_instructions_and_tools_count(self, store: Store) -> None:
        for fields in (
            {"instructions": "weather " * 400},
            {
                "tools": msgspec.convert(
                    [{"type": "function", "function": {**WEATHER, "description": "weather " * 400}}],
                    list[FunctionTool],
                )
            },
        ):
            run, claimed = await begin(store, await thread_of(store, "Hello."), **fields)
            assert await build(store, run, claimed, a_turn(prompt=256)) is None
            assert await build(store, run, claimed, a_turn(prompt=1000)) is not None

    @pytest.mark.behaviour("RUN-93")
    async def test_what_is_left_of_the_completion_budget_bounds_the_answer(self, store: Store) -> None:
        run, claimed = await begin(store, await thread_of(store, "Hello."), max_completion_tokens=500)
        first = await build(store, run, claimed, a_turn(completion=500))
        second = await build(store, run, claimed, a_turn(2, completion=200))
        assert first is not None
        assert second is not None
        assert (first.max_completion_tokens, second.max_completion_tokens) == (500, 200)

    async def test_without_a_budget_nothing_is_said(self, store: Store) -> None:
        assert (await asked(store, await thread_of(store, "Hello."))).max_completion_tokens is None


class TestCall:
    """What the model is told besides messages: what was chosen, and nothing else."""

    def tools(self) -> list[FunctionTool]:
        return msgspec.convert([{"type": "function", "function": WEATHER}], list[FunctionTool])

    async def test_what_nobody_chose_is_not_sent(self, store: Store) -> None:
        call = await asked(store, await thread_of(store, "Hello."))
        given = {name for name, value in msgspec.structs.asdict(call).items() if value not in (None, [], {}, False)}
        assert given == {"model", "messages", "stream"}

    @pytest.mark.behaviour("RSN-03")
    async def test_sampling_is_sent_as_chosen_not_as_shown(self, store: Store) -> None:
        run, claimed = await begin(store, await thread_of(store, "Hello."))
        assert (run.temperature, run.top_p) == (1.0, 1.0)
        shown = await build(store, run, claimed)
        chosen = await build(store, run, claimed, spec=RunSpec(temperature=0.0))
        assert shown is not None
        assert chosen is not None
        assert (shown.temperature, shown.top_p) == (None, None)
        assert (chosen.temperature, chosen.top_p) == (0.0, None)

    @pytest.mark.behaviour("RUN-20", "RUN-21")
    @pytest.mark.parametrize(
        ("choice", "sent"),
        [
            ("auto", None),
            ("none", "none"),
            ("required", "required"),
            ({"type": "function", "function": {"name": "get_weather"}}, chat.NamedFunction("get_weather")),
        ],
        ids=["auto", "none", "required", "named"],
    )
    async def test_a_tool_choice_is_sent_in_the_first_turn(self, store: Store, choice: Any, sent: Any) -> None:
        chosen: ToolChoice = msgspec.convert(choice, ToolChoice)
        run, claimed = await begin(store, await thread_of(store, "Hello."), tools=self.tools(), tool_choice=chosen)
        first, second = await build(store, run, claimed), await build(store, run, claimed, a_turn(2))
        assert first is not None
        assert second is not None
        assert (first.tool_choice, second.tool_choice) == (sent, None)
        assert first.tools == second.tools == [chat.FunctionTool(**WEATHER)]  # type: ignore[arg-type]

    @pytest.mark.behaviour("RUN-22")
    async def test_one_call_at_a_time_is_asked_for_only_with_tools(self, store: Store) -> None:
        with_tools = await asked(store, await thread_of(store, "Hello."), tools=self.tools(), parallel_tool_calls=False)
        without = await asked(store, await thread_of(store, "Hello."), parallel_tool_calls=False)
        usual = await asked(store, await thread_of(store, "Hello."), tools=self.tools())
        found = [call.parallel_tool_calls for call in (with_tools, without, usual)]
        assert found == [False, None, None]

    async def test_the_runs_effective_values_are_sent(self, store: Store) -> None:
        format = msgspec.convert({"type": "json_object"}, ResponseFormat)
        call = await asked(
            store, await thread_of(store, "Hello."), model="o3", reasoning_effort="low", response_format=format
        )
        assert (call.model, call.reasoning_effort, call.response_format) == ("o3", "low", {"type": "json_object"})
