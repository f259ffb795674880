"""The semantic cache: answers to questions of like meaning, with vectors from an endpoint over HTTP."""

import asyncio
import logging
import random
import statistics
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

import msgspec
import pytest

from loomgate import clock
from loomgate.errors import ApiError, ProviderError
from loomgate.gateway.cache import AnswerCache, CachePlan, cache_status
from loomgate.gateway.call import Effective, Request
from loomgate.gateway.semantic import MOST_QUESTIONS, NEAR, Neighbours, Point
from loomgate.providers.dialect import HttpCall
from loomgate.providers.transport import Timeouts, Transport
from loomgate.wire.endpoints import ENDPOINTS, EndpointName
from loomgate.wire.policy import CachePolicy, Naming
from tests.gateway.nodes import TwoNodes, nodes_at
from tests.support.embeddings import EmbeddingsEndpoint, vector_of

pytestmark = pytest.mark.anyio

MEGABYTE = 1024 * 1024
JSON = "application/json"
TARGET = Effective(provider="openai", cache=CachePolicy(mode="semantic"))
ASKED = "How high is the Zugspitze?"
ALIKE = "Please tell me: how high is the Zugspitze"
UNLIKE = "How high is the Matterhorn?"


class Embedding:
    """What `AnswerCache` wants of ``embed``: one call of an endpoint that speaks OpenAI's wire."""

    def __init__(self, endpoint: EmbeddingsEndpoint, transport: Transport) -> None:
        self._endpoint = endpoint
        self._transport = transport

    async def __call__(self, text: str) -> Sequence[float]:
        body = msgspec.json.encode({"model": "text-embedding-3-small", "input": text})
        call = HttpCall(f"{self._endpoint.base_url}/embeddings", {"content-type": JSON}, body)
        async with await self._transport.send(call, Timeouts(total=10)) as reply:
            data = await reply.read(MEGABYTE)
        if reply.status != 200:
            raise ProviderError("server", "The embedding model is not there.", status=reply.status)
        return cast("list[float]", msgspec.json.decode(data)["data"][0]["embedding"])


@pytest.fixture
async def endpoint() -> AsyncIterator[EmbeddingsEndpoint]:
    async with EmbeddingsEndpoint() as running:
        yield running


@pytest.fixture
async def embed(endpoint: EmbeddingsEndpoint) -> AsyncIterator[Embedding]:
    transport = Transport()
    yield Embedding(endpoint, transport)
    await transport.close()


@pytest.fixture(params=["memory", "redis"])
async def cache(request: pytest.FixtureRequest, embed: Embedding) -> AsyncIterator[Any]:
    """That of one process, and that of two nodes."""
    if request.param == "memory":
        yield AnswerCache(8 * MEGABYTE, embed)
        return
    async with nodes_at(request.getfixturevalue("redis_url")) as nodes:
        yield TwoNodes(nodes, 8 * MEGABYTE, embed)


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"role": "user", "content": content, **more}


def chat(*messages: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"model": "gpt-4o", "messages": list(messages), **more}


def plan_of(
    cache: AnswerCache, body: Any = ASKED, endpoint: EndpointName = "chat", to: Effective = TARGET, **naming: Any
) -> CachePlan:
    fields = chat(user(body)) if isinstance(body, str) else body
    raw = msgspec.json.encode(fields)
    plan = cache.cacheable(Request(ENDPOINTS[endpoint], Naming(**naming), "ws", body=raw), to)
    assert plan is not None
    return plan


def answer(text: str) -> bytes:
    return msgspec.json.encode({"text": text})


async def ask(cache: AnswerCache, plan: CachePlan, answered: str = "2,962 m") -> str:
    """One request's way past the cache: the header's word, with what it got. A miss stores ``answered``."""
    hit = await cache.lookup(plan)
    word = cache_status(plan, hit)
    if hit is None:
        await cache.store(plan, 200, JSON, answer(answered))
    else:
        word += ": " + msgspec.json.decode(hit.body)["text"]
    return word


