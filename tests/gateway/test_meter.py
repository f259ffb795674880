"""The log of calls: what a record holds and what never, that taking it down is cheap, and that none is lost unseen."""

import gzip
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from loomgate import clock
from loomgate.gateway.call import Answer, Request
from loomgate.gateway.meter import ABANDONED, Meter
from loomgate.gateway.prices import Prices
from loomgate.gateway.record import MASK
from loomgate.settings import Price
from loomgate.wire.calls import CallFacts, CallRecord, first_log_id, log_object, new_log_id
from loomgate.wire.chat import Usage
from loomgate.wire.endpoints import ENDPOINTS, EndpointName
from loomgate.wire.policy import Naming
from tests.support.waiting import settle, until

pytestmark = pytest.mark.anyio

WHOLE = (
    b'{"id":"chatcmpl-1","object":"chat.completion","model":"gpt-4o-2024-08-06","choices":[{"index":0,"message":'
    b'{"role":"assistant","content":"Hello"},"finish_reason":"stop"}],"usage":{"prompt_tokens":1000,'
    b'"completion_tokens":100,"total_tokens":1100,"prompt_tokens_details":{"cached_tokens":400}}}'
)
ASKED = b'{"model":"gpt-4o","messages":[{"role":"user","content":"Hi"}]}'
COST = (600 * 2.5 + 400 * 1.25 + 100 * 10) / 1e6


class Log:
    """Where a meter writes, as the ledger would; it may be told to fail."""

    def __init__(self) -> None:
        self.batches: list[list[CallRecord]] = []
        self.failures = 0

    async def write(self, records: list[CallRecord]) -> None:
        if self.failures:
            self.failures -= 1
            raise OSError("the disk is full")
        self.batches.append(list(records))

    @property
    def records(self) -> list[CallRecord]:
        return [record for batch in self.batches for record in batch]


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
async def meter(log: Log) -> AsyncIterator[Meter]:
    made = Meter(log.write, Prices())
    yield made
    await made.close()


def request(
    endpoint: EndpointName = "chat", body: bytes = ASKED, headers: dict[str, str] | None = None, **naming: Any
) -> Request:
    return Request(ENDPOINTS[endpoint], Naming(**naming), "team", headers=headers, body=body)


def answer(status: int = 200, body: bytes | None = WHOLE, provider: str = "openai", model: str = "gpt-4o") -> Answer:
    made = Answer(status, body, headers=[(b"content-type", b"application/json; charset=utf-8")])
    made.provider, made.model = provider, model
    return made


async def one(meter: Meter, log: Log) -> CallRecord:
    await meter.close()
    (record,) = log.records
    return record


# --- what a record holds ---


async def test_a_call_leaves_a_record_with_what_it_used_and_cost(meter: Meter, log: Log) -> None:
    record = meter.begin(request(metadata={"_user": "ada"}, trace_id="t-1", span_id="s-1", parent_span_id="p-1"))
    record.attempted("openai", 429, 0.1, host="api.openai.com")
    record.attempted("openai", 200, 0.2, host="api.openai.com")
    made = answer()
    made.retries, made.path, made.cache = 1, "config.targets[0]", "MISS"
    record.finish(made)
    found = await one(meter, log)
    facts = found.facts
    assert (facts.workspace, facts.endpoint, facts.status) == ("team", "chat", 200)
    assert (facts.provider, facts.model) == ("openai", "gpt-4o")
    assert (facts.prompt_tokens, facts.completion_tokens, facts.cached_tokens) == (1000, 100, 400)
    assert facts.cost == pytest.approx(COST)
    assert (facts.retries, facts.path, facts.cache) == (1, "config.targets[0]", "MISS")
    assert [(attempt.status, attempt.host) for attempt in facts.attempts] == [
        (429, "api.openai.com"),
        (200, "api.openai.com"),
    ]
    assert (facts.trace_id, facts.span_id, facts.parent_span_id) == ("t-1", "s-1", "p-1")
    assert facts.metadata == {"_user": "ada"}
    assert (found.request, found.response) == (ASKED, WHOLE)
    assert 0 <= facts.seconds < 5
    assert abs(facts.created_at - clock.now()) < 5


