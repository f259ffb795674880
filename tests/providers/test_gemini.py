"""What is particular about Gemini: addresses, schemas, thinking, reasons to finish, and errors.

What it shares with the other dialects is in ``conformance``; Vertex AI's access tokens are in ``test_service_account``.
"""

import base64
import json
from typing import Any

import pytest

from loomgate.errors import ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import HttpCall, Target
from loomgate.providers.gemini import Gemini, VertexAI
from loomgate.providers.gemini_schema import google_schema
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    Finish,
    FunctionTool,
    ImagePart,
    ImageUrl,
    TextDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tests.providers.conformance.suite import bare

KEY = "AIzaSyParticular0123456789abcdefghijklmn"
USER = ChatMessage(role="user", content="Hi")


def call(*messages: ChatMessage, model: str = "gemini-2.5-flash", **more: Any) -> Chat:
    return Chat(model=model, messages=list(messages) or [USER], **more)


def request(made: Chat, vendor: str = "google", **more: Any) -> HttpCall:
    row = CATALOGUE[vendor]
    target = Target(vendor=row, api_key=KEY, **{"base_url": row.base_url, **more})
    return (VertexAI() if vendor == "vertex-ai" else Gemini()).request(made, target)


def sent(made: Chat) -> dict[str, Any]:
    return json.loads(request(made).body)


def refusal(made: Chat, **more: Any) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        request(made, **more)
    return caught.value


# --- addresses ---


@pytest.mark.behaviour("TR-20", "PV-06")
@pytest.mark.parametrize(
    ("model", "base_url", "url"),
    [
        ("gemini-2.5-pro", None, "https://generativelanguage.googleapis.com/v1beta/models/gemini-2.5-pro"),
        ("models/gemini-3-flash", None, "https://generativelanguage.googleapis.com/v1beta/models/gemini-3-flash"),
        ("tunedModels/mine-1", None, "https://generativelanguage.googleapis.com/v1beta/tunedModels/mine-1"),
        ("gemini-2.5-pro", "http://proxy:9/google/", "http://proxy:9/google/v1beta/models/gemini-2.5-pro"),
        ("gemini-2.5-pro", "http://proxy:9/v1alpha", "http://proxy:9/v1alpha/models/gemini-2.5-pro"),
    ],
)
def test_the_address_of_a_model(model: str, base_url: str | None, url: str) -> None:
    made = request(call(model=model), **({"base_url": base_url} if base_url else {}))
    assert made.url == url + ":streamGenerateContent?alt=sse"
    assert KEY not in made.url  # addresses get into logs, so the key goes in a header
    assert made.headers["x-goog-api-key"] == KEY


@pytest.mark.parametrize("model", ["", "../files", "models/../x", "gemini?x=", "gemini/../../v1", "gémini", "a b"])
@pytest.mark.parametrize("vendor", ["google", "vertex-ai"])
def test_a_name_that_would_change_the_address_is_refused(model: str, vendor: str) -> None:
    assert refusal(call(model=model), vendor=vendor).kind == "model_not_found"


@pytest.mark.behaviour("PV-07")
@pytest.mark.parametrize(
    ("region", "host"),
    [
        (None, "aiplatform.googleapis.com"),
        ("global", "aiplatform.googleapis.com"),
        ("europe-west4", "europe-west4-aiplatform.googleapis.com"),
        ("eu", "aiplatform.eu.rep.googleapis.com"),
    ],
)
@pytest.mark.parametrize("name", ["gemini-2.5-pro", "google/gemini-2.5-pro", "publishers/google/models/gemini-2.5-pro"])
def test_a_model_on_vertex_ai(region: str | None, host: str, name: str) -> None:
    """GATEWAY PV-07."""
    made = request(call(model=name), "vertex-ai", project="p-1", region=region)
    place = f"projects/p-1/locations/{region or 'global'}/publishers/google/models/gemini-2.5-pro"
    assert made.url == f"https://{host}/v1beta1/{place}:streamGenerateContent?alt=sse"
    assert made.headers["Authorization"] == f"Bearer {KEY}"
    assert "x-goog-api-key" not in made.headers


