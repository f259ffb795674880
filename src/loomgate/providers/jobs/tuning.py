"""OpenAI's training examples, taken apart for vendors that write them otherwise.

What must live here: one example as turns of text. What must not: a vendor's way of writing them.
"""

from typing import Any, cast

from loomgate.providers.jobs.lines import object_of_line, wrong

_ROLES = ("system", "developer", "user", "assistant")


def turns(at: int, raw: bytes) -> tuple[str, list[tuple[str, str]]]:
    """The system's text, and the turns of ``user`` and ``assistant``, of the example in line ``at``.

    Raises a 400 `ApiError` for one that has more than texts (calls of functions, pictures).
    """
    found: Any = object_of_line(at, raw)
    messages = found.get("messages")
    if not isinstance(messages, list) or not messages or set(found) != {"messages"}:
        raise wrong(at, "expected an example with 'messages' alone.")
    system: list[str] = []
    made: list[tuple[str, str]] = []
    for message in cast("list[Any]", messages):
        told = cast("dict[str, Any]", message) if isinstance(message, dict) else {}
        role, text = told.get("role"), told.get("content")
        if role not in _ROLES or not isinstance(text, str) or set(told) != {"role", "content"}:
            raise wrong(at, f"expected messages of {', '.join(_ROLES)} with a text, and nothing else.")
        if role in ("system", "developer"):
            system.append(text)
        else:
            made.append((role, text))
    return "\n".join(system), made
