"""What a handler gets and gives: one request that was let in, and its answer. No I/O.

A handler is ``async handler(call) -> Answer | Streamed``; it raises `ApiError` for anything else.
"""

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from loomgate.errors import ApiError
from loomgate.http.body import decode

if TYPE_CHECKING:
    from loomgate.bus import Subscription
    from loomgate.engine.service import Engine
    from loomgate.http.auth import Caller
    from loomgate.settings import Settings

T = TypeVar("T")

_NO_HEADERS: list[tuple[bytes, bytes]] = []


class Call:
    """A request after the checks of BEHAVIOUR HDR-08 that need no handler: the caller is known, the body is read.

    ``path`` are the ids in the URL, ``query`` the raw query string, ``headers`` lower-case names to raw values.
    """

    __slots__ = ("body", "caller", "engine", "headers", "path", "query", "settings", "workspace")

    def __init__(
        self,
        engine: "Engine",
        settings: "Settings",
        caller: "Caller",
        path: dict[str, str],
        query: bytes,
        headers: Mapping[bytes, bytes],
        body: bytes,
    ) -> None:
        self.engine = engine
        self.settings = settings
        self.caller = caller
        self.workspace = caller.workspace
        self.path = path
        self.query = query
        self.headers = headers
        self.body = body

    async def decode(
        self, type: type[T], check: Callable[[T], None] | None, exists: Callable[[], Awaitable[object]] | None
    ) -> T:
        """The body as ``type``, held against ``check``.

        When the body is wrong, ``exists`` is asked first: an unknown id in the URL is the earlier mistake (HDR-08).
        Raises what `loomgate.http.body.decode`, ``check`` and ``exists`` raise.
        """
        try:
            made = decode(self.body, type)
            if check is not None:
                check(made)
        except ApiError:
            if exists is not None:
                await exists()
            raise
        return made


class Answer:
    """A JSON answer (200 by default); ``headers`` are sent besides those that every answer has."""

    __slots__ = ("body", "headers", "status")

    def __init__(self, body: bytes, status: int = 200, headers: list[tuple[bytes, bytes]] | None = None) -> None:
        self.body = body
        self.status = status
        self.headers = _NO_HEADERS if headers is None else headers


class Streamed:
    """A stream of events (BEHAVIOUR section 10).

    ``gone`` is awaited when the client leaves before the end; ``with_ids`` adds ``id:`` lines.
    """

    __slots__ = ("gone", "subscription", "with_ids")

    def __init__(
        self, subscription: "Subscription", *, with_ids: bool, gone: Callable[[], Awaitable[Any]] | None = None
    ) -> None:
        self.subscription = subscription
        self.with_ids = with_ids
        self.gone = gone


Handler = Callable[[Call], Awaitable[Answer | Streamed]]
