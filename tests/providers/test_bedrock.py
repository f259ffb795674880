"""What is particular to Bedrock: turns, tool inputs, exceptions, and what it cannot express."""

import json
from typing import Any

import pytest
import yarl
from hypothesis import given
from hypothesis import strategies as st

from loomgate.errors import ProviderError
from loomgate.providers.bedrock import Bedrock
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target
from loomgate.wire.chat import Chat, ChatMessage, Chunk, Finish, FunctionTool, ImagePart, ImageUrl, TextDelta, ToolCall
from tests.providers.conformance.suite import bare
from tests.providers.conformance.wire_bedrock import event, exception, frame

HI = ChatMessage(role="user", content="Hi")
TOOL = FunctionTool(name="f")


def target(**more: Any) -> Target:
    return Target(vendor=CATALOGUE["bedrock"], base_url="https://bedrock-runtime.us-east-1.amazonaws.com", **more)


def sent(*messages: ChatMessage, to: Target | None = None, **more: Any) -> dict[str, Any]:
    call = Chat(model="amazon.nova-pro-v1:0", messages=list(messages) or [HI], **more)
    return json.loads(Bedrock().request(call, to or target()).body)


def refused(*messages: ChatMessage, **more: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        sent(*messages, **more)
    return caught.value


def assistant(content: str | None, *calls: ToolCall) -> ChatMessage:
    return ChatMessage(role="assistant", content=content, tool_calls=list(calls))


# --- the request ---


def test_the_smallest_request() -> None:
    call = Bedrock().request(Chat(model="amazon.nova-pro-v1:0", messages=[HI]), target())
    assert call.url == "https://bedrock-runtime.us-east-1.amazonaws.com/model/amazon.nova-pro-v1:0/converse-stream"
    assert call.headers == {"Content-Type": "application/json", "Accept": "application/vnd.amazon.eventstream"}
    assert json.loads(call.body) == {"messages": [{"role": "user", "content": [{"text": "Hi"}]}]}


def test_a_bedrock_api_key_is_a_bearer_token() -> None:
    call = Bedrock().request(Chat(model="m", messages=[HI]), target(api_key="bedrock-api-key-x"))
    assert call.headers["Authorization"] == "Bearer bedrock-api-key-x"


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cs"]), min_size=1))
def test_the_path_goes_over_the_wire_as_it_is_signed(model: str) -> None:
    """The HTTP client parses addresses with yarl, which encodes and decodes what it thinks fit."""
    if model in (".", ".."):
        return
    url = Bedrock().request(Chat(model=model, messages=[HI]), target()).url
    assert str(yarl.URL(url)) == url
    assert yarl.URL(url).parts == ("/", "model", model, "converse-stream")


@pytest.mark.parametrize("model", [".", ".."])
def test_a_model_name_cannot_lead_elsewhere(model: str) -> None:
    with pytest.raises(ProviderError) as caught:
        Bedrock().request(Chat(model=model, messages=[HI]), target())
    assert caught.value.kind == "model_not_found"


def test_a_conversation_begins_and_ends_with_the_user() -> None:
    """A truncated thread may begin with an answer, and a run may follow one."""
    said = {"role": "assistant", "content": [{"text": "A"}]}
    filler = {"role": "user", "content": [{"text": "Continue."}]}
    assert sent(assistant("A"), HI)["messages"][:2] == [filler, said]
    assert sent(HI, assistant("A"))["messages"][1:] == [said, filler]
    assert sent(ChatMessage(role="system", content="S")) == {"system": [{"text": "S"}], "messages": [filler]}


def test_results_of_parallel_calls_are_one_message_with_what_the_user_says_next() -> None:
    calls = [ToolCall("a", "f", '{"n": 1.10}'), ToolCall("b", "f", "")]
    results = [ChatMessage(role="tool", content=text, tool_call_id=id) for id, text in (("a", "1"), ("b", ""))]
    made = sent(HI, assistant(" \n", *calls), *results, HI, tools=[TOOL])["messages"]
    assert made[1:] == [
        {
            "role": "assistant",
            "content": [
                {"toolUse": {"toolUseId": "a", "name": "f", "input": {"n": 1.1}}},
                {"toolUse": {"toolUseId": "b", "name": "f", "input": {}}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"toolResult": {"toolUseId": "a", "content": [{"text": "1"}]}},
                {"toolResult": {"toolUseId": "b", "content": []}},
                {"text": "Hi"},
            ],
        },
    ]


@pytest.mark.parametrize("arguments", ["{not json", "[1]", '"text"', "NaN"])
def test_arguments_that_are_no_object_are_handed_back_as_text(arguments: str) -> None:
    result = ChatMessage(role="tool", content="?", tool_call_id="a")
    made = sent(HI, assistant(None, ToolCall("a", "f", arguments)), result, tools=[TOOL])["messages"]
    assert made[1]["content"][0]["toolUse"]["input"] == {"arguments": arguments}


def test_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    form = {"name": "n", "description": "d", "schema": schema, "strict": True}
    (made,) = sent(response_format={"type": "json_schema", "json_schema": form})["outputConfig"].values()
    assert json.loads(made["structure"]["jsonSchema"].pop("schema")) == schema
    assert made == {"type": "json_schema", "structure": {"jsonSchema": {"name": "n", "description": "d"}}}
    made = sent(response_format={"type": "json_object"})
    assert "JSON object" in made["system"][0]["text"]
    assert "outputConfig" not in made


def test_numbers_are_kept_in_bedrocks_range() -> None:
    """GATEWAY TR-02."""
    assert sent(temperature=1.7)["inferenceConfig"] == {"temperature": 1.0}
    assert sent(temperature=1.7, to=target(drop=frozenset({"temperature"}))).keys() == {"messages"}


@pytest.mark.parametrize(
    ("effort", "told"), [(None, None), ("none", None), ("minimal", "low"), ("high", "high"), ("xhigh", "xhigh")]
)
def test_reasoning_effort(effort: str | None, told: str | None) -> None:
    assert sent(reasoning_effort=effort).get("outputConfig", {}).get("effort") == told


def test_images() -> None:
    def image(url: str) -> ChatMessage:
        return ChatMessage(role="user", content=[ImagePart(ImageUrl(url))])

    plain = {"image": {"format": "jpeg", "source": {"bytes": "AAEC"}}}
    for url in ("data:image/jpg;base64,AAEC", "data:image/JPEG;name=x;base64,AAEC", "data:image/jpeg,%00%01%02"):
        assert sent(image(url))["messages"][0]["content"] == [plain]
    for url in ("https://example.com/a.png", "data:image/svg+xml;base64,AAEC", "data:text/plain;base64,AAEC"):
        assert refused(image(url)).kind == "invalid"
        assert url not in refused(image(url)).message


def test_tools_are_forbidden_by_not_sending_any() -> None:
    assert "toolConfig" not in sent(tools=[TOOL], tool_choice="none")
    result = ChatMessage(role="tool", content="?", tool_call_id="a")
    called = (HI, assistant(None, ToolCall("a", "f", "{}")), result)
    assert refused(*called, tools=[TOOL], tool_choice="none").kind == "invalid"


# --- errors ---


@pytest.mark.parametrize(
    ("status", "name", "message", "kind"),
    [
        (400, "ValidationException", "Malformed input request.", "invalid"),
        (400, "ValidationException", "The provided model identifier is invalid.", "model_not_found"),
        (404, "ResourceNotFoundException", "Could not resolve the model.", "model_not_found"),
        (403, "AccessDeniedException", "You don't have access to the model with the specified model ID.", "auth"),
        (403, "ExpiredTokenException", "The security token included in the request is expired", "auth"),
        (429, "ThrottlingException", "Too many tokens, please wait before trying again.", "rate_limit"),
        (429, "ThrottlingException", "Too many tokens per day, please wait before trying again.", "quota"),
        (400, "ServiceQuotaExceededException", "Quota exceeded.", "quota"),
        (429, "ModelNotReadyException", "The model is not ready.", "overloaded"),
        (408, "ModelTimeoutException", "Model took too long.", "timeout"),
        (424, "ModelErrorException", "The model failed.", "server"),
        (418, "", "Short and stout.", "invalid"),
    ],
)
@pytest.mark.parametrize("field", ["message", "Message"])
def test_exceptions(status: int, name: str, message: str, kind: str, field: str) -> None:
    headers = {"x-amzn-errortype": f"{name}:http://internal.amazon.com/"} if name else {}
    error = Bedrock().error(status, headers, json.dumps({field: message}).encode())
    assert (error.kind, error.status, error.message) == (kind, status, message)


def test_an_exception_may_be_named_in_the_body() -> None:
    said = {"__type": "com.amazon.coral.service#ServiceQuotaExceededException", "message": "Enough."}
    assert Bedrock().error(400, {}, json.dumps(said).encode()).kind == "quota"


def test_a_wrong_signature_does_not_show_the_request() -> None:
    said = (
        "The request signature we calculated does not match the signature you provided. Check your AWS Secret Access "
        "Key and signing method. Consult the service documentation for details.\n\nThe Canonical String for this "
        "request should have been\n'POST\n/model/m/converse-stream\n\nx-amz-security-token:hush-hush\n'"
    )
    error = Bedrock().error(
        403, {"x-amzn-errortype": "InvalidSignatureException"}, json.dumps({"message": said}).encode()
    )
    assert error.kind == "auth"
    assert error.message.endswith("for details.")


# --- the answer ---


def read(*frames: bytes) -> tuple[list[Chunk], ProviderError | None]:
    decoder = Bedrock().decoder()
    found: list[Chunk] = []
    try:
        for chunk in decoder.feed(b"".join(frames)):
            found.append(chunk)
        for chunk in decoder.end():
            found.append(chunk)
    except ProviderError as error:
        return found, error
    return bare(found), None


TEXT = event("contentBlockDelta", {"contentBlockIndex": 0, "delta": {"text": "Hi"}})
STOP = event("messageStop", {"stopReason": "end_turn"})
USAGE = {
    "inputTokens": 10, "outputTokens": 5, "totalTokens": 25, "cacheReadInputTokens": 7, "cacheWriteInputTokens": 3,
}  # fmt: skip
METADATA = event("metadata", {"usage": USAGE, "metrics": {"latencyMs": 1}})


def test_usage_counts_what_the_cache_gave_and_took() -> None:
    (_, finish), error = read(TEXT, STOP, METADATA)
    assert error is None
    assert isinstance(finish, Finish)
    assert finish.usage is not None
    assert (finish.usage.prompt_tokens, finish.usage.completion_tokens, finish.usage.cached_tokens) == (20, 5, 7)


def test_an_answer_without_usage_is_whole_once_it_has_stopped() -> None:
    assert read(TEXT, STOP) == ([TextDelta("Hi"), Finish("stop")], None)
    assert read(TEXT, STOP, METADATA[:9]) == ([TextDelta("Hi"), Finish("stop")], None)


def test_nothing_is_read_after_the_end() -> None:
    decoder = Bedrock().decoder()
    assert len(list(decoder.feed(STOP + METADATA + TEXT))) == 1
    assert list(decoder.feed(TEXT)) == list(decoder.end()) == []


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("guardrail_intervened", "content_filter"),
        ("content_filtered", "content_filter"),
        ("tool_use", "stop"),  # it says so, but there was no call
        ("whatever_comes_next", "stop"),
    ],
)
def test_stop_reasons(told: str, reason: str) -> None:
    """GATEWAY FR-01, FR-11."""
    assert read(TEXT, event("messageStop", {"stopReason": told}))[0][-1] == Finish(reason)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("told", ["malformed_model_output", "malformed_tool_use"])