def test_vertex_ai_behind_another_address_keeps_the_region_in_the_path() -> None:
    made = request(call(), "vertex-ai", project="p", region="us-east1", base_url="http://proxy:9")
    assert made.url.startswith("http://proxy:9/v1beta1/projects/p/locations/us-east1/publishers/google/models/gemini")


@pytest.mark.behaviour("TR-21")
@pytest.mark.parametrize(
    "model", ["anthropic.claude-sonnet-4", "meta.llama-4", "mistralai.mistral-large", "endpoints.1"]
)
def test_models_of_other_publishers_are_refused(model: str) -> None:
    """GATEWAY TR-21 names their prefixes."""
    error = refusal(call(model=model), vendor="vertex-ai", project="p")
    assert error.kind == "model_not_found"
    assert model in error.message


# --- requests ---


@pytest.mark.behaviour("TR-20")
def test_an_answer_in_one_piece_has_another_verb_and_instructions_a_place_of_their_own() -> None:
    system = ChatMessage(role="system", content="Be brief.")
    made = request(call(system, USER, stream=False))
    assert made.url.endswith("/models/gemini-2.5-flash:generateContent")
    assert json.loads(made.body)["systemInstruction"] == {"parts": [{"text": "Be brief."}]}


def test_instructions_alone_are_the_question() -> None:
    system = ChatMessage(role="system", content="Tell a joke.")
    assert sent(call(system)) == {"contents": [{"role": "user", "parts": [{"text": "Tell a joke."}]}]}


def test_empty_instructions_are_none() -> None:
    assert sent(call(ChatMessage(role="system", content=""), USER)) == sent(call(USER))


def test_responses_stand_apart_from_what_the_user_says() -> None:
    made = ToolCall("call_1", "f", "{}")
    said = [USER, ChatMessage(role="assistant", tool_calls=[made]), USER]
    said.insert(2, ChatMessage(role="tool", content="1", tool_call_id="call_1"))
    roles = [(content["role"], *content["parts"][0]) for content in sent(call(*said))["contents"]]
    assert roles == [
        ("user", "text"),
        ("model", "functionCall", "thoughtSignature"),
        ("user", "functionResponse"),
        ("user", "text"),
    ]


@pytest.mark.parametrize(
    ("text", "args"),
    [("", {}), ('{"a":1}', {"a": 1}), ("[1]", {"arguments": [1]}), ('{"a":', {"arguments": '{"a":'})],
)
def test_arguments_are_an_object(text: str, args: Any) -> None:
    said = ChatMessage(role="assistant", tool_calls=[ToolCall("c", "f", text)])
    assert sent(call(USER, said))["contents"][1]["parts"][0]["functionCall"]["args"] == args


@pytest.mark.parametrize(
    ("model", "effort", "config"),
    [
        ("gemini-2.5-flash", "none", {"thinkingBudget": 0}),
        ("gemini-2.5-pro", "minimal", {"thinkingBudget": 1024}),
        ("gemini-2.5-pro", "xhigh", {"thinkingBudget": 24576}),
        ("gemini-3-flash-preview", "minimal", {"thinkingLevel": "MINIMAL"}),
        ("gemini-3-flash-preview", "xhigh", {"thinkingLevel": "HIGH"}),
        ("gemini-3-pro-preview", "medium", {"thinkingLevel": "LOW"}),
        ("gemini-3-pro-preview", "minimal", {"thinkingLevel": "LOW"}),
        ("models/gemini-3.1-pro-preview", "medium", {"thinkingLevel": "MEDIUM"}),
        ("gemini-flash-latest", "high", {"thinkingLevel": "HIGH"}),
    ],
)
def test_thinking(model: str, effort: str, config: dict[str, Any]) -> None:
    body = sent(call(model=model, reasoning_effort=effort))
    assert body["generationConfig"] == {"thinkingConfig": config}


