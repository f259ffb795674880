"""A client's request as the gateway hands it to an operation."""

import json
from typing import Any


class Ask:
    """JSON from ``fields``, or ``body`` as it is."""

    def __init__(
        self,
        *,
        path: str = "",
        fields: dict[str, Any] | None = None,
        body: bytes = b"",
        method: str = "POST",
        query: str = "",
        headers: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> None:
        self.path = path
        self.method = method
        self.query = query
        self.headers = headers or {"content-type": content_type}
        self.content_type = content_type
        self.body = json.dumps(fields).encode() if fields is not None else body
