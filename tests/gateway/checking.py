"""What the tests of checks share: subjects, and a check's finding on one."""

from typing import Any

import pytest

from loomgate.errors import ApiError
from loomgate.gateway.checks import prepare_check
from loomgate.gateway.subject import Side, Subject
from loomgate.gateway.verdicts import Door, Finding
from loomgate.providers.dialect import HttpCall
from loomgate.providers.transport import Reply, Timeouts


def asked(text: Any = "hello", **more: Any) -> Subject:
    """A chat request with ``text`` as its last message."""
    messages = [{"role": "system", "content": "be brief"}, {"role": "user", "content": text}]
    fields = {"model": "gpt-4o", "messages": messages, **more.pop("fields", {})}
    return Subject(side="input", endpoint_name="chat", fields=fields, **more)


def answered(text: Any, **more: Any) -> Subject:
    """A chat request with ``text`` as its answer."""
    answer = {"choices": [{"index": 0, "message": {"role": "assistant", "content": text}}]}
    return Subject(side="output", endpoint_name="chat", fields=asked().fields, answer=answer, **more)


async def nobody(call: HttpCall, _: Timeouts) -> Reply:
    raise AssertionError(f"{call.url} was called")


async def find(check: str, parameters: dict[str, Any], subject: Subject, door: Door | None = None) -> Finding:
    run = prepare_check(check, parameters, subject.side, "guardrails[0]").run
    found = run(subject, door or Door(nobody, lambda url: False))
    return found if isinstance(found, Finding) else await found


async def verdict(check: str, parameters: dict[str, Any], text: Any, side: Side = "output") -> bool:
    found = await find(check, parameters, answered(text) if side == "output" else asked(text))
    assert found.error is None, found.error
    return found.verdict


def refused(check: str, parameters: Any, side: Side = "output") -> str:
    with pytest.raises(ApiError) as caught:
        prepare_check(check, parameters, side, "output_guardrails[2]")
    assert caught.value.status == 400
    assert caught.value.param == "output_guardrails[2]"
    assert check in caught.value.message
    return caught.value.message
