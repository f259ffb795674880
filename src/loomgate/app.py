"""The composition root: settings in, a running server out. The only room that knows every class.

What must live here: which object gets which, in what order they start and stop, and the process around them (sockets,
signals, logs). What must not: decisions that belong to a room.
"""

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from typing import TYPE_CHECKING, Any

from loomgate import clock
from loomgate.bus import Bus
from loomgate.bus.local import LocalBus
from loomgate.engine.service import Engine
from loomgate.engine.webhooks import Webhooks
from loomgate.engine.worker import WorkerSettings
from loomgate.errors import SettingError
from loomgate.gateway import Gateway, GatewayConfig, ProviderConfig
from loomgate.gateway.cache import AnswerCache, Embed
from loomgate.gateway.counters import Counters
from loomgate.gateway.hosts import trusted_from_env
from loomgate.gateway.limits import Limits
from loomgate.gateway.lookup import Lookup
from loomgate.gateway.meter import Meter
from loomgate.gateway.prices import Prices
from loomgate.gateway.saved import Saved, check_declared
from loomgate.gateway.shared import Shared
from loomgate.gateway.shared_cache import SharedAnswerCache
from loomgate.gateway.spending import Spending
from loomgate.gateway.telemetry import Metrics, spans_from
from loomgate.http.application import Application
from loomgate.http.auth import Auth, is_loopback
from loomgate.http.quota import quota_of
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.sigv4 import AwsKeys
from loomgate.providers.transport import Timeouts
from loomgate.settings import Provider, Settings
from loomgate.store import Store, open_store
from loomgate.store.seal import Sealer

if TYPE_CHECKING:
    from loomgate.bus.connection import Redis

log = logging.getLogger(__name__)


def build(settings: Settings, *, api: bool = True) -> Application:
    """The ASGI application of ``settings``, without ``api`` that of a worker: probes alone. Its lifespan opens the
    store and drives the engine.

    What `loomgate.store.open_store` raises comes out of the lifespan.
    """

    @contextlib.asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None, None]:
        async with running(application):
            yield

    application = Application(settings, lifespan, api=api)
    return application


@contextlib.asynccontextmanager
async def running(
    application: Application,
    left: Callable[[], float] | None = None,
    hurry: asyncio.Event | None = None,
    lost: Callable[[str], None] | None = None,
) -> AsyncGenerator[Store, None]:
    """Everything behind ``application``, started; stopped in turn on leaving.

    ``left`` gives the seconds that runs under way may take to finish then (by default all of ``drain_seconds``);
    as soon as ``hurry`` is set they are not waited for. ``lost`` is called with one line when this node may not use its
    database any longer. Raises `StoreError`, and `SettingError` for what the settings declare in vain.
    """
    settings = application.settings
    check_declared(settings)
    redis = _redis(settings)
    async with open_store(settings, exclusive=True, lost=lost) as store:
        counters = Counters(None if redis is None else Shared(redis, settings.redis_prefix))
        limits, metrics, spans = Limits(counters), Metrics(), spans_from()
        lookup = Lookup(Saved(store, settings))
        parents = await lookup.parents()
        limits.load(await store.ledger.spending(), parents)
        meter = Meter(
            functools.partial(store.ledger.write, kept=settings.log_calls),
            Prices(settings.prices),
            settings.log_body_bytes,
            observers=[metrics] if spans is None else [metrics, spans],
            spend=functools.partial(limits.spend_with, parents),
            forget=store.ledger.forget,
            days=settings.log_retention_days,
        )
        spending = Spending(limits, parents, store.ledger.spent_lately)
        cache = _cache(settings, redis, store.sealer, _embedder(settings, application))
        gateway = Gateway(gateway_config(settings), stored=lookup.stored(), cache=cache, meter=meter, limits=limits)
        bus = _bus(settings, redis)
        webhooks = Webhooks(store.outbox, settings.webhooks, settings.webhook_retry_seconds)
        engine = Engine(
            store,
            gateway,
            bus,
            WorkerSettings(
                concurrency=settings.worker_concurrency,
                lease=settings.lease_seconds,
                renew=settings.lease_renew_seconds,
                poll=settings.poll_interval_seconds,
                workspace_runs=settings.workspace_runs,
                windows=settings.context_window,
                drive=settings.drive_runs or not application.api,
            ),
            webhooks,
        )
        try:
            await bus.start()
            await engine.start()
            meter.start()
            if settings.postgres:  # which other nodes may be using
                spending.start()
            application.quota = quota_of(settings, counters)
            application.auth = Auth(store)
            application.gateway = gateway
            application.engine = engine
            metrics.runs, metrics.dropped = (lambda: engine.active), (lambda: meter.dropped)
            metrics.queue, metrics.connections = store.runs.queue.waiting, (lambda: store.connections)
            if redis is not None:
                application.redis = metrics.redis = lambda: not redis.away
            application.metrics = metrics
            yield store
        finally:
            application.engine = application.gateway = None
            await engine.close(settings.drain_seconds if left is None else left(), hurry)
            await bus.close()
            await gateway.close()
            await meter.close()
            await spending.close()
            await counters.close()
            await cache.close()
            if redis is not None:
                await redis.close()
            if spans is not None:
                await asyncio.to_thread(spans.close)


