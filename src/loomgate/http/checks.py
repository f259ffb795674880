"""What the types of a request cannot say: the rules between fields, and what this version cannot do. Pure.

Each function raises the `ApiError` of the first rule that is broken, or returns nothing. ``at`` is where in the body
the value stands: "" or a path that ends with a dot.
"""

from collections.abc import Sequence
from mimetypes import MimeTypes
from typing import Any, cast
from urllib.parse import urlsplit

from msgspec import UNSET

from loomgate.errors import ApiError, bad_request, not_found
from loomgate.http.refusal import mismatch, missing, shortened, too_long, too_many
from loomgate.wire.runs import SubmitToolOutputs, Truncation
from loomgate.wire.threads import MAX_MESSAGES, MAX_TEXT, Attachment, CreateMessage, ImageFilePart, ImageUrlPart
from loomgate.wire.tools import (
    CodeInterpreterChoice,
    FileSearchChoice,
    FunctionChoice,
    FunctionTool,
    JsonSchemaFormat,
    ToolResources,
    tool_type,
)

MAX_OUTPUTS = 512 * 1024  # bytes of all tool outputs together, RUN-69
MAX_DEPTH = 100  # levels of a free-form JSON value: what is stored must be readable everywhere
MAX_INTEGER = 2**63 - 1

_IMAGES = ("image/jpeg", "image/png", "image/gif", "image/webp")  # MSG-06
# The tables of the module, not those of the machine: the same answer everywhere.
_guess = MimeTypes().guess_type
_NAME_PATTERN = "^[a-zA-Z0-9_-]+$"


# --- messages --------------------------------------------------------------------------------------------------------


def message(request: CreateMessage, at: str = "") -> None:
    """A new message: MSG-06 to MSG-08, ATT-07, ATT-09."""
    content = request.content
    if not content:
        raise bad_request(
            f"Invalid '{at}content': expected a string or an array that is not empty.", f"{at}content", "invalid_value"
        )
    if isinstance(content, str):
        if len(content) > MAX_TEXT:
            raise too_long(f"{at}content", MAX_TEXT, len(content))
    else:
        for index, part in enumerate(content):
            place = f"{at}content[{index}]"
            if isinstance(part, ImageUrlPart):
                _image(part.image_url.url, f"{place}.image_url.url")
            elif isinstance(part, ImageFilePart):
                raise not_found("file", part.image_file.file_id)
            elif len(part.text) > MAX_TEXT:
                raise too_long(f"{place}.text", MAX_TEXT, len(part.text))
    _attachments(request.attachments or [], f"{at}attachments")


def messages(requests: Sequence[CreateMessage], at: str) -> None:
    """A list of new messages at ``at`` (``messages``, ``additional_messages``)."""
    if len(requests) > MAX_MESSAGES:
        raise too_many(at, MAX_MESSAGES, len(requests))
    for index, request in enumerate(requests):
        message(request, f"{at}[{index}].")


def _attachments(attachments: Sequence[Attachment], at: str) -> None:
    for index, attachment in enumerate(attachments):
        if attachment.file_id is UNSET:
            raise missing(f"{at}[{index}].file_id")
        raise not_found("file", attachment.file_id)


def _image(url: str, param: str) -> None:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme == "data":
        kind = parts.path.partition(",")[0].partition(";")[0].lower()
        if kind not in _IMAGES or "," not in parts.path:
            raise _bad_image(param)
        return
    if parts.scheme not in ("http", "https") or not host:
        raise bad_request(
            f"Invalid '{param}': expected an http:// or https:// URL, or a data: URL of an image.",
            param,
            "invalid_value",
        )
    kind = _guess(parts.path)[0] or ""
    if kind not in _IMAGES and kind.startswith(("image/", "audio/", "video/", "application/pdf")):
        raise _bad_image(param)


def _bad_image(param: str) -> ApiError:
    return bad_request(
        f"Invalid '{param}': unsupported image. Supported types are jpeg, png, gif, and webp.", param, "invalid_value"
    )


# --- tools -----------------------------------------------------------------------------------------------------------


def tools(given: Sequence[Any], at: str = "tools") -> None:
    """ASST-12, LIM-07 to the letter, and free-form parameters that can be kept."""
    names: set[str] = set()
    for index, tool in enumerate(given):
        if not isinstance(tool, FunctionTool):
            continue
        function = tool.function
        place = f"{at}[{index}].function"
        _name(function.name, f"{place}.name")
        if function.name in names:
            raise bad_request(
                f"Invalid '{at}': two functions are named '{function.name}'. Expected different names.",
                at,
                "invalid_value",
            )
        names.add(function.name)
        if function.parameters is not UNSET:
            _free_form(function.parameters, f"{place}.parameters")


def response_format(given: Any) -> None:
    """A schema that can be kept, and a name that is one (LIM-35)."""
    if isinstance(given, JsonSchemaFormat):
        _name(given.json_schema.name, "response_format.json_schema.name")
        if given.json_schema.schema_ is not UNSET:
            _free_form(given.json_schema.schema_, "response_format.json_schema.schema")