@pytest.mark.behaviour("CCH-04", "RSP-04")
async def test_like_questions_share_an_answer(cache: AnswerCache, endpoint: EmbeddingsEndpoint) -> None:
    assert await ask(cache, plan_of(cache)) == "SEMANTIC MISS"
    assert await ask(cache, plan_of(cache)) == "HIT: 2,962 m"
    assert endpoint.asked == [ASKED]  # an exact match comes first and asks nobody
    assert await ask(cache, plan_of(cache, ALIKE)) == "SEMANTIC HIT: 2,962 m"
    assert await ask(cache, plan_of(cache, UNLIKE), "4,478 m") == "SEMANTIC MISS"
    assert await ask(cache, plan_of(cache, UNLIKE)) == "HIT: 4,478 m"
    assert endpoint.asked == [ASKED, ALIKE, UNLIKE]  # once a request


@pytest.mark.behaviour("CCH-04")
async def test_the_nearest_of_several_answers(cache: AnswerCache) -> None:
    words = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen"
    for color in ("red", "green", "blue"):  # each near the others, but stored by requests at the same time
        await cache.store(plan_of(cache, f"{words} {words} {color}"), 200, JSON, answer(color))
    for color in ("red", "green", "blue"):
        assert await ask(cache, plan_of(cache, f"{words} {words} {color} please")) == f"SEMANTIC HIT: {color}"


@pytest.mark.behaviour("CCH-04")
@pytest.mark.parametrize(
    "other",
    [
        chat({"role": "system", "content": "Be brief."}, user(ALIKE)),
        chat({"role": "developer", "content": "Be brief."}, user(ALIKE)),
        chat(user([{"type": "text", "text": ALIKE}])),
        chat(user([{"type": "text", "text": "Please tell me:"}, {"type": "text", "text": ASKED}])),
        chat(user(ALIKE), stream=True),
    ],
)
async def test_what_may_differ(cache: AnswerCache, other: Any) -> None:
    await ask(cache, plan_of(cache))
    assert await ask(cache, plan_of(cache, other)) == "SEMANTIC HIT: 2,962 m"


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA=="}}
BEFORE = [user("Mountains."), {"role": "assistant", "content": "Which?"}]


@pytest.mark.behaviour("CCH-04")
@pytest.mark.parametrize(
    ("one", "other"),
    [
        (chat(user(ASKED)), chat(user(ALIKE), temperature=0.5)),
        (chat(user(ASKED)), chat(user(ALIKE)) | {"model": "gpt-4o-mini"}),
        (chat(user(ASKED)), chat(user(ALIKE), tools=[{"type": "function", "function": {"name": "f"}}])),
        (chat(user(ASKED)), chat(user([{"type": "text", "text": ALIKE}, IMAGE]))),
        (chat(user(ASKED)), chat(user(ALIKE, name="ann"))),
        (chat(*BEFORE, user(ASKED)), chat(user("Mountains."), user(ALIKE))),
        (chat(*BEFORE, user(ASKED)), chat(BEFORE[0], {"role": "assistant", "content": "Towns?"}, user(ALIKE))),
    ],
)
async def test_what_must_be_equal_in_the_body(cache: AnswerCache, one: Any, other: Any) -> None:
    await ask(cache, plan_of(cache, one))
    assert await ask(cache, plan_of(cache, other)) == "SEMANTIC MISS"


@pytest.mark.behaviour("CCH-04")
async def test_an_answer_in_the_conversation_that_is_equal_does_no_harm(cache: AnswerCache) -> None:
    await ask(cache, plan_of(cache, chat(*BEFORE, user(ASKED))))
    assert await ask(cache, plan_of(cache, chat(*BEFORE, user(ALIKE)))) == "SEMANTIC HIT: 2,962 m"


@pytest.mark.behaviour("CCH-04", "RH-10")
async def test_what_must_be_equal_besides(cache: AnswerCache) -> None:
    await ask(cache, plan_of(cache, metadata={"user": "a"}))
    assert await ask(cache, plan_of(cache, ALIKE, metadata={"user": "b"})) == "SEMANTIC MISS"
    await ask(cache, plan_of(cache, metadata={"user": "a"}, cache_namespace="x"), "in x")
    assert await ask(cache, plan_of(cache, ALIKE, metadata={"user": "b"}, cache_namespace="x")) == "SEMANTIC HIT: in x"
    other = msgspec.structs.replace(TARGET, provider="groq")
    assert await ask(cache, plan_of(cache, ALIKE, to=other, metadata={"user": "a"})) == "SEMANTIC MISS"


