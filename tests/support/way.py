"""A client of the gateway with everything named in headers: where to, with whose key.

What must live here: what the tests of the gateway's HTTP say again and again. What must not: expectations.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.support.server import Client, Response
from tests.support.standin import StandIn

OWN = "sk-own-provider-key-0123456789"


@dataclass
class Way:
    """``key`` is this server's, `OWN` the client's for the vendor, ``base`` the custom host's path."""

    url: str
    key: str
    upstream: StandIn
    provider: str = "openai"
    base: str = "/v1"
    headers: dict[str, str] = field(default_factory=dict)

    def named(self, **headers: str) -> "Way":
        """The same with these headers, ``strict_open_ai_compliance`` for ``x-portkey-strict-open-ai-compliance``."""
        more = {"x-portkey-" + name.replace("_", "-"): value for name, value in headers.items()}
        return Way(self.url, self.key, self.upstream, self.provider, self.base, self.headers | more)

    def at(self, provider: str, base: str = "") -> "Way":
        """The same with another vendor's name."""
        return Way(self.url, self.key, self.upstream, provider, base, self.headers)

    def config(self, config: Mapping[str, Any]) -> "Way":
        """By an inline config whose targets are here, unless they say where: nothing else is named."""
        return self.named(config=json.dumps(self.placed(config)), provider="", custom_host="")

    def placed(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """``config`` with provider, address and key in each of its leaves."""
        if "targets" in config:
            return {**config, "targets": [self.placed(target) for target in config["targets"]]}
        here = {"provider": self.provider, "custom_host": self.upstream.url + self.base, "api_key": OWN}
        return {**here, **config}

    def sent(self) -> dict[str, str]:
        """The headers of every request."""
        return {
            "x-portkey-api-key": self.key,
            "x-portkey-provider": self.provider,
            "x-portkey-custom-host": self.upstream.url + self.base,
            "Authorization": f"Bearer {OWN}",
            **self.headers,
        }

    def raw(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Response:
        """Send these bytes to ``path`` below ``/v1``; a header with the value "" is left out."""
        more = {name.replace("_", "-"): value for name, value in headers.items()}
        return Client(self.url, None, headers=self.sent()).raw(method, "/v1" + path, body, more, check=False)

    def post(self, path: str, body: Any, **headers: str) -> Response:
        """Send ``body`` as JSON."""
        return self.raw("POST", path, json.dumps(body).encode(), **headers)

    def chat(self, *texts: str, **fields: Any) -> Response:
        """A chat completion."""
        messages = [{"role": "user", "content": text} for text in texts or ("Hello",)]
        return self.post("/chat/completions", {"model": "gpt-4o-mini", "messages": messages, **fields})