@pytest.mark.parametrize(
    ("model", "effort", "words"),
    [
        ("gemini-2.5-flash", "hard", "expected one of none, minimal, low,"),
        ("gemini-3-flash", "hard", "expected one of minimal, low,"),
        ("gemini-3-flash", "none", "expected one of minimal, low,"),
        ("gemini-2.0-flash", "low", "'gemini-2.0-flash' does not think"),
    ],
)
def test_an_effort_that_the_model_does_not_have_is_refused(model: str, effort: str, words: str) -> None:
    error = refusal(call(model=model, reasoning_effort=effort))
    assert error.kind == "invalid"
    assert error.message.startswith("reasoning_effort: ")
    assert words in error.message


@pytest.mark.parametrize(
    ("choice", "config"),
    [(None, {"mode": "VALIDATED"}), ("auto", {"mode": "VALIDATED"}), ("required", {"mode": "ANY"})],
)
def test_a_strict_function_has_its_arguments_held_to_the_schema(choice: Any, config: dict[str, Any]) -> None:
    tools = [FunctionTool(name="f", strict=True), FunctionTool(name="g")]
    assert sent(call(tools=tools, tool_choice=choice))["toolConfig"] == {"functionCallingConfig": config}


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (
            "https://x.test/a/cat.webp?s=1",
            {"fileData": {"mimeType": "image/webp", "fileUri": "https://x.test/a/cat.webp?s=1"}},
        ),
        ("https://x.test/image", {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://x.test/image"}}),
        ("https://x.test/a.html", {"fileData": {"mimeType": "image/jpeg", "fileUri": "https://x.test/a.html"}}),
        ("gs://bucket/a.png", {"fileData": {"mimeType": "image/png", "fileUri": "gs://bucket/a.png"}}),
        (
            "data:image/svg+xml,%3Csvg/%3E",
            {"inlineData": {"mimeType": "image/svg+xml", "data": base64.b64encode(b"<svg/>").decode()}},
        ),
    ],
)
def test_images(url: str, part: dict[str, Any]) -> None:
    made = call(ChatMessage(role="user", content=[ImagePart(ImageUrl(url))]))
    assert sent(made)["contents"][0]["parts"] == [part]


@pytest.mark.parametrize(
    ("message", "words"),
    [
        (ChatMessage(role="user", content=[ImagePart(ImageUrl("data:image/png;base64,%%"))]), "image_url"),
        (ChatMessage(role="user", content=[ImagePart(ImageUrl("data:,"))]), "image_url"),
        (ChatMessage(role="system", content=[ImagePart(ImageUrl("https://x"))]), "role 'system'"),
        (ChatMessage(role="tool", content="1", tool_call_id="call_9"), "call_9"),
    ],
)
def test_what_cannot_be_told_is_refused(message: ChatMessage, words: str) -> None:
    error = refusal(call(USER, message))
    assert error.kind == "invalid"
    assert words in error.message


def test_an_endpoint_that_refuses_a_field_does_not_get_it() -> None:
    made = call(tools=[FunctionTool(name="f")], tool_choice="none", temperature=1.0, top_p=0.5)
    body = json.loads(request(made, drop=frozenset({"tool_choice", "temperature"})).body)
    assert body == {"contents": [{"role": "user", "parts": [{"text": "Hi"}]}], "generationConfig": {"topP": 0.5}}


# --- schemas ---

