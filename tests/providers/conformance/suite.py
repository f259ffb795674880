"""What the conformance suite is made of: neutral answers, the wires that write them, and what was heard.

What must live here: the contract between scenarios and wires. What must not: a vendor's format (``wire_*.py``), nor
anything that a dialect itself uses to translate, or else both could be wrong in the same way.

A wire is a module ``wire_<dialect>.py`` beside this file with ``WIRE``, or ``WIRES`` when one format has several
vendors. It may also have these attributes: ``model`` (a model name that the vendor could have; default "some-model"),
``api_key`` (default `KEY`), ``always`` (names of `Chat` fields that its requests hold even if nobody chose them).
"""

import importlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec
import pytest

from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Decoder, Dialect, HttpCall, Target
from loomgate.providers.operations import dialect_of
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    ContentPart,
    Finish,
    FinishReason,
    FunctionTool,
    ImagePart,
    ImageUrl,
    RedactedThinking,
    RefusalDelta,
    TextDelta,
    TextPart,
    ThinkingDelta,
    ToolCall,
    ToolCallDelta,
    Usage,
)

KEY = "sk-conformance-0123456789abcdef"

# Every scenario that a wire may lack. What a test needs beyond its own name is given to `scenario` as well.
SCENARIOS = frozenset(
    """
    plain pieces thinking tools parallel_tools tool_without_arguments refusal usage cached_usage reasoning_usage length
    content_filter cut malformed midstream_error invalid auth rate_limit server overloaded retry_after
    tool_results tool_result_ids json_schema json_object image_url image_data system stop_sequences tool_choice_auto
    tool_choice_none tool_choice_required tool_choice_named parallel_tool_calls temperature top_p
    max_completion_tokens reasoning_effort same_role empty_content unicode
    """.split()
)
ERRORS = ("invalid", "auth", "rate_limit", "server", "overloaded")


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What a model says. ``text`` in pieces as the vendor streams them; ``calls`` are name and JSON arguments.

    ``thinking`` is told before the text, in the vendor's own form. ``usage`` is in our words:
    ``prompt_tokens`` and ``completion_tokens`` are totals that include ``cached_tokens`` and ``reasoning_tokens``.
    """

    text: list[str] = []
    refusal: str | None = None
    calls: list[tuple[str, str]] = []
    finish: FinishReason = "stop"
    usage: Usage | None = None
    thinking: str | None = None


class Wire(Protocol):
    """A vendor's side of a dialect, written from its documentation."""

    name: str
    vendor: str  # a row of the catalogue
    lacks: frozenset[str]  # names of SCENARIOS that the format cannot express …
    why: Mapping[str, str]  # … each with the reason
    content_type: str

    def stream(self, answer: Answer) -> bytes:
        """The whole body of a streamed answer with status 200."""
        ...

    def whole(self, answer: Answer) -> bytes:
        """The body of the same answer to a request that asked for no stream."""
        ...

    def error(self, kind: str) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body for one of `ERRORS`. ``rate_limit`` asks to wait 7 seconds, the others do not."""
        ...

    def cut(self, answer: Answer) -> bytes:
        """A body that breaks off in the middle, after the first piece of text."""
        ...

    def malformed(self) -> bytes:
        """A body with status 200 that is not in the format."""
        ...

    def midstream_error(self) -> bytes | None:
        """A body that begins with the text "Half" and then holds an error; None if the format has no such thing."""
        ...

    def told(self, call: HttpCall) -> Chat:
        """What the vendor understands from a request, read by its documentation alone."""
        ...


def wires() -> list[Wire]:
    """All of them, in order of name."""
    found: list[Wire] = []
    for path in sorted(Path(__file__).parent.glob("wire_*.py")):
        module = importlib.import_module(f"{__package__}.{path.stem}")
        found += getattr(module, "WIRES", None) or [module.WIRE]
    return sorted(found, key=lambda wire: wire.name)


def scenario(*names: str) -> Callable[[Any], Any]:
    """Run a test with every wire (its parameter ``wire``) that can express all of ``names``; the others say why not."""
    assert SCENARIOS.issuperset(names), set(names) - SCENARIOS
    return pytest.mark.parametrize("wire", [_param(wire, names) for wire in wires()])


def _param(wire: Wire, names: Iterable[str]) -> Any:
    reasons = [f"{wire.name}: {wire.why[name]}" for name in names if name in wire.lacks]
    return pytest.param(wire, id=wire.name, marks=pytest.mark.skip(reason=reasons[0]) if reasons else ())


# --- asking --------------------------------------------------------------------------------------------------------


def dialect(wire: Wire) -> Dialect:
    """The dialect under test."""
    row = CATALOGUE[wire.vendor]
    found = dialect_of(Target(vendor=row, base_url=row.base_url or ""), model(wire))
    assert found is not None
    return found


def model(wire: Wire) -> str:
    """The model that scenarios ask for."""
    return getattr(wire, "model", "some-model")


def key(wire: Wire) -> str:
    """The key that requests are made with."""
    return getattr(wire, "api_key", KEY)


def chat(wire: Wire, *messages: ChatMessage, **more: Any) -> Chat:
    """A call with ``messages``, or with one short question."""
    asked = list(messages) or [ChatMessage(role="user", content="What is up?")]
    return Chat(model=model(wire), messages=asked, **more)


def request(wire: Wire, call: Chat) -> HttpCall:
    """The request for ``call`` to the vendor of ``wire``."""
    row = CATALOGUE[wire.vendor]
    target = Target(vendor=row, base_url=row.base_url or "http://127.0.0.1:8000", api_key=key(wire))
    return dialect(wire).request(call, target)


def told(wire: Wire, call: Chat) -> Chat:
    """What the vendor understands of ``call``, in canonical form (`meaning`)."""
    return meaning(wire.told(request(wire, call)))


def assert_told(wire: Wire, call: Chat) -> Chat:
    """The vendor understands exactly ``call``: nothing lost, and nothing sent that nobody chose. Returns `told`."""
    found, meant = told(wire, call), meaning(call)
    always: frozenset[str] = getattr(wire, "always", frozenset())
    for name in Chat.__struct_fields__:
        if name in always and getattr(call, name) is None:
            assert getattr(found, name) is not None, name
        else:
            assert getattr(found, name) == getattr(meant, name), name
    return found


def meaning(call: Chat) -> Chat:
    """``call`` in canonical form: two calls that mean the same are equal.

    System messages come first, as one. Neighbours of the same role are one message. Content is a list without empty
    texts, refusals are text, JSON arguments are compact with sorted keys, tool calls are numbered in order. What is
    said and what is the default anyway (tool_choice "auto", parallel calls, no strictness, detail "auto", names and
    strictness of a response schema, text as format) are the same as nothing. Without tools, choices about them mean
    nothing.
    """
    system: list[ContentPart] = []
    messages: list[ChatMessage] = []
    ids: dict[str, str] = {}
    for message in call.messages:
        parts = _parts(message)
        calls = [
            ToolCall(ids.setdefault(made.id, f"call {len(ids)}"), made.name, _compact(made.arguments))
            for made in message.tool_calls
        ]
        if message.role == "system":
            system += parts
            continue
        last = messages[-1] if messages else None
        if last is not None and last.role == message.role and message.role != "tool":
            parts, calls = [*_parts(last), *parts], [*last.tool_calls, *calls]
            messages.pop()
        answered = ids.get(message.tool_call_id, message.tool_call_id) if message.tool_call_id else None
        messages.append(ChatMessage(role=message.role, content=_joined(parts), tool_calls=calls, tool_call_id=answered))
    if system:
        messages.insert(0, ChatMessage(role="system", content=_joined(system)))
    return msgspec.structs.replace(
        call,
        messages=messages,
        tools=[
            FunctionTool(
                name=tool.name,
                description=tool.description or None,
                parameters=tool.parameters or {"type": "object", "properties": {}},
                strict=tool.strict or None,
            )
            for tool in call.tools
        ],
        tool_choice=None if call.tool_choice == "auto" or not call.tools else call.tool_choice,
        parallel_tool_calls=None if call.parallel_tool_calls or not call.tools else call.parallel_tool_calls,
        response_format=_format(call.response_format),
    )


def _parts(message: ChatMessage) -> list[ContentPart]:
    content = message.content or []
    parts: list[ContentPart] = [TextPart(content)] if isinstance(content, str) else list(content)
    if message.refusal:
        parts.append(TextPart(message.refusal))
    return [part for part in parts if not isinstance(part, TextPart) or part.text]


def _joined(parts: list[ContentPart]) -> list[ContentPart] | None:
    """Texts that follow each other as one, with lines between: vendors differ in whether parts stay apart."""
    joined: list[ContentPart] = []
    for part in parts:
        last = joined[-1] if joined else None
        if isinstance(part, TextPart) and isinstance(last, TextPart):
            joined[-1] = TextPart(f"{last.text}\n{part.text}")
        else:
            joined.append(part)
    return joined or None


def _compact(arguments: str) -> str:
    try:
        return msgspec.json.encode(msgspec.json.decode(arguments or "{}"), order="sorted").decode()
    except msgspec.DecodeError:
        return arguments


def _format(given: dict[str, Any] | None) -> dict[str, Any] | None:
    if given is None or given["type"] == "text":
        return None
    if given["type"] == "json_schema":
        return {"type": "json_schema", "json_schema": {"schema": given["json_schema"]["schema"]}}
    return given


# --- hearing -------------------------------------------------------------------------------------------------------


class Heard(msgspec.Struct, kw_only=True):
    """What came out of a decoder, put together. ``pieces`` are the texts one by one."""

    pieces: list[str] = []
    refusal: str = ""
    calls: list[tuple[str, str]] = []
    ids: list[str] = []
    finish: FinishReason | None = None
    usage: Usage | None = None
    raw: str | None = None
    thinking: str = ""
    signatures: list[str] = []
    redacted: list[str] = []

    @property
    def text(self) -> str:
        """All text."""
        return "".join(self.pieces)


def heard(chunks: Iterable[Chunk]) -> Heard:
    """``chunks`` put together, with the rules that every dialect keeps: one `Finish`, the last; calls numbered from 0,
    each beginning with its id and name."""
    found = Heard()
    for chunk in chunks:
        assert found.finish is None, "a chunk after the Finish"
        if isinstance(chunk, TextDelta):
            assert chunk.text
            found.pieces.append(chunk.text)
        elif isinstance(chunk, RefusalDelta):
            assert chunk.text
            found.refusal += chunk.text
        elif isinstance(chunk, ToolCallDelta):
            if chunk.name is not None:
                assert chunk.id
                assert chunk.index == len(found.calls)
                found.ids.append(chunk.id)
                found.calls.append((chunk.name, chunk.arguments))
            else:
                assert chunk.id is None
                name, arguments = found.calls[chunk.index]
                found.calls[chunk.index] = (name, arguments + chunk.arguments)
        elif isinstance(chunk, ThinkingDelta):
            assert chunk.text or chunk.signature
            found.thinking += chunk.text
            found.signatures += [chunk.signature] if chunk.signature else []
        elif isinstance(chunk, RedactedThinking):
            found.redacted.append(chunk.data)
        elif isinstance(chunk, Finish):
            found.finish, found.usage, found.raw = chunk.reason, chunk.usage, chunk.raw
    return found


def bare(chunks: Iterable[Chunk]) -> list[Chunk]:
    """``chunks`` without the vendor's own words for the end, for tests of what they mean."""
    return [
        msgspec.structs.replace(chunk, raw=None, stop_sequence=None) if isinstance(chunk, Finish) else chunk
        for chunk in chunks
    ]


def decode(wire: Wire, *pieces: bytes) -> list[Chunk]:
    """The chunks of a whole body in ``pieces``. Raises `ProviderError`."""
    return list(chunks_of(dialect(wire).decoder(), pieces))


def chunks_of(decoder: Decoder, pieces: Iterable[bytes]) -> Iterable[Chunk]:
    """As the gateway does it: nothing is read after the `Finish`."""
    for piece in pieces:
        for chunk in decoder.feed(piece):
            yield chunk
            if isinstance(chunk, Finish):
                return
    yield from decoder.end()


def without_ids(chunks: Iterable[Chunk]) -> list[Chunk]:
    """``chunks`` with the ids of tool calls blanked: a vendor without ids has fresh ones made up."""
    return [
        msgspec.structs.replace(chunk, id="id") if isinstance(chunk, ToolCallDelta) and chunk.id else chunk
        for chunk in chunks
    ]


def image(url: str) -> ImagePart:
    """An image part at ``url``."""
    return ImagePart(ImageUrl(url))
