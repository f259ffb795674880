"""The answer cache: answers that were given once and may be given again (GATEWAY section 6.9).

What must live here: which requests may be answered from memory, what two of them must have in common, how long an
answer is kept, and how much memory all of them take. What must not: calling an endpoint, HTTP, and how an answer is
replayed as a stream (``fronts/``).

Answers live in the memory of one process: a restart begins with none, and two processes have two caches. Where nodes
share a Redis, ``shared_cache`` keeps them there.
"""

import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable, Sequence
from hashlib import sha256
from typing import Any

import msgspec

from loomgate import clock
from loomgate.errors import ApiError, LoomgateError
from loomgate.gateway.call import Effective, Fields, Request
from loomgate.gateway.semantic import Neighbours, Point, Question, question_of

log = logging.getLogger(__name__)

Embed = Callable[[str], Awaitable[Sequence[float]]]

DAY = 24 * 60 * 60
DEFAULT_MAX_AGE = 7 * DAY  # CCH-02
LONGEST_MAX_AGE = 90 * DAY
# An answer larger than this part of the cache is not kept: it would push out too many others.
LARGEST_PART = 16
# What one answer takes besides its bytes: the entry, its key, its places in the dictionaries. Measured; see the tests.
OVERHEAD = 512
# A content type is not counted, so it must not be long.
_LONGEST_TYPE = 128
# How the answer is delivered, not what it says (CCH-06): a stream may be answered with what a plain request stored.
_DELIVERY = frozenset({"stream", "stream_options"})
# Headers that travel upstream unasked and may change what an answer says (RH-19, RH-21).
_TELLING = (
    "anthropic-beta",
    "anthropic-version",
    "openai-beta",
    "x-portkey-anthropic-beta",
    "x-portkey-anthropic-version",
    "x-portkey-openai-beta",
)
# After the embedding model failed, it is left in peace for so many seconds: requests must not all wait for it.
_EMBED_PAUSE = 10.0
# The longest wait for a vector, in seconds: past that the answer itself might be there.
_EMBED_WAIT = 5.0

_encode = msgspec.json.Encoder(order="sorted").encode
_valid_object = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode


class CachePlan:
    """What the cache may do for one request: ``key`` of 32 bytes, ``max_age`` in seconds, ``refresh`` as CCH-07.

    ``question`` is what a semantic match compares, ``None`` if only an exact match will do.
    """

    __slots__ = ("key", "max_age", "question", "refresh")

    def __init__(self, key: bytes, max_age: int, refresh: bool = False, question: Question | None = None) -> None:
        self.key = key
        self.max_age = max_age
        self.refresh = refresh
        self.question = question


class Hit(msgspec.Struct, frozen=True):
    """A kept answer, whole: a JSON object or audio. ``semantic``: it was given to a question of like meaning."""

    body: bytes
    content_type: str
    semantic: bool = False


def cache_status(plan: CachePlan | None, hit: Hit | None) -> str:
    """The value of ``x-portkey-cache-status`` (RSP-04) for what `AnswerCache.cacheable` and `lookup` gave."""
    if plan is None:
        return "DISABLED"
    if plan.refresh:
        return "REFRESH"
    if hit is not None:
        return "SEMANTIC HIT" if hit.semantic else "HIT"
    return "MISS" if plan.question is None else "SEMANTIC MISS"


# The group of a question, and where in it the question lies.
_Place = tuple[bytes, Point]


class _Entry:
    __slots__ = ("body", "content_type", "expires", "place", "size", "stored")

    def __init__(
        self, body: bytes, content_type: str, stored: float, expires: float, size: int, place: _Place | None
    ) -> None:
        self.body = body
        self.content_type = content_type
        self.stored = stored
        self.expires = expires
        self.size = size
        self.place = place


