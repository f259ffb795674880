"""Requests of clients that speak OpenAI's chat completions, for every dialect (GATEWAY section 9)."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ApiError, ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target
from loomgate.providers.openai import OpenAI
from loomgate.wire.chat import (
    Audio,
    AudioPart,
    Chat,
    ChatMessage,
    File,
    FilePart,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedFunction,
    RedactedThinkingPart,
    TextPart,
    ThinkingPart,
    ToolCall,
)
from tests.gateway.fronts.kit import CHAT, is_clear, refusals
from tests.providers.conformance.suite import Wire, assert_told, model, request, scenario, wires
from tests.providers.conformance.test_requests import PIXEL

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather somewhere.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CONVERSATION: list[dict[str, Any]] = [
    {"role": "system", "content": "Be brief."},
    {"role": "developer", "content": [{"type": "text", "text": "Be kind."}]},
    {"role": "user", "content": "What is the weather in Berlin?"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": '{"city":"Berlin"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_a", "content": "Sun."},
    {"role": "user", "content": [{"type": "text", "text": "Thanks!"}]},
]
HI = [{"role": "user", "content": "Hi"}]


def asked(**fields: Any) -> Chat:
    return CHAT.chat({"model": "some-model", "messages": HI, **fields})


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asked(**fields)
    assert caught.value.status == 400
    return caught.value


def sent(wire_name: str, **fields: Any) -> dict[str, Any]:
    """The body that a vendor gets."""
    (wire,) = (wire for wire in wires() if wire.name == wire_name)
    return json.loads(request(wire, asked(**{"model": model(wire), **fields})).body)


def vendor_refuses(wire_name: str, **fields: Any) -> str:
    with pytest.raises(ProviderError) as caught:
        sent(wire_name, **fields)
    assert caught.value.kind == "invalid"
    return caught.value.message


NATIVE = ("openai",)
TRANSLATED = ("anthropic", "bedrock", "cohere", "gemini", "vertex-ai")


# --- what the front reads ---


def test_every_field_has_its_place() -> None:
    body: dict[str, Any] = {
        "model": "m",
        "messages": CONVERSATION,
        "tools": [WEATHER, {"type": "web_search_20250305", "name": "web_search"}],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "parallel_tool_calls": False,
        "response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}},
        "temperature": 0.5,
        "top_p": 1,
        "max_tokens": 9,
        "stop": "END",
        "stream": True,
        "stream_options": {"include_usage": True},
        "n": 1,
        "seed": 7,
        "frequency_penalty": 0.1,
        "presence_penalty": -0.1,
        "logit_bias": {"50256": -100},
        "logprobs": False,
        "top_logprobs": 0,
        "user": "u1",
        "top_k": 40,
        "thinking": {"type": "enabled", "budget_tokens": 2048},
        "metadata": {"a": "b"},
        "service_tier": "flex",
        "reasoning_effort": "low",
        "safety_settings": [],
        "unset": None,
    }
    call = CHAT.chat(body)
    assert call == Chat(
        model="m",
        messages=[
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(role="developer", content=[TextPart("Be kind.")]),
            ChatMessage(role="user", content="What is the weather in Berlin?"),
            ChatMessage(role="assistant", tool_calls=[ToolCall("call_a", "weather", '{"city":"Berlin"}')]),
            ChatMessage(role="tool", tool_call_id="call_a", content="Sun."),
            ChatMessage(role="user", content=[TextPart("Thanks!")]),
        ],
        tools=[FunctionTool(**WEATHER["function"])],
        vendor_tools=[{"type": "web_search_20250305", "name": "web_search"}],
        tool_choice=NamedFunction("weather"),
        parallel_tool_calls=False,
        response_format=body["response_format"],
        temperature=0.5,
        top_p=1.0,
        max_completion_tokens=9,
        stop=["END"],
        stream=True,
        n=1,
        seed=7,
        frequency_penalty=0.1,
        presence_penalty=-0.1,
        logit_bias={"50256": -100},
        logprobs=False,
        top_logprobs=0,
        user="u1",
        top_k=40,
        thinking={"type": "enabled", "budget_tokens": 2048},
        metadata={"a": "b"},
        service_tier="flex",
        reasoning_effort="low",
        extra={"safety_settings": []},
        lenient=True,
    )


@pytest.mark.behaviour("TR-15")
def test_max_completion_tokens_is_the_newer_name() -> None:
    assert asked(max_completion_tokens=5, max_tokens=6).max_completion_tokens == 5
    assert asked(max_tokens=6).max_completion_tokens == 6


@pytest.mark.behaviour("TR-14")
def test_parts() -> None:
    parts = [
        {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}},
        {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,QQ==", "filename": "a.pdf"}},
        {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "wav"}},
    ]
    (message,) = asked(messages=[{"role": "user", "content": parts}]).messages
    assert message.content == [
        TextPart("a", {"type": "ephemeral"}),
        ImagePart(ImageUrl("https://x/y.png", "low")),
        FilePart(File(file_data="data:application/pdf;base64,QQ==", filename="a.pdf")),
        AudioPart(Audio("QQ==", "wav")),
    ]


@pytest.mark.behaviour("STR-02")
def test_thoughts_come_back_in_content_blocks() -> None:
    blocks = [
        {"type": "thinking", "thinking": "Hm.", "signature": "s"},
        {"type": "redacted_thinking", "data": "d"},
        {"type": "text", "text": "Let me look."},
    ]
    said = {"role": "assistant", "content": "Let me look.", "content_blocks": blocks}
    (message,) = asked(messages=[said]).messages
    thoughts = [ThinkingPart("Hm.", "s"), RedactedThinkingPart("d")]
    assert message.content == [*thoughts, TextPart("Let me look.")]
    (message,) = asked(messages=[{**said, "content_blocks": blocks[:2]}]).messages
    assert message.content == [*thoughts, TextPart("Let me look.")]
    said = {"role": "assistant", "content": [*blocks[:2], {"type": "refusal", "refusal": "No."}]}
    (message,) = asked(messages=[said]).messages
    assert (message.content, message.refusal) == (thoughts, "No.")


@pytest.mark.behaviour("TR-04")
def test_portkey_default_means_nothing() -> None:
    assert asked(temperature="portkey-default", stop="portkey-default", top_p=0.5) == asked(top_p=0.5)


@pytest.mark.behaviour("TR-02")
def test_numbers_beyond_their_range_are_clamped() -> None:
    call = asked(temperature=3, top_p=-1, frequency_penalty=9, presence_penalty=-9, max_tokens=-1)
    assert (call.temperature, call.top_p, call.frequency_penalty, call.presence_penalty) == (2, 0, 2, -2)
    assert call.max_completion_tokens == 0
    for name in ("anthropic", "bedrock"):
        body = sent(name, temperature=1.7)
        assert body.get("inferenceConfig", body)["temperature"] == 1
    body = sent("cohere", top_p=1, frequency_penalty=-1, presence_penalty=2, top_k=900)
    assert (body["p"], body["frequency_penalty"], body["presence_penalty"], body["k"]) == (0.99, 0, 1, 500)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"model": None}, "model"),
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{"content": "x"}]}, "messages[0].role"),
        ({"messages": [*HI, {"role": "wizard", "content": "x"}]}, "messages[1].role"),
        ({"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type"),
        ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"temperature": "hot"}, "temperature"),
        ({"stop": [1]}, "stop[0]"),
        ({"tools": [{"type": "function", "function": {}}]}, "tools[0].function.name"),
        ({"tool_choice": "maybe"}, "tool_choice"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"functions": [{}]}, "functions[0].name"),
        ({"functions": [{"name": "f"}], "tools": [WEATHER]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"functions": [{"name": "f"}], "function_call": {"x": 1}}, "function_call.name"),
        ({"functions": [{"name": "f"}], "function_call": "auto", "tool_choice": "auto"}, "function_call"),
        ({"messages": [*HI, {"role": "function", "name": "f", "content": "x"}]}, "messages[1].name"),
        ({"messages": [*HI, {"role": "assistant", "function_call": {}}]}, "messages[1].function_call.name"),
    ],
)
def test_a_mistake_is_named(fields: dict[str, Any], param: str) -> None:
    error = refused(**fields)
    assert error.param == param
    assert param in error.message


@pytest.mark.behaviour("TR-03")
def test_a_missing_model_is_named() -> None:
    with pytest.raises(ApiError) as caught:
        CHAT.chat({"messages": HI})
    assert (caught.value.status, caught.value.param) == (400, "model")


# --- what the vendor understands ---


@pytest.mark.behaviour("TR-05", "TR-10", "TR-11", "TR-13")
@pytest.mark.parametrize("stream", [True, False])
@scenario("tool_results", "system")
def test_a_conversation(wire: Wire, stream: bool) -> None:
    call = CHAT.chat({"model": model(wire), "messages": CONVERSATION, "tools": [WEATHER], "stream": stream})
    renamed = [
        msgspec.structs.replace(said, role="system") if said.role == "developer" else said for said in call.messages
    ]
    if wire.name == "openai":
        body = json.loads(request(wire, call).body)
        assert [said["role"] for said in body["messages"][:2]] == ["system", "developer"]  # TR-05
        call = msgspec.structs.replace(call, messages=renamed)
    found = assert_told(wire, msgspec.structs.replace(call, messages=renamed, lenient=False))
    assert found.messages[0].content == [TextPart("Be brief.\nBe kind.")]


@pytest.mark.behaviour("TR-12")
@pytest.mark.parametrize("choice", ["auto", "none", "required", {"type": "function", "function": {"name": "weather"}}])
@scenario("tools")
def test_tool_choice(wire: Wire, choice: Any) -> None:
    name = "tool_choice_" + (choice if isinstance(choice, str) else "named")
    if name in wire.lacks:
        pytest.skip(wire.why[name])
    call = CHAT.chat({"model": model(wire), "messages": HI, "tools": [WEATHER], "tool_choice": choice, "stream": True})
    assert_told(wire, msgspec.structs.replace(call, lenient=False))


@pytest.mark.behaviour("TR-01")
@pytest.mark.parametrize("name", TRANSLATED)
def test_what_only_tunes_and_has_no_counterpart_is_left_out(name: str) -> None:
    tuning = {
        "logit_bias": {"1": 1},
        "store": True,
        "metadata": {"a": "b"},
        "prediction": {"type": "content", "content": "x"},
        "prompt_cache_key": "k",
        "safety_identifier": "s",
        "verbosity": "low",
        "modalities": ["text"],
        "service_tier": "scale",
        "stream_options": {"include_usage": True},
        "n": 1,
        "logprobs": False,
        "top_logprobs": 0,
    }
    assert sent(name, **tuning) == sent(name)
    older = {"anthropic": "claude-3-5-haiku-latest", "gemini": "gemini-2.0-flash", "vertex-ai": "gemini-2.0-flash"}
    if name in older:  # a model that does not reason
        assert sent(name, model=older[name], reasoning_effort="high") == sent(name, model=older[name])


@pytest.mark.parametrize("name", [*TRANSLATED, "openai"])
@pytest.mark.parametrize(
    ("field", "value"),
    [("n", 2), ("logprobs", True), ("top_logprobs", 3), ("modalities", ["text", "audio"]), ("audio", {"voice": "x"})],
)
def test_what_changes_the_answers_shape_is_refused(name: str, field: str, value: Any) -> None:
    assert vendor_refuses(name, **{field: value}).startswith(f"{field}: expected")


@pytest.mark.parametrize("name", TRANSLATED)
def test_what_only_openai_has_is_refused(name: str) -> None:
    assert vendor_refuses(name, web_search_options={"x": 1}).startswith("web_search_options: expected nothing")


@pytest.mark.parametrize("choice", [None, "auto", "none", {"name": "weather"}])
@scenario("tool_results", "system", "tools")
def test_functions_are_tools_of_an_older_name(wire: Wire, choice: Any) -> None:
    called = {"name": "weather", "arguments": '{"city":"Berlin"}'}
    calls = [{"id": "call_3", "type": "function", "function": called}]
    newer = [
        *CONVERSATION[:3],
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "call_3", "content": "Sun."},
        *CONVERSATION[5:],
    ]
    older = [
        *CONVERSATION[:3],
        {"role": "assistant", "content": None, "function_call": called},
        {"role": "function", "name": "weather", "content": "Sun."},
        *CONVERSATION[5:],
    ]
    named = {"type": "function", "function": choice} if isinstance(choice, dict) else choice
    body = {"model": model(wire), "stream": True}
    found = CHAT.chat({**body, "messages": older, "functions": [WEATHER["function"]], "function_call": choice})
    assert found == CHAT.chat(
        {**body, "messages": newer, "tools": [WEATHER], "tool_choice": named, "parallel_tool_calls": False}
    )
    name = "tool_choice_named" if named is not choice else f"tool_choice_{choice}"
    if choice is None or name not in wire.lacks:
        assert b"weather" in (request(wire, found).body or b"")


def test_unknown_fields_are_for_the_vendor_to_judge() -> None:
    for name in ("anthropic", "cohere", "gemini", "openai"):
        assert sent(name, whatever={"x": [1]})["whatever"] == {"x": [1]}
    assert sent("gemini", safety_settings=[{"category": "x"}])["safety_settings"] == [{"category": "x"}]
    config = sent("gemini", generationConfig={"responseModalities": ["TEXT"]}, seed=3, top_k=5)["generationConfig"]
    assert config == {"seed": 3, "topK": 5, "responseModalities": ["TEXT"]}
    body = sent("bedrock", whatever=1, guardrail_config={"guardrailIdentifier": "g"}, top_k=5)
    assert body["additionalModelRequestFields"] == {"whatever": 1, "top_k": 5}
    assert body["guardrailConfig"] == {"guardrailIdentifier": "g"}


@pytest.mark.behaviour("TR-15")
def test_anthropics_own_parameters() -> None:
    thinking = {"type": "enabled", "budget_tokens": 4096}
    body = sent("anthropic", user="u1", top_k=5, thinking=thinking, stop=["a"], max_completion_tokens=9999)
    assert (body["metadata"], body["top_k"], body["thinking"]) == ({"user_id": "u1"}, 5, thinking)
    assert (body["stop_sequences"], body["max_tokens"]) == (["a"], 9999)
    assert sent("anthropic", service_tier="default")["service_tier"] == "standard_only"
    cached = {"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}
    body = sent(
        "anthropic",
        messages=[{"role": "system", "content": [cached]}, {"role": "user", "content": [cached]}],
        tools=[{**WEATHER, "cache_control": {"type": "ephemeral"}}, {"type": "web_search_20250305", "name": "w"}],
    )
    assert body["system"] == [cached]
    assert body["messages"][0]["content"] == [cached]
    assert body["tools"][0]["cache_control"] == {"type": "ephemeral"}
    assert body["tools"][1] == {"type": "web_search_20250305", "name": "w"}


def test_marks_for_the_cache_go_where_they_mean_something() -> None:
    cached = [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]
    messages = [{"role": "user", "content": cached}]
    assert sent("bedrock", messages=messages)["messages"][0]["content"] == [
        {"text": "a"},
        {"cachePoint": {"type": "default"}},
    ]
    for ttl, point in (("1h", {"type": "default", "ttl": "1h"}), ("5m", {"type": "default"})):
        tool = {**WEATHER, "cache_control": {"type": "ephemeral", "ttl": ttl}}
        assert sent("bedrock", tools=[tool])["toolConfig"]["tools"][1:] == [{"cachePoint": point}]
    assert sent("openai", messages=messages)["messages"][0]["content"] == [{"type": "text", "text": "a"}]
    assert sent("cohere", messages=messages)["messages"][0]["content"] == [{"type": "text", "text": "a"}]


PDF = {"type": "file", "file": {"file_data": "data:application/pdf;base64,QQ==", "filename": "a.pdf"}}
LINK = {"type": "file", "file": {"file_url": "https://x/a.pdf"}}


@pytest.mark.behaviour("TR-14")
def test_documents() -> None:
    def part(name: str, part: dict[str, Any]) -> Any:
        body = sent(name, messages=[{"role": "user", "content": [part]}])
        (message,) = body.get("messages") or body["contents"]
        return (message.get("content") or message["parts"])[0]

    source = {"type": "base64", "media_type": "application/pdf", "data": "QQ=="}
    assert part("anthropic", PDF) == {"type": "document", "source": source, "title": "a.pdf"}
    assert part("anthropic", LINK) == {"type": "document", "source": {"type": "url", "url": "https://x/a.pdf"}}
    assert part("bedrock", PDF) == {"document": {"format": "pdf", "name": "a", "source": {"bytes": "QQ=="}}}
    assert part("gemini", PDF) == {"inlineData": {"mimeType": "application/pdf", "data": "QQ=="}}
    assert part("gemini", LINK) == {"fileData": {"mimeType": "application/pdf", "fileUri": "https://x/a.pdf"}}
    assert part("openai", PDF) == PDF
    text = {"type": "file", "file": {"file_data": "SGk=", "mime_type": "text/plain", "filename": "a.txt"}}
    assert part("anthropic", text)["source"] == {"type": "text", "media_type": "text/plain", "data": "Hi"}
    sound = {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "mp3"}}
    assert part("gemini", sound) == {"inlineData": {"mimeType": "audio/mpeg", "data": "QQ=="}}
    for name in ("anthropic", "bedrock", "cohere"):
        assert "sound" in vendor_refuses(name, messages=[{"role": "user", "content": [sound]}])
    for name in ("bedrock", "openai", "cohere"):
        assert vendor_refuses(name, messages=[{"role": "user", "content": [LINK]}]).startswith("messages: expected")


def test_documents_on_bedrock_have_names_of_their_own() -> None:
    named = [
        {"type": "file", "file": {**PDF["file"], "filename": name}} for name in ("a.pdf", "a.pdf", "Größe: 1_2", "")
    ]
    body = sent("bedrock", messages=[{"role": "user", "content": [{"type": "text", "text": "?"}, *named]}])
    names = [block["document"]["name"] for block in body["messages"][0]["content"][1:]]
    assert names == ["a", "a (2)", "Gr e 1 2", "document"]


def test_a_picture_in_a_tools_output() -> None:
    """Where outputs are texts, it follows as a user's message after all outputs of the turn."""
    call = {"id": "call_a", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    picture = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}
    messages = [
        *HI,
        {"role": "assistant", "tool_calls": [call, {**call, "id": "call_b"}]},
        {"role": "tool", "tool_call_id": "call_a", "content": [picture]},
        {"role": "tool", "tool_call_id": "call_b", "content": "b"},
        {"role": "user", "content": "And?"},
    ]
    body = sent("openai", messages=messages)
    assert [said["role"] for said in body["messages"]] == ["user", "assistant", "tool", "tool", "user", "user"]
    assert body["messages"][4]["content"][1] == picture
    assert sent("anthropic", messages=messages)["messages"][2]["content"][0]["content"][0]["type"] == "image"
    assert "image" in sent("bedrock", messages=messages)["messages"][2]["content"][0]["toolResult"]["content"][0]
    parts = [part for content in sent("gemini", messages=messages)["contents"] for part in content["parts"]]
    assert sum("inlineData" in part for part in parts) == 1


