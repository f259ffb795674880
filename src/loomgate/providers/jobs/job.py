"""What it takes to do one request about a file or a job, which may be several to the vendor.

What must live here: the plain values around it, which verb a request means, and how lists are paged. What must not: a
vendor.
"""

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote

import msgspec

from loomgate.errors import ApiError, ProviderError
from loomgate.providers.dialect import Auth, Dialect, HttpCall, Target
from loomgate.providers.operation import Asked, Fields, encode, refused
from loomgate.wire.chat import Chat
from loomgate.wire.endpoints import EndpointName

_LONGEST = 4 * 1024 * 1024  # bytes of a vendor's answer about a job, or of one page of them
PAGE = 100  # objects of a vendor's list that are asked for at once, and the most that a client gets
_MOST_PAGES = 50  # that are looked through for the object that a client has seen last


class Reply(Protocol):
    """An answer of the vendor: `transport.Reply`."""

    @property
    def status(self) -> int: ...  # noqa: D102
    @property
    def headers(self) -> Mapping[str, str]: ...  # noqa: D102
    async def piece(self) -> bytes: ...  # noqa: D102
    async def read(self, limit: int) -> bytes: ...  # noqa: D102
    def close(self) -> None: ...  # noqa: D102


class Means(Protocol):
    """What the gateway gives: the way out, and the client's format of a model call."""

    async def send(self, call: HttpCall, auth: Auth | None) -> Reply:
        """The vendor's answer, whatever its status; ``auth`` proves the call, if its headers do not already."""
        ...

    async def fetch(self, call: HttpCall) -> Reply:
        """The same at an address that the vendor has told, without any proof of ours; it must be a public one, unless
        it is where the vendor itself is."""
        ...

    def chat(self, fields: Fields) -> Chat:
        """A chat completion's body as a model call. Raises a 400 `ApiError`."""
        ...

    def completion(self, dialect: Dialect, body: bytes, model: str) -> Fields:
        """The chat completion that a whole answer in ``dialect`` is. Raises `ProviderError`."""
        ...


class Source(Protocol):
    """A body that was too large to be held, and is passed on as it comes. ``spent``: it was begun, so it cannot be
    sent again; ``failure`` is what became of it then."""

    spent: bool
    failure: Exception | None

    def pieces(self) -> AsyncGenerator[bytes, None]:
        """The body, once."""
        ...


def too_large_for(vendor: str) -> ApiError:
    """The 413 for such a body where it would have to be held."""
    said = f"The request body is too large: the provider '{vendor}' takes a file in one piece. Expected at most"
    return ApiError(413, f"{said} max_body_bytes.", headers={"connection": "close"})


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """One request: ``id`` as the client wrote it, its escapes undone once; ``fields`` its JSON body."""

    asked: Asked
    fields: Fields
    target: Target
    means: Means
    id: str = ""
    source: Source | None = None

    def header(self, name: str) -> str:
        """A header of GATEWAY RH-23, by its name without ``x-portkey-``; "" without it."""
        return self.asked.headers.get("x-portkey-" + name, "")

    def option(self, name: str) -> str:
        """A provider datum; "" without it."""
        return str(self.target.options.get(name) or "")

    def urls(self, *offered: str) -> tuple[str, ...]:
        """Of the endpoints that are ``offered`` for the lines of a batch those that the client wants.

        Raises a 400 `ApiError` for another one.
        """
        found = self.header("provider-batch-endpoint")
        if found and found not in offered:
            raise refused("x-portkey-provider-batch-endpoint", " or ".join(offered), f"'{found[:100]}'")
        return (found,) if found else offered

    @property
    def model(self) -> str:
        """The model that the lines of a file are for: that of the headers, for lines that name none."""
        return self.header("provider-model") or self.option("aws_bedrock_model")


class Told(msgspec.Struct, kw_only=True):
    """What goes to the client: an object, or a file as it comes; ``release`` lets go of what it is read from."""

    fields: Fields | None = None
    pieces: AsyncGenerator[bytes, None] | None = None
    release: Callable[[], None] | None = None

    @property
    def body(self) -> bytes:
        """The object's JSON."""
        return encode(self.fields)


Verb = Callable[[Task], Awaitable[Told]]
# By the reference's names of endpoints, which are those of errors (GERR-04).
Verbs = Mapping[str, Verb]
Failure = Callable[[int, Mapping[str, str], bytes], ProviderError]

