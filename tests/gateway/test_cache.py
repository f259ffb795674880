"""`AnswerCache`: what may be answered from memory, for how long, and how much memory that takes."""

import asyncio
import tracemalloc
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any

import hypothesis.strategies as st
import msgspec
import pytest
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from loomgate import clock
from loomgate.errors import ApiError
from loomgate.gateway.cache import AnswerCache, CachePlan, Hit, cache_status
from loomgate.gateway.call import Effective, Request
from loomgate.wire.endpoints import ENDPOINTS, EndpointName
from loomgate.wire.policy import CachePolicy, Naming
from tests.gateway.nodes import TwoNodes, nodes_at

pytestmark = pytest.mark.anyio

MEGABYTE = 1024 * 1024
JSON = "application/json"
SIMPLE = CachePolicy(mode="simple")
ANSWER = b'{"id":"chatcmpl-1","choices":[]}'
QUESTION = {"model": "gpt-4o", "messages": [{"role": "user", "content": "How high is the Zugspitze?"}]}


@pytest.fixture
def one_cache() -> AnswerCache:
    return AnswerCache(MEGABYTE, None)


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest, one_cache: AnswerCache) -> AsyncIterator[Any]:
    """That of one process, and that of two nodes."""
    if request.param == "memory":
        yield one_cache
        return
    async with nodes_at(request.getfixturevalue("redis_url")) as nodes:
        yield TwoNodes(nodes, MEGABYTE)


def request(
    body: Any = QUESTION,
    endpoint: EndpointName = "chat",
    *,
    workspace: str = "ws",
    method: str = "POST",
    content_type: str = JSON,
    headers: dict[str, str] | None = None,
    **naming: Any,
) -> Request:
    raw = body if isinstance(body, bytes) else msgspec.json.encode(body)
    return Request(
        ENDPOINTS[endpoint],
        Naming(**naming),
        workspace,
        method=method,
        content_type=content_type,
        headers=headers,
        body=raw,
    )


def target(cache: CachePolicy | None = SIMPLE, **more: Any) -> Effective:
    return Effective(cache=cache, **{"provider": "openai", "api_key": "sk-1"} | more)


def plan_of(
    cache: AnswerCache, asked: Request | None = None, to: Effective | None = None, fields: Any = None
) -> CachePlan:
    plan = cache.cacheable(asked or request(), to or target(), fields)
    assert plan is not None
    return plan


async def keep(cache: AnswerCache, plan: CachePlan, body: bytes = ANSWER, content_type: str = JSON) -> None:
    await cache.store(plan, 200, content_type, body)


async def found(cache: AnswerCache, plan: CachePlan) -> bytes | None:
    hit = await cache.lookup(plan)
    return None if hit is None else hit.body


async def taken(cache: Any) -> tuple[int, int]:
    """How many answers there are, and the bytes that they take."""
    return await cache.taken() if isinstance(cache, TwoNodes) else (len(cache), cache.size)


# --- what two requests must have in common ---


@pytest.mark.behaviour("CCH-01")
async def test_the_same_request_is_answered_from_memory(cache: AnswerCache) -> None:
    first = plan_of(cache)
    assert await cache.lookup(first) is None
    await keep(cache, first)
    assert await cache.lookup(plan_of(cache)) == Hit(ANSWER, JSON)


@pytest.mark.behaviour("CCH-01")
async def test_spelling_and_order_of_members_do_not_matter(cache: AnswerCache) -> None:
    await keep(cache, plan_of(cache, request(b'{"model":"m","messages":[{"role":"user","content":"\\u00e9"}]}')))
    again = b'{ "messages" : [ {"content":"\xc3\xa9","role":"user"} ], "model":"m" }'
    assert await found(cache, plan_of(cache, request(again))) == ANSWER


FORWARDED = {"forward_headers": ("X-Tenant",)}


