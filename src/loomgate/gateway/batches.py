"""``GET /v1/batches/{id}/output``: two questions to the vendor, one answer (GATEWAY RT-02).

What must live here: that no vendor has this endpoint, and what is asked instead. What must not: which way the two calls
go; both go the request's own.
"""

from collections.abc import Awaitable, Callable
from urllib.parse import quote

import msgspec

from loomgate.errors import ApiError
from loomgate.gateway.call import Answer, Request
from loomgate.wire.endpoints import ENDPOINTS, Endpoint

_LONGEST = 4 * 1024 * 1024  # bytes of a batch object
_OUTPUT = "/output"
_MODEL = "x-portkey-provider-model"


class _Batch(msgspec.Struct):
    status: str = ""
    model: str | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None


def wants_output(request: Request) -> bool:
    """Is ``request`` for the output of a batch?"""
    return request.endpoint.name == "batches" and request.method == "GET" and request.path.endswith(_OUTPUT)


async def output(request: Request, call: Callable[[Request], Awaitable[Answer]]) -> Answer:
    """The content of the batch's output file, or of its file of errors if no line of it succeeded; what the vendor
    refuses is answered as it is. ``call`` is `Gateway.call`. Raises a 404 `ApiError` while there is no such file."""
    first = await call(_asking(request, ENDPOINTS["batches"], request.path.removesuffix(_OUTPUT)))
    if first.status != 200:
        return first
    body = first.body
    if body is None and first.stream is not None:
        pieces: list[bytes] = []
        async for piece in first.stream:
            pieces.append(piece)
            if sum(map(len, pieces)) > _LONGEST:
                break
        body = b"".join(pieces)
        await first.close()
    try:
        batch = msgspec.json.decode(body or b"", type=_Batch)
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError(502, "The vendor's answer is not a batch.", type="api_error", code="malformed") from None
    file = batch.output_file_id or batch.error_file_id
    if not file:
        raise ApiError(404, f"This batch has no output: its status is '{batch.status[:50]}'.", code="no_batch_output")
    asking = _asking(request, ENDPOINTS["files"], f"/files/{quote(file, safe='')}/content")
    if batch.model and _MODEL not in asking.headers:
        # Where a file's lines are translated, not all of them tell what model has answered (TR-25).
        asking.headers = {**asking.headers, _MODEL: batch.model}
    return await call(asking)


def _asking(request: Request, endpoint: Endpoint, path: str) -> Request:
    return Request(
        endpoint,
        request.naming,
        request.workspace,
        method="GET",
        path=path,
        headers=request.headers,
        content_type="",
    )