def _name(name: str, param: str) -> None:
    if name.endswith("\n"):  # which a pattern's `$` lets through
        raise mismatch(param, _NAME_PATTERN)


def _free_form(value: object, param: str) -> None:
    """Bounded depth, so that what was read once can be written and read again."""
    layer: list[object] = [value]
    for _ in range(MAX_DEPTH):
        following: list[object] = []
        for item in layer:
            if isinstance(item, dict):
                following.extend(cast("dict[str, object]", item).values())
            elif isinstance(item, list):
                following.extend(cast("list[object]", item))
        if not following:
            return
        layer = following
    raise bad_request(
        f"Invalid '{param}': nested too deeply. Expected at most {MAX_DEPTH} levels.", param, "invalid_value"
    )


def tool_resources(given: ToolResources | None, at: str = "tool_resources", *, create: bool) -> None:
    """ASST-05, ATT-07: no files and no vector stores exist in this version, so every id is unknown."""
    if given is None:
        return
    files, search = given.code_interpreter, given.file_search
    if files:
        for id in files.file_ids:
            raise not_found("file", id)
    if not search:
        return
    ids, stores = search.vector_store_ids or [], search.vector_stores
    param = f"{at}.file_search.vector_stores"
    if stores is not UNSET and not create:
        raise bad_request(f"Unknown parameter: '{param}'.", param, "unknown_parameter")
    if ids and stores:
        raise bad_request(
            f"Invalid '{at}.file_search': expected either vector_store_ids or vector_stores, but got both.",
            f"{at}.file_search",
            "invalid_value",
        )
    if stores:
        raise bad_request(
            f"Invalid '{param}': vector stores are not available in this version.", param, "unsupported_parameter"
        )
    for id in ids:
        raise not_found("vector_store", id)


# --- runs ------------------------------------------------------------------------------------------------------------


def assistant_id(id: str) -> None:
    """ID-08."""
    if not id.startswith("asst"):
        raise bad_request(
            f"Invalid 'assistant_id': '{shortened(id)}'. Expected an ID that begins with 'asst'.",
            "assistant_id",
            "invalid_value",
        )


def truncation(given: Truncation | None) -> None:
    """RUN-18."""
    if given is None:
        return
    if given.type == "last_messages" and given.last_messages is None:
        raise missing("truncation_strategy.last_messages")
    if given.type == "auto" and given.last_messages is not None:
        raise bad_request(
            "Invalid 'truncation_strategy.last_messages': it has no meaning when the type is 'auto'. "
            "Expected null, or the type 'last_messages'.",
            "truncation_strategy.last_messages",
            "invalid_value",
        )


def budget(tokens: int | None, param: str) -> None:
    """A number of tokens that other programs can read, too."""
    if tokens is not None and tokens > MAX_INTEGER:
        raise bad_request(
            f"Invalid '{param}': integer above maximum value. Expected a value <= {MAX_INTEGER}.",
            param,
            "integer_above_max_value",
        )


def runnable(given: Sequence[Any]) -> None:
    """Can this server carry the run's tools out?"""
    for tool in given:
        if not isinstance(tool, FunctionTool):
            raise bad_request(
                f"This server cannot run the tool '{tool_type(tool)}' yet: runs can use function tools only. Remove it "
                "from the assistant, or give the run its own tools.",
                "tools",
                "unsupported_tool",
            )


def tool_choice(choice: Any, given: Sequence[Any]) -> None:
    """RUN-20: a choice that names a tool names one that the run has."""
    if isinstance(choice, FunctionChoice):
        name = choice.function.name
        if not any(isinstance(tool, FunctionTool) and tool.function.name == name for tool in given):
            raise bad_request(
                f"Invalid 'tool_choice': the run has no function named '{shortened(name)}'. "
                "Expected the name of one of its tools.",
                "tool_choice.function.name",
                "invalid_value",
            )
    elif isinstance(choice, FileSearchChoice | CodeInterpreterChoice):
        wanted = str(choice.__struct_config__.tag)
        if not any(tool_type(tool) == wanted for tool in given):
            raise bad_request(
                f"Invalid 'tool_choice': the run has no tool of type '{wanted}'.", "tool_choice", "invalid_value"
            )


def outputs(request: SubmitToolOutputs) -> None:
    """RUN-67, RUN-69."""
    size = 0
    for index, given in enumerate(request.tool_outputs):
        if given.tool_call_id is UNSET:
            raise missing(f"tool_outputs[{index}].tool_call_id")
        size += len((given.output or "").encode())
    if size > MAX_OUTPUTS:
        raise bad_request(
            f"Invalid 'tool_outputs': too large. Expected outputs of at most {MAX_OUTPUTS} bytes together, "
            f"but got {size} bytes instead.",
            "tool_outputs",
        )
