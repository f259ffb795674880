"""The scripted model: what its slash lines do, what it says without them, and that it never surprises."""

import asyncio
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loomgate import clock
from loomgate.errors import ProviderError
from loomgate.providers.scripted import Beat, Fail, Wait, count_prompt, is_scripted, play, stream
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Finish,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedFunction,
    RefusalDelta,
    TextDelta,
    TextPart,
    ToolCall,
    ToolCallDelta,
    Usage,
)


def user(text: str) -> ChatMessage:
    return ChatMessage(role="user", content=text)


def called(*names: str) -> list[ChatMessage]:
    """A round of tool calls with their results."""
    calls = [ToolCall(f"id_{name}", name, "{}") for name in names]
    results = [ChatMessage(role="tool", tool_call_id=call.id, content=f"{call.name} is fine") for call in calls]
    return [ChatMessage(role="assistant", tool_calls=calls), *results]


def played(text: str, *after: ChatMessage, attempt: int = 0, **more: Any) -> list[Beat]:
    return play(Chat(model="scripted", messages=[user(text), *after], **more), attempt)


def said(beats: list[Beat]) -> str:
    return "".join(beat.text for beat in beats if isinstance(beat, TextDelta))


def calls(beats: list[Beat]) -> list[tuple[str, str]]:
    made: list[tuple[str, str]] = []
    for beat in beats:
        if isinstance(beat, ToolCallDelta):
            if beat.name is not None:
                made.append((beat.name, ""))
            name, arguments = made[beat.index]
            made[beat.index] = (name, arguments + beat.arguments)
    return made


def end(beats: list[Beat]) -> Finish:
    last = beats[-1]
    assert isinstance(last, Finish)
    assert sum(isinstance(beat, Finish) for beat in beats) == 1
    return last


def test_the_names_it_answers_to() -> None:
    assert is_scripted("scripted")
    assert is_scripted("scripted-mini")
    assert not is_scripted("gpt-4o")
    assert not is_scripted("scripted2")
    assert not is_scripted("my-scripted")


# --- slash lines ---


def test_say() -> None:
    beats = played("/say Hello  there\n/say And\n  more\n\nlines")
    assert said(beats) == "Hello  there\nAnd\n  more\n\nlines"
    assert beats[0] == TextDelta("Hello  ")
    assert end(beats) == Finish("stop", Usage(prompt_tokens=7, completion_tokens=5))


def test_words_before_the_script_are_only_words() -> None:
    assert said(played("Dear model, please look at /etc/hosts.\n/say Fine")) == "Fine"
    assert said(played("/etc/hosts is a file")) == "You said: /etc/hosts is a file"


def test_calls() -> None:
    beats = played('/say Wait.\n/call get_weather {"city": "Oslo",\n "days": 2}\n/call now')
    assert said(beats) == "Wait."
    assert calls(beats) == [("get_weather", '{"city": "Oslo",\n "days": 2}'), ("now", "{}")]
    assert end(beats).reason == "tool_calls"
    ids = [beat.id for beat in beats if isinstance(beat, ToolCallDelta) and beat.id]
    assert len(set(ids)) == 2
    assert all(id.startswith("call_") and len(id) == 29 for id in ids)
    assert beats == played('/say Wait.\n/call get_weather {"city": "Oslo",\n "days": 2}\n/call now')


def test_a_turn_per_round_of_tool_calls() -> None:
    script = "/call a\n/turn\n/call b\n/call c\n/turn\n/say done"
    assert calls(played(script)) == [("a", "{}")]
    assert calls(played(script, *called("a"))) == [("b", "{}"), ("c", "{}")]
    assert said(played(script, *called("a"), *called("b", "c"))) == "done"
    beyond = played(script, *called("a"), *called("b", "c"), *called("d"))
    assert said(beyond).endswith("d answered: d is fine")
    # Rounds before the newest user message belong to another run.
    messages = [user("x"), *called("z"), user(script)]
    assert calls(play(Chat(model="scripted", messages=messages))) == [("a", "{}")]


def test_without_parallel_calls_each_call_is_a_turn() -> None:
    script = "/call a\n/call b\n/turn\n/say done"
    assert calls(played(script, parallel_tool_calls=False)) == [("a", "{}")]
    assert calls(played(script, *called("a"), parallel_tool_calls=False)) == [("b", "{}")]
    assert said(played(script, *called("a"), *called("b"), parallel_tool_calls=False)) == "done"


