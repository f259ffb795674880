"""AWS Bedrock's Converse dialect, sans-I/O: a `Chat` to a ConverseStream request, its event stream to `Chunk` values.

What must live here: this wire format (bedrock-runtime 2023-09-30: ConverseStream) and what Bedrock refuses. What must
not: the framing (``eventstream``), the signature (``sigv4``), what each model family behind Converse can do: what a
model does not take, Bedrock says itself.
"""

import base64
import contextlib
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers.bedrock_answer import AnswerDecoder, failure
from loomgate.providers.dialect import HttpCall, Target, undropped
from loomgate.providers.parts import document, encoded, own_words, refused
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    ContentPart,
    File,
    FilePart,
    FunctionTool,
    ImagePart,
    NamedFunction,
    RedactedThinkingPart,
    TextPart,
    ThinkingPart,
)

SIGNING_NAME = "bedrock"  # the service's name in signatures

# --- the request ---------------------------------------------------------------------------------------------------

_encode = msgspec.json.Encoder().encode

# What a path segment may hold unencoded (RFC 3986). The HTTP client sends these as they are, and a signature is over
# the path as it is sent.
_SEGMENT = "!$&'()*+,;=:@"
_DATA_URL = re.compile(r"data:image/(png|jpe?g|gif|webp)(?:;[^,;]+)*?(;base64)?,(.*)", re.DOTALL | re.IGNORECASE)
_IMAGES = "png, jpeg, gif or webp"
# Converse wants user and assistant in turns, the user first and last. This stands for a turn that a thread lacks.
_FILLER = {"role": "user", "content": [{"text": "Continue."}]}
_JSON_MODE = "Answer with one JSON object and nothing else."


def _texts(text: str) -> list[dict[str, Any]]:
    """A text block, unless the text is blank, which Bedrock refuses."""
    return [{"text": text}] if text.strip() else []


def _image(url: str) -> dict[str, Any]:
    found = _DATA_URL.fullmatch(url)
    if found is None:
        raise ProviderError(
            "invalid", f"Bedrock takes images as base64 data URLs ({_IMAGES}) only, not by address or in other formats."
        )
    kind, encoded, data = found[1].lower(), found[2], found[3]
    if not encoded:
        data = base64.b64encode(unquote_to_bytes(data)).decode()
    return {"image": {"format": "jpeg" if kind == "jpg" else kind, "source": {"bytes": data}}}


def _blocks(content: str | list[ContentPart] | None) -> list[dict[str, Any]]:
    if content is None or isinstance(content, str):
        return _texts(content or "")
    made: list[dict[str, Any]] = []
    for part in content:
        blocks = _block(part)
        made += blocks
        if blocks and getattr(part, "cache_control", None) is not None:
            made.append(_CACHE_POINT)
    return made


_CACHE_POINT = {"cachePoint": {"type": "default"}}


def _block(part: ContentPart) -> list[dict[str, Any]]:
    match part:
        case TextPart():
            return _texts(part.text)
        case ImagePart():
            return [_image(part.image_url.url)]
        case FilePart():
            return [_document(part.file)]
        case ThinkingPart():
            # Without their signature they are another vendor's.
            thought = {"text": part.thinking, "signature": part.signature}
            return [{"reasoningContent": {"reasoningText": thought}}] if part.signature else []
        case RedactedThinkingPart():
            return [{"reasoningContent": {"redactedContent": part.data}}]
        case _:
            raise refused("messages", "text, images and documents, since Converse takes no sound")


# By media type; Converse names formats by what files end in.
_DOCUMENTS = {
    "application/pdf": "pdf",
    "text/csv": "csv",
    "application/msword": "doc",
    "application/vnd.openxmlformats-officedocument.wordprocessingml.document": "docx",
    "application/vnd.ms-excel": "xls",
    "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet": "xlsx",
    "text/html": "html",
    "text/plain": "txt",
    "text/markdown": "md",
}


