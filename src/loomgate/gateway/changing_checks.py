"""The checks that are there to change the text (GATEWAY GR-21, GR-22).

What must live here: what becomes of a body. What must not: whether the change holds (``guardrails.py``).
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from loomgate.gateway.patterns import Pattern, Template
from loomgate.gateway.subject import Subject
from loomgate.gateway.verdicts import Door, Finding, Parameters, Run


class RegexReplace(Parameters, frozen=True):
    """``redactText`` comes in the place of every match of ``rule``; ``failOnDetection`` makes a match a failure."""

    rule: Annotated[str, Meta(min_length=1)]
    redact_text: str = "[REDACTED]"
    fail_on_detection: bool = False


def prepare_regex_replace(wanted: RegexReplace) -> Run:
    """The check ``regexReplace``."""
    pattern, template = Pattern(wanted.rule), Template(wanted.redact_text)

    async def run(subject: Subject, _: Door) -> Finding:
        parts = subject.parts
        if not any(parts):
            return Finding.failed("There is no text to match")
        try:
            new = [part and await pattern.replaced(part, template) for part in parts]
        except TimeoutError as error:
            return Finding.failed(str(error) or "The pattern took too long on this text", "TimeoutError")
        found = any(part is not None for part in new)
        verdict = not (found and wanted.fail_on_detection)
        said = f"matched and was replaced with '{wanted.redact_text}'" if found else "did not match any text"
        data = {
            "regexPattern": wanted.rule,
            "verdict": verdict,
            "explanation": f"The pattern '{wanted.rule}' {said}.",
        }
        return Finding(verdict, data, changed=subject.with_parts(new) if found else None)

    return run


class AddPrefix(Parameters, frozen=True):
    """``prefix`` comes before the first message of ``applyToRole``, or before the prompt.

    ``addToExisting`` false: as a message of its own. ``onlyIfEmpty``: only when there is no such message.
    """

    prefix: Annotated[str, Meta(min_length=1)]
    apply_to_role: Literal["system", "developer", "user", "assistant"] = "user"
    add_to_existing: bool = True
    only_if_empty: bool = False


def prepare_add_prefix(wanted: AddPrefix) -> Run:
    """The check ``addPrefix``."""
    told = {
        name: value for name, value in msgspec.to_builtins(wanted).items() if name not in ("failOnError", "is_enabled")
    }

    def run(subject: Subject, _: Door) -> Finding:
        fields = _prefixed(subject, wanted)
        changed = None if fields is None else subject.with_body(fields)
        return Finding(True, {**told, "requestType": subject.request_type}, changed=changed)

    return run


def _prefixed(subject: Subject, wanted: AddPrefix) -> dict[str, Any] | None:
    """The body with the prefix; None if it has no place for it."""
    fields, prefix = subject.fields, wanted.prefix
    if subject.endpoint_name == "complete":
        prompt = fields.get("prompt")
        if isinstance(prompt, str):
            return {**fields, "prompt": prefix + prompt}
        if isinstance(prompt, list) and any(isinstance(item, str) for item in cast(list[Any], prompt)):
            items = cast(list[Any], prompt)
            return {**fields, "prompt": [prefix + item if isinstance(item, str) else item for item in items]}
        return None
    if subject.endpoint_name not in ("chat", "messages") or not isinstance(fields.get("messages"), list):
        return None
    if subject.endpoint_name == "messages" and wanted.apply_to_role in ("system", "developer"):
        # Anthropic's format has one system prompt, beside the messages.
        system = fields.get("system")
        if system and wanted.only_if_empty:
            return None
        separate = not wanted.add_to_existing
        return {**fields, "system": _before(prefix, system, separate=separate) if system else prefix}
    messages = cast(list[Any], fields["messages"])
    own = {"role": wanted.apply_to_role, "content": prefix}
    for at, message in enumerate(messages):
        if isinstance(message, dict) and cast(Mapping[str, Any], message).get("role") == wanted.apply_to_role:
            if wanted.only_if_empty:
                return None
            old = cast(dict[str, Any], message)
            if not wanted.add_to_existing:
                return {**fields, "messages": [*messages[:at], own, *messages[at:]]}
            new = {**old, "content": _before(prefix, old.get("content"))}
            return {**fields, "messages": [*messages[:at], new, *messages[at + 1 :]]}
    first = wanted.apply_to_role in ("system", "developer")
    return {**fields, "messages": [own, *messages] if first else [*messages, own]}


def _before(prefix: str, content: Any, *, separate: bool = False) -> Any:
    """``content``, a text or an array of parts, with ``prefix`` before its text; ``separate``: as a part of its own."""
    if not isinstance(content, list):
        old = content if isinstance(content, str) else ""
        if not separate:
            return prefix + old
        content = [{"type": "text", "text": old}]
    parts = cast(list[Any], content)
    head = cast(dict[str, Any], parts[0]) if parts and isinstance(parts[0], dict) else {}
    if not separate and isinstance(head.get("text"), str):
        return [{**head, "text": prefix + head["text"]}, *parts[1:]]
    return [{"type": "text", "text": prefix}, *parts]
