"""The straight way: chats that go to one endpoint as they are, and whose answers come at once; no task carries them.

What must live here: which calls need nothing of the pipeline but to be passed on, and passing them on. What must not:
a second way of doing anything else: whatever is not as expected (no connection at hand, any status but 200, a stream, a
failure, an answer that takes its time) goes on in `Gateway.call`, which takes over what is under way.
"""

from collections.abc import Awaitable
from functools import partial
from typing import NamedTuple

from loomgate import clock
from loomgate.errors import ApiError, ProviderError
from loomgate.gateway import params, retry
from loomgate.gateway.call import Answer, Effective, Node, Request
from loomgate.gateway.config import Budget, GatewayConfig, Stored
from loomgate.gateway.exchange import Exchange, passing
from loomgate.gateway.kept import recorded
from loomgate.gateway.limits import Limits
from loomgate.gateway.meter import Meter, Record
from loomgate.gateway.resolve import Resolved, Resolver
from loomgate.providers import scripted
from loomgate.providers.operations import Passes
from loomgate.providers.transport import Line, Started
from loomgate.wire.endpoints import ENDPOINTS

_CHAT = ENDPOINTS["chat"]
_MOST_LINES = 100  # models of one client that are remembered
_SOON = 5.0  # seconds: time-outs below this are kept by a task from the start


class _Way(NamedTuple):
    resolved: Resolved
    line: Line
    doing: Passes


class Way:
    """Where the calls of one client go, as long as `Straight.holds` says so."""

    __slots__ = ("effective", "models", "number", "workspace")

    def __init__(self, workspace: str, number: int, effective: Effective) -> None:
        self.workspace = workspace
        self.number = number  # of the workspace's changes
        self.effective = effective
        self.models: dict[str, _Way | None] = {}  # None: not straight


class Passing:
    """A call that was begun: `ended` is called once with its answer, or with None when `Gateway.call` is to go on with
    ``request``, unless `leave` was called before. Whoever makes one says what happens then."""

    __slots__ = ("_effective", "_resolved", "record", "request", "started")

    record: Record
    started: Started
    _effective: Effective
    _resolved: Resolved

    def __init__(self, request: Request) -> None:
        self.request = request

    def begun(self, record: Record, started: Started, effective: Effective, resolved: Resolved) -> None:
        """It is on its way (for `Straight`)."""
        self.record, self.started = record, started
        self._effective, self._resolved = effective, resolved

    def ended(self, answer: Answer | None) -> None:
        """See the class."""
        raise NotImplementedError

    def taken(self) -> Started | None:
        """What is under way, for whoever goes on with it; None when somebody has."""
        return None if self.started.over else self.started

    def leave(self) -> None:
        """Nobody wants the answer, unless it is somebody's already."""
        self.started.leave()

    def progress(self) -> None:
        """More of the answer is there, or no more will be."""
        connection = self.started.connection
        if not connection.over:
            # The rest of a short answer is about to come; if not, `ended` is not waited for much longer.
            if connection.failure or connection.status != 200 or connection.paused or _is_stream(connection.headers):
                self.ended(None)
            return
        if (
            connection.status != 200
            or connection.encoding
            or _is_stream(connection.headers)
            or retry.exhausted_count(self._effective.retry, 1, 200)
        ):
            self.ended(None)
            return
        resolved, record = self._resolved, self.record
        headers = passing(connection.headers)
        answer = Answer(200, self.started.settle(), headers=headers)
        answer.provider = resolved.provider
        answer.model = resolved.model or ""
        answer.path = self._effective.path
        record.attempted(resolved.provider, 200, clock.monotonic() - record.began, virtual_key=resolved.stored)
        self.ended(recorded(record, answer))


class Straight:
    """Begins such calls. One per gateway."""

    def __init__(
        self,
        config: GatewayConfig,
        stored: Stored,
        resolver: Resolver,
        exchange: Exchange,
        meter: Meter,
        limits: Limits,
    ) -> None:
        self._config = config
        self._stored = stored
        self._resolver = resolver
        self._exchange = exchange
        self._meter = meter
        self._limits = limits

    async def way(self, request: Request, found: Awaitable[Node]) -> Way | None:
        """The way that the node of ``request``, which is awaited, is to calls like it, if it is a straight one."""
        number = await self._stored.number(request.workspace)  # first: what changes after it makes it another one
        node = await found
        effective = node.effective
        if (
            number is None
            or request.endpoint is not _CHAT
            or node.strategy is not None
            or effective.before
            or effective.after
            or effective.cache is not None
            or effective.breaker is not None
            or (effective.request_timeout or 1e9) < _SOON * 1000
        ):
            return None
        return Way(request.workspace, number, effective)

    def holds(self, way: Way) -> bool:
        """Whether nothing was changed by which the way would be another."""
        return self._stored.known(way.workspace) == way.number

    def begin(self, way: Way, call: Passing) -> bool:
        """Begin ``call``; False, and nothing was done, if it has to go the other way."""
        request = call.request
        try:
            fields = request.fields
        except ApiError:
            return False
        model, effective = fields.get("model"), way.effective
        if not isinstance(model, str) or fields.get("stream"):
            return False
        found = way.models.get(model)
        if found is None or not found.doing.takes(fields, request.body, found.resolved.target):
            return False
        if params.apply(fields, effective) is not fields:
            return False
        resolved = found.resolved
        if resolved.expires_at is not None and clock.now() >= resolved.expires_at:
            return False
        budgets = resolved.budgets
        # With several, one that lets it in would count it again when another's refusal is told; what all nodes count
        # is waited for.
        if len(budgets) > 1 or (budgets and self._limits.shared):
            return False
        admit = partial(self._admits, budgets[0]) if budgets else None
        record = self._meter.begin(request)
        started = self._exchange.start(found.line, request.body, call.progress, admit)
        if started is None:
            return False
        call.begun(record, started, effective, resolved)
        return True

    def _admits(self, budget: Budget) -> bool:
        return self._limits.admit(budget.id, budget.limits, budget.since) is None

    async def learn(self, way: Way, request: Request) -> None:
        """Let later calls for the model of ``request``, which was answered, go this way if they can."""
        model = request.model
        if model is not None and model not in way.models:
            found = await self._found(way, request, model)
            if len(way.models) >= _MOST_LINES:
                way.models.clear()
            way.models[model] = found

    async def _found(self, way: Way, request: Request, model: str) -> _Way | None:
        if self._config.scripted and scripted.is_scripted(model):
            return None
        try:
            resolved = await self._resolver.resolve(request, way.effective, model)
            if resolved.model != model:
                return None
            timeouts = resolved.config.timeouts or self._config.timeouts
            if min(timeouts.first_byte, timeouts.idle, timeouts.total) < _SOON:
                return None
            found = self._exchange.line(request, resolved, way.effective)
        except (ApiError, ProviderError):
            return None  # the other way tells it
        return None if found is None else _Way(resolved, *found)


def _is_stream(headers: list[tuple[bytes, bytes]]) -> bool:
    for name, value in headers:
        if name == b"content-type":
            return value.startswith(b"text/event-stream")
    return False