@pytest.mark.behaviour("CCH-01")
@pytest.mark.parametrize(
    ("asked", "to"),
    [
        (request(QUESTION | {"temperature": 0.5}), target()),
        (request(QUESTION | {"something_new": True}), target()),
        (request(QUESTION | {"messages": [*QUESTION["messages"], {"role": "user", "content": "?"}]}), target()),
        (request(QUESTION | {"model": "gpt-4o-mini"}), target()),
        (request(endpoint="messages"), target()),
        (request(workspace="other"), target()),
        (request(metadata={"user": "b"}), target()),
        (request(cache_namespace="space"), target()),
        (request(strict=False), target()),
        (request(headers={"anthropic-beta": "context-1m"}), target()),
        (request(headers={"x-tenant": "b"}), target(forward_headers=("X-Tenant",))),
        (request(forward={"x-tenant": "b"}), target()),
        (request(), target(provider="groq")),
        (request(), target(provider="@team")),
        (request(), target(provider=None, virtual_key="team")),
        (request(), target(api_key="sk-2")),
        (request(), target(custom_host="https://example.org/v1")),
        (request(), target(options={"deployment_id": "b"})),
        (request(), target(override_params={"temperature": 0.5})),
        (request(), target(default_params={"temperature": 0.5})),
        (request(), target(drop_params=("model",))),
        (request(), target(cache=CachePolicy(mode="simple"), strict=False)),
    ],
)
async def test_anything_else_is_another_request(cache: AnswerCache, asked: Request, to: Effective) -> None:
    await keep(cache, plan_of(cache))
    other = plan_of(cache, asked, to)
    assert await cache.lookup(other) is None
    await keep(cache, other, b'{"other":1}')
    assert await found(cache, other) == b'{"other":1}'
    assert await found(cache, plan_of(cache)) == ANSWER


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"provider": "groq"}, {"provider": "openai"}),
        ({"virtual_key": "a"}, {"virtual_key": "b"}),
        ({"api_key": "a"}, {"api_key": "b"}),
        ({"custom_host": "https://a.example"}, {"custom_host": "https://b.example"}),
        ({"options": {"aws_region": "a"}}, {"options": {"aws_region": "b"}}),
    ],
)
async def test_a_target_named_by_headers_is_told_apart_too(cache: AnswerCache, one: Any, other: Any) -> None:
    bare = Effective(cache=SIMPLE)
    await keep(cache, plan_of(cache, request(**one), bare))
    assert await found(cache, plan_of(cache, request(**one), bare)) == ANSWER
    assert await found(cache, plan_of(cache, request(**other), bare)) is None


async def test_the_body_as_it_is_sent_decides(cache: AnswerCache) -> None:
    """Two clients whose configs make the same of different bodies share an answer; the target's params are in it."""
    sent = QUESTION | {"temperature": 0}
    overriding = target(override_params={"temperature": 0})
    await keep(cache, plan_of(cache, request(QUESTION | {"temperature": 1}), overriding, sent))
    assert await found(cache, plan_of(cache, request(QUESTION), target(), sent)) == ANSWER
    assert await found(cache, plan_of(cache, request(QUESTION), overriding, QUESTION)) is None


@pytest.mark.parametrize("params", ["body", "default_params", "override_params"])
async def test_a_provider_named_by_the_model_is_told_apart(cache: AnswerCache, params: str) -> None:
    """The body that is sent has the bare model."""

    def plan(slug: str) -> CachePlan:
        named = {"model": f"@{slug}/gpt-4o"}
        asked, more = (request(QUESTION | named), {}) if params == "body" else (request(), {params: named})
        return plan_of(cache, asked, Effective(cache=SIMPLE, **more), QUESTION)

    await keep(cache, plan("blue"))
    assert await found(cache, plan("blue")) == ANSWER
    assert await found(cache, plan("green")) is None


@pytest.mark.behaviour("RH-10")
async def test_a_namespace_partitions_alone(cache: AnswerCache) -> None:
    space = {"cache_namespace": "space"}
    await keep(cache, plan_of(cache, request(metadata={"user": "a"}, headers={"openai-beta": "1"}, **space)))
    assert await found(cache, plan_of(cache, request(metadata={"user": "b"}, **space))) == ANSWER
    assert await found(cache, plan_of(cache, request(metadata={"user": "a"}, cache_namespace="other"))) is None
    assert await found(cache, plan_of(cache, request(metadata={"user": "a"}, workspace="other", **space))) is None
    assert await found(cache, plan_of(cache, request(metadata={"user": "a"}, **space), target(api_key="2"))) is None


@pytest.mark.behaviour("CCH-03", "CCH-06")
async def test_a_stream_and_a_plain_request_share_an_answer(cache: AnswerCache) -> None:
    """`stream` in any form neither keeps an answer from being stored nor makes it another (a trap of the reference)."""
    streamed = QUESTION | {"stream": True, "stream_options": {"include_usage": True}}
    await keep(cache, plan_of(cache, request(streamed)))
    assert await found(cache, plan_of(cache, request(QUESTION))) == ANSWER
    assert await found(cache, plan_of(cache, request(QUESTION | {"stream": False}))) == ANSWER