def _redis(settings: Settings) -> "Redis | None":
    """The Redis of ``settings``, not opened yet. Raises `SettingError`."""
    url = settings.redis_url.reveal()
    if not url:
        return None
    from loomgate.bus.connection import Redis

    try:
        return Redis(url)
    except ValueError as error:
        raise SettingError("redis_url", f"the URL of a Redis ({error})") from None


def _bus(settings: Settings, redis: "Redis | None") -> Bus:
    seconds, size = settings.stream_retention_seconds, settings.stream_retention_bytes
    if redis is None:
        return LocalBus(retention_seconds=seconds, retention_bytes=size)
    from loomgate.bus.redis import RedisBus

    return RedisBus(redis, prefix=settings.redis_prefix, retention_seconds=seconds, retention_bytes=size)


def _cache(settings: Settings, redis: "Redis | None", sealer: Sealer, embed: Embed | None) -> AnswerCache:
    size, ages = settings.cache_bytes, (settings.cache_max_age_seconds, settings.cache_max_age_limit_seconds)
    if redis is None:
        return AnswerCache(size, embed, max_age=ages[0], max_age_limit=ages[1])
    # Answers are larger than counters, and may take their time.
    shared = Shared(redis, settings.redis_prefix, seconds=0.25)
    return SharedAnswerCache(shared, sealer, size, embed, max_age=ages[0], max_age_limit=ages[1])


def gateway_config(settings: Settings) -> GatewayConfig:
    """The providers of ``settings`` as the gateway wants them. Raises `SettingError`."""
    default = settings.default_provider
    return GatewayConfig(
        providers={name: provider_config(provider) for name, provider in settings.providers.items()},
        default=None if default is None else default.name,
        trusted=trusted_from_env(os.environ.get("TRUSTED_CUSTOM_HOSTS", "")),
    )


def provider_config(provider: Provider) -> ProviderConfig:
    """``provider`` as the gateway wants it. Raises `SettingError` for a setting that its vendor has no use for."""
    vendor = CATALOGUE.get(provider.vendor)
    for name in ("project", "region", "aws_access_key_id"):
        if (value := getattr(provider, name)) and vendor is not None and name not in vendor.takes:
            key, found = f"providers.{provider.name}.{name}", repr(value)
            raise SettingError(key, f"nothing, since the vendor `{vendor.name}` has no {name}", found)
    return ProviderConfig(
        vendor=provider.vendor,
        base_url=provider.base_url or (vendor.local if vendor is not None else None),
        api_key=provider.api_key.reveal() or None,
        project=provider.project or None,
        region=provider.region or None,
        aws=_aws_keys(provider),
        options=provider.options.reveal(),
        models=provider.models,
        attempts=provider.max_attempts,
        timeouts=Timeouts(
            connect=provider.connect_seconds,
            first_byte=provider.first_byte_seconds,
            idle=provider.idle_seconds,
            total=provider.total_seconds,
        ),
    )


def _aws_keys(provider: Provider) -> AwsKeys | None:
    if not provider.aws_access_key_id:
        return None
    return AwsKeys(
        access_key_id=provider.aws_access_key_id.reveal(),
        secret_access_key=provider.aws_secret_access_key.reveal(),
        session_token=provider.aws_session_token.reveal() or None,
    )


def _embedder(settings: Settings, application: Application) -> Callable[[str], Awaitable[list[float]]] | None:
    """Vectors for the semantic cache, from the model that the operator names; its calls are like any others."""
    model = settings.semantic_cache_model
    if not model:
        return None

    async def embed(text: str) -> list[float]:
        assert application.gateway is not None
        return await application.gateway.embed(text, model)

    return embed


# --- the process -----------------------------------------------------------------------------------------------------


def serve(settings: Settings) -> int:
    """Run the server until SIGINT or SIGTERM; a second one does not wait for what is under way. Returns the exit code.

    Raises `OSError` when the address cannot be listened on, `StoreError` and `SettingError`.
    """
    return _run(build(settings), listen(settings.host, settings.port))


def work(settings: Settings) -> int:
    """Drive runs, and nothing else, until SIGINT or SIGTERM; with ``worker_port``, answer probes there.

    Returns and raises what `serve` does.
    """
    if not settings.redis_url:
        wanted = "the Redis that the nodes of a PostgreSQL share, since `loomgate serve` without one is the only node"
        raise SettingError("redis_url", wanted, "nothing")
    listening = listen(settings.host, settings.worker_port) if settings.worker_port else None
    return _run(build(settings, api=False), listening)


