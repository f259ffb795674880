"""Runs and run steps: the objects, the requests, and the private half of a run (BEHAVIOUR sections 4, 5)."""

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from loomgate.wire.chat import Upstream
from loomgate.wire.chat import Usage as ModelUsage
from loomgate.wire.lifecycle import RunStatus, StepStatus
from loomgate.wire.threads import CreateMessage, CreateThread
from loomgate.wire.tools import (
    Metadata,
    ReasoningEffort,
    ResponseFormat,
    Temperature,
    Tool,
    ToolChoice,
    ToolResources,
    Tools,
    TopP,
)

TokenBudget = Annotated[int, Meta(ge=256)]  # RUN-17, LIM-10


class Truncation(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """How much of the thread the model sees (RUN-18, RUN-19)."""

    type: Literal["auto", "last_messages"]
    last_messages: Annotated[int, Meta(ge=1)] | None = None


class CachedTokens(msgspec.Struct):
    """Prompt tokens that the model's cache served (RUN-38)."""

    cached_tokens: int = 0


class ReasoningTokens(msgspec.Struct):
    """Completion tokens spent on reasoning (RUN-38)."""

    reasoning_tokens: int = 0


class Usage(msgspec.Struct, kw_only=True):
    """Tokens of a step or a run. The singular ``prompt_token_details`` is the real service's own (RUN-38)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    prompt_token_details: CachedTokens = msgspec.field(default_factory=CachedTokens)
    completion_tokens_details: ReasoningTokens = msgspec.field(default_factory=ReasoningTokens)

    @classmethod
    def of(cls, *parts: "ModelUsage | Usage | None") -> "Usage":
        """The sum of ``parts`` (RUN-37); ``None`` counts as nothing."""
        prompt = completion = cached = reasoning = 0
        for part in parts:
            if part is None:
                continue
            prompt += part.prompt_tokens
            completion += part.completion_tokens
            if isinstance(part, Usage):
                cached += part.prompt_token_details.cached_tokens
                reasoning += part.completion_tokens_details.reasoning_tokens
            else:
                cached += part.cached_tokens
                reasoning += part.reasoning_tokens
        return cls(
            prompt_tokens=prompt,
            completion_tokens=completion,
            total_tokens=prompt + completion,
            prompt_token_details=CachedTokens(cached),
            completion_tokens_details=ReasoningTokens(reasoning),
        )


class Failure(msgspec.Struct):
    """``last_error`` of a run or step (RUN-90)."""

    code: Literal["server_error", "rate_limit_exceeded", "invalid_prompt"]
    message: str


class IncompleteRun(msgspec.Struct):
    """Which budget ended the run (RUN-92)."""

    reason: Literal["max_completion_tokens", "max_prompt_tokens"]


class CalledFunction(msgspec.Struct):
    """A function call as ``required_action`` shows it: no output."""

    name: str
    arguments: str


class RequiredCall(msgspec.Struct):
    """One call that the client has to answer (RUN-60)."""

    id: str
    function: CalledFunction
    type: Literal["function"] = "function"


class RequiredCalls(msgspec.Struct):
    """The calls of the current step, in order (RUN-61)."""

    tool_calls: list[RequiredCall]


class RequiredAction(msgspec.Struct):
    """``required_action`` of a run that waits for tool outputs."""

    submit_tool_outputs: RequiredCalls
    type: Literal["submit_tool_outputs"] = "submit_tool_outputs"


class Run(msgspec.Struct, kw_only=True):
    """A run as every answer shows it; also the stored body. All fields are effective values (RUN-04, RUN-05)."""

    id: str
    object: Literal["thread.run"] = "thread.run"
    created_at: int
    assistant_id: str
    thread_id: str
    status: RunStatus = "queued"
    started_at: int | None = None
    expires_at: int | None
    cancelled_at: int | None = None
    failed_at: int | None = None
    completed_at: int | None = None
    required_action: RequiredAction | None = None
    last_error: Failure | None = None
    model: str
    instructions: str | None = None
    tools: list[Tool] = []
    tool_resources: ToolResources = msgspec.field(default_factory=ToolResources)
    metadata: dict[str, str] = {}
    temperature: float | None = 1.0
    top_p: float | None = 1.0
    max_completion_tokens: int | None = None
    max_prompt_tokens: int | None = None
    truncation_strategy: Truncation = msgspec.field(default_factory=lambda: Truncation(type="auto"))
    incomplete_details: IncompleteRun | None = None
    usage: Usage | None = None
    response_format: ResponseFormat = "auto"
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    reasoning_effort: str | None = None


class RunSpec(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The private half of a run: what its worker needs and no answer shows. Never a plain secret."""

    upstream: Upstream = msgspec.field(default_factory=Upstream)
    # RSN-03: sampling values go upstream only if somebody chose them.
    temperature: float | None = None
    top_p: float | None = None
    include: list[str] = []
    cancel_on_disconnect: bool = False


class FunctionStepCall(msgspec.Struct):
    """A function call in a step; ``output`` null until submitted (STEP-09)."""

    name: str
    arguments: str
    output: str | None = None


class StepToolCall(msgspec.Struct):
    """A tool call in a step."""

    id: str
    function: FunctionStepCall
    type: Literal["function"] = "function"


class ToolCallsDetails(msgspec.Struct, tag_field="type", tag="tool_calls"):
    """Details of a step that calls tools; all calls of one model turn (STEP-05)."""

    tool_calls: list[StepToolCall] = []


class CreatedMessage(msgspec.Struct):
    """Which message a step writes."""

    message_id: str


class MessageDetails(msgspec.Struct, tag_field="type", tag="message_creation"):
    """Details of a step that writes a message (STEP-02)."""

    message_creation: CreatedMessage


StepDetails = MessageDetails | ToolCallsDetails


class Step(msgspec.Struct, kw_only=True):
    """A run step as every answer shows it; also the stored body.

    ``expires_at`` is stored as null and shown while the run is active (STEP-17, STEP-18).
    """

    id: str
    object: Literal["thread.run.step"] = "thread.run.step"
    created_at: int
    run_id: str
    assistant_id: str
    thread_id: str
    type: Literal["message_creation", "tool_calls"]
    status: StepStatus = "in_progress"
    cancelled_at: int | None = None
    completed_at: int | None = None
    expired_at: int | None = None
    failed_at: int | None = None
    last_error: Failure | None = None
    step_details: StepDetails
    usage: Usage | None = None
    metadata: dict[str, str] = {}
    expires_at: int | None = None


class RunOptions(msgspec.Struct, forbid_unknown_fields=True, omit_defaults=True):
    """Loomgate's own options of a run, in the body's ``loomgate`` member (docs/extensions.md)."""

    expires_after_seconds: Annotated[int, Meta(ge=1)] | None | UnsetType = UNSET
    cancel_on_disconnect: bool | None | UnsetType = UNSET


class RunFields(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both ways to create a run have in common; null is "not given" (CONV-11)."""

    assistant_id: str
    model: Annotated[str, Meta(min_length=1)] | None | UnsetType = UNSET
    reasoning_effort: ReasoningEffort | None | UnsetType = UNSET  # RSN-01: accepted in both
    instructions: Annotated[str, Meta(max_length=256_000)] | None | UnsetType = UNSET
    tools: Tools | None | UnsetType = UNSET
    metadata: Metadata | None | UnsetType = UNSET
    temperature: Temperature | None | UnsetType = UNSET
    top_p: TopP | None | UnsetType = UNSET
    stream: bool | None | UnsetType = UNSET
    max_prompt_tokens: TokenBudget | None | UnsetType = UNSET
    max_completion_tokens: TokenBudget | None | UnsetType = UNSET
    truncation_strategy: Truncation | None | UnsetType = UNSET
    tool_choice: ToolChoice | None | UnsetType = UNSET
    parallel_tool_calls: bool | None | UnsetType = UNSET
    response_format: ResponseFormat | None | UnsetType = UNSET
    loomgate: RunOptions | None | UnsetType = UNSET


class CreateRun(RunFields, kw_only=True, forbid_unknown_fields=True):
    """``POST /threads/{thread_id}/runs``."""

    additional_instructions: Annotated[str, Meta(max_length=256_000)] | None | UnsetType = UNSET
    additional_messages: list[CreateMessage] | None | UnsetType = UNSET


class CreateThreadAndRun(RunFields, kw_only=True, forbid_unknown_fields=True):
    """``POST /threads/runs`` (RUN-09, RUN-12)."""

    thread: CreateThread | None | UnsetType = UNSET
    tool_resources: ToolResources | None | UnsetType = UNSET


class ToolOutput(msgspec.Struct, forbid_unknown_fields=True):
    """One output; a missing ``output`` is the empty string (RUN-67)."""

    tool_call_id: str | UnsetType = UNSET
    output: str | None | UnsetType = UNSET


class SubmitToolOutputs(msgspec.Struct, forbid_unknown_fields=True):
    """``POST …/submit_tool_outputs``."""

    tool_outputs: list[ToolOutput]
    stream: bool | None | UnsetType = UNSET