async def test_a_stream_is_put_together_and_its_first_byte_timed(meter: Meter, log: Log) -> None:
    record = meter.begin(request())
    made = answer(body=None)
    pieces = [
        b'data: {"choices":[{"delta":{"content":"Hel"}}],"usage":null}\n\n',
        b'data: {"choices":[{"delta":{"content":"lo"}}],"usage":null}\n\n',
        b'data: {"choices":[],"usage":{"prompt_tokens":1000,"completion_tokens":100,"total_tokens":1100,'
        b'"prompt_tokens_details":{"cached_tokens":400}}}\n\n',
        b"data: [DONE]\n\n",
    ]
    for piece in pieces:
        record.sent(piece)
    record.finish(made)
    found = await one(meter, log)
    assert found.response == b"".join(pieces)
    assert found.facts.stream
    assert found.facts.first_byte is not None
    assert 0 <= found.facts.first_byte <= found.facts.seconds
    assert found.facts.cost == pytest.approx(COST)


async def test_an_abandoned_stream_is_a_499_with_what_came_so_far(meter: Meter, log: Log) -> None:
    record = meter.begin(request())
    record.sent(b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n')
    record.abandon(answer(body=None))
    record.finish(answer())  # too late
    record.abandon()
    found = await one(meter, log)
    assert found.facts.status == ABANDONED
    assert found.response == b'data: {"choices":[{"delta":{"content":"Hel"}}]}\n\n'
    assert "went away" in found.facts.error


async def test_the_first_end_counts(meter: Meter, log: Log) -> None:
    record = meter.begin(request())
    record.finish(answer(status=503, body=b"{}"), error="overloaded")
    record.finish(answer())
    found = await one(meter, log)
    assert (found.facts.status, found.facts.error, found.facts.cost) == (503, "overloaded", 0.0)


async def test_a_hit_of_the_cache_costs_nothing(log: Log) -> None:
    spent: list[object] = []
    meter = Meter(log.write, Prices(), spend=lambda *told: spent.append(told))
    made = answer()
    made.cache = "SEMANTIC HIT"
    record = meter.begin(request())
    record.virtual_key = "vk"
    record.finish(made)
    found = await one(meter, log)
    assert found.facts.cost == 0.0
    assert found.facts.prompt_tokens == 1000
    assert spent == []


async def test_usage_that_is_given_is_not_looked_up(meter: Meter, log: Log) -> None:
    meter.begin(request()).finish(answer(), usage=Usage(1, 2, 0, 0))
    facts = (await one(meter, log)).facts
    assert (facts.prompt_tokens, facts.completion_tokens) == (1, 2)


async def test_a_runs_call_names_the_run(meter: Meter, log: Log) -> None:
    meter.begin(request(), run_id="run_1", thread_id="thread_1").finish(answer())
    facts = (await one(meter, log)).facts
    assert (facts.run_id, facts.thread_id) == ("run_1", "thread_1")


async def test_what_a_virtual_key_costs_is_told_to_its_budget(log: Log) -> None:
    spent: list[tuple[str, float, int]] = []
    meter = Meter(
        log.write, Prices({"openai/gpt-4o": Price(input=1, output=1)}), spend=lambda *told: spent.append(told)
    )
    record = meter.begin(request())
    record.attempted("openai", 200, 0.1, virtual_key="team-key")
    record.finish(answer())
    meter.begin(request()).finish(answer())  # nobody's
    await meter.close()
    assert spent == [("team/team-key", pytest.approx(1100 / 1e6), 1100)]


async def test_an_answer_too_long_to_keep_is_cut_and_its_usage_still_counted(log: Log) -> None:
    long = WHOLE.replace(b"Hello", b"Hello " * 20_000)
    meter = Meter(log.write, Prices(), 100)
    meter.begin(request()).finish(answer(body=long))
    streamed = meter.begin(request())
    for start in range(0, len(long), 1000):
        streamed.sent(long[start : start + 1000])
    streamed.finish(answer(body=None))
    await meter.close()
    for record in log.records:
        assert record.response == long[:100]
        assert record.facts.response_size == len(long)
        assert record.facts.cost == pytest.approx(COST)
        assert log_object(record)["response"]["body"] == {"text": long[:100].decode(), "truncated": True}


async def test_a_large_request_takes_no_room_from_others(log: Log) -> None:
    meter = Meter(log.write, Prices(), 1000, most_bytes=20_000)
    big = b'{"model":"gpt-4o","temperature":0.5,"messages":[{"role":"user","content":"' + b"x" * 50_000 + b'"}]}'
    meter.begin(request()).finish(answer())
    meter.begin(request(body=big)).finish(answer(model=""))
    await meter.close()
    small, large = log.records
    assert small.request == ASKED
    assert large.request == big[:1000]
    assert (large.facts.request_size, large.facts.model) == (len(big), "gpt-4o")
    assert meter.dropped == 0


async def test_a_compressed_answer_is_kept_plain(meter: Meter, log: Log) -> None:
    made = answer(body=gzip.compress(WHOLE))
    made.headers.append((b"content-encoding", b"gzip"))
    meter.begin(request()).finish(made)
    found = await one(meter, log)
    assert found.response == WHOLE
    assert found.facts.cost == pytest.approx(COST)


async def test_sounds_and_forms_are_not_kept_but_paid(meter: Meter, log: Log) -> None:
    made = Answer(200, b"\xff\xfb" * 1000, headers=[(b"content-type", b"audio/mpeg")])
    made.provider, made.model = "openai", "tts-1"
    meter.begin(request("speak", b'{"model":"tts-1","input":"' + b"x" * 1000 + b'","voice":"alloy"}')).finish(made)
    found = await one(meter, log)
    assert found.response is None
    assert found.facts.cost == pytest.approx(15 * 1000 / 1e6)


async def test_a_body_that_is_no_json_does_no_harm(meter: Meter, log: Log) -> None:
    made = answer(status=400, body=b"<html>no</html>", model="")
    meter.begin(request(body=b"{")).finish(made)
    found = await one(meter, log)
    assert found.facts.model == ""
    assert log_object(found)["response"]["body"] == {"text": "<html>no</html>", "truncated": False}


# --- what it never holds ---

SECRETS = {
    "authorization": "Bearer sk-hush",
    "x-portkey-api-key": "pk-hush",
    "x-portkey-virtual-key": "openai-hush",
    "api-key": "hush",
    "x-api-key": "hush",
    "cookie": "session=hush",
    "x-portkey-aws-secret-access-key": "hush",
    "x-portkey-azure-ad-token": "hush",
    "x-portkey-vertex-service-account-json": '{"private_key":"hush"}',
    "x-portkey-config": '{"provider":"openai","api_key":"sk-hush"}',
    "proxy-authorization": "Basic hush",
}


async def test_no_secret_gets_into_a_record(meter: Meter, log: Log) -> None:
    asked = request(headers={**SECRETS, "user-agent": "curl", "host": "gate"}, api_key="sk-hush", virtual_key="sk-hush")
    asked.query = "key=hush&alt=sse&X-Amz-Signature=hush"
    made = answer()
    made.headers.append((b"set-cookie", b"hush"))
    meter.begin(asked).finish(made)
    found = await one(meter, log)
    shown = msgspec.json.encode(log_object(found)) + msgspec.json.encode(found.facts)
    assert b"hush" not in shown
    assert found.facts.url == "http://gate/v1/chat/completions?key=%2A%2A%2A&alt=sse&X-Amz-Signature=%2A%2A%2A"
    assert {name: found.facts.request_headers[name] for name in SECRETS} == dict.fromkeys(SECRETS, MASK)
    assert found.facts.request_headers["user-agent"] == "curl"


async def test_what_tells_about_a_call_without_being_secret_stays(meter: Meter, log: Log) -> None:
    plain = {
        "x-portkey-provider": "openai",
        "x-portkey-metadata": '{"_user":"ada"}',
        "x-portkey-trace-id": "t",
        "x-portkey-aws-region": "eu-west-1",
        "x-portkey-aws-auth-type": "assumedRole",
        "x-portkey-azure-auth-mode": "entra",
        "content-type": "application/json",
        "x-stainless-os": "Linux",
        "x-ratelimit-remaining-tokens": "9",
        "design": "x",
    }
    meter.begin(request(headers=plain)).finish(answer())
    assert (await one(meter, log)).facts.request_headers == plain


async def test_the_slug_of_a_saved_config_is_no_secret(meter: Meter, log: Log) -> None:
    meter.begin(request(headers={"x-portkey-config": "pc-main-1"}, config="pc-main-1")).finish(answer())
    facts = (await one(meter, log)).facts
    assert (facts.request_headers["x-portkey-config"], facts.config) == ("pc-main-1", "pc-main-1")


@pytest.mark.behaviour("RH-14")
async def test_headers_that_the_client_calls_sensitive_are_masked(meter: Meter, log: Log) -> None:
    headers = {"x-patient": "Jane Roe", "x-ward": "7", "x-portkey-sensitive-headers": "X-Patient"}
    made = answer()
    made.headers.append((b"x-patient", b"Jane Roe"))
    meter.begin(request(headers=headers, sensitive=("X-Patient",))).finish(made)
    found = await one(meter, log)
    assert found.facts.request_headers == {**headers, "x-patient": MASK}
    assert found.facts.response_headers["x-patient"] == MASK
    assert b"Jane Roe" not in msgspec.json.encode(log_object(found))


@pytest.mark.behaviour("RH-15")
async def test_without_debug_nothing_of_request_and_answer_is_kept_but_all_is_counted(meter: Meter, log: Log) -> None:
    meter.begin(request(debug=False, headers={"user-agent": "curl"})).finish(answer())
    found = await one(meter, log)
    assert (found.request, found.response) == (None, None)
    assert (found.facts.request_headers, found.facts.response_headers) == ({}, {})
    assert found.facts.cost == pytest.approx(COST)
    assert found.facts.prompt_tokens == 1000
    assert "body" not in log_object(found)["request"]


async def test_no_bodies_are_kept_when_the_operator_wants_none(log: Log) -> None:
    meter = Meter(log.write, Prices(), 0)
    meter.begin(request()).finish(answer())
    found = await one(meter, log)
    assert (found.request, found.response) == (None, None)
    assert found.facts.cost == pytest.approx(COST)


# --- the trace ---


@pytest.mark.behaviour("RH-07", "RH-16")
@pytest.mark.parametrize(
    ("naming", "headers", "trace"),
    [
        ({"trace_id": "mine"}, {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}, "mine"),
        ({}, {"traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01"}, "ab" * 16),
        ({}, {"traceparent": "nonsense"}, None),
        ({}, {"traceparent": f"00-{'0' * 32}-{'cd' * 8}-01"}, None),
        ({}, {"traceparent": f"00-{'zz' * 16}-{'cd' * 8}-01"}, None),
        ({}, {}, None),
    ],
)
async def test_every_call_has_a_trace(
    meter: Meter, log: Log, naming: dict[str, str], headers: dict[str, str], trace: str | None
) -> None:
    record = meter.begin(request(headers=headers, span_id="sp", span_name="summary", **naming))
    told = record.trace_id
    assert told == trace if trace else len(told) == 32
    record.finish(answer())
    facts = (await one(meter, log)).facts
    assert facts.trace_id == told
    assert (facts.span_id, facts.span_name) == ("sp", "summary")


async def test_made_up_traces_are_in_the_order_of_time(meter: Meter) -> None:
    first = meter.begin(request()).trace_id
    clock.advance(2)
    second, third = (meter.begin(request()).trace_id for _ in range(2))
    assert first[:8] < second[:8]
    assert second != third
    assert all(len(trace) == 32 and int(trace, 16) for trace in (first, second, third))


# --- the queue ---


async def test_records_wait_for_each_other_and_go_together(log: Log) -> None:
    meter = Meter(log.write, Prices())
    for _ in range(40):
        meter.begin(request()).finish(answer())
    await settle()
    assert log.batches == []
    clock.advance(0.6)
    await until(lambda: log.batches)
    assert [len(batch) for batch in log.batches] == [40]
    await meter.close()


async def test_a_full_batch_does_not_wait(log: Log) -> None:
    meter = Meter(log.write, Prices())
    for _ in range(1100):
        meter.begin(request()).finish(answer(body=None))
    await until(lambda: len(log.batches) >= 2)
    assert [len(batch) for batch in log.batches[:2]] == [500, 500]
    await meter.close()
    assert len(log.records) == 1100
    assert meter.dropped == 0


async def test_a_batch_of_long_streams_is_short_and_does_not_wait(log: Log) -> None:
    meter = Meter(log.write, Prices())
    for _ in range(100):
        record = meter.begin(request())
        for _ in range(60):
            record.sent(b"x" * 1024)
        record.finish(answer(body=None))
    await until(lambda: log.batches)
    # Some 1 MiB of bodies, up to one step more.
    assert 1024 < len(log.batches[0]) * 60 < 1024 + 20 * 60
    await meter.close()
    assert len(log.records) == 100


async def test_the_oldest_go_when_there_are_too_many(log: Log) -> None:
    meter = Meter(log.write, Prices(), most=10)
    for number in range(25):
        meter.begin(request(metadata={"n": str(number)})).finish(answer())
    await meter.close()
    assert [record.facts.metadata["n"] for record in log.records] == [str(n) for n in range(15, 25)]
    assert meter.dropped == 15


async def test_the_oldest_go_when_they_are_too_large(log: Log) -> None:
    meter = Meter(log.write, Prices(), most_bytes=10_000)
    for _ in range(25):
        meter.begin(request()).finish(answer(body=b"x" * 3000))
    await meter.close()
    assert len(log.records) == 3
    assert meter.dropped == 22


async def test_closing_writes_what_is_queued_and_what_comes_later_is_counted_as_lost(log: Log) -> None:
    meter = Meter(log.write, Prices())
    late = meter.begin(request())
    for _ in range(7):
        meter.begin(request()).finish(answer())
    await meter.close()
    assert len(log.records) == 7
    late.finish(answer())
    await meter.close()
    assert (len(log.records), meter.dropped) == (7, 1)


async def test_a_write_that_fails_is_tried_again(log: Log) -> None:
    log.failures = 2
    meter = Meter(log.write, Prices())
    meter.begin(request()).finish(answer())
    await until(lambda: log.batches or clock.advance(1.0))
    assert (len(log.records), meter.dropped) == (1, 0)
    await meter.close()


async def test_a_log_that_cannot_be_written_does_not_hold_up_the_end(log: Log) -> None:
    log.failures = 100
    meter = Meter(log.write, Prices())
    meter.begin(request()).finish(answer())
    await meter.close()
    assert (log.records, meter.dropped) == ([], 1)


async def test_an_observer_that_fails_takes_nothing_from_the_log(log: Log) -> None:
    class Broken:
        spans = False

        def observe(self, made: object) -> None:
            raise ValueError

    meter = Meter(log.write, Prices(), observers=[Broken()])
    meter.begin(request()).finish(answer())
    await one(meter, log)


async def test_without_a_log_the_rest_still_happens() -> None:
    spent: list[object] = []
    meter = Meter(None, Prices(), spend=lambda *told: spent.append(told))
    record = meter.begin(request())
    record.virtual_key = "vk"
    record.finish(answer())
    await meter.close()
    assert spent == [("team/vk", pytest.approx(COST), 1100)]


async def test_old_records_are_dropped_at_the_start_and_every_hour() -> None:
    asked: list[float] = []

    async def forget(before: float) -> bool:
        asked.append(clock.now() - before)
        return len(asked) == 1  # there is more, once

    meter = Meter(None, Prices(), forget=forget, days=30)
    meter.start()
    await until(lambda: len(asked) == 2)
    await settle()
    clock.advance(3601)
    await until(lambda: len(asked) == 3)
    assert asked == [pytest.approx(30 * 86_400, abs=5)] * 3
    await meter.close()


async def test_taking_down_a_call_is_cheap() -> None:
    """The promise is 5 us for the beginning and the end together; a busy machine gets room."""
    meter = Meter(None, Prices(), most=100)
    calls = [(request(), answer()) for _ in range(2000)]
    best = float("inf")
    for _ in range(5):
        began = time.perf_counter()
        for asked, made in calls:
            record = meter.begin(asked)
            record.finish(made)
        best = min(best, (time.perf_counter() - began) / len(calls))
    await meter.close()
    assert best < 15e-6, f"{best * 1e6:.1f} us"


# --- ids ---


def test_ids_are_uuids_in_the_order_in_which_they_were_made() -> None:
    now = 1_800_000_000.5
    ids = [new_log_id(now + random.choice([0, 0, 0.001, -5])) for _ in range(10_000)]
    assert ids == sorted(ids)
    assert len(set(ids)) == len(ids)
    assert all(len(id) == 36 and id[14] == "7" and id[19] in "89ab" for id in ids)


def test_a_clock_that_was_set_back_is_followed() -> None:
    before, after = new_log_id(1_850_000_000.0), new_log_id(1_849_990_000.0)
    assert after < before
    assert after >= first_log_id(1_849_990_000.0)


def test_a_time_is_a_place_among_ids() -> None:
    start = 1_900_000_000.0
    ids = [new_log_id(start + n) for n in range(10)]
    assert [id for id in ids if id >= first_log_id(start + 4)] == ids[4:]


def test_a_record_survives_being_encoded() -> None:
    facts = CallFacts(id="x", workspace="w", created_at=1.5, seconds=0.25, endpoint="chat", status=200, cost=None)
    assert msgspec.json.decode(msgspec.json.encode(facts), type=CallFacts) == facts
