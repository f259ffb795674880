"""What others see of calls while they run the server: metrics for Prometheus, spans for OpenTelemetry.

What must live here: names, labels and buckets of metrics, and the attributes of spans (OpenTelemetry's semantic
conventions for GenAI). What must not: when calls are observed (``gateway/meter``). Both libraries are imported when
they are first needed: the one when somebody scrapes, the other when OTEL_* variables say where spans go.
"""

import asyncio
import importlib.util
import logging
import os
from bisect import bisect_left
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from loomgate import __version__, clock
from loomgate.errors import StoreError
from loomgate.gateway.record import Made
from loomgate.wire.calls import CallFacts

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.trace import Tracer
    from prometheus_client.core import Metric

log = logging.getLogger(__name__)

# --- metrics ---------------------------------------------------------------------------------------------------------

_DURATIONS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0)
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.5, 5.0, 10.0, 20.0, 40.0)
_MOST_MODELS = 1_000  # names of models come from clients; what is beyond is counted as `other`
_OTHER = "other"
_QUEUE_SECONDS = 3.0  # how long a count of what waits is good enough
_ANSWER_SECONDS = 2.0  # how long it may take


class _Histogram:
    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def buckets(self) -> list[tuple[str, float]]:
        made: list[tuple[str, float]] = []
        so_far = 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            made.append((bound, so_far))
        return made


class _Place:
    """What is counted by provider and endpoint."""

    __slots__ = ("classes", "durations", "firsts")

    def __init__(self) -> None:
        self.classes: dict[tuple[str, str], int] = {}  # by class of status, and outcome
        self.durations = _Histogram(_DURATIONS)
        self.firsts = _Histogram(_FIRST)


class _Model:
    """What is counted by provider and model."""

    __slots__ = ("cached", "cost", "input", "output", "unpriced")

    def __init__(self) -> None:
        self.input = self.cached = self.output = self.unpriced = 0
        self.cost = 0.0


_CLASSES = {n: f"{n}xx" for n in range(10)}