class AnswerCache:
    """Answers by request. Make one per process; use it from one event loop.

    ``limit_bytes`` bounds the memory of all answers with their book-keeping; the least recently used go first, 0 keeps
    none. ``embed`` turns a text of at most 8,190 tokens into its vector: as many finite numbers for every text, of any
    length as a vector. When it raises `ProviderError` or `ApiError`, or takes more than five seconds, the request is
    looked up and kept by exact match alone. ``None``: there is no embedding model, and a config with
    ``cache.mode: semantic`` is refused. ``max_age`` is for configs that give none, and ``max_age_limit`` caps those
    that do, both in seconds (CCH-02).
    """

    def __init__(
        self,
        limit_bytes: int,
        embed: Embed | None,
        *,
        max_age: int = DEFAULT_MAX_AGE,
        max_age_limit: int = LONGEST_MAX_AGE,
    ) -> None:
        self._limit = limit_bytes
        self._embed = embed
        self._max_age = min(max_age, max_age_limit)
        self._max_age_limit = max_age_limit
        self._entries: dict[bytes, _Entry] = {}  # the least recently used first
        self._neighbours = Neighbours()
        self._size = 0
        self._embed_after = float("-inf")

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def size(self) -> int:
        """The bytes that the answers take now, with their book-keeping; at most ``limit_bytes``."""
        return self._size

    def cacheable(self, request: Request, effective: Effective, fields: Fields | None = None) -> CachePlan | None:
        """What the cache may do for ``request`` at the target ``effective``, or ``None``: nothing (CCH-05, -10, -11).

        ``fields`` is the body as it goes to the endpoint, after the config's params and the input guardrails; left
        out, the client's own body counts together with the target's params. Raises a 400 `ApiError` for a semantic
        cache without an embedding model, and for a body that is not JSON.
        """
        policy = effective.cache
        if policy is None or not request.endpoint.cached or self._limit <= 0 or not request.naming.debug:
            return None
        if request.method != "POST" or request.content_type != "application/json":
            return None
        sent = request.fields if fields is None else fields
        if not sent:
            return None
        semantic = policy.mode == "semantic"
        if semantic and self._embed is None:
            raise ApiError(
                400,
                "The config's cache.mode is 'semantic', but this server has no embedding model: use 'simple', or have"
                " its operator set semantic_cache_model.",
                param="cache.mode",
            )
        where = _where(request, effective, fields is None, policy.mode)
        said = {name: value for name, value in sent.items() if name not in _DELIVERY}
        question = question_of(request.endpoint.name, said, where) if semantic else None
        max_age = self._max_age if policy.max_age is None else min(policy.max_age, self._max_age_limit)
        return CachePlan(sha256(_encode((where, said))).digest(), max_age, request.naming.cache_refresh, question)

    async def lookup(self, plan: CachePlan) -> Hit | None:
        """The answer kept for the request of ``plan``, or for a question of like meaning; ``None``: ask the endpoint.

        Waits for the embedding model at most, and only for a semantic plan without an exact match.
        """
        if plan.refresh:
            return None
        now = clock.now()
        found = self._fresh(plan.key, plan, now)
        if found is not None:
            return Hit(found.body, found.content_type)
        point = await self._point(plan)
        if point is None or plan.question is None:
            return None
        for key in self._neighbours.nearest(plan.question.group, point):
            found = self._fresh(key, plan, now)
            if found is not None:
                return Hit(found.body, found.content_type, semantic=True)
        return None

    async def store(self, plan: CachePlan, status: int, content_type: str, body: bytes) -> None:
        """Keep an answer for the requests of ``plan``, in place of an earlier one, if it may be kept.

        Only a whole JSON object or audio with status 200 (CCH-09), and none that takes more than a sixteenth of the
        cache. With a plan to refresh, it replaces the answers to all questions of like meaning too (CCH-07).
        """
        if status != 200 or not keepable(content_type, body):
            return
        kind = sys.intern(content_type)
        point = await self._point(plan)
        question = plan.question
        if point is None or question is None:
            earlier = self._entries.get(plan.key)  # of the same question, which may have had its point
            self._put(plan, plan.key, kind, body, earlier.place if earlier else None)
            return
        if plan.refresh:
            for key in await self._neighbours.all_near(question.group, point):
                near = self._entries.get(key)
                if near is not None:  # it may have gone meanwhile
                    self._put(plan, key, kind, body, near.place)
        self._put(plan, plan.key, kind, body, (question.group, point))

    async def close(self) -> None:
        """Let go of what it holds outside of this process."""

    def _fresh(self, key: bytes, plan: CachePlan, now: float) -> _Entry | None:
        """The entry of ``key`` if it is young enough for both who stored it and who asks; it counts as used."""
        found = self._entries.get(key)
        if found is None:
            return None
        # An answer from the future (the machine's clock was set back) is not known to be young.
        if now >= found.expires or now < found.stored:
            self._drop(key)
            return None
        if now - found.stored >= plan.max_age:
            return None
        del self._entries[key]
        self._entries[key] = found
        return found

    def _put(self, plan: CachePlan, key: bytes, content_type: str, body: bytes, place: _Place | None) -> None:
        """Keep ``body`` under ``key``. What is too large takes the earlier answer away all the same: that is stale."""
        self._drop(key)
        size = OVERHEAD + len(body) + (place[1].size if place is not None else 0)
        if size > self._limit // LARGEST_PART:
            return
        now = clock.now()
        self._entries[key] = _Entry(body, content_type, now, now + plan.max_age, size, place)
        self._size += size
        if place is not None:
            pushed_out = self._neighbours.add(place[0], key, place[1])
            if pushed_out is not None:
                self._drop(pushed_out)
        while self._size > self._limit:
            self._drop(next(iter(self._entries)))

    def _drop(self, key: bytes) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._size -= entry.size
            if entry.place is not None:
                self._neighbours.remove(entry.place[0], key)

    async def _point(self, plan: CachePlan) -> Point | None:
        """Where the question of ``plan`` lies, asked of the embedding model once; ``None`` if it is not to be had."""
        question = plan.question
        if question is None or self._embed is None:
            return None
        if question.asked:
            return question.point
        question.asked = True
        if clock.now() < self._embed_after:
            return None
        if not await question.is_short_enough():
            plan.question = None  # an exact match is all that such a request can have (CCH-04)
            return None
        try:
            async with asyncio.timeout(_EMBED_WAIT):
                vector = await self._embed(question.text)
            question.point = Point.of(vector)
        except (LoomgateError, ValueError, TimeoutError) as error:
            self._embed_after = clock.now() + _EMBED_PAUSE
            log.warning(
                "the embedding model of the semantic cache failed, exact matches only for %.0f s: %s",
                _EMBED_PAUSE,
                str(error) or f"no answer in {_EMBED_WAIT:g} s",
            )
        return question.point


