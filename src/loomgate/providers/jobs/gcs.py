"""Objects in Google Cloud Storage (JSON API v1): what is sent and what it means.

What must live here: addresses, resumable uploads. What must not: what is in an object.
"""

import re
from collections.abc import AsyncGenerator, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from loomgate.errors import ProviderError
from loomgate.providers.dialect import HttpCall
from loomgate.providers.gemini_answer import failure
from loomgate.providers.jobs.job import PAGE, Reply, Task, answered, decoded
from loomgate.providers.jobs.lines import encode, parts
from loomgate.providers.jobs.shapes import number, objects
from loomgate.providers.operation import Fields

# A part of an upload: held in memory, and a multiple of 256 KiB but for the last.
PART = 8 * 1024 * 1024
_MOST_TRIES = 5  # for what is left of a part that was taken in piecemeal
_HOST = "https://storage.googleapis.com"


def _base(task: Task) -> str:
    """Google's own address; behind any other one the storage is expected there as well."""
    target = task.target
    return (
        _HOST if target.base_url == target.vendor.base_url else re.sub(r"/v\d\w*/?$", "", target.base_url.rstrip("/"))
    )


def _url(task: Task, bucket: str, key: str = "", query: str = "") -> str:
    path = f"/storage/v1/b/{quote(bucket, safe='')}/o"
    return _base(task) + path + ("/" + quote(key, safe="") if key else "") + ("?" + query if query else "")


async def _send(
    task: Task, method: str, url: str, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> Reply:
    call = HttpCall(url, {**task.target.own_headers(), **(headers or {})}, body, method)
    return await task.means.send(call, task.target.auth)


async def put(
    task: Task, bucket: str, key: str, pieces: AsyncGenerator[bytes, None], meta: Mapping[str, str]
) -> Fields:
    """Write an object and return what is told of it. What was uploaded of one that fails is thrown away."""
    kind = {"Content-Type": "application/json", "X-Upload-Content-Type": "application/jsonl"}
    url = f"{_base(task)}/upload/storage/v1/b/{quote(bucket, safe='')}/o"
    described = encode({"contentType": "application/jsonl", "metadata": dict(meta)})
    begun = await _send(task, "POST", f"{url}?uploadType=resumable&name={quote(key, safe='')}", described, kind)
    await answered(begun, failure)
    session = begun.headers.get("location", "")
    if urlsplit(session)[:2] != urlsplit(url)[:2]:  # it is sent the token
        raise ProviderError("malformed", "Cloud Storage began an upload without telling where it goes on.")
    at = 0
    try:
        async for part, last in parts(pieces, PART):
            end = at + len(part)
            for _ in range(_MOST_TRIES):
                reply = await _more(task, session, part[at - end :] if at < end else b"", at, end if last else None)
                if reply.status != 308:
                    return decoded(await answered(reply, failure), "vertex-ai")
                reply.close()
                taken = reply.headers.get("range", "").rpartition("-")[2]
                had, at = at, max(at, number(taken) + 1 if taken else 0)
                if at >= end or at == had:
                    break
            if at < end or last:
                raise ProviderError("cut", "Cloud Storage did not take all of the file.")
    except BaseException:
        (await _send(task, "DELETE", session)).close()
        raise
    raise ProviderError("cut", "Cloud Storage did not take all of the file.")


async def _more(task: Task, session: str, data: bytes, at: int, total: int | None) -> Reply:
    """Upload ``data``, which begins at ``at``; ``total`` is known with the last of it."""
    which = f"{at}-{at + len(data) - 1}" if data else "*"
    return await _send(
        task, "PUT", session, data, {"Content-Range": f"bytes {which}/{'*' if total is None else total}"}
    )


async def head(task: Task, bucket: str, key: str) -> Fields:
    """What is told of an object. Raises `ProviderError`."""
    return decoded(await answered(await _send(task, "GET", _url(task, bucket, key)), failure), "vertex-ai")


async def get(task: Task, bucket: str, key: str) -> Reply:
    """An object's content. Its status may be that of an error."""
    return await _send(task, "GET", _url(task, bucket, key, "alt=media"))


async def delete(task: Task, bucket: str, key: str) -> None:
    """Raises `ProviderError`, also when there was no such object."""
    await answered(await _send(task, "DELETE", _url(task, bucket, key)), failure)


async def listed(task: Task, bucket: str, token: str) -> tuple[list[Fields], str]:
    """One page of what is told of a bucket's objects, and the token of the next one."""
    query = f"maxResults={PAGE}" + (f"&pageToken={quote(token, safe='')}" if token else "")
    found: Any = decoded(
        await answered(await _send(task, "GET", _url(task, bucket, query=query)), failure), "vertex-ai"
    )
    return objects(found, "items"), str(found.get("nextPageToken") or "")
