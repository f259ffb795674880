"""What assistants and runs share: metadata, tools, tool resources, response formats (BEHAVIOUR sections 7, 8)."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

# LIM-06: at most 16 pairs, keys up to 64, values up to 512 characters (LIM-59: code points, inclusive).
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
Temperature = Annotated[float, Meta(ge=0, le=2)]  # LIM-08
TopP = Annotated[float, Meta(ge=0, le=1)]  # LIM-09
ReasoningEffort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]  # LIM-34
FunctionName = Annotated[str, Meta(max_length=64, pattern="^[a-zA-Z0-9_-]+$")]  # LIM-07


class Function(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A function's description for the model; ``parameters`` is a JSON Schema object."""

    name: FunctionName
    description: str | UnsetType = UNSET
    parameters: dict[str, Any] | UnsetType = UNSET
    strict: bool | None | UnsetType = UNSET


class FunctionTool(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """A function tool: the client runs it (BEHAVIOUR RUN-60)."""

    function: Function


class RankingOptions(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How file_search ranks (LIM-27: ``score_threshold`` is required)."""

    ranker: Literal["auto", "default_2024_08_21"] = "default_2024_08_21"
    score_threshold: Annotated[float, Meta(ge=0, le=1)]


class FileSearchOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """Options of the file_search tool (LIM-24)."""

    max_num_results: Annotated[int, Meta(ge=1, le=50)] | UnsetType = UNSET
    ranking_options: RankingOptions | UnsetType = UNSET


class FileSearchTool(
    msgspec.Struct, tag_field="type", tag="file_search", forbid_unknown_fields=True, omit_defaults=True
):
    """The file_search tool."""

    file_search: FileSearchOptions | UnsetType = UNSET


class CodeInterpreterTool(msgspec.Struct, tag_field="type", tag="code_interpreter", forbid_unknown_fields=True):
    """The code_interpreter tool."""


Tool = CodeInterpreterTool | FileSearchTool | FunctionTool
Tools = Annotated[list[Tool], Meta(max_length=128)]  # LIM-04; LIM-05 for runs: an assistant's 128 must fit a run


def normalise(tool: Tool) -> Tool:
    """``tool`` as the API echoes it: ``strict`` false and empty parameters filled in (ASST-03), the
    ranking defaults of file_search shown (ASST-04)."""
    if isinstance(tool, FunctionTool):
        function = tool.function
        return FunctionTool(
            msgspec.structs.replace(
                function,
                parameters={"type": "object", "properties": {}}
                if function.parameters is UNSET
                else function.parameters,
                strict=bool(function.strict) if function.strict is not UNSET else False,
            )
        )
    if isinstance(tool, FileSearchTool):
        options = FileSearchOptions() if tool.file_search is UNSET else tool.file_search
        if options.ranking_options is UNSET:
            options = msgspec.structs.replace(options, ranking_options=RankingOptions(score_threshold=0.0))
        return FileSearchTool(options)
    return tool


def tool_type(tool: Tool) -> str:
    """``function``, ``file_search`` or ``code_interpreter``."""
    return str(tool.__struct_config__.tag)


class CodeInterpreterResources(msgspec.Struct, forbid_unknown_fields=True):
    """Files that code_interpreter may read (LIM-14)."""

    file_ids: Annotated[list[str], Meta(max_length=20)] = []


class FileSearchResources(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """The vector store that file_search reads (LIM-15), or on creation the helper that makes one (ASST-05)."""

    vector_store_ids: Annotated[list[str], Meta(max_length=1)] | UnsetType = UNSET
    vector_stores: Annotated[list[dict[str, Any]], Meta(max_length=1)] | UnsetType = UNSET


class ToolResources(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Resources by tool; what is not given is not shown."""

    code_interpreter: CodeInterpreterResources | None | UnsetType = UNSET
    file_search: FileSearchResources | None | UnsetType = UNSET


class TextFormat(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """Plain text."""


class JsonObjectFormat(msgspec.Struct, tag_field="type", tag="json_object", forbid_unknown_fields=True):
    """Any JSON object."""


class JsonSchema(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True, kw_only=True):
    """A named JSON Schema for the answer (LIM-35)."""

    name: FunctionName
    description: str | UnsetType = UNSET
    # ``schema`` would hide a Struct's own attribute.
    schema_: dict[str, Any] | UnsetType = msgspec.field(name="schema", default=UNSET)
    strict: bool | None | UnsetType = UNSET


class JsonSchemaFormat(msgspec.Struct, tag_field="type", tag="json_schema", forbid_unknown_fields=True):
    """JSON that follows a schema."""

    json_schema: JsonSchema


ResponseFormat = Literal["auto"] | TextFormat | JsonObjectFormat | JsonSchemaFormat


class NamedFunction(msgspec.Struct, forbid_unknown_fields=True):
    """The function that a tool choice names."""

    name: str


class FunctionChoice(msgspec.Struct, tag_field="type", tag="function", forbid_unknown_fields=True):
    """Call this function."""

    function: NamedFunction


class FileSearchChoice(msgspec.Struct, tag_field="type", tag="file_search", forbid_unknown_fields=True):
    """Search first."""


class CodeInterpreterChoice(msgspec.Struct, tag_field="type", tag="code_interpreter", forbid_unknown_fields=True):
    """Run code first."""


ToolChoice = Literal["none", "auto", "required"] | FunctionChoice | FileSearchChoice | CodeInterpreterChoice