def test_refuse_finish_chunk_repeat_usage_wait() -> None:
    refused = played("/refuse I must not")
    assert [beat.text for beat in refused[:-1] if isinstance(beat, RefusalDelta)] == ["I ", "must ", "not"]
    assert end(played("/say x\n/finish content_filter")).reason == "content_filter"
    assert played("/chunk 2\n/say abcde")[:-1] == [TextDelta("ab"), TextDelta("cd"), TextDelta("e")]
    assert said(played("/repeat 3 tick tock")) == "tick tock tick tock tick tock"
    used = end(played("/usage prompt=100 completion=20 cached=50 reasoning=5\n/say x")).usage
    assert used == Usage(100, 20, 50, 5)
    assert played("/say a\n/wait 0.5\n/say b")[:-1] == [TextDelta("a"), Wait(0.5), TextDelta("\nb")]


def test_errors() -> None:
    assert played("/error 429 retry_after=2.5") == [Fail("rate_limit", 429, 2.5)]
    assert played("/error quota\n/say never") == [Fail("quota")]
    assert played("/say a\n/error cut")[-2:] == [TextDelta("a"), Fail("cut")]
    script = "/error 503 times=2\n/say ok"
    assert [isinstance(played(script, attempt=n)[-1], Fail) for n in range(4)] == [True, True, False, False]
    assert said(played(script, attempt=2)) == "ok"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("/sya hello", "Line 1: /sya is not a command; expected one of /say, /call"),
        ("/say", "/say expected a text"),
        ("/say   ", "/say expected a text"),
        ("/call", "found nothing"),
        ("/call f {", "/call expected JSON after the name f, found '{'"),
        ("/call {}", "/call expected a function's name and JSON"),
        ("/wait", "/wait expected seconds from 0 to 86400, such as /wait 0.5, found nothing"),
        ("/wait soon", "found 'soon'"),
        ("/wait nan", "found 'nan'"),
        ("/wait -1", "found '-1'"),
        ("/error", "found nothing"),
        ("/error 200", "expected an HTTP status from 400 to 599 or one of rate_limit,"),
        ("/error 500 time=1", "expected retry_after=N, times=N, each at most once"),
        ("/error 500 times=x", "found 'x'"),
        ("/usage prompt=1", "expected completion=N"),
        ("/usage prompt=1 completion=1 cached=2", "cached to be a part of prompt"),
        ("/finish early", "expected stop, length or content_filter, found 'early'"),
        ("/chunk 0", "expected a whole number from 1"),
        ("/repeat 3", "expected a text after the number"),
        ("/repeat 999999999 x", "at most 1000000 characters"),
        ("/turn 2", "expected nothing after it, found '2'"),
        ("/say fine\n/wait x", "Line 2: /wait"),
    ],
)
def test_a_mistake_is_told_and_nothing_is_played(line: str, told: str) -> None:
    beats = played(line)
    assert told in said(beats)
    assert end(beats).reason == "stop"
    assert not calls(beats)
    assert said(beats).startswith("The script has mistakes")


@given(
    st.lists(st.sampled_from(["/say ", "/call ", "/turn", "\n", "/usage prompt=1", "a", "{}", " ", "/repeat 2 ", "7"]))
)
def test_any_message_gets_one_well_formed_answer(pieces: list[str]) -> None:
    beats = played("".join(pieces), max_completion_tokens=5)
    assert beats == played("".join(pieces), max_completion_tokens=5)
    last = end(beats)
    assert last.usage is not None
    assert last.reason == "length" or last.usage.completion_tokens <= 5


# --- budgets ---


def test_the_budget_cuts_the_output() -> None:
    beats = played("/say one two three four", max_completion_tokens=2)
    assert said(beats) == "one two"
    assert end(beats) == Finish("length", Usage(5, 2))
    assert end(played("/say one two", max_completion_tokens=2)).reason == "stop"
    cut = played('/say one\n/call f {"a": 1, "b": 2}\n/call g {}', max_completion_tokens=3)
    assert calls(cut) == [("f", '{"a":')]
    assert end(cut).reason == "length"
    assert calls(played("/say one two\n/call f {}", max_completion_tokens=2)) == []
    told = end(played("/usage prompt=5 completion=50 reasoning=40\n/say x", max_completion_tokens=10))
    assert told == Finish("length", Usage(5, 10, 0, 10))