def _where(request: Request, effective: Effective, with_params: bool, mode: str) -> tuple[Any, ...]:
    """All that two requests must have in common besides their bodies; only ever seen hashed, since it has secrets.

    A namespace stands in for the metadata and the headers (RH-10), never for the workspace or the target.
    """
    naming = request.naming
    named = effective.provider or effective.virtual_key
    return (
        request.workspace,
        request.endpoint.name,
        mode,
        (effective.provider, effective.virtual_key, effective.api_key, effective.custom_host, dict(effective.options)),
        None if named else (naming.provider, naming.virtual_key, naming.api_key, naming.custom_host, naming.options),
        # A model may name its provider (``@slug/model``), which the body that is sent no longer has.
        (request.model, effective.default_params.get("model"), effective.override_params.get("model")),
        naming.strict if effective.strict is None else effective.strict,
        naming.cache_namespace or (naming.metadata, _headers(request, effective)),
        (effective.default_params, effective.override_params, effective.drop_params) if with_params else None,
    )


def _headers(request: Request, effective: Effective) -> dict[str, str]:
    """The client's headers that the endpoint gets to see, besides those that name it."""
    headers = request.headers
    told = {name: headers[name] for name in _TELLING if name in headers}
    told.update({name: headers[name] for name in map(str.lower, effective.forward_headers) if name in headers})
    told.update(request.naming.forward)
    return told


def keepable(content_type: str, body: bytes) -> bool:
    """CCH-09: whether an answer is whole and can be given again: a JSON object, or audio. Never a stream of events."""
    if len(content_type) > _LONGEST_TYPE:
        return False
    kind = content_type.partition(";")[0].strip().lower()
    if kind.startswith("audio/"):
        return bool(body)
    if kind != "application/json":
        return False
    try:
        _valid_object(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True