@pytest.mark.behaviour("TR-16", "STR-02")
def test_thoughts_go_back_to_whom_they_came_from() -> None:
    blocks = [{"type": "thinking", "thinking": "Hm.", "signature": "s"}, {"type": "redacted_thinking", "data": "d"}]
    call = {"id": "call_a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "content_blocks": blocks, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_a", "content": "Sun."},
    ]
    said = sent("anthropic", messages=messages)["messages"][1]["content"]
    assert said[:2] == blocks
    assert said[2]["type"] == "tool_use"
    assert sent("bedrock", messages=messages)["messages"][1]["content"][:2] == [
        {"reasoningContent": {"reasoningText": {"text": "Hm.", "signature": "s"}}},
        {"reasoningContent": {"redactedContent": "d"}},
    ]
    for name in ("openai", "cohere", "gemini"):
        assert "Hm." not in json.dumps(sent(name, messages=messages))
    # Thoughts without a seal are another vendor's.
    messages[1]["content_blocks"] = [{"type": "thinking", "thinking": "Hm."}]
    assert "Hm." not in json.dumps(sent("anthropic", messages=messages))


def test_geminis_seal_on_a_call_comes_back() -> None:
    call = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
    sealed = {**call, "extra_content": {"google": {"thought_signature": "seal"}}}
    other = {**call, "id": "b", "function": {**call["function"], "thought_signature": "seal 2"}}
    outputs = [{"role": "tool", "tool_call_id": id, "content": "x"} for id in ("a", "b")]
    messages = [*HI, {"role": "assistant", "tool_calls": [sealed, other]}, *outputs]
    parts = sent("gemini", messages=messages)["contents"][1]["parts"]
    assert [part["thoughtSignature"] for part in parts] == ["seal", "seal 2"]


