"""OpenAI's chat-completions wire: what is sent, and what comes of what real endpoints send back."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ProviderError
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target
from loomgate.providers.openai import OpenAI
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    Finish,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedFunction,
    RefusalDelta,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)
from tests.providers.conformance.suite import bare

KEY = "sk-test-000000000000000000"


def target(name: str = "openai", **more: Any) -> Target:
    row = CATALOGUE[name]
    return Target(
        vendor=row, base_url=more.pop("base_url", row.base_url or row.local), api_key=more.pop("api_key", KEY), **more
    )


def sent(call: Chat, to: Target | None = None) -> dict[str, Any]:
    return json.loads(OpenAI().request(call, to or target()).body)


def chat(**more: Any) -> Chat:
    return Chat(model="gpt-4o", messages=[ChatMessage(role="user", content="Hi")], **more)


# --- the request ---


def test_the_smallest_request() -> None:
    call = OpenAI().request(chat(), target())
    assert call.url == "https://api.openai.com/v1/chat/completions"
    assert call.headers == {
        "Content-Type": "application/json",
        "Accept": "text/event-stream",
        "Authorization": f"Bearer {KEY}",
    }
    assert json.loads(call.body) == {
        "model": "gpt-4o",
        "messages": [{"role": "user", "content": "Hi"}],
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    assert KEY not in repr(call)
    assert KEY not in repr(target())


def test_every_field_has_its_place() -> None:
    schema = {"type": "object", "properties": {"city": {"type": "string"}}}
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}
    call = Chat(
        model="gpt-4o",
        messages=[
            ChatMessage(role="system", content="Be brief."),
            ChatMessage(
                role="user",
                content=[TextPart("See"), ImagePart(ImageUrl("https://x/y.png", "low")), ImagePart(ImageUrl("data:,"))],
            ),
            ChatMessage(role="assistant", tool_calls=[ToolCall("call_1", "get_weather", '{"city":"Oslo"}')]),
            ChatMessage(role="tool", content="4 C", tool_call_id="call_1"),
            ChatMessage(role="assistant", refusal="No."),
        ],
        tools=[
            FunctionTool(name="get_weather", description="d", parameters=schema, strict=True),
            FunctionTool(name="f"),
        ],
        tool_choice=NamedFunction("get_weather"),
        parallel_tool_calls=False,
        response_format=form,
        temperature=0.0,
        top_p=1.0,
        max_completion_tokens=7,
        reasoning_effort="low",
    )
    function = {"name": "get_weather", "description": "d", "parameters": schema, "strict": True}
    assert sent(call) == {
        "model": "gpt-4o",
        "messages": [
            {"role": "system", "content": "Be brief."},
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "See"},
                    {"type": "image_url", "image_url": {"url": "https://x/y.png", "detail": "low"}},
                    {"type": "image_url", "image_url": {"url": "data:,"}},
                ],
            },
            {
                "role": "assistant",
                "tool_calls": [
                    {
                        "id": "call_1",
                        "type": "function",
                        "function": {"name": "get_weather", "arguments": '{"city":"Oslo"}'},
                    }
                ],
            },
            {"role": "tool", "content": "4 C", "tool_call_id": "call_1"},
            {"role": "assistant", "content": None, "refusal": "No."},
        ],
        "stream": True,
        "stream_options": {"include_usage": True},
        "tools": [{"type": "function", "function": function}, {"type": "function", "function": {"name": "f"}}],
        "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
        "parallel_tool_calls": False,
        "response_format": form,
        "temperature": 0.0,
        "top_p": 1.0,
        "max_completion_tokens": 7,
        "reasoning_effort": "low",
    }


def test_choices_about_tools_are_not_sent_without_tools() -> None:
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(
        sent(chat(tool_choice="auto", parallel_tool_calls=True))
    )


def test_a_row_renames_and_drops() -> None:
    call = chat(max_completion_tokens=5, tools=[FunctionTool(name="f")], parallel_tool_calls=False, tool_choice="none")
    mistral = sent(call, target("mistral-ai"))
    assert mistral["max_tokens"] == 5
    assert not {"max_completion_tokens", "stream_options"} & set(mistral)
    ollama = sent(call, target("ollama"))  # it does not know tool_choice, so "none" means no tools
    assert not {"tools", "tool_choice", "parallel_tool_calls"} & set(ollama)
    assert "temperature" not in sent(chat(temperature=1.0), target(drop=frozenset({"temperature"})))
    assert not {"max_tokens", "max_completion_tokens"} & set(
        sent(call, target("mistral-ai", drop=frozenset({"max_completion_tokens"})))
    )


@pytest.mark.parametrize(
    ("name", "base", "url"),
    [
        ("openrouter", None, "https://openrouter.ai/api/v1/chat/completions"),
        ("openrouter", "http://h/v1", "http://h/v1/chat/completions"),
        ("openai", "http://h/v1/", "http://h/v1/chat/completions"),
        ("ollama", "http://h:11434", "http://h:11434/v1/chat/completions"),
        ("groq", None, "https://api.groq.com/openai/v1/chat/completions"),
    ],
)
def test_addresses(name: str, base: str | None, url: str) -> None:
    to = target(name, base_url=base) if base else target(name)
    assert OpenAI().request(chat(), to).url == url


def test_no_key_no_header_and_extra_headers() -> None:
    headers = OpenAI().request(chat(), target("ollama", api_key=None, headers={"X-Title": "t"})).headers
    assert "Authorization" not in headers
    assert headers["X-Title"] == "t"


# --- the answer ---


def event(**chunk: Any) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def delta(reason: str | None = None, **fields: Any) -> bytes:
    return event(
        id="chatcmpl-1",
        object="chat.completion.chunk",
        created=1,
        model="m",
        choices=[{"index": 0, "delta": fields, "logprobs": None, "finish_reason": reason}],
    )


def tool(index: int | None = None, id: str | None = None, name: str | None = None, args: Any = None) -> dict[str, Any]:
    function = {key: value for key, value in (("name", name), ("arguments", args)) if value is not None}
    made: dict[str, Any] = {"type": "function", "function": function}
    return made | ({} if index is None else {"index": index}) | ({} if id is None else {"id": id})


DONE = b"data: [DONE]\n\n"
USAGE = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 5, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 3, "audio_tokens": 0},
}


def decode(*pieces: bytes) -> list[Chunk]:
    decoder = OpenAI().decoder()
    return bare([chunk for piece in pieces for chunk in decoder.feed(piece)] + list(decoder.end()))


def error_of(*pieces: bytes) -> ProviderError:
    with pytest.raises(ProviderError) as caught:
        decode(*pieces)
    return caught.value


# As documented for chat completions with stream and include_usage, byte for byte.
DOCUMENTED = (
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"role":"assistant","content":""},'
    b'"logprobs":null,"finish_reason":null}],"usage":null}\n\n'
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{"content":"H\xc3\xa9llo"},"logprobs":null,'
    b'"finish_reason":null}],"usage":null}\n\n'
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],'
    b'"usage":null}\n\n'
    b'data: {"id":"chatcmpl-123","object":"chat.completion.chunk","created":1694268190,"model":"gpt-4o-mini",'
    b'"system_fingerprint":"fp_44709d6fcb","choices":[],"usage":{"prompt_tokens":19,"completion_tokens":10,'
    b'"total_tokens":29,"prompt_tokens_details":{"cached_tokens":5,"audio_tokens":0},'
    b'"completion_tokens_details":{"reasoning_tokens":3,"audio_tokens":0,"accepted_prediction_tokens":0,'
    b'"rejected_prediction_tokens":0}}}\n\n'
    b"data: [DONE]\n\n"
)
ALL = Usage(19, 10, 5, 3)


def test_the_documented_stream() -> None:
    assert decode(DOCUMENTED) == [TextDelta("Héllo"), Finish("stop", ALL)]


PARALLEL = b"".join(
    [
        delta(role="assistant", content=None, tool_calls=[tool(0, "call_a", "f", "")]),
        delta(tool_calls=[tool(0, args='{"x"')]),
        delta(tool_calls=[tool(0, args=":1}")]),
        delta(tool_calls=[tool(1, "call_b", "f", "")]),
        delta(tool_calls=[tool(1, args="{}")]),
        delta("tool_calls"),
        event(choices=[], usage=USAGE),
        DONE,
    ]
)


@settings(max_examples=60)
@given(st.sampled_from([DOCUMENTED, PARALLEL, DOCUMENTED.replace(b"\n", b"\r\n")]), st.data())
def test_any_split_gives_the_same_chunks(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=8)))
    pieces = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    assert decode(*pieces) == decode(stream)


def calls(*deltas: bytes) -> list[tuple[str, str]]:
    """(name, arguments) of the calls in a stream; checks that each begins once, in order, under an id of its own."""
    chunks = decode(*deltas)
    assert isinstance(chunks[-1], Finish)
    assert chunks[-1].reason == "tool_calls"
    begun: list[list[str]] = []
    ids: set[str] = set()
    for chunk in chunks[:-1]:
        assert isinstance(chunk, ToolCallDelta)
        if chunk.name is not None:
            assert chunk.index == len(begun)
            assert chunk.id
            ids.add(chunk.id)
            begun.append([chunk.name, ""])
        begun[chunk.index][1] += chunk.arguments
    assert len(ids) == len(begun)
    return [(name, arguments) for name, arguments in begun]


def test_parallel_calls() -> None:
    assert calls(PARALLEL) == [("f", '{"x":1}'), ("f", "{}")]
    first = decode(PARALLEL)[0]
    assert first == ToolCallDelta(0, "call_a", "f", "")


END = delta("tool_calls") + DONE


@pytest.mark.parametrize(
    ("what", "deltas", "expected"),
    [
        (
            "whole calls in one delta, all with index 0",
            [delta(tool_calls=[tool(0, "a", "f", "{}"), tool(0, "b", "f", '{"y":2}')]), END],
            [("f", "{}"), ("f", '{"y":2}')],
        ),
        (
            "whole calls in two deltas, index 0, no ids",
            [delta(tool_calls=[tool(0, None, "f", '{"y":1}')]), delta(tool_calls=[tool(0, None, "f", '{"y":2}')]), END],
            [("f", '{"y":1}'), ("f", '{"y":2}')],
        ),
        (
            "no index at all, ids tell them apart",
            [
                delta(tool_calls=[tool(None, "a", "f", '{"y"')]),
                delta(tool_calls=[tool(None, "a", None, ":1}")]),
                delta(tool_calls=[tool(None, "b", "g", "{}")]),
                END,
            ],
            [("f", '{"y":1}'), ("g", "{}")],
        ),
        (
            "neither index nor id",
            [
                delta(tool_calls=[tool(None, None, "f", '{"y"')]),
                delta(tool_calls=[tool(None, None, None, ":1}")]),
                delta(tool_calls=[tool(None, None, "g", "{}")]),
                END,
            ],
            [("f", '{"y":1}'), ("g", "{}")],
        ),
        (
            "id and name repeated in every delta",
            [
                delta(tool_calls=[tool(0, "a", "f", '{"y"')]),
                delta(tool_calls=[tool(0, "a", "f", ":1}")]),
                delta(tool_calls=[tool(1, "b", "f", "{}")]),
                END,
            ],
            [("f", '{"y":1}'), ("f", "{}")],
        ),
        (
            "a fresh id in every delta",
            [delta(tool_calls=[tool(0, "a", "f", '{"y"')]), delta(tool_calls=[tool(0, "z", None, ":1}")]), END],
            [("f", '{"y":1}')],
        ),
        (
            "name repeated without an id while the arguments are unfinished",
            [delta(tool_calls=[tool(0, None, "f", '{"y"')]), delta(tool_calls=[tool(0, None, "f", ":1}")]), END],
            [("f", '{"y":1}')],
        ),
        (
            "the name comes after the arguments began",
            [delta(tool_calls=[tool(0, "a", None, '{"y"')]), delta(tool_calls=[tool(0, None, "f", ":1}")]), END],
            [("f", '{"y":1}')],
        ),
        (
            "indexes that begin at 1 and arguments as an object",
            [delta(tool_calls=[tool(1, "a", "f", {"y": 1})]), delta(tool_calls=[tool(2, "b", "g", {})]), END],
            [("f", '{"y":1}'), ("g", "{}")],
        ),
        (
            "interleaved",
            [
                delta(tool_calls=[tool(0, "a", "f", ""), tool(1, "b", "g", "")]),
                delta(tool_calls=[tool(1, None, None, "{}")]),
                delta(tool_calls=[tool(0, None, None, "[]")]),
                END,
            ],
            [("f", "[]"), ("g", "{}")],
        ),
        (
            "finish reason stop although a function was called",
            [delta(tool_calls=[tool(0, "a", "f", "{}")]), delta("stop"), DONE],
            [("f", "{}")],
        ),
        (
            "the legacy function_call",
            [
                delta(function_call={"name": "f", "arguments": ""}),
                delta(function_call={"arguments": "{}"}),
                delta("function_call"),
                DONE,
            ],
            [("f", "{}")],
        ),
    ],
)
def test_liberties_with_tool_calls(what: str, deltas: list[bytes], expected: list[tuple[str, str]]) -> None:
    assert calls(*deltas) == expected, what


def test_a_call_that_never_gets_a_name_is_malformed() -> None:
    assert error_of(delta(tool_calls=[tool(0, "a", None, "{}")]), END).kind == "malformed"


@pytest.mark.behaviour("FR-01", "FR-14", "FR-15", "FR-16")
@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("stop", "stop"),
        ("length", "length"),
        ("content_filter", "content_filter"),
        ("model_length", "length"),
        ("eos", "stop"),
        ("tool_calls", "stop"),
        ("something_new", "stop"),
    ],
)
def test_finish_reasons(theirs: str, ours: str) -> None:
    assert decode(delta(content="x"), delta(theirs), DONE) == [TextDelta("x"), Finish(ours)]  # type: ignore[arg-type]


@pytest.mark.behaviour("FR-14", "FR-15")
@pytest.mark.parametrize(("theirs", "kind"), [("error", "server"), ("insufficient_system_resource", "overloaded")])
def test_finish_reasons_that_are_failures(theirs: str, kind: str) -> None:
    assert error_of(delta(content="x"), delta(theirs), DONE).kind == kind


def test_where_usage_may_be() -> None:
    last = json.loads(delta("stop")[6:])
    assert decode(event(**last, usage=USAGE), DONE) == [Finish("stop", ALL)]
    assert decode(event(**last, x_groq={"id": "r", "usage": USAGE}), DONE) == [Finish("stop", ALL)]
    assert decode(delta("stop"), event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2}), DONE) == [
        Finish("stop", Usage(1, 2))
    ]
    assert decode(
        delta("stop"), event(usage={"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}), DONE
    ) == [Finish("stop", Usage(9, 2, 4))]
    assert decode(
        delta("stop"), event(choices=[], usage={"prompt_tokens": 1, "prompt_tokens_details": None}), DONE
    ) == [Finish("stop", Usage(1, 0))]
    assert decode(delta("stop"), DONE) == [Finish("stop", None)]


def test_what_is_not_an_answer_is_left_out() -> None:
    assert decode(
        b": OPENROUTER PROCESSING\n\n",
        delta(role="assistant", content=""),
        delta(reasoning_content="hmm"),
        delta(
            content=[{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": "A"}]
        ),
        event(choices=[{"index": 1, "delta": {"content": "other"}}]),
        event(object="chat.completion.chunk", error=None, choices=None),
        delta(refusal="No"),
        delta("stop"),
        DONE,
        b"data: garbage after the end\n\n",
    ) == [ThinkingDelta("hmm"), ThinkingDelta("hm"), TextDelta("A"), RefusalDelta("No"), Finish("stop")]


def test_ends() -> None:
    assert decode(delta(content="x"), delta("stop")) == [TextDelta("x"), Finish("stop")]  # no [DONE]
    assert decode(delta(content="x"), DONE) == [TextDelta("x"), Finish("stop")]  # no reason
    assert decode(delta("stop"), b"data: [DONE]") == [Finish("stop")]  # no blank line
    for broken in (
        [],
        [b": ping\n\n"],
        [delta(content="x")],
        [delta(content="x"), b'data: {"id": "chatc'],
        [b"data: \n\n"],
    ):
        assert error_of(*broken).kind == "cut"


def test_one_json_object_instead_of_a_stream() -> None:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": "Hi",
        "refusal": None,
        "tool_calls": [tool(None, "a", "f", "{}"), tool(None, "b", "g", "{}")],
    }
    whole = {"id": "x", "object": "chat.completion", "usage": USAGE}
    body = json.dumps({**whole, "choices": [{"index": 0, "message": message, "finish_reason": "tool_calls"}]}).encode()
    for pieces in ([body], [b"  \n", body], [body[i : i + 1] for i in range(len(body))]):
        assert decode(*pieces) == [
            TextDelta("Hi"),
            ToolCallDelta(0, "a", "f", "{}"),
            ToolCallDelta(1, "b", "g", "{}"),
            Finish("tool_calls", ALL),
        ]
    assert error_of(body[:-9]).kind == "malformed"
    assert error_of(b'{"error": {"message": "no", "type": "server_error"}}').kind == "server"
    assert error_of(b"{}").kind == "cut"


@pytest.mark.parametrize(
    ("fields", "kind", "status"),
    [
        ({"error": {"message": "m", "type": "server_error", "code": None}}, "server", None),
        ({"error": {"message": "m", "code": 502}}, "server", 502),
        ({"error": {"message": "m", "code": "429"}}, "rate_limit", 429),
        ({"error": {"message": "m", "type": "tokens", "code": "rate_limit_exceeded"}}, "rate_limit", None),
        ({"error": {"message": "m", "code": "insufficient_quota"}}, "quota", None),
        ({"error": "m"}, "server", None),
        ({"error": {"message": "m", "type": "invalid_request_error"}}, "invalid", None),
        ({"object": "error", "message": "m", "type": "BadRequestError", "code": 400}, "invalid", 400),
        ({"error": {"message": "m", "type": "overloaded_error"}}, "overloaded", None),
    ],
)
def test_errors_within_a_stream(fields: dict[str, Any], kind: str, status: int | None) -> None:
    error = error_of(delta(content="x"), event(**fields))
    assert (error.kind, error.status, error.message) == (kind, status, "m")


BROKEN = b"".join([delta(content="a"), delta(content="b"), event(error={"message": "m", "code": 500}), DONE])


@given(st.data())
def test_chunks_before_an_error_come_out_however_the_bytes_are_split(data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(BROKEN)), max_size=5)))
    decoder, got = OpenAI().decoder(), list[Chunk]()
    error = None
    try:
        for a, b in zip([0, *cuts], [*cuts, len(BROKEN)], strict=True):
            for chunk in decoder.feed(BROKEN[a:b]):
                got.append(chunk)
    except ProviderError as raised:
        error = raised
    assert got == [TextDelta("a"), TextDelta("b")]
    assert error is not None
    assert error.status == 500


@pytest.mark.parametrize(
    "nonsense", [b"data: {\n\n", b"data: hello\n\n", b'data: {"choices": 3}\n\n', b"data: \xff\xfe\n\n"]
)
def test_nonsense_is_malformed(nonsense: bytes) -> None:
    assert error_of(delta(content="x"), nonsense).kind == "malformed"


# --- error answers ---


def refused(status: int, body: Any, **headers: str) -> ProviderError:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return OpenAI().error(status, {name.replace("_", "-"): value for name, value in headers.items()}, raw)


def told(message: str, type: str | None = None, code: Any = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type, "param": None, "code": code}}


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (429, told("Rate limit reached", "tokens", "rate_limit_exceeded"), "rate_limit"),
        (429, told("You exceeded your current quota", "insufficient_quota", "insufficient_quota"), "quota"),
        (400, told("The model `x` does not exist", "invalid_request_error", "model_not_found"), "model_not_found"),
        (404, told("The model `x` does not exist", "invalid_request_error", "model_not_found"), "model_not_found"),
        (404, told("no", "invalid_request_error"), "model_not_found"),
        (403, told("Project has no access", "invalid_request_error", "model_not_found"), "model_not_found"),
        (401, told("Incorrect API key", "invalid_request_error", "invalid_api_key"), "auth"),
        (401, told("You didn't provide an API key", "invalid_request_error"), "auth"),
        (403, told("Country not supported", "request_forbidden"), "auth"),
        (400, told("maximum context length", "invalid_request_error", "context_length_exceeded"), "invalid"),
        (413, told("Request too large", "tokens", "rate_limit_exceeded"), "invalid"),
        (422, {"detail": [{"loc": ["body"], "msg": "extra"}]}, "invalid"),
        (402, {"error": {"message": "Insufficient Balance", "code": "invalid_request_error"}}, "quota"),
        (408, told("Request timed out."), "timeout"),
        (504, b"<html>Gateway Time-out</html>", "timeout"),
        (500, told("The server had an error", "server_error"), "server"),
        (502, b"Bad Gateway", "server"),
        (503, told("overloaded", "server_error"), "overloaded"),
        (529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}, "overloaded"),
        (500, b"", "server"),
        (400, [{"error": {"code": 400, "message": "API key not valid", "status": "INVALID_ARGUMENT"}}], "invalid"),
        (307, b"", "malformed"),
    ],
)
def test_error_answers(status: int, body: Any, kind: str) -> None:
    error = refused(status, body)
    assert (error.kind, error.status) == (kind, status)
    assert error.message


def test_an_error_keeps_the_endpoints_words_but_no_keys() -> None:
    assert refused(400, told("Bad 'x'.")).message == "Bad 'x'."
    assert refused(502, b"Bad Gateway").message == "The endpoint answered HTTP 502: Bad Gateway"
    assert "<html" not in refused(502, b"<html><body>nginx</body></html>").message
    for body in (told(f"Wrong key {KEY}!"), b"Wrong key " + KEY.encode() + b"!", {"detail": f"Bearer {KEY}"}):
        assert KEY not in refused(401, body).message


def test_retry_after() -> None:
    from email.utils import formatdate

    from loomgate import clock

    assert refused(429, b"").retry_after is None
    assert refused(429, b"", retry_after="7").retry_after == 7
    assert refused(429, b"", retry_after="0.5").retry_after == 0.5
    assert refused(429, b"", retry_after="7", retry_after_ms="250").retry_after == 0.25
    date = refused(503, b"", retry_after=formatdate(clock.now() + 90, usegmt=True)).retry_after
    assert date is not None
    assert 85 < date < 91
    assert refused(503, b"", retry_after=formatdate(clock.now() - 90, usegmt=True)).retry_after == 0
    for nonsense in ("soon", "-1", "nan", "inf", ""):
        assert refused(429, b"", retry_after=nonsense).retry_after is None
