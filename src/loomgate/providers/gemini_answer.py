"""Google's Gemini dialect, sans-I/O: what comes back. Answer bytes to `Chunk` values, error bodies to `ProviderError`.

What must live here: responses of ``streamGenerateContent`` and google.rpc.Status as JSON. What must not: the request.
"""

import contextlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from loomgate.errors import ProviderError, ProviderErrorKind
from loomgate.providers.events import EventDecoder
from loomgate.providers.failure import error_answer, masked, status_kind
from loomgate.wire.chat import Chunk, Extra, Finish, FinishReason, TextDelta, ThinkingDelta, ToolCallDelta, Usage
from loomgate.wire.ids import new_id

Json = dict[str, Any]

_encode = msgspec.json.Encoder().encode

# --- errors --------------------------------------------------------------------------------------------------------

# ``status`` of the error object (google.rpc.Code).
_STATUSES: dict[str, ProviderErrorKind] = {
    "INVALID_ARGUMENT": "invalid",
    "FAILED_PRECONDITION": "invalid",
    "OUT_OF_RANGE": "invalid",
    "UNAUTHENTICATED": "auth",
    "PERMISSION_DENIED": "auth",
    "NOT_FOUND": "model_not_found",
    "RESOURCE_EXHAUSTED": "rate_limit",
    "ABORTED": "overloaded",
    "UNAVAILABLE": "overloaded",
    "DEADLINE_EXCEEDED": "timeout",
    "CANCELLED": "server",
    "INTERNAL": "server",
    "UNKNOWN": "server",
    "DATA_LOSS": "server",
}
# ``reason`` of an ErrorInfo, where it says more: a wrong key is an INVALID_ARGUMENT.
_REASONS: dict[str, ProviderErrorKind] = {
    "API_KEY_INVALID": "auth",
    "API_KEY_EXPIRED": "auth",
    "ACCESS_TOKEN_EXPIRED": "auth",
    "BILLING_DISABLED": "quota",
}


class _Violation(msgspec.Struct, rename="camel"):
    quota_id: str = ""


class _Detail(msgspec.Struct, rename="camel"):
    reason: str | None = None  # ErrorInfo
    retry_delay: str | None = None  # RetryInfo: seconds, "34.07s"
    violations: list[_Violation] = []  # QuotaFailure


class _Error(msgspec.Struct):
    code: int | None = None
    message: str | None = None
    status: str | None = None
    details: list[Any] = []


def failure(status: int, headers: Mapping[str, str], body: bytes) -> ProviderError:
    """What an error answer means (GATEWAY GERR-02). ``headers`` has lower-case names, ``body`` may be anything."""
    return error_answer(status, headers, body, _error)


def _error(found: Json, status: int | None, wait: float | None) -> ProviderError:
    """The google.rpc.Status in ``found``; ``status`` is None within a stream, where its code stands for it."""
    try:
        told = msgspec.convert(found.get("error", found), _Error)
    except msgspec.ValidationError:
        told = _Error(message=_encode(found).decode())
    status = status or told.code
    kind = _STATUSES.get(told.status or "") or (status_kind(status) if status is not None else "server")
    for detail in _details(told):
        kind = _REASONS.get(detail.reason or "", kind)
        if detail.retry_delay and (seconds := re.fullmatch(r"(\d+(\.\d+)?)s", detail.retry_delay)):
            wait = float(seconds[1])
        if kind == "rate_limit" and any("PerDay" in violation.quota_id for violation in detail.violations):
            kind = "quota"  # it comes back at midnight, whatever the delay says
    message = masked(told.message) if told.message else f"The endpoint answered HTTP {status} without a message."
    return ProviderError(kind, message[:2000], status=status, retry_after=wait)


def _details(told: _Error) -> Iterator[_Detail]:
    for detail in told.details:
        with contextlib.suppress(msgspec.ValidationError):  # of another type, with other fields of these names
            yield msgspec.convert(detail, _Detail)


# --- the answer ----------------------------------------------------------------------------------------------------


class _FunctionCall(msgspec.Struct):
    name: str | None = None
    id: str | None = None
    args: Json | None = None


class _Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    thought: bool = False
    thought_signature: str | None = None
    function_call: _FunctionCall | None = None


class _Content(msgspec.Struct):
    parts: list[_Part] | None = None


