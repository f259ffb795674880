"""Runs as a client of the API drives them: start, wait, submit, look. Plain HTTP through `Client`.

Waiting here polls a server in another thread; what depends on time is moved with `loomgate.clock.advance`.
"""

import json
import time
from collections.abc import Callable
from typing import Any

from loomgate import clock
from tests.support import openapi, sse
from tests.support.server import BETA, Client

ACTIVE = ("queued", "in_progress", "requires_action", "cancelling")
TERMINAL = ("cancelled", "failed", "completed", "incomplete", "expired")
SETTLED = (*TERMINAL, "requires_action")
TTL = 600

F = {"type": "function", "function": {"name": "f"}}
G = {"type": "function", "function": {"name": "g"}}
CALL = "/call f\n/turn\n/say Done."

_PATIENCE = 15.0
_DAY = 86400


def path(run: dict[str, Any], tail: str = "") -> str:
    """The run's own path, below the prefix."""
    return f"/threads/{run['thread_id']}/runs/{run['id']}{tail}"


def start(client: Client, *texts: str, **fields: Any) -> dict[str, Any]:
    """A new run on a new thread with these user messages; ``fields`` are the run's (``assistant_id`` if given)."""
    thread = client.thread(*texts)
    return again(client, thread["id"], **fields)


def again(client: Client, thread_id: str, **fields: Any) -> dict[str, Any]:
    """A new run on a thread that exists."""
    given = {"assistant_id": fields["assistant_id"] if "assistant_id" in fields else client.assistant()["id"], **fields}
    return client.post(f"/threads/{thread_id}/runs", given)


def load(client: Client, run: dict[str, Any]) -> dict[str, Any]:
    """The run as it is now."""
    return client.get(path(run))


def eventually(look: Callable[[], Any]) -> Any:
    """The first answer of ``look`` that is true."""
    until = clock.monotonic() + _PATIENCE
    while not (found := look()):
        assert clock.monotonic() < until, "waited in vain"
        time.sleep(0.005)  # noqa: TID251 - the server is in a thread of its own and tells nobody
    return found


def settle(client: Client, run: dict[str, Any], *statuses: str) -> dict[str, Any]:
    """The run once it has one of ``statuses`` (by default: once a poller would stop)."""
    wanted = statuses or SETTLED

    def look() -> dict[str, Any] | None:
        found = load(client, run)
        if found["status"] in wanted:
            return found
        assert found["status"] not in TERMINAL, found
        return None

    return eventually(look)


def hurried(client: Client, run: dict[str, Any], step: float = 1.0) -> dict[str, Any]:
    """`settle`, while time passes quickly: nothing waits for a back-off."""

    def look() -> dict[str, Any] | None:
        found = load(client, run)
        if found["status"] in SETTLED:
            return found
        clock.advance(step)
        return None

    return eventually(look)


def play(client: Client, *texts: str, **fields: Any) -> dict[str, Any]:
    """A run played to where it settles."""
    return settle(client, start(client, *texts, **fields))


def waiting(client: Client, script: str = CALL, **fields: Any) -> dict[str, Any]:
    """A run in ``requires_action``."""
    run = play(client, script, **{"tools": [F, G], **fields})
    assert run["status"] == "requires_action", run
    return run


def calls(run: dict[str, Any]) -> list[dict[str, Any]]:
    """The calls that the run waits for."""
    return run["required_action"]["submit_tool_outputs"]["tool_calls"]


def submit(client: Client, run: dict[str, Any], *outputs: str, status: int = 200) -> Any:
    """Answer the run's calls in order; the last of ``outputs`` goes to the rest of them."""
    given = list(outputs) or ["out"]
    body = [
        {"tool_call_id": call["id"], "output": given[min(index, len(given) - 1)]}
        for index, call in enumerate(calls(run))
    ]
    return client.post(path(run, "/submit_tool_outputs"), {"tool_outputs": body}, status=status)


