"""Token counts without a network: how long a prompt is, before a model sees it.

What lives here: counting text, messages, tools and whole calls, and bounds that need no tokenizer. What must not:
deciding what to leave out (``engine/truncate``) and facts about models (``models``). Importing this module loads
no tokenizer; the first exact count of an encoding does, for 60 to 130 ms and 15 to 35 MB. So ask `upper_bound`
first. A count of much text is work for a thread: the tokenizer lets other threads run meanwhile.

Text counts are exact for OpenAI's models. What the vendors do not publish (other vendors' tokenizers, tool calls,
sizes of pictures) is estimated, as each function says. ``docs/why/tokens.md`` has the measurements.
"""

import ctypes
import re
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from importlib.machinery import ExtensionFileLoader
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Protocol, cast

import msgspec

from loomgate.providers.models import Encoding, facts
from loomgate.wire.chat import (
    AudioPart,
    Chat,
    ChatMessage,
    FilePart,
    FunctionTool,
    ImagePart,
    RedactedThinkingPart,
    TextPart,
    ThinkingPart,
)

# OpenAI's published rule for chat prompts: each message is wrapped in three tokens, the answer is primed with three.
PER_MESSAGE = 3
PER_ANSWER = 3
# A tool call in a message is rendered as the function's name and arguments between markers; the vendors do not
# publish which. Estimate: as many as a message has, and one to name the namespace.
PER_TOOL_CALL = 4
# Documents are looked at page by page, as pictures; sound is about 30 tokens a second. Estimates, by the length of
# the base64: a page of 64 KiB, sound of 16 KiB a second, and thoughts, encrypted, of four letters a token.
_BASE64_A_PAGE, _BASE64_A_SOUND_TOKEN, _BASE64_A_THOUGHT_TOKEN = 87_000, 730, 6
# The published rule for tool definitions (models.ModelFacts.tool_init is its one constant that depends on the model).
_PROPERTIES, _PROPERTY, _ENUM, _ENUM_ITEM, _TOOLS_END = 3, 3, -3, 3, 12


# A piece of a prompt: a constant number of tokens, and text that is still to be counted.
_Piece = tuple[int, str]


class _Tokenizer(Protocol):
    def count(self, text: str) -> int: ...


def encoding_for(model: str) -> Encoding:
    """The encoding that counts for ``model``: exact for OpenAI's models, an estimate (o200k_base) for all others.

    ``o200k_harmony`` of the open-weight models differs from ``o200k_base`` only in special tokens, which plain text
    never becomes, so ``o200k_base`` counts for them too.
    """
    return facts(model).encoding


def _drop_clean_pages(library: str) -> None:
    """Give back the pages of ``library`` that were read only to build the tables (about 30 MB of resident memory).

    Linux alone. A mapping qualifies only if the kernel says that nothing in it was ever changed, so that its bytes
    are those of the file and come back from there when touched: the call cannot lose anything. Where the kernel does
    not tell, the memory just stays.
    """
    try:
        smaps = Path("/proc/self/smaps").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    madvise = ctypes.CDLL(None).madvise
    madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    dont_need = 4  # MADV_DONTNEED
    file = rf"r--p 0+ \S+ \S+ +{re.escape(library)}"
    mapping = re.compile(rf"^([0-9a-f]+)-([0-9a-f]+) {file}\n(?:[A-Z]\w*:.*\n)*?Anonymous: +0 kB$", re.MULTILINE)
    for start, end in (tuple(int(edge, 16) for edge in found.groups()) for found in mapping.finditer(smaps)):
        madvise(start, end - start, dont_need)


_loading = threading.Lock()


@cache
def _tokenizer(encoding: Encoding) -> _Tokenizer:
    """Load the tokenizer of ``encoding``.

    Only the compiled part of ``bpe-openai`` is loaded: its Python part parses the same tables a second time into
    dictionaries (0.8 s and 110 MB) and refuses long texts, which the compiled part counts in linear time.
    """
    package = find_spec("bpe_openai")
    places = (package.submodule_search_locations if package else None) or []
    for path in (path for place in places for path in sorted(Path(place).glob("_bindings*"))):
        if path.suffix in {".so", ".pyd"}:
            name = "bpe_openai._bindings"
            spec = spec_from_file_location(name, path, loader=ExtensionFileLoader(name, str(path)))
            assert spec is not None
            assert spec.loader is not None
            with _loading:
                bindings: Any = module_from_spec(spec)
                spec.loader.exec_module(bindings)
                tokenizer = cast("_Tokenizer", bindings.tokenizer_for_encoding(encoding))
                if sys.platform == "linux":
                    _drop_clean_pages(str(path))
            return tokenizer
    raise ImportError("the package 'bpe-openai' has no compiled tokenizer for this platform")


def count_text(text: str, model: str) -> int:
    """The number of tokens of ``text`` for ``model``. Text that looks like a special token counts as plain text.

    Half of a surrogate pair, which is no character, counts as U+FFFD. Time is linear in the text's length.
    """
    if not text:
        return 0
    tokenizer = _tokenizer(encoding_for(model))
    try:
        return tokenizer.count(text)
    except UnicodeEncodeError:
        return tokenizer.count(text.encode("utf-16", "surrogatepass").decode("utf-16", "replace"))


