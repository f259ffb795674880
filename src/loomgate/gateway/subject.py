"""What guardrails look at: a request or an answer, and the texts in it that count (GATEWAY GR-07).

What must live here: where an endpoint's bodies keep their text, and how it is put back. What must not: what is
wanted of the text (``checks.py``), or when it is looked at (``guardrails.py``).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import msgspec

from loomgate.wire.endpoints import ENDPOINTS, EndpointName

Side = Literal["input", "output"]
Body = dict[str, Any]


class Subject(msgspec.Struct, frozen=True, kw_only=True):
    """A request before its call (``side`` input) or with its answer (output).

    ``fields`` is the body that goes to the provider, ``answer`` the whole answer in the client's format, for a stream
    what was gathered of it. ``headers`` are the client's, names in lower case. Nothing in here is ever changed: what
    changes a body makes a new one, of which ``transformed`` is true.
    """

    side: Side
    endpoint_name: EndpointName
    fields: Body
    answer: Body | None = None
    metadata: Mapping[str, str] = {}
    provider: str = ""
    model: str | None = None
    headers: Mapping[str, str] = {}
    transformed: bool = False

    @property
    def request_type(self) -> str:
        """The endpoint under the reference's name for it, such as ``chatComplete``."""
        return ENDPOINTS[self.endpoint_name].inner

    @property
    def content(self) -> Any:
        """The part of the body that `parts` are from, as it stands there; None if there is none."""
        return _output_content(self) if self.side == "output" else _input_content(self.fields)

    @property
    def parts(self) -> list[str | None]:
        """The texts that count, None in the place of whatever is no text (an image, a tool call)."""
        content = self.content
        if isinstance(content, str):
            return [content]
        if not isinstance(content, list):
            return []
        return [_text_of(item) for item in cast(list[Any], content)]

    @property
    def text(self) -> str:
        """`parts`, joined by newlines; "" if there is none."""
        return "\n".join(part for part in self.parts if part)

    @property
    def asked_model(self) -> str | None:
        """The model of the body, or else the one that the pipeline knows of."""
        found = self.fields.get("model")
        return found if isinstance(found, str) and found else self.model

    def with_parts(self, parts: Sequence[str | None]) -> "Subject":
        """The same with ``parts`` (as many as `parts`) as its texts; where one is None nothing changes."""
        content = self.content
        if isinstance(content, str):
            new: Any = content if parts[0] is None else parts[0]
        else:
            items = cast(list[Any], content or [])
            new = [item if part is None else _with_text(item, part) for item, part in zip(items, parts, strict=True)]
        if self.side == "output":
            assert self.answer is not None
            return self.with_body(_with_output(self, self.answer, new))
        return self.with_body(_with_input(self.fields, new))

    def with_body(self, body: Body) -> "Subject":
        """The same with ``body`` as its answer (output) or its fields (input)."""
        if self.side == "output":
            return msgspec.structs.replace(self, answer=body, transformed=True)
        return msgspec.structs.replace(self, fields=body, transformed=True)


def _text_of(item: Any) -> str | None:
    if isinstance(item, str):
        return item
    if isinstance(item, dict):
        found = cast(Body, item).get("text")
        return found if isinstance(found, str) else None
    return None  # tokens, in prompts and inputs


def _with_text(item: Any, text: str) -> Any:
    return {**cast(Body, item), "text": text} if isinstance(item, dict) else text


def _last(fields: Body) -> Body | None:
    messages = fields.get("messages")
    last = cast(list[Any], messages)[-1] if isinstance(messages, list) and messages else None
    return cast(Body, last) if isinstance(last, dict) else None


def _input_content(fields: Body) -> Any:
    if (last := _last(fields)) is not None:
        return last.get("content")
    return fields["prompt"] if fields.get("prompt") is not None else fields.get("input")


def _with_input(fields: Body, content: Any) -> Body:
    if (last := _last(fields)) is not None:
        return {**fields, "messages": [*fields["messages"][:-1], {**last, "content": content}]}
    return {**fields, ("prompt" if fields.get("prompt") is not None else "input"): content}


def _first_choice(answer: Body) -> Body:
    choices = answer.get("choices")
    first = cast(list[Any], choices)[0] if isinstance(choices, list) and choices else None
    return cast(Body, first) if isinstance(first, dict) else {}


def _output_content(subject: Subject) -> Any:
    answer = subject.answer or {}
    if subject.endpoint_name == "messages":
        return answer.get("content")
    choice = _first_choice(answer)
    if subject.endpoint_name == "complete":
        return choice.get("text")
    message = choice.get("message")
    return cast(Body, message).get("content") if isinstance(message, dict) else None


def _with_output(subject: Subject, answer: Body, content: Any) -> Body:
    if subject.endpoint_name == "messages":
        return {**answer, "content": content}
    first = _first_choice(answer)
    changed = (
        {**first, "text": content}
        if subject.endpoint_name == "complete"
        else {**first, "message": {**first["message"], "content": content}}
    )
    return {**answer, "choices": [changed, *answer["choices"][1:]]}
