"""Google's Gemini dialect, sans-I/O: a `Chat` to the bytes of ``streamGenerateContent``, its answer to `Chunk` values.

What must live here: the request, as the Gemini API and Vertex AI have it in common, and the two ways to address a
model. What must not: answers (``gemini_answer``), JSON Schema (``gemini_schema``), access tokens (``service_account``).
"""

import base64
import binascii
import mimetypes
import re
from collections.abc import Mapping
from typing import Any, cast
from urllib.parse import unquote_to_bytes, urlsplit

import msgspec

from loomgate.errors import ProviderError
from loomgate.providers import models
from loomgate.providers.dialect import HttpCall, Target, undropped
from loomgate.providers.gemini_answer import AnswerDecoder, failure
from loomgate.providers.gemini_schema import google_schema
from loomgate.providers.google_cloud import regional, versioned
from loomgate.providers.parts import document, effort, encoded, named_type, own_words, spoken, texts_only
from loomgate.wire.chat import (
    AudioPart,
    Chat,
    ChatMessage,
    ContentPart,
    FilePart,
    FunctionTool,
    ImagePart,
    ImageUrl,
    NamedFunction,
    TextPart,
)

Json = dict[str, Any]

# --- the request ---------------------------------------------------------------------------------------------------


# From Gemini 3 on, the first function call of a turn must carry the signature of the thought that led to it, or the
# request is refused. Ours do not outlive their answer, and history may come from another vendor: for calls without
# their own signature Google documents this text instead.
_NO_SIGNATURE = "skip_thought_signature_validator"

# Thinking as a number of tokens: the numbers are those of Google's own OpenAI-compatible endpoint.
_BUDGETS = {"none": 0, "minimal": 1024, "low": 1024, "medium": 8192, "high": 24576, "xhigh": 24576}
_MODES = {"auto": "AUTO", "required": "ANY", "none": "NONE"}


def _refused(what: str) -> ProviderError:
    return ProviderError("invalid", what)


def _body(call: Chat) -> Json:
    system: list[str] = []
    contents: list[Json] = []
    names: dict[str, str] = {}  # tool call id -> function name: a response repeats it
    for message in texts_only(call.messages):
        if message.role in ("system", "developer"):
            system += _texts(message)
            continue
        parts = _parts(message, names)
        if not parts:
            continue
        role = "model" if message.role == "assistant" else "user"
        last = contents[-1] if contents else None
        # The responses to one turn's calls belong into one content, and nothing else does.
        if last is not None and last["role"] == role and _responds(last["parts"]) == _responds(parts):
            last["parts"] += parts
        else:
            contents.append({"role": role, "parts": parts})
    body: Json = {"contents": contents}
    if system and contents:
        body["systemInstruction"] = {"parts": [{"text": text} for text in system]}
    elif system:  # an instruction without contents is refused
        contents.append({"role": "user", "parts": [{"text": text} for text in system]})
    if call.tools or call.vendor_tools:
        declared = [{"functionDeclarations": [_declaration(tool) for tool in call.tools]}] if call.tools else []
        body["tools"] = [*declared, *call.vendor_tools]
    if call.tools and (choice := _choice(call)) is not None:
        body["toolConfig"] = {"functionCallingConfig": choice}
    config = _generation(call)
    # What clients say in Google's own words; the format knows its fields by both spellings.
    words = own_words(call, "Gemini")
    for name in ("generationConfig", "generation_config"):
        if isinstance(more := words.pop(name, None), dict):
            config |= cast(Json, more)
    if config:
        body["generationConfig"] = config
    return {**body, **words}


def _texts(message: ChatMessage) -> list[str]:
    content = message.content or []
    if isinstance(content, str):
        return [content] if content else []
    found = [part.text for part in content if isinstance(part, TextPart)]
    if len(found) < len(content):
        raise _refused(f"messages: Gemini takes text alone from the role '{message.role}', found an image.")
    return [text for text in found if text]


def _parts(message: ChatMessage, names: dict[str, str]) -> list[Json]:
    if message.role == "tool":
        id = message.tool_call_id or ""
        if id not in names:
            raise _refused(f"messages: expected tool_call_id to be that of a call made before, found '{id}'.")
        # The format wants an object; `output` is the documented place for what is not one.
        response = {"output": "\n".join(_texts(message))}
        return [{"functionResponse": {"id": id, "name": names[id], "response": response}}]
    content = message.content or []
    said: list[ContentPart] = [TextPart(content)] if isinstance(content, str) else spoken(content)
    # An empty text is refused.
    parts = [_part(part) for part in said if not isinstance(part, TextPart) or part.text]
    if message.refusal:
        parts.append({"text": message.refusal})
    for index, made in enumerate(message.tool_calls):
        names[made.id] = made.name
        called: Json = {"functionCall": {"id": made.id, "name": made.name, "args": _arguments(made.arguments)}}
        if made.signature is not None or index == 0:
            called["thoughtSignature"] = made.signature or _NO_SIGNATURE
        parts.append(called)
    return parts