class _Candidate(msgspec.Struct, rename="camel"):
    index: int = 0
    content: _Content | None = None
    finish_reason: str | None = None
    finish_message: str | None = None
    grounding_metadata: Json | None = None


class _Feedback(msgspec.Struct, rename="camel"):
    block_reason: str | None = None


class _Counts(msgspec.Struct, rename="camel"):
    prompt_token_count: int = 0
    tool_use_prompt_token_count: int = 0
    cached_content_token_count: int = 0
    candidates_token_count: int = 0
    thoughts_token_count: int = 0


class _Response(msgspec.Struct, rename="camel"):
    candidates: list[_Candidate] | None = None
    prompt_feedback: _Feedback | None = None
    usage_metadata: _Counts | None = None
    error: Any = None
    response_id: str | None = None
    model_version: str | None = None


_decode = msgspec.json.Decoder(_Response).decode

# GATEWAY FR-12, but for what stopped the answer against the model's will: a recitation was cut by a filter, and an
# answer that is no answer (`_BROKEN`) must not look like one.
_FINISH: dict[str, FinishReason] = {
    "STOP": "stop",
    "OTHER": "stop",
    "FINISH_REASON_UNSPECIFIED": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "BLOCKLIST": "content_filter",
    "SPII": "content_filter",
    "LANGUAGE": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "MODEL_ARMOR": "content_filter",
}
_BROKEN = frozenset(
    "MALFORMED_FUNCTION_CALL MALFORMED_RESPONSE UNEXPECTED_TOOL_CALL TOO_MANY_TOOL_CALLS "
    "MISSING_THOUGHT_SIGNATURE".split()
)


class AnswerDecoder(EventDecoder):
    """The `Decoder` of this dialect. Nothing marks the end of an answer but that of its body."""

    def __init__(self) -> None:
        super().__init__()
        self._calls = 0
        self._usage: Usage | None = None

    def read(self, data: bytes) -> Iterator[Chunk]:
        """The chunks of one event. Raises `ProviderError`: its error, or ``malformed``."""
        try:
            found = _decode(data)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            said = f"The endpoint sent something that is not generated content: {error}"
            raise ProviderError("malformed", said) from None
        yield from self._read(found)

    def finish(self) -> Finish:
        """The last chunk."""
        reason = _FINISH.get(self.reason or "STOP", "stop")
        return Finish("tool_calls" if reason == "stop" and self._calls else reason, self._usage, self.reason)

    def _read(self, response: _Response) -> Iterator[Chunk]:
        if response.error is not None:
            raise _error({"error": response.error}, None, None)
        self.id, self.model = response.response_id or self.id, response.model_version or self.model
        if response.usage_metadata is not None:
            self._usage = _usage(response.usage_metadata)  # each is the whole so far
        if response.prompt_feedback is not None and response.prompt_feedback.block_reason:
            self.reason = "SAFETY"  # the prompt was refused: there will be no candidate
        for candidate in response.candidates or ():
            if candidate.index:  # candidateCount is never sent, so there is one
                continue
            for part in (candidate.content and candidate.content.parts) or ():
                if part.text:
                    yield ThinkingDelta(part.text) if part.thought else TextDelta(part.text)
                if part.function_call is not None:
                    yield self._call(part.function_call, part.thought_signature)
            if candidate.grounding_metadata:
                yield Extra("groundingMetadata", candidate.grounding_metadata)
            if candidate.finish_reason in _BROKEN:
                said = f": {masked(candidate.finish_message)}" if candidate.finish_message else "."
                raise ProviderError("server", f"The model gave up with reason {candidate.finish_reason}{said}")
            self.reason = candidate.finish_reason or self.reason

    def _call(self, call: _FunctionCall, signature: str | None) -> ToolCallDelta:
        if not call.name:
            raise ProviderError("malformed", "The endpoint sent a tool call without a function name.")
        index, self._calls = self._calls, self._calls + 1
        arguments = _encode(call.args or {}).decode()
        return ToolCallDelta(index, call.id or new_id("call"), call.name, arguments, signature)


def _usage(found: _Counts) -> Usage:
    """Our counts are totals: Google counts thoughts apart from the answer, and the cached part within the prompt."""
    return Usage(
        found.prompt_token_count + found.tool_use_prompt_token_count,
        found.candidates_token_count + found.thoughts_token_count,
        found.cached_content_token_count,
        found.thoughts_token_count,
    )
