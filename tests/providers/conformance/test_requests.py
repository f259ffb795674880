"""Every wire: a request means to the vendor what was asked (GATEWAY TR-10 to TR-15, TR-20)."""

from typing import Any

import pytest

from loomgate.wire.chat import ChatMessage, FunctionTool, NamedFunction, TextPart, ToolCall
from tests.providers.conformance.suite import Wire, assert_told, chat, image, model, request, scenario, told

PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": "Where"}, "days": {"type": "integer"}},
    "required": ["city"],
}
WEATHER = FunctionTool(name="weather", description="The weather somewhere.", parameters=PARAMETERS)
TOOLS = [WEATHER, FunctionTool(name="now")]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="


def user(content: Any) -> ChatMessage:
    return ChatMessage(role="user", content=content)


def said(content: str | None, *calls: ToolCall) -> ChatMessage:
    return ChatMessage(role="assistant", content=content, tool_calls=list(calls))


def output(id: str, content: str) -> ChatMessage:
    return ChatMessage(role="tool", content=content, tool_call_id=id)


def texts(message: ChatMessage) -> str:
    assert isinstance(message.content, list)
    return "\n".join(part.text for part in message.content if isinstance(part, TextPart))


@scenario("plain")
def test_a_question(wire: Wire) -> None:
    assert_told(wire, chat(wire))
    assert told(wire, chat(wire)).model == model(wire)


@scenario("plain")
def test_a_question_whose_answer_is_not_streamed(wire: Wire) -> None:
    assert_told(wire, chat(wire, stream=False))
    system = ChatMessage(role="system", content="Be brief.")
    assert_told(wire, chat(wire, system, user("Hi"), tools=TOOLS, temperature=0.5, stream=False))


@scenario()
def test_a_request_never_shows_its_key(wire: Wire) -> None:
    made = request(wire, chat(wire))
    assert "conformance-0123" not in repr(made)
    assert b"conformance-0123" not in made.body


@scenario("system")
def test_a_system_prompt(wire: Wire) -> None:
    """GATEWAY TR-10."""
    system = ChatMessage(role="system", content="Be brief.")
    assert_told(wire, chat(wire, system, user("Hi"), said("Hello."), user("More")))


@scenario("system")
def test_several_system_messages_keep_their_order(wire: Wire) -> None:
    """GATEWAY TR-10."""
    first, second = (ChatMessage(role="system", content=text) for text in ("One.", "Two."))
    assert_told(wire, chat(wire, first, user("Hi"), second, user("You")))


@scenario("tools")
def test_tools(wire: Wire) -> None:
    """GATEWAY TR-11."""
    assert_told(wire, chat(wire, tools=TOOLS))


@scenario("tool_results")
def test_tool_results(wire: Wire) -> None:
    """GATEWAY TR-13."""
    call = ToolCall("call_a", "weather", '{"city": "Berlin"}')
    assert_told(wire, chat(wire, user("Weather?"), said("Let me look.", call), output("call_a", "Sun."), tools=TOOLS))


@scenario("tool_results", "parallel_tools")
def test_results_of_parallel_calls_over_several_turns(wire: Wire) -> None:
    """GATEWAY TR-13."""
    messages = [
        user("Weather in Berlin and Tokyo?"),
        said(
            None, ToolCall("call_a", "weather", '{"city":"Berlin"}'), ToolCall("call_b", "weather", '{"city":"東京"}')
        ),
        output("call_a", "Sun."),
        output("call_b", '{"sky": "Regen"}'),
        said("And the time.", ToolCall("call_c", "now", "")),
        output("call_c", "12:00"),
        said("Sun, rain, noon."),
        user("Thanks!"),
    ]
    assert_told(wire, chat(wire, *messages, tools=TOOLS))


@scenario("tool_results", "tool_result_ids")
def test_results_belong_to_their_calls_in_any_order(wire: Wire) -> None:
    calls = [ToolCall("call_a", "weather", '{"city":"Rom"}'), ToolCall("call_b", "weather", '{"city":"Bonn"}')]
    messages = [user("?"), said(None, *calls), output("call_b", "Bonn: rain"), output("call_a", "Rom: sun")]
    found = told(wire, chat(wire, *messages, tools=TOOLS))
    outputs = {message.tool_call_id: texts(message) for message in found.messages if message.role == "tool"}
    assert outputs == {"call 0": "Rom: sun", "call 1": "Bonn: rain"}


@scenario("tool_results")
def test_an_empty_tool_result(wire: Wire) -> None:
    call = ToolCall("call_a", "now", "{}")
    assert_told(wire, chat(wire, user("Time?"), said(None, call), output("call_a", ""), tools=TOOLS))


@scenario("json_schema")
def test_a_json_schema(wire: Wire) -> None:
    response = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    assert_told(wire, chat(wire, response_format=response))