class Metrics:
    """Counts of calls since the start. ``runs`` gives the number of runs that are worked on, ``dropped`` that of
    records which were lost.

    ``queue`` gives how many runs wait for a worker of any node, and for how many seconds the oldest does;
    ``connections`` how many to PostgreSQL are at work, open besides, and allowed; ``redis`` whether it answers.
    """

    spans = False
    queue: Callable[[], Awaitable[tuple[int, float]]] | None = None
    connections: Callable[[], tuple[int, int, int] | None] | None = None
    redis: Callable[[], bool] | None = None

    def __init__(self, runs: Callable[[], int] | None = None, dropped: Callable[[], int] | None = None) -> None:
        self.runs = runs
        self.dropped = dropped
        self._places: dict[tuple[str, str], _Place] = {}
        self._models: dict[tuple[str, str], _Model] = {}
        self._caches: dict[str, int] = {}
        self._retries: dict[str, int] = {}
        self._attempts: dict[tuple[str, str], int] = {}
        self._registry: Any = None
        self._queued: tuple[int, float] | None = None
        self._asked = float("-inf")

    async def refresh(self) -> None:
        """Ask what the store has to be asked, if that was not done a moment ago: for `render`. Raises nothing; while
        the store does not answer, what it would say is not shown."""
        if self.queue is None or clock.monotonic() - self._asked < _QUEUE_SECONDS:
            return
        self._asked = clock.monotonic()
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                self._queued = await self.queue()
        except (StoreError, TimeoutError):
            self._queued = None

    def observe(self, made: Sequence[Made]) -> None:
        """Count these calls."""
        for one in made:
            self._count(one.record.facts)

    def _count(self, facts: CallFacts) -> None:
        provider = facts.provider or "none"
        place = self._places.get((provider, facts.endpoint))
        if place is None:
            place = self._places[provider, facts.endpoint] = _Place()
        status = (_CLASSES.get(facts.status // 100, _OTHER), "failure" if facts.failed else "success")
        place.classes[status] = place.classes.get(status, 0) + 1
        place.durations.observe(facts.seconds)
        if facts.stream and facts.first_byte is not None:
            place.firsts.observe(facts.first_byte)
        if facts.cache != "DISABLED":
            self._caches[facts.cache] = self._caches.get(facts.cache, 0) + 1
        if facts.retries > 0:
            self._retries[provider] = self._retries.get(provider, 0) + facts.retries
        for attempt in facts.attempts:
            key = (attempt.provider, _CLASSES.get(attempt.status // 100, _OTHER) if attempt.status else "none")
            self._attempts[key] = self._attempts.get(key, 0) + 1
        if facts.model and facts.status < 400 and not facts.cache.endswith("HIT"):
            self._spent(provider, facts)

    def _spent(self, provider: str, facts: CallFacts) -> None:
        key = (provider, facts.model)
        model = self._models.get(key)
        if model is None:
            if len(self._models) >= _MOST_MODELS:
                key = (provider, _OTHER)
            model = self._models.setdefault(key, _Model())
        model.input += facts.prompt_tokens
        model.cached += facts.cached_tokens
        model.output += facts.completion_tokens
        if facts.cost is None:
            model.unpriced += 1
        else:
            model.cost += facts.cost

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """The text that a scraper with this ``Accept`` header wants, and its content type."""
        from prometheus_client import CollectorRegistry, ProcessCollector
        from prometheus_client.exposition import choose_encoder

        if self._registry is None:
            self._registry = CollectorRegistry()
            self._registry.register(self)
            ProcessCollector(registry=self._registry)
        encoder, content_type = choose_encoder(accept)
        return encoder(self._registry), content_type

    def describe(self) -> "list[Metric]":
        """For the registry, which would else call `collect` to learn the names."""
        return []

    def collect(self) -> "Iterator[Metric]":
        """What is counted, as Prometheus' library wants it."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        def counter(name: str, help: str, labels: Sequence[str], rows: Mapping[Any, float]) -> CounterMetricFamily:
            family = CounterMetricFamily(f"loomgate_{name}", help, labels=labels)
            for key, value in rows.items():
                family.add_metric((key,) if isinstance(key, str) else key, value)
            return family

        places, models = self._places, self._models
        by_status = {(*key, *status): n for key, place in places.items() for status, n in place.classes.items()}
        yield counter("requests", "Calls that ended.", ("provider", "endpoint", "status", "outcome"), by_status)
        for name, help, field in (
            ("request_duration_seconds", "Time from a request to the end of its answer.", "durations"),
            ("time_to_first_token_seconds", "Time from a request to the first byte of a streamed answer.", "firsts"),
        ):
            family = HistogramMetricFamily(f"loomgate_{name}", help, labels=("provider", "endpoint"))
            for key, place in places.items():
                histogram: _Histogram = getattr(place, field)
                family.add_metric(key, histogram.buckets(), histogram.sum)
            yield family
        by_model = ("provider", "model")
        tokens = {(*key, "input"): model.input for key, model in models.items()}
        tokens |= {(*key, "output"): model.output for key, model in models.items()}
        yield counter("tokens", "Tokens used, cached ones among the input.", (*by_model, "direction"), tokens)
        cached = {key: model.cached for key, model in models.items()}
        yield counter("cached_tokens", "Tokens of input that vendors read from their caches.", by_model, cached)
        cost = {key: model.cost for key, model in models.items()}
        yield counter("cost_dollars", "What calls cost, by the price table.", by_model, cost)
        unpriced = {key: model.unpriced for key, model in models.items() if model.unpriced}
        yield counter("unpriced_requests", "Calls whose price is not known.", by_model, unpriced)
        yield counter("cache", "Calls that asked the gateway's cache, by outcome.", ("outcome",), self._caches)
        yield counter("retries", "Retries that calls took.", ("provider",), self._retries)
        yield counter("attempts", "Tries at endpoints.", ("provider", "status"), self._attempts)
        if self.dropped is not None:
            yield counter("calls_dropped", "Records of calls that were lost.", (), {(): self.dropped()})
        if self.runs is not None:
            yield GaugeMetricFamily("loomgate_runs_active", "Runs that are worked on.", value=self.runs())
        if self._queued is not None:
            queued, age = self._queued
            yield GaugeMetricFamily("loomgate_runs_queued", "Runs that wait for a worker of any node.", value=queued)
            yield GaugeMetricFamily("loomgate_runs_queued_seconds", "For how long the oldest of them waits.", value=age)
        if self.connections is not None and (connections := self.connections()) is not None:
            family = GaugeMetricFamily("loomgate_store_connections", "Connections to PostgreSQL.", labels=("state",))
            for state, value in zip(("used", "idle", "most"), connections, strict=True):
                family.add_metric((state,), value)
            yield family
        if self.redis is not None:
            yield GaugeMetricFamily("loomgate_redis_up", "Whether the Redis of the nodes answers.", value=self.redis())


# --- spans -----------------------------------------------------------------------------------------------------------

# The conventions' names of vendors, where they differ from ours; another one is called what we call it.
_PROVIDERS = {
    "azure-openai": "azure.ai.openai",
    "azure-ai": "azure.ai.inference",
    "bedrock": "aws.bedrock",
    "google": "gcp.gemini",
    "vertex-ai": "gcp.vertex_ai",
    "mistral-ai": "mistral_ai",
    "moonshot": "moonshot_ai",
    "perplexity-ai": "perplexity",
    "x-ai": "x_ai",
}
_OPERATIONS = {
    "chat": "chat",
    "messages": "chat",
    "respond": "chat",
    "complete": "text_completion",
    "embed": "embeddings",
}
_OUTPUTS = {"generate_image": "image", "edit_image": "image", "vary_image": "image", "speak": "speech"}

# Fields of a request -> (attribute, the type it has).
_ASKED: tuple[tuple[str, str, type | tuple[type, ...]], ...] = (
    ("temperature", "gen_ai.request.temperature", (int, float)),
    ("top_p", "gen_ai.request.top_p", (int, float)),
    ("top_k", "gen_ai.request.top_k", int),
    ("max_tokens", "gen_ai.request.max_tokens", int),
    ("max_completion_tokens", "gen_ai.request.max_tokens", int),
    ("max_output_tokens", "gen_ai.request.max_tokens", int),
    ("frequency_penalty", "gen_ai.request.frequency_penalty", (int, float)),
    ("presence_penalty", "gen_ai.request.presence_penalty", (int, float)),
    ("seed", "gen_ai.request.seed", int),
    ("reasoning_effort", "gen_ai.request.reasoning.level", str),
)


class Spans:
    """Makes a span of each call, after it ended, with its own times. Bodies are never in it."""

    spans = True

    def __init__(self, tracer: "Tracer", close: Callable[[], None] | None = None) -> None:
        self._tracer = tracer
        self._close = close

    def observe(self, made: Sequence[Made]) -> None:
        """Make the spans of these calls."""
        for one in made:
            self._span(one)

    def close(self) -> None:
        """Send what is still to be sent. Waits for the network: call it in a thread."""
        if self._close is not None:
            self._close()

    def _span(self, made: Made) -> None:
        from opentelemetry.trace import SpanKind, Status, StatusCode

        facts = made.record.facts
        ended = int(facts.created_at * 1e9)
        operation = _OPERATIONS.get(facts.endpoint, facts.endpoint)
        span = self._tracer.start_span(
            facts.span_name or f"{operation} {facts.model}".rstrip(),
            context=_parent(facts, made.headers),
            kind=SpanKind.CLIENT,
            attributes=attributes(facts, made.fields),
            start_time=ended - int(facts.seconds * 1e9),
        )
        if facts.failed:
            span.set_status(Status(StatusCode.ERROR, facts.error or None))
        span.end(ended)


def attributes(facts: CallFacts, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What the span of a call says: the conventions' attributes, and ours under ``loomgate``."""
    said: dict[str, Any] = {
        "gen_ai.operation.name": _OPERATIONS.get(facts.endpoint, facts.endpoint),
        "gen_ai.provider.name": _PROVIDERS.get(facts.provider, facts.provider),
        "gen_ai.request.model": facts.model,
        "gen_ai.response.model": facts.answer_model,
        "gen_ai.response.id": facts.answer_id,
        "gen_ai.response.finish_reasons": facts.finish_reasons,
        "gen_ai.output.type": _OUTPUTS.get(facts.endpoint, ""),
        "gen_ai.conversation.id": facts.thread_id,
        "loomgate.log.id": facts.id,
        "loomgate.trace.id": facts.trace_id,
        "loomgate.workspace": facts.workspace,
        "loomgate.run.id": facts.run_id,
        "loomgate.cache": "" if facts.cache == "DISABLED" else facts.cache,
        "loomgate.target": facts.path,
    }
    said = {name: value for name, value in said.items() if value}
    if facts.stream:
        said["gen_ai.request.stream"] = True
        if facts.first_byte is not None:
            said["gen_ai.response.time_to_first_chunk"] = facts.first_byte
    if facts.prompt_tokens or facts.completion_tokens:
        said["gen_ai.usage.input_tokens"] = facts.prompt_tokens
        said["gen_ai.usage.output_tokens"] = facts.completion_tokens
    if facts.cached_tokens:
        said["gen_ai.usage.cache_read.input_tokens"] = facts.cached_tokens
    if facts.cache_creation_tokens:
        said["gen_ai.usage.cache_write.input_tokens"] = facts.cache_creation_tokens
    if facts.reasoning_tokens:
        said["gen_ai.usage.reasoning.output_tokens"] = facts.reasoning_tokens
    for field, name, kind in _ASKED:
        value = fields.get(field)
        if isinstance(value, kind) and not isinstance(value, bool):
            said[name] = value
    choices = fields.get("n")
    if isinstance(choices, int) and not isinstance(choices, bool) and choices != 1:
        said["gen_ai.request.choice.count"] = choices
    stop = fields.get("stop")
    if stop := [stop] if isinstance(stop, str) else stop:
        said["gen_ai.request.stop_sequences"] = [text for text in stop if isinstance(text, str)]
    if facts.attempts and (host := facts.attempts[-1].host):
        name, _, port = host.rpartition(":") if host.rpartition(":")[2].isdigit() else (host, "", "443")
        said["server.address"], said["server.port"] = name.strip("[]"), int(port)
    if facts.cost is not None:
        said["loomgate.cost"] = facts.cost
    if facts.retries:
        said["loomgate.retries"] = facts.retries
    if facts.failed:  # an answer may also break after its status was sent
        said["error.type"] = str(facts.status) if facts.status >= 400 else "broken_stream"
    for name, value in facts.metadata.items():
        said[f"loomgate.metadata.{name}"] = value
    return said


def _parent(facts: CallFacts, headers: Mapping[str, str]) -> "Context | None":
    """The span that the client says it made the call in: by W3C's header, else by Portkey's (RH-16) if they fit."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    if "traceparent" in headers:
        return TraceContextTextMapPropagator().extract(dict(headers))
    try:
        trace_id, parent = int(facts.trace_id, 16), int(facts.parent_span_id, 16)
    except ValueError:
        return None
    if len(facts.trace_id) != 32 or len(facts.parent_span_id) != 16:
        return None
    flags = trace.TraceFlags(trace.TraceFlags.SAMPLED)
    context = trace.SpanContext(trace_id, parent, is_remote=True, trace_flags=flags)
    return trace.set_span_in_context(trace.NonRecordingSpan(context)) if context.is_valid else None


_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")


def spans_from(env: Mapping[str, str] = os.environ) -> Spans | None:
    """Spans that go where the usual OTEL_* variables say, or ``None`` when they name no place or switch it off.

    It takes ``opentelemetry-sdk`` and an OTLP exporter to send them; without these one warning is logged.
    """
    wanted = env.get("OTEL_TRACES_EXPORTER", "").strip().lower()
    off = env.get("OTEL_SDK_DISABLED", "").strip().lower() == "true" or wanted == "none"
    if off or not (wanted or any(env.get(name) for name in _ENDPOINTS)):
        return None
    if wanted not in ("", "otlp", "console"):
        log.warning("OTEL_TRACES_EXPORTER is %r: expected otlp, console or none; no spans are made", wanted)
        return None
    if importlib.util.find_spec("opentelemetry.sdk") is None:
        log.warning("spans are wanted, but not made: install opentelemetry-sdk (pip install 'loomgate[otel]')")
        return None
    return _sdk_spans(wanted, env)


def _sdk_spans(wanted: str, env: Mapping[str, str]) -> Spans | None:
    # By name, since the packages are optional.
    resources: Any = importlib.import_module("opentelemetry.sdk.resources")
    sdk: Any = importlib.import_module("opentelemetry.sdk.trace")
    export: Any = importlib.import_module("opentelemetry.sdk.trace.export")
    exporter: Any
    if wanted == "console":
        exporter = export.ConsoleSpanExporter()
    else:
        protocol = env.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL") or env.get("OTEL_EXPORTER_OTLP_PROTOCOL")
        kind = "grpc" if protocol == "grpc" else "http"
        try:
            module: Any = importlib.import_module(f"opentelemetry.exporter.otlp.proto.{kind}.trace_exporter")
        except ImportError:
            log.warning("spans are wanted, but not made: install opentelemetry-exporter-otlp-proto-%s", kind)
            return None
        exporter = module.OTLPSpanExporter()
    resource = resources.Resource.create({} if env.get("OTEL_SERVICE_NAME") else {"service.name": "loomgate"})
    provider = sdk.TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(export.BatchSpanProcessor(exporter))
    return Spans(provider.get_tracer("loomgate", __version__), provider.shutdown)