THING = {"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]}


@pytest.mark.parametrize(
    ("given", "made"),
    [
        ({"const": "a"}, {"enum": ["a"]}),
        ({"type": "boolean", "const": True}, {"type": "boolean", "const": True}),
        ({"properties": {"const": {"const": 1}}}, {"properties": {"const": {"enum": [1]}}}),
        ({"enum": [{"const": 1}], "default": {"allOf": []}}, {"enum": [{"const": 1}], "default": {"allOf": []}}),
        ({"type": ["string", "null"], "minLength": 1}, {"type": ["string", "null"], "minLength": 1}),
        ({"items": True, "additionalProperties": False}, {"items": True, "additionalProperties": False}),
        (
            {"definitions": {"T": {"const": 2}}, "items": {"$ref": "#/definitions/T", "description": "d"}},
            {"$defs": {"T": {"enum": [2]}}, "items": {"$ref": "#/$defs/T"}},
        ),
        ({"description": "d", "allOf": [{"$ref": "#/$defs/T"}]}, {"$ref": "#/$defs/T"}),
        (
            {"$defs": {"T": THING}, "allOf": [{"$ref": "#/$defs/T"}, {"properties": {"n": {}}, "required": ["n"]}]},
            {
                "$defs": {"T": THING},
                **THING,
                "properties": {"n": {}, "id": {"type": "string"}},
                "required": ["id", "n"],
            },
        ),
        ({"allOf": [{"$ref": "#"}, {"type": "string"}]}, {"type": "string"}),
        (
            {"anyOf": [{"const": "a"}, {"oneOf": [{"const": "b"}]}]},
            {"anyOf": [{"enum": ["a"]}, {"oneOf": [{"enum": ["b"]}]}]},
        ),
        (
            {"prefixItems": [{"const": 1}], "items": {"const": 2}},
            {"prefixItems": [{"enum": [1]}], "items": {"enum": [2]}},
        ),
    ],
)
def test_schemas(given: dict[str, Any], made: dict[str, Any]) -> None:
    before = json.dumps(given)
    assert google_schema(given) == made
    assert json.dumps(given) == before


def test_properties_keep_their_order() -> None:
    names = ["z", "a", "m"]
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"properties": {name: {} for name in names}}}}
    config = sent(call(response_format=form))["generationConfig"]
    assert config["responseMimeType"] == "application/json"
    assert list(config["responseJsonSchema"]["properties"]) == names


# --- answers ---


def heard(*responses: dict[str, Any]) -> list[Chunk]:
    decoder = Gemini().decoder()
    body = b"".join(b"data: " + json.dumps(response).encode() + b"\r\n\r\n" for response in responses)
    return bare([*decoder.feed(body), *decoder.end()])


def candidate(text: str = "", reason: str | None = "STOP", **more: Any) -> dict[str, Any]:
    parts = [{"text": text}] if text else []
    return {"candidates": [{"content": {"role": "model", "parts": parts}, "finishReason": reason, **more}]}


@pytest.mark.behaviour("FR-12")
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("STOP", "stop"),
        ("OTHER", "stop"),
        ("FINISH_REASON_UNSPECIFIED", "stop"),
        ("A_NEW_ONE", "stop"),
        ("MAX_TOKENS", "length"),
        *((name, "content_filter") for name in "SAFETY PROHIBITED_CONTENT BLOCKLIST SPII LANGUAGE RECITATION".split()),
    ],
)
def test_reasons_to_finish(theirs: str, ours: str) -> None:
    """GATEWAY FR-12, but for RECITATION: half an answer does not pass for a whole one."""
    assert heard(candidate("So", None), candidate(reason=theirs)) == [TextDelta("So"), Finish(ours)]  # pyright: ignore[reportArgumentType]


def test_a_call_that_ran_into_the_limit_is_not_a_call() -> None:
    part = {"functionCall": {"name": "f", "args": {}, "id": "x1"}}
    chunks = heard({"candidates": [{"content": {"parts": [part]}, "finishReason": "MAX_TOKENS"}]})
    assert chunks == [ToolCallDelta(0, "x1", "f", "{}"), Finish("length")]