def _part(part: ContentPart) -> Json:
    match part:
        case TextPart():
            return {"text": part.text}
        case ImagePart():
            return _image(part.image_url)
        case FilePart():
            if (data := document(part.file)) is not None:
                return {"inlineData": {"mimeType": data[0], "data": data[1]}}
            if (address := part.file.file_url or part.file.file_id) is None:
                raise _refused("messages: expected file_data, file_url or file_id in a file.")
            return {"fileData": {"mimeType": named_type(part.file, "application/pdf"), "fileUri": address}}
        case AudioPart():
            kind = {"mp3": "mpeg"}.get(part.input_audio.format, part.input_audio.format)
            return {"inlineData": {"mimeType": f"audio/{kind}", "data": part.input_audio.data}}
        case _:
            raise AssertionError(part)


def _responds(parts: list[Json]) -> bool:
    return "functionResponse" in parts[0]


def _arguments(text: str) -> Json:
    """The arguments as the object that the format wants; what is none is kept as text, so that the model sees it."""
    try:
        found = msgspec.json.decode(text or "{}")
    except (msgspec.DecodeError, RecursionError):
        found = text
    return cast(Json, found) if isinstance(found, dict) else {"arguments": found}


def _image(image: ImageUrl) -> Json:
    """Data goes inline; an address is fetched by Google (``fileData``), never by this server.

    The media type of an address is told by the name of its file. Where it is not, Google still wants one; it looks at
    the bytes to decode them.
    """
    if not image.url.startswith("data:"):
        kind = mimetypes.guess_type(urlsplit(image.url).path)[0] or ""
        return {"fileData": {"mimeType": kind if kind.startswith("image/") else "image/jpeg", "fileUri": image.url}}
    head, comma, data = image.url.removeprefix("data:").partition(",")
    kind, *options = head.split(";")
    try:
        raw = base64.b64decode(data, validate=True) if "base64" in options else unquote_to_bytes(data)
    except binascii.Error:
        raw = b""
    if not comma or not kind or not raw:
        raise _refused("messages: expected image_url to be an address or `data:image/png;base64,` and the image.")
    return {"inlineData": {"mimeType": kind, "data": base64.b64encode(raw).decode()}}


def _declaration(tool: FunctionTool) -> Json:
    made: Json = {"name": tool.name}
    if tool.description:
        made["description"] = tool.description
    if tool.parameters:
        made["parametersJsonSchema"] = google_schema(tool.parameters)
    return made


def _choice(call: Chat) -> Json | None:
    choice = call.tool_choice
    if isinstance(choice, NamedFunction):
        return {"mode": "ANY", "allowedFunctionNames": [choice.name]}
    if choice in (None, "auto") and any(tool.strict for tool in call.tools):
        return {"mode": "VALIDATED"}  # `auto`, with arguments held to their schema
    return None if choice is None else {"mode": _MODES[choice]}


def _generation(call: Chat) -> Json:
    fields = {
        "temperature": call.temperature,
        "topP": call.top_p,
        "topK": call.top_k,
        "seed": call.seed,
        "frequencyPenalty": call.frequency_penalty,
        "presencePenalty": call.presence_penalty,
        "maxOutputTokens": call.max_completion_tokens,
        "stopSequences": call.stop or None,
        "thinkingConfig": _thinking(call),
    }
    made: Json = {name: value for name, value in fields.items() if value is not None}
    form = call.response_format or {"type": "text"}
    if form["type"] != "text":
        made["responseMimeType"] = "application/json"
    if form["type"] == "json_schema" and (schema := form["json_schema"].get("schema")) is not None:
        made["responseJsonSchema"] = google_schema(schema)
    return made


def _thinking(call: Chat) -> Json | None:
    """The model's own way to be told how much to think: a budget, or the nearest level that is not above."""
    thinking = models.facts(call.model).thinking
    if call.thinking is not None and thinking is not None:
        return _thoughts(call, thinking)
    effort = call.reasoning_effort
    if effort is None:
        return None
    if thinking is None:
        if call.lenient:
            return None
        raise _refused(f"reasoning_effort: expected nothing, since '{call.model}' does not think, found '{effort}'.")
    if effort not in _BUDGETS or (effort == "none" and thinking.off == "never"):
        if call.lenient:
            return None
        known = ", ".join(name for name in _BUDGETS if name != "none" or thinking.off != "never")
        raise _refused(f"reasoning_effort: expected one of {known} for '{call.model}', found '{effort}'.")
    if thinking.mode == "budget":
        return {"thinkingBudget": _BUDGETS[effort]}
    return {"thinkingLevel": _level(effort, thinking)}