@pytest.mark.behaviour("CCH-04")
@pytest.mark.parametrize(
    ("endpoint_name", "body"),
    [
        ("messages", chat(user(ALIKE))),
        ("embed", {"model": "m", "input": ALIKE}),
        ("complete", {"model": "m", "prompt": [ALIKE, ASKED]}),
        ("complete", {"model": "m", "prompt": [1, 2, 3]}),
        ("complete", {"model": "m"}),
        ("chat", {"model": "m", "messages": "none"}),
        ("chat", {"model": "m", "messages": [ALIKE]}),
        ("chat", chat({"role": "system", "content": "Say something."})),
        ("chat", chat(user([IMAGE]))),
        ("chat", chat(user(None))),
        ("chat", chat(*BEFORE, *BEFORE, user(ALIKE))),
    ],
)
async def test_the_rest_has_exact_matches_only(
    cache: AnswerCache, endpoint: EmbeddingsEndpoint, endpoint_name: EndpointName, body: Any
) -> None:
    assert await ask(cache, plan_of(cache, body, endpoint_name)) == "MISS"
    assert await ask(cache, plan_of(cache, body, endpoint_name)) == "HIT: 2,962 m"
    assert endpoint.asked == []


@pytest.mark.behaviour("CCH-04")
async def test_four_messages_are_few_enough(cache: AnswerCache) -> None:
    system = {"role": "system", "content": "Be brief."}
    await ask(cache, plan_of(cache, chat(system, *BEFORE, user(ASKED))))
    assert await ask(cache, plan_of(cache, chat(system, *BEFORE, user(ALIKE)))) == "SEMANTIC HIT: 2,962 m"


@pytest.mark.behaviour("CCH-04")
@pytest.mark.parametrize(("count", "word"), [(8_190, "SEMANTIC MISS"), (8_191, "MISS"), (1_000_000, "MISS")])
async def test_how_long_a_question_may_be(
    cache: AnswerCache, endpoint: EmbeddingsEndpoint, count: int, word: str
) -> None:
    """A word and its space are one token each."""
    endpoint.answer = {"data": [{"embedding": [1.0, 0.5]}]}
    plan = plan_of(cache, "word" + " word" * (count - 1))
    assert await cache.lookup(plan) is None
    assert cache_status(plan, None) == word
    assert len(endpoint.asked) == (word == "SEMANTIC MISS")


@pytest.mark.behaviour("CCH-04")
@pytest.mark.parametrize(("one", "other"), [(ASKED, ALIKE), ([ASKED], [ALIKE])])
async def test_completions(cache: AnswerCache, one: Any, other: Any) -> None:
    await ask(cache, plan_of(cache, {"model": "m", "prompt": one}, "complete"))
    assert await ask(cache, plan_of(cache, {"model": "m", "prompt": other}, "complete")) == "SEMANTIC HIT: 2,962 m"


@pytest.mark.behaviour("CCH-01")
async def test_a_simple_cache_never_gets_an_answer_to_another_question(cache: AnswerCache) -> None:
    simple = msgspec.structs.replace(TARGET, cache=CachePolicy(mode="simple"))
    await ask(cache, plan_of(cache))
    assert await ask(cache, plan_of(cache, ALIKE, to=simple)) == "MISS"
    await ask(cache, plan_of(cache, ALIKE, cache_refresh=True), "refreshed")
    assert await ask(cache, plan_of(cache, to=simple), "its own") == "MISS"
    assert await ask(cache, plan_of(cache, to=simple)) == "HIT: its own"


@pytest.mark.behaviour("CCH-07")
async def test_a_refresh_replaces_all_answers_to_like_questions(cache: AnswerCache) -> None:
    asked = [ASKED, f"{ASKED} please", UNLIKE]
    # Stored before anyone could find the other's: as two requests at the same time do.
    plans = [plan_of(cache, text) for text in asked]
    assert [await cache.lookup(plan) for plan in plans] == [None] * 3
    for plan in plans:
        await cache.store(plan, 200, JSON, answer("old"))
    clock.advance(3600)
    assert await ask(cache, plan_of(cache, ALIKE, cache_refresh=True), "new") == "REFRESH"
    assert [await ask(cache, plan_of(cache, text)) for text in asked] == ["HIT: new", "HIT: new", "HIT: old"]
    clock.advance(604_800 - 60)  # the age of the new ones counts from the refresh
    assert await ask(cache, plan_of(cache, asked[1])) == "HIT: new"
    assert await ask(cache, plan_of(cache, UNLIKE)) == "SEMANTIC MISS"


