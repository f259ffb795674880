"""Requests to objects: what a new or changed assistant, thread, message or run looks like. Pure.

Every function takes a request that was decoded and checked, and the present time in whole seconds.
"""

from collections.abc import Sequence
from typing import TypeVar

import msgspec
from msgspec import UNSET, UnsetType

from loomgate.http import checks
from loomgate.http.refusal import out_of_range
from loomgate.store.assistants import Sampling
from loomgate.wire.assistants import Assistant, AssistantFields, CreateAssistant, ModifyAssistant
from loomgate.wire.chat import Upstream
from loomgate.wire.ids import new_id
from loomgate.wire.runs import CreateRun, CreateThreadAndRun, Run, RunFields, RunOptions, RunSpec, Truncation
from loomgate.wire.threads import CreateMessage, CreateThread, Message, ModifyThread, Thread, content_of
from loomgate.wire.tools import (
    CodeInterpreterResources,
    CodeInterpreterTool,
    FileSearchResources,
    Tool,
    ToolChoice,
    ToolResources,
    normalise,
)

T = TypeVar("T")


def given(value: T | None | UnsetType) -> T | None:
    """``value``, or ``None`` for "not given": on creation null means the same (BEHAVIOUR CONV-11)."""
    return None if value is UNSET else value


def _or(value: T | None | UnsetType, default: T) -> T:
    return default if value is UNSET or value is None else value


# --- assistants ------------------------------------------------------------------------------------------------------


def check_create_assistant(request: CreateAssistant) -> None:
    """Raises a 400 or 404 `ApiError` for what the type cannot say."""
    _check_assistant(request)
    checks.tool_resources(given(request.tool_resources), create=True)


def check_modify_assistant(request: ModifyAssistant) -> None:
    """Raises a 400 or 404 `ApiError` for what the type cannot say."""
    _check_assistant(request)
    checks.tool_resources(given(request.tool_resources), create=False)


def _check_assistant(request: AssistantFields) -> None:
    checks.tools(given(request.tools) or [])
    checks.response_format(request.response_format)


def assistant(request: CreateAssistant, now: int) -> tuple[Assistant, Sampling]:
    """A new assistant and its chosen sampling values (ASST-01 to ASST-04)."""
    tools = [normalise(tool) for tool in given(request.tools) or []]
    temperature, top_p = given(request.temperature), given(request.top_p)
    made = Assistant(
        id=new_id("asst"),
        created_at=now,
        name=given(request.name),
        description=given(request.description),
        model=request.model,
        instructions=given(request.instructions),
        tools=tools,
        tool_resources=_resources(ToolResources(), given(request.tool_resources), tools),
        metadata=given(request.metadata) or {},
        temperature=1.0 if temperature is None else temperature,
        top_p=1.0 if top_p is None else top_p,
        response_format=_or(request.response_format, "auto"),
        reasoning_effort=given(request.reasoning_effort),
    )
    return made, Sampling(temperature, top_p)


def changed_assistant(request: ModifyAssistant, assistant: Assistant, sampling: Sampling) -> tuple[Assistant, Sampling]:
    """``assistant`` with the fields that ``request`` gives; null is the value of an assistant without it (ASST-07)."""
    blank = Assistant(id="", created_at=0, model="")
    changes: dict[str, object] = {}
    for name in ("name", "description", "model", "instructions", "metadata", "response_format", "reasoning_effort"):
        value: object = getattr(request, name)
        if value is not UNSET:
            changes[name] = getattr(blank, name) if value is None else value
    tools = assistant.tools
    if request.tools is not UNSET:
        tools = changes["tools"] = [normalise(tool) for tool in request.tools or []]
    before = ToolResources() if request.tool_resources is None else assistant.tool_resources
    changes["tool_resources"] = _resources(before, given(request.tool_resources), tools)
    chosen: dict[str, float | None] = {}
    for name, asked in (("temperature", request.temperature), ("top_p", request.top_p)):
        if asked is not UNSET:
            changes[name] = getattr(blank, name) if asked is None else asked
            chosen[name] = asked
    return msgspec.structs.replace(assistant, **changes), msgspec.structs.replace(sampling, **chosen)


def _resources(before: ToolResources, change: ToolResources | None, tools: Sequence[Tool] = ()) -> ToolResources:
    """``before`` with the tools' resources that ``change`` gives, each as a whole; ASST-02 for ``tools``."""
    files, search = before.code_interpreter, before.file_search
    if change is not None:
        if change.code_interpreter is not UNSET:
            files = change.code_interpreter or UNSET
        if change.file_search is not UNSET:
            search = FileSearchResources(vector_store_ids=[]) if change.file_search else UNSET
    if files is UNSET and any(isinstance(tool, CodeInterpreterTool) for tool in tools):
        files = CodeInterpreterResources()
    return ToolResources(code_interpreter=files, file_search=search)


# --- threads and messages --------------------------------------------------------------------------------------------


def check_thread(request: CreateThread, at: str = "") -> None:
    """Raises a 400 or 404 `ApiError` for what the type cannot say; ``at`` is "" or ``thread.``."""
    checks.messages(given(request.messages) or [], f"{at}messages")
    checks.tool_resources(given(request.tool_resources), f"{at}tool_resources", create=True)


def check_modify_thread(request: ModifyThread) -> None:
    """Raises a 400 or 404 `ApiError` for what the type cannot say."""
    checks.tool_resources(given(request.tool_resources), create=False)