def _document(file: File) -> dict[str, Any]:
    data = document(file)
    if data is None:
        raise refused("messages", "file_data in a file, since Converse takes the bytes of documents only")
    if data[0].startswith("image/"):
        return _image(f"data:{data[0]};base64,{data[1]}")
    if data[0] not in _DOCUMENTS:
        raise refused("messages", f"a document of {', '.join(_DOCUMENTS)}", f"'{data[0]}'")
    # Letters, digits, blanks, hyphens and brackets are all that a name may hold.
    name = re.sub(r"[^A-Za-z0-9\-()\[\]]+", " ", (file.filename or "").rpartition(".")[0]).strip() or "document"
    return {"document": {"format": _DOCUMENTS[data[0]], "name": name[:200], "source": {"bytes": data[1]}}}


def _input(arguments: str) -> Any:
    """Arguments as Converse wants them: an object. What the model wrote wrongly is handed back to it under a name."""
    with contextlib.suppress(msgspec.DecodeError, RecursionError):
        if isinstance(msgspec.json.decode(arguments or "{}"), dict):
            return msgspec.Raw((arguments or "{}").encode())  # not decoded: numbers stay as they were written
    return {"arguments": arguments}


def _turn(message: ChatMessage) -> tuple[str, list[dict[str, Any]]]:
    """Whose turn a message is, and its content blocks."""
    if message.role == "tool":
        result: dict[str, Any] = {"toolUseId": message.tool_call_id, "content": _blocks(message.content)}
        if message.is_error:
            result["status"] = "error"
        made = [{"toolResult": result}]
        return "user", made if message.cache_control is None else [*made, _CACHE_POINT]
    blocks = _blocks(message.content) + _texts(message.refusal or "")
    for call in message.tool_calls:
        blocks.append({"toolUse": {"toolUseId": call.id, "name": call.name, "input": _input(call.arguments)}})
    return "system" if message.role == "developer" else message.role, blocks