@pytest.mark.parametrize("vendor", ["deepseek", "moonshot", "z-ai", "zhipu", "openai", "groq"])
def test_thoughts_without_a_seal_go_back_where_they_are_wanted(vendor: str) -> None:
    """DeepSeek and Moonshot refuse a history of tool calls without the thoughts behind them."""

    def told(content: Any) -> dict[str, Any]:
        call = {"id": "call_a", "type": "function", "function": {"name": "f", "arguments": "{}"}}
        said = {"role": "assistant", "content": content, "tool_calls": [call]}
        asked_for = {"type": "adaptive", "budget_tokens": 5}
        chat = asked(messages=[*HI, said, {"role": "assistant", "content": content or "x"}], thinking=asked_for)
        target = Target(vendor=CATALOGUE[vendor], base_url="https://x", api_key="k")
        return json.loads(OpenAI().request(chat, target).body)

    text = {"type": "text", "text": "Wait."}
    wants, needs = vendor in ("deepseek", "moonshot", "z-ai", "zhipu"), vendor in ("deepseek", "moonshot")
    body = told([{"type": "thinking", "thinking": "Hm."}, text])
    assert [said.get("reasoning_content") for said in body["messages"][1:]] == ["Hm." if wants else None, None]
    assert body["messages"][1]["content"] == "Wait."
    assert body.get("thinking") == ({"type": "enabled"} if wants else None)
    for content in (None, [{"type": "thinking", "thinking": "Claude's", "signature": "s"}, text]):
        assert told(content)["messages"][1].get("reasoning_content") == ("" if needs else None)