def thread(request: CreateThread, now: int, resources: ToolResources | None = None) -> tuple[Thread, list[Message]]:
    """A new thread and its first messages (THR-01, THR-02); ``resources`` count if the thread gives none (RUN-09)."""
    made = Thread(
        id=new_id("thread"),
        created_at=now,
        metadata=given(request.metadata) or {},
        tool_resources=_resources(ToolResources(), given(request.tool_resources) or resources),
        loomgate=given(request.loomgate) or UNSET,
    )
    return made, messages(given(request.messages) or [], made.id, now)


def changed_thread(request: ModifyThread, thread: Thread) -> Thread:
    """``thread`` with what ``request`` gives (THR-04, RUN-87); null clears."""
    changes: dict[str, object] = {}
    if request.metadata is not UNSET:
        changes["metadata"] = request.metadata or {}
    if request.tool_resources is not UNSET:
        before = ToolResources() if request.tool_resources is None else thread.tool_resources
        changes["tool_resources"] = _resources(before, request.tool_resources)
    if request.loomgate is not UNSET:
        changes["loomgate"] = UNSET if request.loomgate is None else request.loomgate
    return msgspec.structs.replace(thread, **changes)


def messages(requests: Sequence[CreateMessage], thread_id: str, now: int) -> list[Message]:
    """New messages of a thread, written by a client (MSG-02, MSG-09, MSG-10, MSG-12)."""
    return [
        Message(
            id=new_id("msg"),
            created_at=now,
            thread_id=thread_id,
            completed_at=now,
            role=request.role,
            content=content_of(request),
            metadata=given(request.metadata) or {},
        )
        for request in requests
    ]


# --- runs ------------------------------------------------------------------------------------------------------------


def check_run(request: CreateRun, ttl_max: int) -> None:
    """Raises a 400 or 404 `ApiError` for what the type cannot say."""
    _check_run(request, ttl_max)
    checks.messages(given(request.additional_messages) or [], "additional_messages")


def check_thread_and_run(request: CreateThreadAndRun, ttl_max: int) -> None:
    """Raises a 400 or 404 `ApiError` for what the type cannot say."""
    _check_run(request, ttl_max)
    if (inner := given(request.thread)) is not None:
        check_thread(inner, "thread.")
    checks.tool_resources(given(request.tool_resources), create=True)


def _check_run(request: RunFields, ttl_max: int) -> None:
    checks.assistant_id(request.assistant_id)
    checks.tools(given(request.tools) or [])
    checks.response_format(request.response_format)
    checks.truncation(given(request.truncation_strategy))
    checks.budget(given(request.max_prompt_tokens), "max_prompt_tokens")
    checks.budget(given(request.max_completion_tokens), "max_completion_tokens")
    seconds = given(_options(request).expires_after_seconds)
    if seconds is not None and seconds > ttl_max:
        raise out_of_range("loomgate.expires_after_seconds", "integer", ttl_max, seconds, above=True)


def _options(request: RunFields) -> RunOptions:
    return given(request.loomgate) or RunOptions()


def run(request: CreateRun | CreateThreadAndRun, thread_id: str, assistant: Assistant, *, now: int, ttl: int) -> Run:
    """A queued run with its effective values, frozen (RUN-01 to RUN-11); ``ttl`` in seconds if the request has none.

    Raises a 400 `ApiError` when the effective values do not fit together (RUN-20), or ask for what cannot be run.
    """
    tools = assistant.tools
    if (own := given(request.tools)) is not None:
        tools = [normalise(tool) for tool in own]
    choice: ToolChoice = "auto"
    if request.tool_choice is not UNSET and request.tool_choice is not None:
        choice = request.tool_choice
    checks.tool_choice(choice, tools)
    checks.runnable(tools)
    model = given(request.model) or assistant.model
    instructions = _or(request.instructions, assistant.instructions)
    added = given(request.additional_instructions) if isinstance(request, CreateRun) else None
    if added:
        instructions = f"{instructions}\n{added}" if instructions else added
    return Run(
        id=new_id("run"),
        created_at=now,
        assistant_id=assistant.id,
        thread_id=thread_id,
        expires_at=now + _or(_options(request).expires_after_seconds, ttl),
        model=model,
        instructions=instructions,
        tools=tools,
        tool_resources=assistant.tool_resources,
        metadata=given(request.metadata) or {},
        temperature=_or(request.temperature, assistant.temperature),
        top_p=_or(request.top_p, assistant.top_p),
        max_completion_tokens=given(request.max_completion_tokens),
        max_prompt_tokens=given(request.max_prompt_tokens),
        truncation_strategy=given(request.truncation_strategy) or Truncation(type="auto"),
        response_format=_or(request.response_format, assistant.response_format),
        tool_choice=choice,
        parallel_tool_calls=_or(request.parallel_tool_calls, True),
        reasoning_effort=_or(request.reasoning_effort, assistant.reasoning_effort),
    )


def spec(
    request: RunFields, sampling: Sampling, upstream: Upstream, include: list[str], *, cancel_on_disconnect: bool
) -> RunSpec:
    """The run's private half: sampling only as somebody chose it (RSN-03)."""
    return RunSpec(
        upstream=upstream,
        temperature=_or(request.temperature, sampling.temperature),
        top_p=_or(request.top_p, sampling.top_p),
        include=include,
        cancel_on_disconnect=_or(_options(request).cancel_on_disconnect, cancel_on_disconnect),
    )