def _conversation(call: Chat) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The system blocks (GATEWAY TR-10), and the messages as user and assistant in turns."""
    system: list[dict[str, Any]] = []
    messages: list[dict[str, Any]] = []
    for message in call.messages:
        role, blocks = _turn(message)
        if role == "system":
            system += blocks
        elif blocks and messages and messages[-1]["role"] == role:
            messages[-1]["content"] += blocks
        elif blocks:
            messages.append({"role": role, "content": blocks})
    if not messages or messages[0]["role"] == "assistant":
        messages.insert(0, _FILLER)
    if messages[-1]["role"] == "assistant":
        messages.append(_FILLER)
    return system, messages


def _tool(tool: FunctionTool) -> dict[str, Any]:
    made: dict[str, Any] = {
        "name": tool.name,
        "inputSchema": {"json": tool.parameters or {"type": "object", "properties": {}}},
    }
    if tool.description:
        made["description"] = tool.description
    if tool.strict:
        made["strict"] = True
    return {"toolSpec": made}


def _tools(call: Chat) -> dict[str, Any] | None:
    """The tools with the choice among them (GATEWAY TR-12). ``none`` can only be said by having no tools."""
    if not call.tools:
        return {"tools": call.vendor_tools} if call.vendor_tools else None
    choice = call.tool_choice
    if choice == "none":
        if any(message.tool_calls for message in call.messages):
            raise ProviderError("invalid", "Bedrock cannot forbid tools (tool_choice 'none') once some were called.")
        return None
    listed: list[dict[str, Any]] = []
    for tool in call.tools:
        listed += [_tool(tool), _CACHE_POINT] if tool.cache_control is not None else [_tool(tool)]
    made: dict[str, Any] = {"tools": [*listed, *call.vendor_tools]}
    if isinstance(choice, NamedFunction):
        made["toolChoice"] = {"tool": {"name": choice.name}}
    elif choice == "required":
        made["toolChoice"] = {"any": {}}
    return made


def _body(call: Chat) -> dict[str, Any]:
    system, messages = _conversation(call)
    output: dict[str, Any] = {}
    asked = call.response_format or {"type": "text"}
    if asked["type"] == "json_schema":
        form = asked["json_schema"]
        schema = {"schema": _encode(form.get("schema") or {}).decode()}
        schema |= {name: form[name] for name in ("name", "description") if form.get(name)}
        output["textFormat"] = {"type": "json_schema", "structure": {"jsonSchema": schema}}
    elif asked["type"] == "json_object":
        system += _texts(_JSON_MODE)
    if call.reasoning_effort not in (None, "none"):  # without effort is Converse's default
        output["effort"] = "low" if call.reasoning_effort == "minimal" else call.reasoning_effort
    inference = {
        "maxTokens": call.max_completion_tokens,
        # OpenAI's range is up to 2 (GATEWAY TR-02).
        "temperature": None if call.temperature is None else max(0.0, min(call.temperature, 1.0)),
        "topP": call.top_p,
        "stopSequences": call.stop or None,
    }
    tier = {"default": "default", "flex": "flex", "priority": "priority"}.get(call.service_tier or "")
    own, model = _own(call)
    body = {
        "messages": messages,
        "system": system,
        "inferenceConfig": {name: value for name, value in inference.items() if value is not None},
        "toolConfig": _tools(call),
        "outputConfig": output,
        "serviceTier": {"type": tier} if tier else None,
        "additionalModelRequestFields": model,
    }
    return {**{name: value for name, value in body.items() if value}, **own}


# Converse's own fields, by both spellings in use.
_OWN = {
    "guardrailConfig": "guardrailConfig",
    "guardrail_config": "guardrailConfig",
    "additionalModelResponseFieldPaths": "additionalModelResponseFieldPaths",
    "additional_model_response_field_paths": "additionalModelResponseFieldPaths",
    "performanceConfig": "performanceConfig",
    "performance_config": "performanceConfig",
    "promptVariables": "promptVariables",
    "requestMetadata": "requestMetadata",
    "request_metadata": "requestMetadata",
}
_MODEL_FIELDS = ("additionalModelRequestFields", "additional_model_request_fields")


def _own(call: Chat) -> tuple[dict[str, Any], dict[str, Any]]:
    """Converse's own fields, and those for the model behind it, which is where all go that Converse does not know."""
    own: dict[str, Any] = {}
    model: dict[str, Any] = {}
    for name, value in own_words(call, "Bedrock").items():
        if name in _OWN:
            own[_OWN[name]] = value
        elif name in _MODEL_FIELDS and isinstance(value, dict):
            model |= value
        else:
            model[name] = value
    if call.top_k is not None:
        model["top_k"] = call.top_k
    if call.thinking is not None:
        model["thinking"] = call.thinking
    return own, model


class Bedrock:
    """The `Dialect` of every model that Bedrock offers by Converse (GATEWAY TR-22)."""

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The Converse or ConverseStream request for ``call``: unsigned, or with a Bedrock API key as bearer token.

        Raises `ProviderError` ``invalid`` for what Converse cannot express, ``model_not_found`` for no model's name.
        """
        if call.model in (".", ".."):  # they would mean another path
            raise ProviderError("model_not_found", f"The model '{call.model}' does not exist.")
        url = f"{target.base_url.rstrip('/')}/model/{quote(call.model, safe=_SEGMENT)}/converse"
        accept = "application/json"
        if call.stream:
            url, accept = url + "-stream", "application/vnd.amazon.eventstream"
        headers = {"Content-Type": "application/json", "Accept": accept}
        if target.api_key:
            headers["Authorization"] = "Bearer " + target.api_key
        return HttpCall(url, {**headers, **target.headers}, encoded(lambda: _body(undropped(call, target))))

    def decoder(self) -> AnswerDecoder:
        """A fresh decoder for one answer."""
        return AnswerDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means. ``headers`` has lower-case names; ``body`` may be anything, or empty."""

        return failure(status, headers, body)