@pytest.mark.behaviour("CCH-02")
async def test_age(cache: AnswerCache) -> None:
    minute = msgspec.structs.replace(TARGET, cache=CachePolicy(mode="semantic", max_age=60))
    await ask(cache, plan_of(cache, to=minute))
    clock.advance(61)
    assert await ask(cache, plan_of(cache, ALIKE), "new") == "SEMANTIC MISS"
    clock.advance(61)
    assert await ask(cache, plan_of(cache, to=minute), "newest") == "SEMANTIC MISS"  # too old for who asks
    assert await ask(cache, plan_of(cache, ALIKE)) == "HIT: new"


async def test_without_an_embedding_model_it_is_refused() -> None:
    with pytest.raises(ApiError, match="semantic_cache_model") as caught:
        plan_of(AnswerCache(MEGABYTE, None))
    assert (caught.value.status, caught.value.param) == (400, "cache.mode")


@pytest.mark.parametrize(
    "broken",
    [
        {"status": 500},
        {"status": 401},
        {"hangs": True},
        {"answer": {"data": [{"embedding": []}]}},
        {"answer": {"data": [{"embedding": [0.0, 0.0]}]}},
        {"answer": {"data": [{"embedding": ["a", "b"]}]}},
        {"answer": {"data": [{"embedding": [1e400, 1.0]}]}},
    ],
)
async def test_an_embedding_model_that_fails_costs_no_answer(
    cache: AnswerCache,
    endpoint: EmbeddingsEndpoint,
    broken: dict[str, Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("loomgate.gateway.cache._EMBED_WAIT", 5.0 if "hangs" not in broken else 0.1)
    caplog.set_level(logging.WARNING)
    for name, value in broken.items():
        setattr(endpoint, name, value)
    assert await ask(cache, plan_of(cache)) == "SEMANTIC MISS"
    assert await ask(cache, plan_of(cache)) == "HIT: 2,962 m"
    assert await ask(cache, plan_of(cache, UNLIKE)) == "SEMANTIC MISS"
    assert len(endpoint.asked) == len(caplog.records) == 1  # it is left in peace, and the log too
    endpoint.status, endpoint.answer, endpoint.hangs = 200, None, False
    clock.advance(10)
    assert await ask(cache, plan_of(cache, ALIKE), "new") == "SEMANTIC MISS"
    assert await ask(cache, plan_of(cache, f"{ALIKE}, please?")) == "SEMANTIC HIT: new"


async def test_another_model_with_other_vectors_does_no_harm(cache: AnswerCache, endpoint: EmbeddingsEndpoint) -> None:
    await ask(cache, plan_of(cache))
    endpoint.dimensions = 512
    assert await ask(cache, plan_of(cache, ALIKE), "new") == "SEMANTIC MISS"
    assert await ask(cache, plan_of(cache, f"{ALIKE}, please?")) == "SEMANTIC HIT: new"


async def test_leaving_while_the_model_is_asked(cache: AnswerCache, endpoint: EmbeddingsEndpoint) -> None:
    looking = asyncio.create_task(cache.lookup(plan_of(cache)))
    await asyncio.sleep(0)
    looking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert await ask(cache, plan_of(cache)) == "SEMANTIC MISS"
    assert await ask(cache, plan_of(cache, ALIKE)) == "SEMANTIC HIT: 2,962 m"


async def test_questions_count_into_the_memory(embed: Embedding) -> None:
    cache = AnswerCache(64 * 1024, embed)
    for number in range(64):
        await ask(cache, plan_of(cache, f"{number}"))
        assert cache.size <= 64 * 1024
    assert cache.size > 64 * 1024 - 4096
    assert 20 < len(cache) < 30
    assert sum(map(len, cache._neighbours._groups.values())) == len(cache)  # what goes leaves nothing behind
    gone, kept = plan_of(cache, "0 please"), plan_of(cache, "63 please")
    assert (await cache.lookup(gone), await cache.lookup(kept) is None) == (None, False)


async def test_of_too_many_questions_the_oldest_goes() -> None:
    async def embed(text: str) -> list[float]:
        return vector_of(text, 16)

    cache = AnswerCache(64 * MEGABYTE, embed)
    for number in range(MOST_QUESTIONS + 1):
        plan = plan_of(cache, f"{number}")
        plan.max_age = 60
        await cache.store(plan, 200, JSON, answer(f"{number}"))
    assert len(cache) == MOST_QUESTIONS
    assert await ask(cache, plan_of(cache, "1")) == "HIT: 1"
    assert (await cache.lookup(plan_of(cache, "0")) or answer("")) != answer("0")


# --- the search ---


def turned(vector: list[float], cosine: float, dice: random.Random) -> list[float]:
    """A vector of length 1 that has that ``cosine`` to ``vector`` (of length 1)."""
    other = [dice.gauss(0, 1) for _ in vector]
    along = sum(map(float.__mul__, other, vector))
    other = [value - along * base for value, base in zip(other, vector, strict=True)]
    length = sum(value * value for value in other) ** 0.5
    aside = (1 - cosine * cosine) ** 0.5
    return [cosine * base + aside * value / length for base, value in zip(vector, other, strict=True)]


def unit(dimensions: int, dice: random.Random) -> list[float]:
    vector = [dice.gauss(0, 1) for _ in range(dimensions)]
    length = sum(value * value for value in vector) ** 0.5
    return [value / length for value in vector]


@pytest.mark.behaviour("CCH-04")
async def test_the_border_is_where_it_is_said_to_be() -> None:
    dice = random.Random(7)
    for dimensions in (64, 256, 1536):
        for _ in range(10):
            base = unit(dimensions, dice)
            near = Neighbours()
            near.add(b"group", b"in", Point.of(turned(base, 0.9505, dice)))
            near.add(b"group", b"out", Point.of(turned(base, 0.9495, dice)))
            near.add(b"other", b"elsewhere", Point.of(base))
            scaled = Point.of([value * 17 for value in base])
            assert near.nearest(b"group", scaled) == [b"in"]
            assert await near.all_near(b"group", scaled) == [b"in"]


async def test_the_nearest_comes_first() -> None:
    dice = random.Random(5)
    for _ in range(20):
        base = unit(64, dice)
        near = Neighbours()
        cosines = [0.96, 0.97, 0.98, 0.99]
        for cosine in dice.sample(cosines, 4):
            near.add(b"group", str(cosine).encode(), Point.of(turned(base, cosine, dice)))
        assert near.nearest(b"group", Point.of(base)) == [b"0.99", b"0.98", b"0.97", b"0.96"]


async def test_it_finds_what_comparing_with_all_finds() -> None:
    """Among questions that are all of a kind, so that the signs alone tell little."""
    dice = random.Random(11)
    base = unit(256, dice)
    near = Neighbours()
    vectors = {number.to_bytes(4, "big"): turned(base, dice.uniform(0.5, 1), dice) for number in range(200)}
    for key, vector in vectors.items():
        near.add(b"group", key, Point.of(vector))
    for _ in range(20):
        asked = turned(dice.choice(list(vectors.values())), dice.uniform(0.9, 1), dice)
        cosines = {key: sum(map(float.__mul__, asked, vector)) for key, vector in vectors.items()}
        expected = sorted((key for key, cosine in cosines.items() if cosine >= NEAR), key=cosines.__getitem__)[::-1]
        assert set(await near.all_near(b"group", Point.of(asked))) == set(expected)
        assert near.nearest(b"group", Point.of(asked))[:1] == expected[:1]


async def test_a_search_does_not_hold_up_the_others() -> None:
    """It takes half a millisecond; the limit here is what a busy machine may make of that."""
    base = unit(1536, random.Random(3))
    near = Neighbours()
    for number in range(MOST_QUESTIONS):
        near.add(b"group", number.to_bytes(4, "big"), Point.of(base[number:] + base[:number]))
    taken: list[float] = []
    for _ in range(5):
        start = time.perf_counter()
        assert near.nearest(b"group", Point.of(base)) == [bytes(4)]
        taken.append(time.perf_counter() - start)
    assert statistics.median(taken) < 0.01


async def test_a_group_that_is_empty_takes_nothing() -> None:
    near = Neighbours()
    near.add(b"group", b"key", Point.of([1.0, 0.0]))
    near.remove(b"group", b"key")
    near.remove(b"group", b"key")
    assert not near._groups