def _run(application: Application, listening: socket.socket | None) -> int:
    level = application.settings.log_level.upper()
    logging.basicConfig(level=level, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    # What uvicorn says of its own life is said here in one line; that it ends streams at a stop is no error.
    logging.getLogger("uvicorn").setLevel(max(logging.WARNING, logging.getLogger().level))
    logging.getLogger("uvicorn.error").addFilter(lambda record: "graceful shutdown exceeded" not in record.getMessage())
    # Its pool tells at length of each attempt to connect; the store tells in a line what came of it.
    logging.getLogger("asyncpg").setLevel(logging.ERROR)
    loop_factory = None
    if sys.platform != "win32":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner, listening or contextlib.nullcontext():
        return runner.run(_Process(application, listening).live())


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens on ``host`` (a name or an address) and ``port`` (0: a free one). Raises `OSError`."""
    family, kind, protocol, _, address = socket.getaddrinfo(
        host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
    )[0]
    made = socket.socket(family, kind, protocol)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)  # now, and not when the server starts: a taken port is noticed here
    except OSError:
        made.close()
        raise
    return made


class _Process:
    """The life of a server's or worker's process: what a signal begins, and in which order it ends.

    On the first signal the node claims nothing more and is not ready; after ``drain_delay_seconds`` it takes no more
    requests, and what is under way gets ``drain_seconds``. On the second one nothing is waited for.
    """

    def __init__(self, application: Application, listening: socket.socket | None) -> None:
        self._application = application
        self._settings = application.settings
        self._listening = listening
        self._server = None if listening is None else _server(application)
        self._stopped: float | None = None  # when the time to drain began
        self._signals = 0
        self._leaving = asyncio.Event()
        self._hurry = asyncio.Event()
        self._code = 0

    async def live(self) -> int:
        """Start, serve, drain; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._stop)
        async with running(self._application, self._left, self._hurry, self._lost) as store:
            # What is there now stays: never look through it for garbage again (`cli` had the collector off meanwhile).
            gc.freeze()
            # Nor through what is new after every 700 objects: those of some calls, which leave next to no garbage.
            gc.set_threshold(20_000, 10, 10)
            gc.enable()
            if self._application.api:
                assert self._listening is not None
                _announce(self._listening, keys_exist=await store.keys.exist())
            else:
                _announce_worker(self._listening)
            if self._server is None:
                await self._leaving.wait()
            else:
                await self._server.serve(sockets=[self._listening])
        return self._code

    def _left(self) -> float:
        spent = 0.0 if self._stopped is None else clock.monotonic() - self._stopped
        return max(0.0, self._settings.drain_seconds - spent)

    def _lost(self, why: str) -> None:
        log.error("stopping: %s", why)
        self._code = 1
        self._stop()

    def _stop(self) -> None:
        self._signals += 1
        if self._signals > 1:
            self._hurry.set()
            self._leave()
            if self._server is not None:
                self._server.force_exit = True
            return
        engine = self._application.engine
        self._application.draining = True
        if engine is not None:
            engine.drain()
            if engine.active:
                log.info(
                    "stopping: %d run(s) under way get %g seconds to finish and are kept if they do not; a second "
                    "signal does not wait",
                    engine.active,
                    self._settings.drain_seconds,
                )
        if self._server is not None and self._settings.drain_delay_seconds:
            asyncio.get_running_loop().call_later(self._settings.drain_delay_seconds, self._leave)
        else:
            self._leave()

    def _leave(self) -> None:
        if self._stopped is None:
            self._stopped = clock.monotonic()
        self._leaving.set()
        if self._server is not None:
            self._server.should_exit = True


def _server(application: Application) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        @contextlib.contextmanager
        def capture_signals(self) -> Generator[None, None, None]:
            # Not uvicorn's way: it raises the signal again as soon as the sockets are closed, before the engine is.
            yield

    return Server(uvicorn_config(application, drain_seconds=application.settings.drain_seconds))


def uvicorn_config(application: Application, *, drain_seconds: float) -> Any:
    """How uvicorn carries ``application``: no access log, no trust in forwarded addresses, our own lifespan."""
    import uvicorn

    from loomgate.http.protocol import Protocol, websocket_protocol

    return uvicorn.Config(
        application,
        http=Protocol,
        ws=websocket_protocol,  # pyright: ignore[reportArgumentType] - a factory, where a class is expected
        ws_max_size=16 * 1024 * 1024,  # bytes of a message, as upstream
        # A client whose messages wait for a slow endpoint is not read from, so its pongs may be late.
        ws_ping_timeout=120.0,
        ws_per_message_deflate=False,
        lifespan="off",
        access_log=False,
        log_config=None,
        proxy_headers=False,
        server_header=False,
        timeout_graceful_shutdown=drain_seconds,  # pyright: ignore[reportArgumentType] - seconds, also parts of one
    )


def _announce_worker(listening: socket.socket | None) -> None:
    line = "loomgate drives runs"
    if listening is not None:
        line += f"; /health, /ready and /metrics are on {_address(listening)}"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _address(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _announce(listening: socket.socket, *, keys_exist: bool) -> None:
    host: str = listening.getsockname()[0]
    line = f"loomgate listens on {_address(listening)}/v1"
    if not keys_exist:
        line += " (no API key yet: only this machine is answered; `loomgate keys create --name NAME` makes one"
        line += ")" if is_loopback(host) else ", until then other machines get a 403)"
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