async def test_no_secret_is_in_a_plan(cache: AnswerCache) -> None:
    plan = plan_of(cache)
    assert len(plan.key) == 32
    assert not any("sk-1" in repr(getattr(plan, name)) for name in plan.__slots__)


# --- what is not cached ---


@pytest.mark.behaviour("CCH-05", "CCH-10")
@pytest.mark.parametrize("name", ENDPOINTS)
async def test_endpoints(cache: AnswerCache, name: EndpointName) -> None:
    may = {"chat", "complete", "messages", "embed", "rerank", "generate_image", "speak"}
    assert (cache.cacheable(request(endpoint=name), target()) is not None) == (name in may)


@pytest.mark.behaviour("CCH-10")
async def test_a_request_without_a_json_body_has_no_key(cache: AnswerCache) -> None:
    assert cache.cacheable(request(method="GET"), target()) is None
    assert cache.cacheable(request(content_type="multipart/form-data"), target()) is None
    assert cache.cacheable(request(b""), target()) is None
    assert cache.cacheable(request({}), target()) is None


@pytest.mark.behaviour("CCH-11", "RH-15")
async def test_debug_false_switches_it_off(cache: AnswerCache) -> None:
    assert cache.cacheable(request(debug=False), target()) is None


async def test_only_a_config_with_a_cache_caches(cache: AnswerCache) -> None:
    assert cache.cacheable(request(), target(cache=None)) is None
    assert AnswerCache(0, None).cacheable(request(), target()) is None


async def test_a_body_that_is_not_json_is_refused(cache: AnswerCache) -> None:
    for body in (b"{", b"[]", b"\xff"):
        with pytest.raises(ApiError) as caught:
            cache.cacheable(request(body), target())
        assert caught.value.status == 400


@pytest.mark.behaviour("CCH-09")
@pytest.mark.parametrize("status", [201, 204, 246, 400, 401, 408, 429, 446, 500])
async def test_only_status_200_is_kept(cache: AnswerCache, status: int) -> None:
    await cache.store(plan_of(cache), status, JSON, ANSWER)
    assert await taken(cache) == (0, 0)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("text/event-stream", b"data: [DONE]\n\n"),
        ("text/html", b"<h1>Welcome</h1>"),
        ("", ANSWER),
        (JSON, b'{"id":"chatcmpl-1","cho'),
        (JSON, b"[]"),
        (JSON, b""),
        (JSON, b'"\xff"'),
        ("audio/mpeg", b""),
        ("audio/mpeg; name=" + 120 * "x", b"x"),
    ],
)
async def test_what_is_not_a_whole_answer_is_not_kept(cache: AnswerCache, content_type: str, body: bytes) -> None:
    await cache.store(plan_of(cache), 200, content_type, body)
    assert await taken(cache) == (0, 0)


async def test_speech_is_kept_with_its_kind(cache: AnswerCache) -> None:
    plan = plan_of(cache, request({"model": "tts-1", "input": "Hello", "voice": "alloy"}, "speak"))
    await keep(cache, plan, b"\xff\xfb\x90\x00", "audio/mpeg")
    assert await cache.lookup(plan) == Hit(b"\xff\xfb\x90\x00", "audio/mpeg")


# --- how long ---


@pytest.mark.behaviour("CCH-01", "CCH-02")
async def test_max_age_is_in_seconds(cache: AnswerCache) -> None:
    minute = plan_of(cache, to=target(cache=CachePolicy(mode="simple", max_age=60)))
    assert minute.max_age == 60
    await keep(cache, minute)
    clock.advance(59)
    assert await found(cache, minute) == ANSWER
    clock.advance(1)
    assert await found(cache, minute) is None
    # Redis forgets it by itself, and what it took when the next one is stored.
    assert await taken(cache) == (0, 0) or isinstance(cache, TwoNodes)


@pytest.mark.behaviour("CCH-02")
@pytest.mark.parametrize(
    ("given", "max_age"), [(None, 604_800), (60, 60), (7_776_000, 7_776_000)], ids=["default", "least", "most"]
)
async def test_how_long_without_limits_of_the_operator(cache: AnswerCache, given: int | None, max_age: int) -> None:
    assert plan_of(cache, to=target(cache=CachePolicy(mode="simple", max_age=given))).max_age == max_age


@pytest.mark.behaviour("CCH-02")
@pytest.mark.parametrize("max_age", [59, 7_776_001, 0, -1])
def test_a_max_age_outside_the_limits_is_refused(max_age: int) -> None:
    with pytest.raises(msgspec.ValidationError, match="max_age"):
        msgspec.convert({"mode": "simple", "max_age": max_age}, CachePolicy)