def test_a_stop_text_ends_the_answer_before_it() -> None:
    beats = played("/say one END two\n/wait 1\n/call f {}", stop=["two", "END"])
    assert said(beats) == "one "
    assert beats[-1] == end(beats)
    assert (end(beats).reason, calls(beats)) == ("stop", [])
    assert not any(isinstance(beat, Wait) for beat in beats)
    assert said(played("/say one", stop=["two"])) == "one"
    assert end(played("/say one two three END", stop=["END"], max_completion_tokens=2)).reason == "length"


def test_prompt_tokens_are_the_words_of_the_conversation() -> None:
    messages = [
        ChatMessage(role="system", content="Be brief."),
        ChatMessage(role="user", content=[TextPart("one two"), ImagePart(ImageUrl("data:,")), TextPart("three")]),
        ChatMessage(role="assistant", tool_calls=[ToolCall("a", "f", '{"x": 1}')]),
        ChatMessage(role="tool", tool_call_id="a", content="four"),
    ]
    assert count_prompt(Chat(model="scripted", messages=messages)) == 2 + 3 + 3 + 1


# --- without a script ---

WEATHER = FunctionTool(
    name="get_weather",
    parameters={
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": "integer"}},
        "required": ["city"],
    },
)


def test_the_default_answer() -> None:
    assert said(played("Hello\n there")) == "You said: Hello there"
    assert said(play(Chat(model="scripted", messages=[]))) == "There is no user message to answer."
    assert said(played("Hi", *called("f", "g"))) == "f answered: f is fine\ng answered: g is fine"
    assert calls(played("Hi", tools=[WEATHER])) == []
    assert calls(played("Hi", tools=[WEATHER], tool_choice="none")) == []


def test_a_tool_that_must_be_called_is_called_once() -> None:
    for choice in ("required", NamedFunction("get_weather")):
        name, arguments = calls(played("in Oslo?", tools=[WEATHER], tool_choice=choice))[0]
        assert name == "get_weather"
        assert json.loads(arguments) == {"city": "in Oslo?", "days": 0}
        after = played("in Oslo?", *called("get_weather"), tools=[WEATHER], tool_choice=choice)
        assert said(after) == "get_weather answered: get_weather is fine"
    other = [FunctionTool(name="other"), WEATHER]
    assert calls(played("x", tools=other, tool_choice=NamedFunction("get_weather")))[0][0] == "get_weather"
    assert calls(played("x", tools=other, tool_choice="required")) == [("other", "{}")]


def test_a_script_may_call_what_was_not_offered() -> None:
    assert calls(played("/call unknown {}", tools=[WEATHER], tool_choice="none")) == [("unknown", "{}")]


def test_json_when_json_was_asked_for() -> None:
    assert json.loads(said(played("Hi", response_format={"type": "json_object"}))) == {"reply": "You said: Hi"}
    schema = {
        "type": "object",
        "properties": {"n": {"type": "integer"}, "t": {"type": "string"}},
        "required": ["n", "t"],
    }
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    assert json.loads(said(played("Hi", response_format=form))) == {"n": 0, "t": "You said: Hi"}
    assert said(played("Hi", response_format={"type": "text"})) == "You said: Hi"


# --- in time ---


@pytest.mark.anyio
async def test_stream_waits_on_the_clock_and_raises_the_error() -> None:
    chunks = stream(Chat(model="scripted", messages=[user("/say a\n/wait 3600\n/error 429 retry_after=3")]))
    assert await anext(chunks) == TextDelta("a")
    began = time.monotonic()
    rest = asyncio.ensure_future(anext(chunks))
    for _ in range(3):
        await asyncio.sleep(0)
    assert not rest.done()
    clock.advance(3600)
    with pytest.raises(ProviderError) as caught:
        await rest
    assert (caught.value.kind, caught.value.status, caught.value.retry_after) == ("rate_limit", 429, 3)
    assert time.monotonic() - began < 5