def test_an_answer_that_the_model_spoilt_is_an_error(told: str) -> None:
    found, error = read(TEXT, event("messageStop", {"stopReason": told}))
    assert found == [TextDelta("Hi")]
    assert error is not None
    assert error.kind == "server"


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("throttlingException", "rate_limit"),
        ("serviceUnavailableException", "overloaded"),
        ("internalServerException", "server"),
        ("modelStreamErrorException", "server"),
        ("validationException", "invalid"),
        ("newException", "server"),
    ],
)
def test_exceptions_within_the_stream(name: str, kind: str) -> None:
    found, error = read(TEXT, exception(name, "So it is."))
    assert found == [TextDelta("Hi")]
    assert error is not None
    assert (error.kind, error.message) == (kind, "So it is.")


def test_an_error_of_the_framing() -> None:
    headers = {":message-type": "error", ":error-code": "InternalFailure", ":error-message": "Lost."}
    _, error = read(frame(headers, {}))
    assert error is not None
    assert (error.kind, error.message) == ("server", "Lost.")


def test_unknown_events_are_passed_over() -> None:
    assert read(event("novelty", {"x": 1}), TEXT, STOP)[1] is None


@pytest.mark.parametrize(
    "data",
    [
        METADATA,
        event("contentBlockDelta", {"contentBlockIndex": 3, "delta": {"toolUse": {"input": "{}"}}}),
        event("contentBlockStart", {"contentBlockIndex": 0, "start": {"toolUse": {"name": "f"}}}),
        event("contentBlockDelta", {"contentBlockIndex": "0"}),
    ],
)
def test_events_that_make_no_sense(data: bytes) -> None:
    error = read(data)[1]
    assert error is not None
    assert error.kind == "malformed"