@pytest.mark.behaviour("CCH-02")
@pytest.mark.parametrize(("given", "max_age"), [(None, 600), (60, 60), (3600, 3600), (3601, 3600)])
async def test_the_operator_caps_it(given: int | None, max_age: int) -> None:
    cache = AnswerCache(MEGABYTE, None, max_age=600, max_age_limit=3600)
    assert plan_of(cache, to=target(cache=CachePolicy(mode="simple", max_age=given))).max_age == max_age


async def test_who_asks_decides_how_old_is_too_old(cache: AnswerCache) -> None:
    long = plan_of(cache)
    short = plan_of(cache, to=target(cache=CachePolicy(mode="simple", max_age=60)))
    await keep(cache, long)
    clock.advance(60)
    assert await found(cache, short) is None
    assert await found(cache, long) == ANSWER


# --- force refresh ---


@pytest.mark.behaviour("CCH-07", "RH-09")
async def test_force_refresh_replaces_the_answer(cache: AnswerCache) -> None:
    await keep(cache, plan_of(cache))
    refresh = plan_of(cache, request(cache_refresh=True))
    assert await cache.lookup(refresh) is None
    await keep(cache, refresh, b'{"new":1}')
    assert await found(cache, plan_of(cache)) == b'{"new":1}'
    assert (await taken(cache))[0] == 1


@pytest.mark.behaviour("CCH-07", "CCH-09")
async def test_a_refresh_that_fails_leaves_the_answer(cache: AnswerCache) -> None:
    await keep(cache, plan_of(cache))
    await cache.store(plan_of(cache, request(cache_refresh=True)), 500, JSON, b'{"error":{}}')
    assert await found(cache, plan_of(cache)) == ANSWER