@pytest.mark.parametrize("reason", ["MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "MALFORMED_RESPONSE"])
def test_an_answer_that_is_none_is_a_failure(reason: str) -> None:
    with pytest.raises(ProviderError) as caught:
        heard(candidate(reason=reason, finishMessage="Malformed function call: print(f())"))
    assert caught.value.kind == "server"
    assert reason in caught.value.message
    assert "print(f())" in caught.value.message


def test_a_refused_prompt_is_filtered() -> None:
    usage = {"promptTokenCount": 8, "totalTokenCount": 8}
    assert heard({"promptFeedback": {"blockReason": "PROHIBITED_CONTENT"}, "usageMetadata": usage}) == [
        Finish("content_filter", Usage(8))
    ]


def test_the_last_counts_are_the_answers() -> None:
    counts = {"promptTokenCount": 10, "toolUsePromptTokenCount": 5, "candidatesTokenCount": 7, "thoughtsTokenCount": 3}
    first = {**candidate("a", None), "usageMetadata": {"promptTokenCount": 10, "candidatesTokenCount": 1}}
    last = {**candidate("b"), "usageMetadata": {**counts, "cachedContentTokenCount": 4}}
    assert heard(first, last)[-1] == Finish("stop", Usage(15, 10, 4, 3))


def test_an_answer_that_is_no_stream() -> None:
    decoder = Gemini().decoder()
    body = b"\n " + json.dumps(candidate("b")).encode()
    chunks = [chunk for at in range(0, len(body), 7) for chunk in decoder.feed(body[at : at + 7])]
    chunks += decoder.end()
    assert chunks == [TextDelta("b"), Finish("stop", raw="STOP")]


# --- errors ---


def failure(status: int, name: str, *details: dict[str, Any], message: str = "No.") -> ProviderError:
    error = {"code": status, "message": message, "status": name, "details": list(details)}
    return Gemini().error(status, {}, json.dumps({"error": error}).encode())


def quota(id: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [{"quotaId": id}]}


@pytest.mark.parametrize(
    ("status", "name", "kind"),
    [
        (400, "INVALID_ARGUMENT", "invalid"),
        (400, "FAILED_PRECONDITION", "invalid"),
        (401, "UNAUTHENTICATED", "auth"),
        (403, "PERMISSION_DENIED", "auth"),
        (404, "NOT_FOUND", "model_not_found"),
        (429, "RESOURCE_EXHAUSTED", "rate_limit"),
        (499, "CANCELLED", "server"),
        (500, "INTERNAL", "server"),
        (503, "UNAVAILABLE", "overloaded"),
        (504, "DEADLINE_EXCEEDED", "timeout"),
    ],
)
def test_errors(status: int, name: str, kind: str) -> None:
    error = failure(status, name)
    assert (error.kind, error.status, error.message) == (kind, status, "No.")


def test_a_wait_in_the_body() -> None:
    retry = {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": "34.074824224s"}
    assert failure(429, "RESOURCE_EXHAUSTED", quota("RequestsPerMinute"), retry).retry_after == 34.074824224
    assert failure(429, "RESOURCE_EXHAUSTED", {"retryDelay": "soon", "violations": "none"}).retry_after is None


def test_a_quota_of_a_day_is_not_waited_for() -> None:
    assert (
        failure(429, "RESOURCE_EXHAUSTED", quota("GenerateRequestsPerDayPerProjectPerModel-FreeTier")).kind == "quota"
    )


def test_an_error_in_a_list() -> None:
    body = json.dumps([{"error": {"code": 503, "message": "Busy.", "status": "UNAVAILABLE"}}]).encode()
    error = Gemini().error(503, {"retry-after": "3"}, body)
    assert (error.kind, error.message, error.retry_after) == ("overloaded", "Busy.", 3)


@pytest.mark.parametrize("secret", [KEY, "ya29.c.c0ASRK0Ga-_abcdefghijklmnop", "AQ.Ab8RN6Jabcdefghijklmnop"])
def test_keys_do_not_come_back(secret: str) -> None:
    error = failure(403, "PERMISSION_DENIED", message=f"Consumer 'api_key:{secret}' has been suspended.")
    assert secret not in error.message
    assert "has been suspended" in error.message
