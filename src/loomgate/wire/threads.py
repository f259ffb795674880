"""Threads and messages: the objects, and the requests that make and change them (BEHAVIOUR sections 6, 7)."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from loomgate.wire.lifecycle import MessageStatus
from loomgate.wire.tools import Metadata, ToolResources

MAX_TEXT = 256_000  # characters of a message's text, LIM-13
MAX_MESSAGES = 100_000  # messages of a thread, LIM-12

# What a second run or message does while a run of the thread is active (docs/extensions.md).
ActiveRunRule = Literal["reject", "enqueue", "interrupt"]


class ThreadOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Loomgate's own options of a thread, in the body's ``loomgate`` member."""

    on_active_run: ActiveRunRule | None | UnsetType = UNSET


class Thread(msgspec.Struct, kw_only=True):
    """A thread as every answer shows it; also the stored body. ``loomgate`` only where an option was set."""

    id: str
    object: Literal["thread"] = "thread"
    created_at: int
    metadata: dict[str, str] = {}
    tool_resources: ToolResources = msgspec.field(default_factory=ToolResources)
    loomgate: ThreadOptions | UnsetType = UNSET


Detail = Literal["auto", "low", "high"]


class ImageUrlIn(msgspec.Struct, forbid_unknown_fields=True):
    """An image by URL (MSG-05, MSG-06)."""

    url: str
    detail: Detail = "auto"


class ImageFileIn(msgspec.Struct, forbid_unknown_fields=True):
    """An image by file id."""

    file_id: str
    detail: Detail = "auto"


class TextIn(msgspec.Struct, tag_field="type", tag="text", forbid_unknown_fields=True):
    """A text part of a request: ``text`` is a plain string (MSG-03)."""

    text: str


class ImageUrlPart(msgspec.Struct, tag_field="type", tag="image_url", forbid_unknown_fields=True):
    """An image part by URL, in requests and answers alike."""

    image_url: ImageUrlIn


class ImageFilePart(msgspec.Struct, tag_field="type", tag="image_file", forbid_unknown_fields=True):
    """An image part by file, in requests and answers alike."""

    image_file: ImageFileIn


class Text(msgspec.Struct):
    """A text with its annotations, as answers show it."""

    value: str
    annotations: list[dict[str, Any]] = []


class TextContent(msgspec.Struct, tag_field="type", tag="text"):
    """A text part of an answer."""

    text: Text


class RefusalContent(msgspec.Struct, tag_field="type", tag="refusal"):
    """A refusal by the model."""

    refusal: str


Content = TextContent | ImageUrlPart | ImageFilePart | RefusalContent
PartIn = TextIn | ImageUrlPart | ImageFilePart


class AttachmentTool(msgspec.Struct, forbid_unknown_fields=True):
    """A tool that may read an attached file; it takes no options here (ATT-08)."""

    type: Literal["code_interpreter", "file_search"]


class Attachment(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """A file attached to a message (ATT-01)."""

    file_id: str | UnsetType = UNSET
    tools: list[AttachmentTool] | UnsetType = UNSET


class IncompleteMessage(msgspec.Struct):
    """Why a message is incomplete (MSG-13)."""

    reason: str


class Message(msgspec.Struct, kw_only=True):
    """A message as every answer shows it; also the stored body."""

    id: str
    object: Literal["thread.message"] = "thread.message"
    created_at: int
    thread_id: str
    status: MessageStatus = "completed"
    incomplete_details: IncompleteMessage | None = None
    completed_at: int | None = None
    incomplete_at: int | None = None
    role: Literal["user", "assistant"]
    content: list[Content]
    assistant_id: str | None = None
    run_id: str | None = None
    attachments: list[Attachment] = []
    metadata: dict[str, str] = {}


class CreateMessage(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /threads/{thread_id}/messages``, and an element of ``messages`` and ``additional_messages``."""

    role: Literal["user", "assistant"]
    content: str | list[PartIn]
    attachments: list[Attachment] | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET


class ModifyMetadata(msgspec.Struct, forbid_unknown_fields=True):
    """Modify message (MSG-16) and modify run (RUN-84): ``metadata`` and nothing else."""

    metadata: Metadata | None | UnsetType = UNSET


class CreateThread(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /threads``, and ``thread`` of ``POST /threads/runs``."""

    messages: list[CreateMessage] | None | UnsetType = UNSET
    tool_resources: ToolResources | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
    loomgate: ThreadOptions | None | UnsetType = UNSET


class ModifyThread(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """``POST /threads/{thread_id}`` (THR-04)."""

    tool_resources: ToolResources | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
    loomgate: ThreadOptions | None | UnsetType = UNSET


def content_of(request: CreateMessage) -> list[Content]:
    """The parts of a new message as answers show them (MSG-02, MSG-03, MSG-05)."""
    if isinstance(request.content, str):
        return [TextContent(Text(request.content))]
    return [TextContent(Text(part.text)) if isinstance(part, TextIn) else part for part in request.content]
