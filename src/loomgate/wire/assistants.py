"""The assistant object and the two requests about it (BEHAVIOUR section 7)."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loomgate.wire.tools import Metadata, ReasoningEffort, ResponseFormat, Temperature, Tool, ToolResources, Tools, TopP

Name = Annotated[str, Meta(max_length=256)]  # LIM-01
Description = Annotated[str, Meta(max_length=512)]  # LIM-02
Instructions = Annotated[str, Meta(max_length=256_000)]  # LIM-03


class Assistant(msgspec.Struct, kw_only=True):
    """An assistant as every answer shows it; also the stored body."""

    id: str
    object: Literal["assistant"] = "assistant"
    created_at: int
    name: str | None = None
    description: str | None = None
    model: str
    instructions: str | None = None
    tools: list[Tool] = []
    tool_resources: ToolResources = msgspec.field(default_factory=ToolResources)
    metadata: dict[str, str] = {}
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    response_format: ResponseFormat = "auto"
    reasoning_effort: str | None = None


class AssistantFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What create and modify have in common. ``null`` on create is "not given"; on modify it clears (CONV-11)."""

    name: Name | None | UnsetType = UNSET
    description: Description | None | UnsetType = UNSET
    instructions: Instructions | None | UnsetType = UNSET
    reasoning_effort: ReasoningEffort | None | UnsetType = UNSET
    tools: Tools | None | UnsetType = UNSET
    tool_resources: ToolResources | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
    temperature: Temperature | None | UnsetType = UNSET
    top_p: TopP | None | UnsetType = UNSET
    response_format: ResponseFormat | None | UnsetType = UNSET


class CreateAssistant(AssistantFields, kw_only=True, forbid_unknown_fields=True):
    """``POST /assistants``."""

    model: Annotated[str, Meta(min_length=1)]


class ModifyAssistant(AssistantFields, kw_only=True, forbid_unknown_fields=True):
    """``POST /assistants/{assistant_id}``: only the fields sent are changed (CONV-05, ASST-07)."""

    model: Annotated[str, Meta(min_length=1)] | UnsetType = UNSET


class Deleted(msgspec.Struct):
    """The answer to a DELETE (CONV-06)."""

    id: str
    object: str
    deleted: bool = True
