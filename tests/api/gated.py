"""A server whose runs go through the gateway to two stand-in endpoints, and a client that says which way."""

import json
from typing import Any

from loomgate import clock
from tests.api.driving import eventually, text_of, written
from tests.support.server import BETA, Client, Server
from tests.support.upstream import ModelEndpoint

KEY_A, KEY_B = "sk-operator-a-0123456789abcdef", "sk-operator-b-0123456789abcdef"


class Site:
    """A server with providers ``a`` and ``b``, each with an endpoint of its own."""

    def __init__(self, server: Server, a: ModelEndpoint, b: ModelEndpoint) -> None:
        self.server, self.a, self.b = server, a, b

    def client(self, workspace: str | None = None, **headers: Any) -> Client:
        """A client that sends ``headers`` besides; underscores stand for hyphens, a dict is sent as JSON."""
        given = {
            "x-portkey-" + name.replace("_", "-"): value if isinstance(value, str) else json.dumps(value)
            for name, value in headers.items()
        }
        own = given.pop("x-portkey-own-key", None)
        named = {**BETA, "x-portkey-api-key": self.server.new_key(workspace), **given}
        return Client(self.server.url, None, headers={**named, "Authorization": f"Bearer {own}"} if own else named)

    @property
    def asked(self) -> tuple[int, int]:
        """How often each endpoint was asked."""
        return len(self.a.requests), len(self.b.requests)

    def workspace(self, client: Client) -> str:
        return client.raw("GET", "/v1/assistants").headers["openai-organization"]

    def logs(self, client: Client, run: dict[str, Any], count: int = 1) -> list[dict[str, Any]]:
        """The records of the run's model calls, oldest first, once there are ``count``."""

        def look() -> list[dict[str, Any]] | None:
            clock.advance(1)
            found = client.raw("GET", "/v1/logs?limit=100", check=False).json["data"]
            own = [record for record in found if record["loomgate"]["run_id"] == run["id"]]
            return own[::-1] if len(own) >= count else None

        return eventually(look)


def fallback(*providers: str, **more: Any) -> dict[str, Any]:
    return {"strategy": {"mode": "fallback"}, "targets": [{"provider": name} for name in providers], **more}


def said(client: Client, run: dict[str, Any]) -> list[str]:
    return [text_of(message) for message in written(client, run)]
