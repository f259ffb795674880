"""Files and jobs of vendors that have their own (GATEWAY TR-25): one request of a client, several to the vendor.

What must live here: what `providers/jobs` are given to work with, and the answer that comes of it. What must not: what
a vendor is asked.
"""

from collections.abc import Awaitable, Callable
from urllib.parse import urlsplit

import msgspec

from loomgate import clock
from loomgate.errors import ApiError, ProviderError
from loomgate.gateway.call import Answer, Fields, Request
from loomgate.gateway.fronts import FRONTS
from loomgate.gateway.fronts.front import About
from loomgate.providers.dialect import Auth, Dialect, HttpCall, Target
from loomgate.providers.jobs.job import Task, Verbs, verb_of
from loomgate.providers.transport import Reply
from loomgate.wire.chat import Chat
from loomgate.wire.ids import new_id

JOBS = frozenset({"files", "batches", "fine_tuning"})
_CHAT = FRONTS["chat"]
_JSON = [(b"content-type", b"application/json")]
_LINES = [(b"content-type", b"application/octet-stream")]

Send = Callable[[HttpCall, Auth | None], Awaitable[Reply]]
Fetch = Callable[[HttpCall], Awaitable[Reply]]


class _Means:
    """See `providers.jobs.job.Means`."""

    def __init__(self, target: Target, provider: str, send: Send, fetch: Fetch) -> None:
        self._target = target
        self._provider = provider
        self._send = send
        self._fetch = fetch

    async def send(self, call: HttpCall, auth: Auth | None) -> Reply:
        """See `Means.send`."""
        return await self._send(call, auth)

    async def fetch(self, call: HttpCall) -> Reply:
        """See `Means.fetch`."""
        theirs, ours = urlsplit(call.url), urlsplit(self._target.base_url)
        if (theirs.scheme, theirs.netloc) != (ours.scheme, ours.netloc) or self._target.public_only:
            if theirs.scheme not in ("http", "https"):
                raise ProviderError("malformed", f"{self._provider} told an address that is none of the web's.")
            call = msgspec.structs.replace(call, public_only=True)
        return await self._fetch(call)

    def chat(self, fields: Fields) -> Chat:
        """See `Means.chat`."""
        return _CHAT.chat(fields)

    def completion(self, dialect: Dialect, body: bytes, model: str) -> Fields:
        """See `Means.completion`."""
        decoder = dialect.decoder()
        chunks = [*decoder.feed(body), *decoder.end()]
        about = About(
            id=decoder.id or new_id("chatcmpl"),
            created=clock.timestamp(),
            model=decoder.model or model,
            provider=self._provider,
        )
        return _CHAT.whole(chunks, about)


async def worked(
    request: Request, target: Target, provider: str, fields: Fields, verbs: Verbs, ways: tuple[Send, Fetch]
) -> Answer | str:
    """The answer to a request about files or jobs, or the name of what the vendor does not have.

    ``ways``: to the vendor, and to where it sends us. Raises `ApiError` for what cannot be asked, `ProviderError` for
    what the vendor refuses.
    """
    name, id = verb_of(request.endpoint.name, request.method, request.path)
    verb = verbs.get(name)
    if verb is None:
        return name
    source = request.source
    if source is not None and source.failure is not None:  # what came is gone: a second try is told the first one's end
        raise source.failure
    means = _Means(target, provider, *ways)
    try:
        told = await verb(Task(asked=request, fields=fields, target=target, means=means, id=id, source=source))
    except (ApiError, ProviderError) as error:
        if isinstance(error, ProviderError) and error.status == 404:  # of a file or a job, not of a model
            error.kind = "invalid"
        if source is not None and source.spent:
            source.failure = error
        raise
    if told.pieces is None:
        return Answer(200, told.body, headers=[*_JSON])
    answer = Answer(200, stream=told.pieces, headers=[*_LINES])
    answer.release = told.release
    return answer