@pytest.mark.behaviour("CCH-07")
async def test_an_answer_too_large_to_keep_still_ends_the_one_before(cache: AnswerCache) -> None:
    await keep(cache, plan_of(cache))
    await keep(cache, plan_of(cache, request(cache_refresh=True)), large(MEGABYTE // 16))
    assert await found(cache, plan_of(cache)) is None


@pytest.mark.behaviour("RSP-04")
async def test_the_words_for_the_header(cache: AnswerCache) -> None:
    plan, refresh = plan_of(cache), plan_of(cache, request(cache_refresh=True))
    assert cache_status(None, None) == "DISABLED"
    assert cache_status(plan, await cache.lookup(plan)) == "MISS"
    await keep(cache, plan)
    assert cache_status(plan, await cache.lookup(plan)) == "HIT"
    assert cache_status(refresh, await cache.lookup(refresh)) == "REFRESH"


# --- how much ---


def large(size: int) -> bytes:
    return b'{"text":"%s"}' % (b"x" * (size - 11))


def numbered(number: int) -> Request:
    return request({"model": "m", "prompt": f"{number}"}, "complete")


async def test_the_least_recently_used_goes_first() -> None:
    cache = AnswerCache(16 * 1024, None)
    size = 16 * 1024 // 16 - 512
    for number in range(16):
        await keep(cache, plan_of(cache, numbered(number)), large(size))
    assert (len(cache), cache.size) == (16, 16 * 1024)
    assert await found(cache, plan_of(cache, numbered(0))) is not None
    await keep(cache, plan_of(cache, numbered(16)), large(size))
    assert await found(cache, plan_of(cache, numbered(1))) is None
    assert await found(cache, plan_of(cache, numbered(0))) is not None
    assert len(cache) == 16


async def test_an_answer_larger_than_a_sixteenth_is_not_kept() -> None:
    cache = AnswerCache(16 * 1024, None)
    await keep(cache, plan_of(cache), large(1024 - 512 + 1))
    assert (len(cache), cache.size) == (0, 0)


async def test_storing_again_does_not_add_up(cache: AnswerCache) -> None:
    await keep(cache, plan_of(cache))
    once = await taken(cache)
    for _ in range(3):
        await keep(cache, plan_of(cache))
    assert await taken(cache) == once


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


@pytest.mark.usefixtures("traced")
async def test_what_it_counts_is_what_it_takes() -> None:
    """Smallest answers, where the book-keeping weighs most."""
    cache = AnswerCache(2 * MEGABYTE, None)
    before, _ = tracemalloc.get_traced_memory()
    for number in range(6_000):
        await cache.store(CachePlan(number.to_bytes(32, "big"), 60), 200, "application/json", b'{"n":%d}' % number)
    taken = tracemalloc.get_traced_memory()[0] - before
    assert len(cache) < 6_000
    assert 0.5 * cache.size < taken <= cache.size <= 2 * MEGABYTE


async def test_a_hundred_thousand_stores_stay_within_the_limit() -> None:
    cache = AnswerCache(MEGABYTE, None)
    for number in range(100_000):
        plan = CachePlan(number.to_bytes(32, "big"), 60)
        await cache.store(plan, 200, JSON, b'{"n":%d}' % number)
        assert cache.size <= MEGABYTE
    assert len(cache) == MEGABYTE // (512 + len(b'{"n":99999}'))
    # What is left are the last ones, all of them.
    assert await cache.lookup(CachePlan((100_000 - len(cache)).to_bytes(32, "big"), 60)) is not None


async def test_answers_of_many_requests_at_once_do_not_mix(cache: AnswerCache) -> None:
    async def one(number: int) -> None:
        plan = plan_of(cache, numbered(number))
        assert await cache.lookup(plan) is None
        await asyncio.sleep(0)
        await keep(cache, plan, b'{"n":%d}' % number)
        await asyncio.sleep(0)
        assert await found(cache, plan) == b'{"n":%d}' % number

    await asyncio.gather(*(one(number) for number in range(100)))


# --- against a model of it ---


def at_once(work: Coroutine[Any, Any, Any]) -> Any:
    """The result of ``work``, which must not wait for anything: an exact match never does."""
    try:
        work.send(None)
    except StopIteration as done:
        return done.value
    raise AssertionError("it waited")


def numbered_key(number: int) -> bytes:
    return number.to_bytes(32, "big")


KEYS = st.integers(0, 19).map(numbered_key)
AGES = st.sampled_from([60, 600, 3600])
LIMIT = 32 * 1024


class Model(RuleBasedStateMachine):
    """A list of answers, the least recently used first, and a clock that goes in steps of half a minute."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = AnswerCache(LIMIT, None)
        self.kept: list[tuple[bytes, bytes, int, int]] = []  # key, body, stored, max_age
        self.now = 0

    @rule(key=KEYS, max_age=AGES, size=st.integers(11, LIMIT // 16))
    def keep(self, key: bytes, max_age: int, size: int) -> None:
        self.store(key, max_age, size)

    def store(self, key: bytes, max_age: int, size: int) -> None:
        body = large(size)
        at_once(self.cache.store(CachePlan(key, max_age), 200, JSON, body))
        self.kept = [row for row in self.kept if row[0] != key]
        if size + 512 <= LIMIT // 16:
            self.kept.append((key, body, self.now, max_age))
        while sum(len(row[1]) + 512 for row in self.kept) > LIMIT:
            del self.kept[0]

    @rule(first=st.integers(0, 19), count=st.integers(1, 18))
    def flood(self, first: int, count: int) -> None:
        for number in range(first, first + count):
            self.store(numbered_key(number % 20), 3600, LIMIT // 16 - 512)

    @rule(key=KEYS, status=st.sampled_from([201, 400, 500]))
    def fail(self, key: bytes, status: int) -> None:
        at_once(self.cache.store(CachePlan(key, 60), status, JSON, ANSWER))

    @rule(key=KEYS, max_age=AGES)
    def look(self, key: bytes, max_age: int) -> None:
        row = next((row for row in self.kept if row[0] == key), None)
        expected = None
        if row is not None:
            age = self.now - row[2]
            if age >= row[3]:
                self.kept.remove(row)
            elif age < max_age:
                self.kept.remove(row)
                self.kept.append(row)
                expected = Hit(row[1], JSON)
        assert at_once(self.cache.lookup(CachePlan(key, max_age))) == expected

    @rule(key=KEYS)
    def refresh(self, key: bytes) -> None:
        assert at_once(self.cache.lookup(CachePlan(key, 3600, refresh=True))) is None

    @rule(steps=st.sampled_from([1, 2, 20, 120]))
    def wait(self, steps: int) -> None:
        clock.advance(30 * steps)
        self.now += 30 * steps

    @invariant()
    def within_bounds(self) -> None:
        assert len(self.cache) == len(self.kept)
        assert self.cache.size == sum(len(row[1]) + 512 for row in self.kept) <= LIMIT


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=30, stateful_step_count=60, deadline=None)


async def test_a_clock_set_back_keeps_nothing_longer(cache: AnswerCache) -> None:
    plan = plan_of(cache)
    await keep(cache, plan)
    clock.advance(-3600)
    try:
        assert await found(cache, plan) is None
    finally:
        clock.advance(3600)
