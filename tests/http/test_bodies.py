"""Bodies: what is refused, with which words, code and place (BEHAVIOUR CONV-07 to -11, section 8)."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.support import invalid
from tests.support.server import Client, Server

_FUNCTION = {"type": "function", "function": {"name": "f"}}

# Operation -> its path and a body that is right.
_BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "createAssistant": ("/assistants", {"model": "scripted"}),
    "modifyAssistant": ("/assistants/{assistant}", {}),
    "createThread": ("/threads", {}),
    "modifyThread": ("/threads/{thread}", {}),
    "createMessage": ("/threads/{thread}/messages", {"role": "user", "content": "Hello"}),
    "modifyMessage": ("/threads/{thread}/messages/{message}", {}),
    "createRun": ("/threads/{thread}/runs", {"assistant_id": "{assistant}"}),
    "createThreadAndRun": ("/threads/runs", {"assistant_id": "{assistant}"}),
}


@pytest.fixture(scope="module")
def place(server: Server) -> tuple[Client, dict[str, str]]:
    client = server.client()
    thread = client.thread("Hello")
    message = client.get(f"/threads/{thread['id']}/messages")["data"][0]
    return client, {"assistant": client.assistant()["id"], "thread": thread["id"], "message": message["id"]}


@pytest.mark.behaviour(
    "CONV-08", "LIM-01", "LIM-02", "LIM-06", "LIM-07", "LIM-08", "LIM-09", "LIM-10", "LIM-11", "LIM-50", "LIM-51",
    "LIM-52", "LIM-53", "LIM-54", "LIM-55", "LIM-56", "LIM-57", "LIM-58", "LIM-59", "RUN-17", "RUN-88", "V1-02",
)  # fmt: skip
@pytest.mark.parametrize("operation", _BASES)
def test_every_violation_of_the_schema_is_refused_by_name(
    operation: str, place: tuple[Client, dict[str, str]]
) -> None:
    client, ids = place
    path, base = _BASES[operation]
    filled = {key: value.format(**ids) for key, value in base.items()}
    wrong: list[str] = []
    for row in invalid.invalid_bodies(operation, filled):
        response = client.raw("POST", "/v1" + path.format(**ids), json.dumps(row.body).encode())
        found = (response.status, response.json.get("error", {}).get("param"), response.json.get("error", {}).get("code"))
        expected = (400, row.param, row.code)
        if row.features and response.status in (400, 404):
            continue
        if row.code is None:
            found, expected = found[:2], expected[:2]
        if found != expected:
            wrong.append(f"{row.name}: {found}, expected {expected}: {response.body[:200]!r}")
    assert not wrong, "\n" + "\n".join(wrong)
