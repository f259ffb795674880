"""What the model sees: a thread and a run's own journal as chat messages, shortened to what fits.

The thread's messages come in the order in which they stand (a run's messages where the run stands), then what this
run has said and called so far. Shortening itself is pure and in ``truncate``.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from functools import partial
from typing import Any

import msgspec

from loomgate import clock
from loomgate.engine import truncate
from loomgate.engine.plan import CallModel
from loomgate.providers import models, tokens
from loomgate.store.runs import Journal, Runs
from loomgate.wire import chat
from loomgate.wire.runs import MessageDetails, Run, RunSpec, ToolCallsDetails
from loomgate.wire.threads import Content, ImageUrlPart, Message, RefusalContent, TextContent
from loomgate.wire.tools import FunctionChoice, FunctionTool, ResponseFormat, Tool, ToolChoice

_CHUNK = 500  # messages read at a time: bounds how long the event loop is held
_SHORT = 50  # messages up to which fitting them is quicker than changing threads


class _Said(msgspec.Struct):
    """The part of a stored message that the model sees."""

    role: chat.Role
    content: list[Content]


_decode = msgspec.json.Decoder(_Said).decode


async def build(
    runs: Runs,
    run: Run,
    spec: RunSpec,
    position: int,
    journal: Journal,
    move: CallModel,
    windows: Mapping[str, int],
) -> chat.Chat | None:
    """The model call for ``move``; ``None`` when not even the newest message fits the prompt budget (RUN-96).

    ``position`` is the run's order key: it sees the messages that stand before it. ``windows`` are the operator's
    context windows by model pattern, in tokens.
    """
    head = [chat.ChatMessage(role="system", content=run.instructions)] if run.instructions else []
    history = [message async for message in _history(runs, run.thread_id, position)]
    tail = list(_own(journal))
    call = _call(run, spec, move)
    limit = models.facts(run.model, windows).prompt_limit(move.completion_left)
    if move.prompt_left is not None:
        limit = min(limit, move.prompt_left)
    fit = partial(
        truncate.fit,
        head,
        history,
        tail,
        last_messages=run.truncation_strategy.last_messages,
        limit=limit,
        fixed=partial(tokens.count_fixed, call.tools, call.response_format, run.model),
        fixed_bound=tokens.fixed_upper_bound(call.tools, call.response_format, run.model),
        cost=partial(tokens.count_message, model=run.model),
        bound=partial(tokens.upper_bound, model=run.model),
    )
    # Counting a long thread takes tens of milliseconds: not on the event loop.
    fitted = fit() if len(history) <= _SHORT else await asyncio.to_thread(fit)
    if fitted is None:
        return None
    return msgspec.structs.replace(call, messages=fitted.messages)


async def _history(runs: Runs, thread: str, before: int) -> AsyncIterator[chat.ChatMessage]:
    after = (0, 0)
    while True:
        found = await runs.history(thread, before, after, _CHUNK)
        for place, position, body in found:
            after = (place, position)
            said = _decode(body)
            message = spoken(said.role, said.content)
            if message is not None:
                yield message
        if len(found) < _CHUNK:
            return
        await clock.sleep(0)  # a read does not suspend: let the others have their turn between two chunks


def spoken(role: chat.Role, content: list[Content]) -> chat.ChatMessage | None:
    """A stored message as a chat message; ``None`` when it says nothing (one that was cut before it began)."""
    parts: list[chat.ContentPart] = []
    refusals: list[str] = []
    for part in content:
        if isinstance(part, TextContent):
            parts.append(chat.TextPart(part.text.value))
        elif isinstance(part, ImageUrlPart):
            parts.append(chat.ImagePart(chat.ImageUrl(part.image_url.url, part.image_url.detail)))
        elif isinstance(part, RefusalContent):
            refusals.append(part.refusal)
    refusal = "".join(refusals) or None
    if role == "assistant" or all(isinstance(part, chat.TextPart) for part in parts):
        # Chat completions take text alone from the assistant, and a plain string is what every vendor accepts.
        text = "\n".join(part.text for part in parts if isinstance(part, chat.TextPart))
        if not text and refusal is None:
            return None
        return chat.ChatMessage(role=role, content=text or None, refusal=refusal)
    return chat.ChatMessage(role=role, content=parts)


def _own(journal: Journal) -> list[chat.ChatMessage]:
    """What the run itself said, called and was told so far, turn by turn."""
    said: list[chat.ChatMessage] = []
    turns: dict[int, list[Any]] = {}
    for entry in journal.entries:
        turns.setdefault(entry.turn, []).append(entry.step)
    for steps in turns.values():
        text: str | None = None
        calls: list[chat.ToolCall] = []
        outputs: list[chat.ChatMessage] = []
        for step in steps:
            details = step.step_details
            if isinstance(details, MessageDetails):
                text = _text_of(journal.messages.get(details.message_creation.message_id))
            elif isinstance(details, ToolCallsDetails):
                for call in details.tool_calls:
                    if call.function.output is None:
                        continue
                    calls.append(chat.ToolCall(call.id, call.function.name, call.function.arguments))
                    outputs.append(chat.ChatMessage(role="tool", content=call.function.output, tool_call_id=call.id))
        if calls:
            said.append(chat.ChatMessage(role="assistant", content=text, tool_calls=calls))
            said += outputs
    return said


def _text_of(message: Message | None) -> str | None:
    if message is None:
        return None
    found = spoken("assistant", message.content)
    return found.content if found is not None and isinstance(found.content, str) else None


def _call(run: Run, spec: RunSpec, move: CallModel) -> chat.Chat:
    """The call without its messages. What nobody chose is not sent (RSN-03)."""
    functions = [_function(tool) for tool in run.tools if isinstance(tool, FunctionTool)]
    return chat.Chat(
        model=run.model,
        messages=[],
        tools=functions,
        tool_choice=_choice(run.tool_choice) if functions and move.forced else None,
        parallel_tool_calls=False if functions and not run.parallel_tool_calls else None,
        response_format=_format(run.response_format),
        temperature=spec.temperature,
        top_p=spec.top_p,
        max_completion_tokens=move.completion_left,
        reasoning_effort=run.reasoning_effort,
    )


def _function(tool: Tool) -> chat.FunctionTool:
    assert isinstance(tool, FunctionTool)
    function = tool.function
    return chat.FunctionTool(
        name=function.name,
        description=function.description or None,
        parameters=function.parameters or None,
        strict=function.strict or None,
    )


def _choice(choice: ToolChoice) -> Any:
    if isinstance(choice, FunctionChoice):
        return chat.NamedFunction(choice.function.name)
    return choice if choice in ("none", "required") else None


def _format(format: ResponseFormat) -> dict[str, Any] | None:
    return None if isinstance(format, str) else msgspec.to_builtins(format)
