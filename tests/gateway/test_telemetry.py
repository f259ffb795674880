"""Metrics as Prometheus reads them, and spans as OpenTelemetry's conventions want them."""

import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from loomgate.gateway import telemetry
from loomgate.gateway.record import Made
from loomgate.gateway.telemetry import Metrics, attributes, spans_from
from loomgate.wire.calls import Attempt, CallFacts, CallRecord


def facts(**changes: Any) -> CallFacts:
    given: dict[str, Any] = {
        "id": "log-1",
        "workspace": "team",
        "created_at": 1_800_000_000.5,
        "seconds": 1.5,
        "endpoint": "chat",
        "status": 200,
        "provider": "openai",
        "model": "gpt-4o",
    }
    return CallFacts(**(given | changes))


def made(fields: dict[str, Any] | None = None, headers: Mapping[str, str] | None = None, **changes: Any) -> Made:
    return Made(CallRecord(facts(**changes)), fields or {}, headers or {})


def scraped(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample of a scrape: its name and label values -> value."""
    text, content_type = metrics.render()
    assert content_type.startswith("text/plain")
    order = ("provider", "endpoint", "model", "status", "direction", "outcome", "le")
    return {
        (sample.name, *(sample.labels[name] for name in order if name in sample.labels)): sample.value
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
        if sample.name.startswith("loomgate_")
    }


# --- metrics ---


def test_calls_are_counted() -> None:
    metrics = Metrics(runs=lambda: 3, dropped=lambda: 2)
    metrics.observe(
        [
            made(prompt_tokens=100, completion_tokens=20, cached_tokens=40, cost=0.5, cache="MISS", retries=2),
            made(prompt_tokens=1, cost=None),
            made(prompt_tokens=7, cost=0.0, cache="HIT"),
            made(status=502, seconds=0.002, attempts=(Attempt("openai", 500, 0.1), Attempt("openai", 0, 0.1))),
            made(stream=True, first_byte=0.3, endpoint="messages", provider="anthropic", model="claude"),
            made(status=401, provider="", model=""),
            made(stream=True, error="It broke.", endpoint="respond", cost=0.0),
        ]
    )
    found = scraped(metrics)
    assert found["loomgate_requests_total", "openai", "chat", "2xx", "success"] == 3
    assert found["loomgate_requests_total", "openai", "chat", "5xx", "failure"] == 1
    assert found["loomgate_requests_total", "none", "chat", "4xx", "failure"] == 1
    assert found["loomgate_requests_total", "openai", "respond", "2xx", "failure"] == 1
    assert found["loomgate_tokens_total", "openai", "gpt-4o", "input"] == 101
    assert found["loomgate_tokens_total", "openai", "gpt-4o", "output"] == 20
    assert found["loomgate_cached_tokens_total", "openai", "gpt-4o"] == 40
    assert found["loomgate_cost_dollars_total", "openai", "gpt-4o"] == 0.5
    assert found["loomgate_unpriced_requests_total", "openai", "gpt-4o"] == 1
    assert found["loomgate_cache_total", "MISS"] == 1
    assert found["loomgate_cache_total", "HIT"] == 1
    assert found["loomgate_retries_total", "openai"] == 2
    assert found["loomgate_attempts_total", "openai", "5xx"] == 1
    assert found["loomgate_attempts_total", "openai", "none"] == 1
    assert found["loomgate_request_duration_seconds_count", "openai", "chat"] == 4
    assert found["loomgate_request_duration_seconds_sum", "openai", "chat"] == pytest.approx(4.502)
    assert found["loomgate_request_duration_seconds_bucket", "openai", "chat", "0.005"] == 1
    assert found["loomgate_request_duration_seconds_bucket", "openai", "chat", "2.5"] == 4
    assert found["loomgate_request_duration_seconds_bucket", "openai", "chat", "+Inf"] == 4
    assert found["loomgate_time_to_first_token_seconds_bucket", "anthropic", "messages", "0.5"] == 1
    assert found["loomgate_time_to_first_token_seconds_count", "openai", "chat"] == 0
    assert found["loomgate_runs_active",] == 3
    assert found["loomgate_calls_dropped_total",] == 2


def test_a_scraper_may_ask_for_openmetrics() -> None:
    text, content_type = Metrics().render("application/openmetrics-text; version=1.0.0")
    assert content_type.startswith("application/openmetrics-text")
    assert text.endswith(b"# EOF\n")


def test_names_that_clients_make_up_do_not_make_series_without_end() -> None:
    metrics = Metrics()
    for n in range(3000):
        metrics.observe([made(model=f"m{n}", prompt_tokens=1, cost=0.0)])
    series = [key for key in scraped(metrics) if key[0] == "loomgate_tokens_total"]
    assert len(series) <= 2 * 1001
    assert scraped(metrics)["loomgate_tokens_total", "openai", "other", "input"] == 2000


def test_a_label_may_hold_anything() -> None:
    metrics = Metrics()
    metrics.observe([made(model='a"b\\c\nd', prompt_tokens=1, cost=0.0)])
    assert scraped(metrics)["loomgate_tokens_total", "openai", 'a"b\\c\nd', "input"] == 1


# --- spans ---


def test_a_span_says_what_the_conventions_ask_for() -> None:
    said = attributes(
        facts(
            provider="azure-openai",
            answer_model="gpt-4o-2024-08-06",
            answer_id="chatcmpl-1",
            finish_reasons=("stop",),
            stream=True,
            first_byte=0.25,
            prompt_tokens=10,
            completion_tokens=20,
            cached_tokens=4,
            cache_creation_tokens=2,
            reasoning_tokens=7,
            thread_id="thread_1",
            run_id="run_1",
            cost=0.5,
            attempts=(Attempt("azure-openai", 200, 0.2, "mine.openai.azure.com:8443"),),
            metadata={"_user": "ada"},
        ),
        {"temperature": 0.5, "max_tokens": 100, "n": 2, "stop": "END", "seed": True, "top_p": "high"},
    )
    assert said == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "azure.ai.openai",
        "gen_ai.request.model": "gpt-4o",
        "gen_ai.response.model": "gpt-4o-2024-08-06",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.conversation.id": "thread_1",
        "gen_ai.request.stream": True,
        "gen_ai.response.time_to_first_chunk": 0.25,
        "gen_ai.usage.input_tokens": 10,
        "gen_ai.usage.output_tokens": 20,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "gen_ai.usage.cache_write.input_tokens": 2,
        "gen_ai.usage.reasoning.output_tokens": 7,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.max_tokens": 100,
        "gen_ai.request.choice.count": 2,
        "gen_ai.request.stop_sequences": ["END"],
        "server.address": "mine.openai.azure.com",
        "server.port": 8443,
        "loomgate.log.id": "log-1",
        "loomgate.workspace": "team",
        "loomgate.run.id": "run_1",
        "loomgate.target": "config",
        "loomgate.cost": 0.5,
        "loomgate.metadata._user": "ada",
    }


def test_an_error_has_its_type() -> None:
    said = attributes(facts(status=429), {})
    assert said["error.type"] == "429"
    assert "gen_ai.usage.input_tokens" not in said
    assert attributes(facts(error="the connection broke"), {})["error.type"] == "broken_stream"


@pytest.mark.parametrize(
    ("endpoint", "operation"),
    [
        ("chat", "chat"),
        ("messages", "chat"),
        ("respond", "chat"),
        ("complete", "text_completion"),
        ("embed", "embeddings"),
        ("rerank", "rerank"),
    ],
)
def test_operations_have_the_conventions_names(endpoint: str, operation: str) -> None:
    assert attributes(facts(endpoint=endpoint), {})["gen_ai.operation.name"] == operation


def exported(*calls: Made) -> list[Any]:
    """The spans that ``calls`` make, as an exporter gets them."""
    export = pytest.importorskip("opentelemetry.sdk.trace.export", reason="opentelemetry-sdk is optional")
    memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    exporter = memory.InMemorySpanExporter()
    provider = sdk.TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(export.SimpleSpanProcessor(exporter))
    telemetry.Spans(provider.get_tracer("test")).observe(calls)
    return list(exporter.get_finished_spans())


def test_a_span_has_the_calls_own_times_name_and_status() -> None:
    fine, failed, named = exported(
        made(), made(status=503, error="overloaded"), made(span_name="summary", endpoint="embed")
    )
    assert (fine.name, fine.kind.name, fine.status.status_code.name) == ("chat gpt-4o", "CLIENT", "UNSET")
    assert (fine.end_time, fine.end_time - fine.start_time) == (1_800_000_000_500_000_000, 1_500_000_000)
    assert (failed.status.status_code.name, failed.status.description) == ("ERROR", "overloaded")
    assert named.name == "summary"


@pytest.mark.behaviour("RH-16")
def test_a_span_has_its_place_in_the_clients_trace() -> None:
    trace, parent = "ab" * 16, "cd" * 8
    by_header, by_portkey, alone = exported(
        made(headers={"traceparent": f"00-{trace}-{parent}-01"}),
        made(trace_id=trace, parent_span_id=parent),
        made(trace_id="my trace", parent_span_id="my span"),
    )
    for span in (by_header, by_portkey):
        assert f"{span.context.trace_id:032x}" == trace
        assert f"{span.parent.span_id:016x}" == parent
    assert alone.parent is None
    assert alone.attributes["loomgate.trace.id"] == "my trace"


@pytest.mark.parametrize(
    "env",
    [
        {},
        {"OTEL_SERVICE_NAME": "x"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
    ],
)
def test_no_spans_are_made_unless_they_are_wanted(env: dict[str, str]) -> None:
    assert spans_from(env) is None


def test_spans_that_cannot_be_sent_are_told_of_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(telemetry.importlib.util, "find_spec", lambda _name: None)
    assert spans_from({"OTEL_TRACES_EXPORTER": "otlp"}) is None
    assert "opentelemetry-sdk" in caplog.text


def test_spans_go_where_the_environment_says() -> None:
    pytest.importorskip("opentelemetry.sdk.trace", reason="opentelemetry-sdk is optional")
    program = (
        "from tests.gateway.test_telemetry import made, spans_from\n"
        "spans = spans_from(); spans.observe([made(trace_id='t')]); spans.close()"
    )
    env = {**os.environ, "OTEL_TRACES_EXPORTER": "console", "OTEL_SERVICE_NAME": "mine"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=env)
    assert '"gen_ai.request.model": "gpt-4o"' in done.stdout
    assert '"service.name": "mine"' in done.stdout


def test_neither_library_is_imported_before_it_is_needed() -> None:
    program = "import sys; import loomgate.gateway.telemetry as t; t.Metrics(); t.spans_from({}); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded = done.stdout.split()
    assert not [name for name in loaded if name.startswith(("opentelemetry", "prometheus_client"))]