# The verb of an endpoint: by method, whether there is an id, and what follows it.
_VERBS: dict[tuple[EndpointName, str, bool, str], str] = {
    ("files", "POST", False, ""): "uploadFile",
    ("files", "GET", False, ""): "listFiles",
    ("files", "GET", True, ""): "retrieveFile",
    ("files", "GET", True, "content"): "retrieveFileContent",
    ("files", "DELETE", True, ""): "deleteFile",
    ("batches", "POST", False, ""): "createBatch",
    ("batches", "GET", False, ""): "listBatches",
    ("batches", "GET", True, ""): "retrieveBatch",
    ("batches", "POST", True, "cancel"): "cancelBatch",
    ("fine_tuning", "POST", False, ""): "createFinetune",
    ("fine_tuning", "GET", False, ""): "listFinetunes",
    ("fine_tuning", "GET", True, ""): "retrieveFinetune",
    ("fine_tuning", "POST", True, "cancel"): "cancelFinetune",
    ("fine_tuning", "GET", True, "events"): "listFinetuneEvents",
    ("fine_tuning", "GET", True, "checkpoints"): "listFinetuneCheckpoints",
    ("fine_tuning", "POST", True, "pause"): "pauseFinetune",
    ("fine_tuning", "POST", True, "resume"): "resumeFinetune",
}
_ROOTS: dict[str, str] = {"files": "/files", "batches": "/batches", "fine_tuning": "/fine_tuning/jobs"}
_AFTER = frozenset((endpoint, after) for endpoint, _, _, after in _VERBS if after)


def verb_of(endpoint: EndpointName, method: str, path: str) -> tuple[str, str]:
    """What ``method`` at ``path`` (below ``/v1``, as it was sent) means: the verb's name, and the id or "".

    An id may hold slashes, for vendors whose ids are addresses. Raises a 404 or 405 `ApiError` for no verb.
    """
    root = _ROOTS[endpoint]
    if path != root and not path.startswith(root + "/"):
        raise ApiError(404, f"Unknown request URL: {method} /v1{path[:200]}.", code="unknown_url")
    rest = path[len(root) :].strip("/")
    before, slash, after = rest.rpartition("/")
    id, after = (before, after) if slash and (endpoint, after) in _AFTER else (rest, "")
    name = _VERBS.get((endpoint, method, bool(id), after))
    if name is None:
        allowed = sorted({each[1] for each in _VERBS if each[0] == endpoint and each[2:] == (bool(id), after)})
        raise ApiError(
            405,
            f"Method {method[:20]} is not allowed here. Expected {' or '.join(allowed)}.",
            headers={"allow": ", ".join(allowed)},
        )
    return name, unquote(id)


async def answered(reply: Reply, failure: Failure) -> bytes:
    """The body of a success. Raises what ``failure`` makes of anything else."""
    try:
        body = await reply.read(_LONGEST)
    finally:
        reply.close()
    if not 200 <= reply.status < 300:
        raise failure(reply.status, reply.headers, body)
    return body


async def streamed(reply: Reply, failure: Failure) -> AsyncGenerator[bytes, None]:
    """The pieces of a success, as they come. Raises as `answered`."""
    if not 200 <= reply.status < 300:
        await answered(reply, failure)
    return _pieces(reply)


async def _pieces(reply: Reply) -> AsyncGenerator[bytes, None]:
    try:
        while piece := await reply.piece():
            yield piece
    finally:
        reply.close()


def decoded(body: bytes, vendor: str) -> Fields:
    """A JSON object. Raises `ProviderError` ``malformed``."""
    try:
        found = msgspec.json.decode(body, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        said = body[:300].decode("utf-8", "replace")
        raise ProviderError("malformed", f"Invalid response received from {vendor}: {said}") from None
    return found


# --- lists -----------------------------------------------------------------------------------------------------------


def window(task: Task, *more: str) -> tuple[int, str, Mapping[str, str]]:
    """How many are wanted (20 as in OpenAI's lists), behind which id, and the parameters named in ``more``.

    Raises a 400 `ApiError` for any other parameter.
    """
    given = {name: values[-1] for name, values in parse_qs(task.asked.query, keep_blank_values=True).items()}
    limit = given.pop("limit", "20")
    if not limit.isdecimal() or not 1 <= int(limit) <= PAGE:
        raise refused("limit", f"a number from 1 to {PAGE}", f"'{limit[:20]}'")
    after = given.pop("after", "")
    for name in given:
        if name not in more:
            raise ApiError(
                400,
                f"Unknown query parameter '{name[:100]}': the provider '{task.target.vendor.name}' knows limit and "
                f"after{''.join(', ' + each for each in more)}.",
                param=name[:100],
                code="unknown_parameter",
            )
    return int(limit), after, given


async def paged(task: Task, fetch: Callable[[str], Awaitable[tuple[list[Fields], str]]]) -> Told:
    """OpenAI's list, made of the vendor's pages. ``fetch`` gives the objects of a page and the next page's token, both
    "" at the ends. Vendors' tokens are no ids: the pages up to the last id that the client saw are read again."""
    limit, after, _ = window(task)
    data: list[Fields] = []
    more, seen, token = False, not after, ""
    for _ in range(_MOST_PAGES):
        items, token = await fetch(token)
        for item in items:
            if not seen:
                seen = after in (item["id"], unquote(item["id"]))
            elif len(data) < limit:
                data.append(item)
            else:
                more = True
        if more or not token:
            break
    if not seen:
        raise refused("after", "the id of an object in this list", f"'{after[:200]}'")
    return Told(
        fields={
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": more or bool(token),
        }
    )