@scenario("json_schema", "tools")
def test_a_json_schema_beside_tools(wire: Wire) -> None:
    response = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA, "strict": True}}
    assert_told(wire, chat(wire, response_format=response, tools=TOOLS))


@scenario("json_object")
def test_json_mode(wire: Wire) -> None:
    assert_told(wire, chat(wire, user("Answer in JSON."), response_format={"type": "json_object"}))


@scenario()
def test_text_is_the_default_format(wire: Wire) -> None:
    assert_told(wire, chat(wire, response_format={"type": "text"}))


@scenario("image_url")
def test_an_image_by_address(wire: Wire) -> None:
    """GATEWAY TR-14."""
    parts = [TextPart("What is this?"), image("https://example.com/cat.png"), TextPart("And where?")]
    assert_told(wire, chat(wire, user(parts)))


@scenario("image_data")
@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "gif"])
def test_an_image_as_data(wire: Wire, kind: str) -> None:
    """GATEWAY TR-14."""
    assert_told(wire, chat(wire, user([TextPart("What is this?"), image(f"data:image/{kind};base64,{PIXEL}")])))


@scenario("stop_sequences")
def test_stop_sequences(wire: Wire) -> None:
    """GATEWAY TR-15."""
    assert_told(wire, chat(wire, stop=["END", "\n\nuser:"]))


@scenario("tools")
@pytest.mark.parametrize("choice", ["auto", "none", "required", NamedFunction("weather")], ids=str)
def test_tool_choice(wire: Wire, choice: Any) -> None:
    """GATEWAY TR-12."""
    name = "tool_choice_" + (choice if isinstance(choice, str) else "named")
    if name in wire.lacks:
        pytest.skip(wire.why[name])
    assert_told(wire, chat(wire, tools=TOOLS, tool_choice=choice))


@scenario("tools")
def test_a_tool_choice_without_tools_is_not_sent(wire: Wire) -> None:
    assert_told(wire, chat(wire, tool_choice="auto", parallel_tool_calls=False))


@scenario("tools", "parallel_tool_calls")
@pytest.mark.parametrize("choice", [None, "auto", "required"])
def test_one_tool_call_at_a_time(wire: Wire, choice: Any) -> None:
    if choice == "required" and "tool_choice_required" in wire.lacks:
        pytest.skip(wire.why["tool_choice_required"])
    assert_told(wire, chat(wire, tools=TOOLS, parallel_tool_calls=False, tool_choice=choice))
    assert_told(wire, chat(wire, tools=TOOLS, parallel_tool_calls=True, tool_choice=choice))


@pytest.mark.parametrize(
    ("name", "value"),
    [("temperature", 0.5), ("temperature", 0.0), ("top_p", 0.25), ("max_completion_tokens", 777)],
)
@scenario()
def test_numbers(wire: Wire, name: str, value: float) -> None:
    """GATEWAY TR-15."""
    if name in wire.lacks:
        pytest.skip(wire.why[name])
    assert_told(wire, chat(wire, **{name: value}))


@scenario("reasoning_effort")
@pytest.mark.parametrize("effort", ["low", "medium", "high"])
def test_reasoning_effort(wire: Wire, effort: str) -> None:
    assert_told(wire, chat(wire, reasoning_effort=effort))


@scenario("same_role")
def test_neighbours_of_the_same_role(wire: Wire) -> None:
    messages = [user("One"), user("Two"), said("Three"), said("Four"), user("Five"), user([TextPart("Six")])]
    assert_told(wire, chat(wire, *messages))


@scenario("empty_content")
def test_messages_that_say_nothing(wire: Wire) -> None:
    """Vendors refuse empty texts, so they are left out, or sent where the vendor takes them."""
    messages = [user("One"), said(""), user("Two"), said(None), user([TextPart(""), TextPart("Three")])]
    found = [texts(message) for message in told(wire, chat(wire, *messages)).messages if message.content]
    assert "\n".join(found) == "One\nTwo\nThree"


@scenario("empty_content")
def test_a_refusal_in_the_history(wire: Wire) -> None:
    refused = ChatMessage(role="assistant", refusal="No.")
    assert_told(wire, chat(wire, user("Do it"), refused, user("Please")))


@scenario("unicode")
def test_unicode(wire: Wire) -> None:
    text = 'Grüße, 世界 👩‍👩‍👧 \u2028 \u0000 "\\'
    schema = {"type": "object", "properties": {"größe": {"type": "string", "enum": ["ß", "大"]}}}
    tool = FunctionTool(name="messen", description="Mißt 大小.", parameters=schema)
    call = ToolCall("call_a", "messen", '{"größe":"大"}')
    system = ChatMessage(role="system", content="Sei höflich: こんにちは.")
    assert_told(wire, chat(wire, system, user(text), said("Ähm.", call), output("call_a", "ß"), tools=[tool]))
