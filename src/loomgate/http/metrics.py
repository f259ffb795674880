"""``/metrics``: what Prometheus reads. From this machine without a key, from elsewhere with any API key."""

from typing import TYPE_CHECKING

from starlette.types import Scope

from loomgate.errors import ApiError
from loomgate.http.auth import whose_machine
from loomgate.http.call import Answer

if TYPE_CHECKING:
    from loomgate.gateway.telemetry import Metrics
    from loomgate.http.auth import Auth


async def metrics(metrics: "Metrics", auth: "Auth", scope: Scope) -> Answer:
    """The answer to a scrape. Raises 401 and 403 `ApiError` for whom it is not for."""
    headers: dict[bytes, bytes] = dict(scope["headers"])
    if scope["method"] not in ("GET", "HEAD"):
        allow = "GET, HEAD"
        message = f"Method {scope['method'][:20]} is not allowed here. Expected one of: {allow}."
        raise ApiError(405, message, headers={"allow": allow})
    if whose_machine(scope, headers) is not None:
        await auth.caller(scope, headers, azure=False, upstream=False)
    await metrics.refresh()
    text, content_type = metrics.render(headers.get(b"accept", b"").decode("latin-1"))
    return Answer(text, headers=[(b"content-type", content_type.encode("latin-1"))])