def _level(effort: str, thinking: models.Thinking) -> str:
    order = list(_BUDGETS)
    below = [level for level in thinking.efforts if order.index(level) <= order.index(effort)]
    return (below[-1] if below else thinking.efforts[0]).upper()


def _thoughts(call: Chat, thinking: models.Thinking) -> Json | None:
    """Anthropic's ``thinking`` object: who asks by it wants to see the thoughts."""
    asked = cast(Json, call.thinking)
    if asked.get("type") == "disabled":
        return {"thinkingBudget": 0} if thinking.mode == "budget" else {"thinkingLevel": _level("none", thinking)}
    budget = asked.get("budget_tokens")
    if thinking.mode == "budget" and isinstance(budget, int):
        return {"includeThoughts": True, "thinkingBudget": min(budget, _BUDGETS["high"])}
    level = call.reasoning_effort if call.reasoning_effort in _BUDGETS else effort(call.thinking)
    if level is None:
        return {"includeThoughts": True}
    if thinking.mode == "budget":
        return {"includeThoughts": True, "thinkingBudget": _BUDGETS[level]}
    return {"includeThoughts": True, "thinkingLevel": _level(level, thinking)}


def _without(call: Chat, target: Target) -> Chat:
    """``call`` without the fields that its endpoint refuses."""
    if call.tool_choice == "none" and "tool_choice" in target.vendor.drop | target.drop:
        call = msgspec.structs.replace(call, tools=[])  # the only way left to say it
    return undropped(call, target)


def _headers(target: Target, **auth: str) -> dict[str, str]:
    return {"Content-Type": "application/json", **auth, **target.headers}


class Gemini:
    """The `Dialect` of the Gemini API.

    The key goes into a header, which the API takes as well as the query string of GATEWAY TR-20: addresses are
    logged on their way. ``parallel_tool_calls`` has no counterpart; the run engine takes one call of several.
    """

    def request(self, call: Chat, target: Target) -> HttpCall:
        """The request for ``call``. Raises `ProviderError` ``invalid`` for what Gemini cannot be told, and
        ``model_not_found`` for a name that is not a model's."""
        url, headers = self._addressed(call.model, target)
        verb = "streamGenerateContent?alt=sse" if call.stream else "generateContent"
        headers.setdefault("Accept", "text/event-stream" if call.stream else "application/json")
        return HttpCall(f"{url}:{verb}", headers, encoded(lambda: _body(_without(call, target))))

    def decoder(self) -> AnswerDecoder:
        """A fresh decoder for one answer."""
        return AnswerDecoder()

    def error(self, status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
        """What an error answer means. ``headers`` has lower-case names; ``body`` may be anything, or empty."""
        return failure(status, headers, body)

    def _addressed(self, model: str, target: Target) -> tuple[str, dict[str, str]]:
        """The model's address, and the headers that open it."""
        path = model if model.startswith(("models/", "tunedModels/")) else "models/" + model
        _check_name(model, path)
        auth = {"x-goog-api-key": target.api_key} if target.api_key else {}
        return versioned(target.base_url, "v1beta") + path, _headers(target, **auth)


class VertexAI(Gemini):
    """The same on Vertex AI: under a project and a region, with an access token.

    Without a project the key is an API key and the address has neither (Vertex's "express mode"). Only Google's own
    models speak this dialect; the other publishers of GATEWAY TR-21 are refused.
    """

    def _addressed(self, model: str, target: Target) -> tuple[str, dict[str, str]]:
        name = model
        for prefix in ("publishers/google/models/", "models/", "google/", "google."):
            name = name.removeprefix(prefix)
        _check_name(model, "models/" + name)
        if name.startswith(_OTHER_PUBLISHERS):
            said = f"The model '{model}' is not one of Google's own, and others on Vertex AI are not supported here."
            raise ProviderError("model_not_found", said)
        path = "publishers/google/models/" + name
        if target.project is None:
            auth = {"x-goog-api-key": target.api_key} if target.api_key else {}
            return versioned(target.base_url, "v1beta1") + path, _headers(target, **auth)
        region = target.region or "global"
        base = target.base_url if target.base_url != target.vendor.base_url else regional(target.base_url, region)
        auth = {"Authorization": "Bearer " + target.api_key} if target.api_key else {}
        place = f"projects/{target.project}/locations/{region}/"
        return versioned(base, "v1beta1") + place + path, _headers(target, **auth)


_OTHER_PUBLISHERS = ("anthropic.", "meta.", "mistralai.", "endpoints.")


def _check_name(model: str, path: str) -> None:
    # It becomes a part of the address, and clients choose it.
    if not re.fullmatch(r"(models|tunedModels)/[A-Za-z0-9][\w.@-]*", path, re.ASCII):
        raise ProviderError("model_not_found", f"'{model}' is not the name of a Gemini model.")