def _exact(pieces: Iterable[_Piece], model: str) -> int:
    return sum(constant + count_text(text, model) for constant, text in pieces)


def _bound(pieces: Iterable[_Piece]) -> int:
    return sum(
        constant + (len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass")))
        for constant, text in pieces
    )


def _message(message: ChatMessage, model: str) -> Iterator[_Piece]:
    yield PER_MESSAGE, message.role
    if isinstance(message.content, str):
        yield 0, message.content
    elif message.content is not None:
        known = facts(model)
        for part in message.content:
            match part:
                case TextPart():
                    yield 0, part.text
                case ThinkingPart():
                    yield 0, part.thinking
                case ImagePart():
                    yield known.image_low if part.image_url.detail == "low" else known.image_high, ""
                case FilePart():
                    yield known.image_high * (1 + len(part.file.file_data or "") // _BASE64_A_PAGE), ""
                case AudioPart():
                    yield 1 + len(part.input_audio.data) // _BASE64_A_SOUND_TOKEN, ""
                case RedactedThinkingPart():
                    yield 1 + len(part.data) // _BASE64_A_THOUGHT_TOKEN, ""
    yield 0, message.refusal or ""
    for call in message.tool_calls:
        yield PER_TOOL_CALL, call.name
        yield 0, call.arguments


def count_message(message: ChatMessage, model: str) -> int:
    """The tokens that ``message`` adds to a prompt for ``model``.

    Text and wrapping follow the rule published in OpenAI's cookbook: three tokens a message, the role, the text.
    Estimated: tool calls (name, arguments and `PER_TOOL_CALL`), and images, for which the most that the family can
    charge is taken (see `ModelFacts`), because the size of a picture behind a URL is not known; documents and sound by
    the length of their data.
    """
    return _exact(_message(message, model), model)


def upper_bound(message: ChatMessage, model: str) -> int:
    """At least `count_message`, without loading a tokenizer: every token covers at least one byte of UTF-8."""
    return _bound(_message(message, model))


def _json(value: object) -> str:
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def _rest(schema: Mapping[str, Any], counted: frozenset[str]) -> Iterator[_Piece]:
    """The members of a schema that the published rule does not know, as the JSON text that the model may see."""
    left = {key: value for key, value in schema.items() if key not in counted}
    if left:
        yield 0, _json(left)


_RULE_PARAMETERS = frozenset({"type", "properties", "required", "additionalProperties"})
_RULE_PROPERTY = frozenset({"type", "description", "enum"})


def _tool(tool: FunctionTool, model: str) -> Iterator[_Piece]:
    yield facts(model).tool_init, f"{tool.name}:{(tool.description or '').removesuffix('.')}"
    parameters = tool.parameters or {}
    yield from _rest(parameters, _RULE_PARAMETERS)
    properties = parameters.get("properties")
    if not isinstance(properties, dict) or not properties:
        return
    yield _PROPERTIES, ""
    for name, schema in cast("dict[str, Any]", properties).items():
        if not isinstance(schema, dict):
            yield _PROPERTY, f"{name}:{_json(schema)}"
            continue
        known = cast("dict[str, Any]", schema)
        described = _json(known.get("description", "")).removesuffix(".")
        yield _PROPERTY, f"{name}:{_json(known.get('type', ''))}:{described}"
        choices = known.get("enum")
        if isinstance(choices, list) and choices:
            yield _ENUM, ""
            yield from ((_ENUM_ITEM, _json(choice)) for choice in cast("list[Any]", choices))
        yield from _rest(known, _RULE_PROPERTY)


def _fixed(tools: Sequence[FunctionTool], response_format: Mapping[str, Any] | None, model: str) -> Iterator[_Piece]:
    if tools:
        for tool in tools:
            yield from _tool(tool, model)
        yield _TOOLS_END, ""
    if response_format is not None and response_format.get("type") == "json_schema":
        yield 0, _json(response_format.get("json_schema"))
    yield PER_ANSWER, ""


def count_tools(tools: Sequence[FunctionTool], model: str) -> int:
    """The tokens that tool definitions add to a prompt; 0 for none.

    The rule published in OpenAI's cookbook for flat parameters, met by the endpoint to the token for gpt-4o and
    gpt-4; what it does not cover (nested schemas, ``anyOf``, ``$defs``, limits) is estimated as its JSON text.
    """
    return _exact(_fixed(tools, None, model), model) - PER_ANSWER


def count_fixed(tools: Sequence[FunctionTool], response_format: Mapping[str, Any] | None, model: str) -> int:
    """The tokens of a prompt that are there whatever the messages: tools, a JSON schema to answer in, the priming.

    ``response_format`` is OpenAI's object. How a schema is rendered is not published: its JSON text is counted.
    """
    return _exact(_fixed(tools, response_format, model), model)


def fixed_upper_bound(tools: Sequence[FunctionTool], response_format: Mapping[str, Any] | None, model: str) -> int:
    """At least `count_fixed`, without loading a tokenizer."""
    return _bound(_fixed(tools, response_format, model))


def count_chat(chat: Chat) -> int:
    """The prompt tokens of the whole model call: `count_fixed`, and `count_message` of every message."""
    return count_fixed(chat.tools, chat.response_format, chat.model) + sum(
        count_message(message, chat.model) for message in chat.messages
    )