def steps(client: Client, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The run's steps, oldest first."""
    return client.get(path(run, "/steps?order=asc&limit=100"))["data"]


def written(client: Client, run: dict[str, Any]) -> list[dict[str, Any]]:
    """The messages that the run wrote, oldest first."""
    return client.get(f"/threads/{run['thread_id']}/messages?run_id={run['id']}&order=asc&limit=100")["data"]


def thread_messages(client: Client, run: dict[str, Any]) -> list[dict[str, Any]]:
    """All messages of the run's thread, oldest first."""
    return client.get(f"/threads/{run['thread_id']}/messages?order=asc&limit=100")["data"]


def text_of(message: dict[str, Any]) -> str:
    """The text of a message that has one text."""
    (part,) = message["content"]
    return part["text"]["value"]


def stream(client: Client, url: str, body: dict[str, Any]) -> list[tuple[str, Any]]:
    """The events of a streamed call, names and parsed data, each held against the description."""
    response = client.raw("POST", client.prefix + url, json.dumps({**body, "stream": True}).encode(), BETA)
    assert response.status == 200, response.body
    found = sse.parse(response.body)
    return [(event.name, json.loads(event.data)) for event in found if event.name != "done"]


def error(message: str, *, param: str | None = None, code: str | None = None) -> dict[str, Any]:
    """The inner object of an error answer whose type is ``invalid_request_error``."""
    return {"message": message, "type": "invalid_request_error", "param": param, "code": code}


class Lives:
    """Brings runs into any status and keeps them there.

    ``free`` is a server with room for runs; ``busy`` drives one run at a time and is made to be at it for hours, so
    that there a new run stays ``queued`` and a cancelled one ``cancelling``, and nothing happens in the background.
    """

    def __init__(self, free: Client, busy: Client) -> None:
        self.free = free
        self.busy = busy
        self._hog: dict[str, Any] | None = None

    def hog(self) -> None:
        """Make sure that the busy server's worker has its hands full."""
        if self._hog is None or load(self.busy, self._hog)["status"] != "in_progress":
            options = {"expires_after_seconds": _DAY}
            self._hog = start(self.busy, "/wait 86400", loomgate=options)
            settle(self.busy, self._hog, "in_progress")

    def rest(self) -> None:
        """Let the busy server's worker have its hands free."""
        if self._hog is not None:
            self.busy.post(path(self._hog, "/cancel"))
            settle(self.busy, self._hog, "cancelled")
            self._hog = None

    def __call__(self, status: str) -> tuple[Client, dict[str, Any]]:
        """A client and its run that now has ``status``; the thread has one user message."""
        client = self.busy if status in ("queued", "cancelling") else self.free
        if status in ("queued", "cancelling"):
            self.hog()
            run = start(client, "/say Hello.")
            if status == "cancelling":
                run = client.post(path(run, "/cancel"))
        elif status == "in_progress":
            run = settle(client, start(client, "/say Hel\n/wait 900"), status)
            eventually(lambda: steps(client, run))
        elif status == "requires_action":
            run = waiting(client)
        elif status == "cancelled":
            run = waiting(client)
            client.post(path(run, "/cancel"))
            run = settle(client, run, status)
        elif status == "failed":
            run = play(client, "/say Hel\n/error 400")
        elif status == "completed":
            run = play(client, "/say Hello.")
        elif status == "incomplete":
            run = play(client, "/repeat 300 word", max_completion_tokens=256)
        else:
            run = waiting(client)
            clock.advance(TTL + 1)
            run = settle(client, run, status)
        assert run["status"] == status, run
        return client, run

    def end(self, client: Client, run: dict[str, Any]) -> None:
        """Make an active run terminal, in whatever way fits."""
        if load(client, run)["status"] in ACTIVE:
            clock.advance(TTL + 1)
            assert load(client, run)["status"] in TERMINAL


def documented(component: str, *fields: str) -> set[str]:
    """The values that the official description allows for a field of a component."""
    node = openapi.resolve(openapi.ref(component))
    for field in fields:
        node = node["properties"][field]
        node = node.get("anyOf", [node])[0]
    return set(node["enum"])