def test_thinking_in_other_vendors_words() -> None:
    asked_for = {"type": "enabled", "budget_tokens": 4096}
    off = {"type": "disabled"}
    config = sent("gemini", thinking=asked_for)["generationConfig"]["thinkingConfig"]
    assert config == {"includeThoughts": True, "thinkingBudget": 4096}
    assert sent("gemini", thinking=off)["generationConfig"]["thinkingConfig"] == {"thinkingBudget": 0}
    assert sent("gemini", model="gemini-3-pro", thinking=asked_for)["generationConfig"]["thinkingConfig"] == {
        "includeThoughts": True,
        "thinkingLevel": "LOW",
    }
    assert sent("cohere", thinking=asked_for)["thinking"] == {"type": "enabled", "token_budget": 4096}
    assert sent("bedrock", thinking=asked_for)["additionalModelRequestFields"] == {"thinking": asked_for}
    assert sent("openai", model="o3", thinking=asked_for)["reasoning_effort"] == "medium"
    assert "reasoning_effort" not in sent("openai", thinking=asked_for)


def test_a_long_user_is_told_by_its_hash() -> None:
    assert sent("openai", user="u" * 64)["user"] == "u" * 64
    assert len(sent("openai", user="u" * 65)["user"]) == 64


# --- anything at all ---

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from(
    """messages tools tool_choice response_format temperature stop max_tokens thinking user n stream stream_options
    metadata extra reasoning_effort seed logit_bias top_k functions modalities""".split()
)


@settings(max_examples=150, deadline=None)
@given(fields=st.dictionaries(NAMES, JSON, max_size=4))
def test_anything_is_a_call_or_a_refusal(fields: dict[str, Any]) -> None:
    assert all(map(is_clear, refusals(CHAT, {"model": "m", "messages": HI, **fields})))


def test_depth_is_refused_not_a_crash() -> None:
    deep: dict[str, Any] = {}
    for _ in range(900):
        deep = {"type": "object", "properties": {"a": deep}}
    tool = {"type": "function", "function": {"name": "f", "parameters": deep}}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": deep}}
    for fields in ({"tools": [tool]}, {"response_format": form}, {"whatever": deep}):
        found = refusals(CHAT, {"model": "m", "messages": HI, **fields})
        assert found
        assert all("nested" in error.message for error in found)
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": "[" * 5000}}
    assert not refusals(
        CHAT, {"model": "gemini-2.5-flash", "messages": [*HI, {"role": "assistant", "tool_calls": [call]}]}
    )
