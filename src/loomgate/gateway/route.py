"""Which target of a config answers a request: single, fallback, loadbalance, conditional (GATEWAY 6.3 to 6.6, 6.10).

What must live here: the order in which targets are tried, and when it ends. What must not: how a target is called, its
retries included (FB-05): that is the callable ``attempt``.
"""

import random
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b

import msgspec

from loomgate import clock
from loomgate.errors import ApiError
from loomgate.gateway import conditions
from loomgate.gateway.breaker import Breakers
from loomgate.gateway.call import Answer, Effective, Node, Request
from loomgate.wire.policy import Sticky

Attempt = Callable[[Effective], Awaitable[Answer]]

# Below these live objects that one account has and the others do not (PRX-11).
STATEFUL = ("/assistants", "/threads", "/vector_stores", "/uploads")

_MOST_PINS = 100_000


def is_stateful(request: Request) -> bool:
    """Whether ``request`` is about objects that live in the account that made them (PRX-11)."""
    return request.endpoint.name == "proxy" and any(
        request.path == path or request.path.startswith(path + "/") for path in STATEFUL
    )


def is_repeatable(request: Request) -> bool:
    """Whether ``request`` may be sent again after it may have been carried out (PRX-12), see `retry.wait`."""
    return request.method != "POST" or not is_stateful(request)


class Router:
    """Walks configs. One per process: it remembers which targets fail, and who was promised which target.

    ``dice`` gives numbers from 0 up to, but not including, 1.
    """

    def __init__(
        self,
        dice: Callable[[], float] = random.random,
        breakers: Breakers | None = None,
        now: Callable[[], float] = clock.now,
    ) -> None:
        self._dice = dice
        self._breakers = breakers or Breakers(now)
        self._now = now
        self._pins: dict[bytes, tuple[int, float]] = {}

    async def walk(self, node: Node, request: Request, attempt: Attempt, skip: frozenset[str] = frozenset()) -> Answer:
        """The answer of the target that ``node`` leads to; ``attempt`` calls one, with its retries.

        ``skip``: paths of targets that must not be tried again, unless there is no other. An answer that is passed
        over for the next target is closed. Raises what ``attempt`` raises, and a 400 `ApiError` for conditions that
        lead nowhere (CND-09) and for a stateful path over several accounts (PRX-11).
        """
        if node.strategy is None:
            return await self._call(node.effective, request, attempt)
        if skip and not self._is_open_to(node, request, skip):
            skip = frozenset()
        return await self._walk(node, request, attempt, skip)

    def leads_past(self, node: Node, request: Request, skip: frozenset[str]) -> bool:
        """Whether `walk` would find a target that is not in ``skip``."""
        return bool(skip) and node.strategy is not None and self._is_open_to(node, request, skip)

    async def _walk(self, node: Node, request: Request, attempt: Attempt, skip: frozenset[str]) -> Answer:
        strategy = node.strategy
        if strategy is None:
            return await self._call(node.effective, request, attempt)
        if strategy.mode == "fallback":
            return await self._fall_back(node, request, attempt, skip)
        is_drawn = strategy.mode == "loadbalance"
        target = self._draw(node, request, skip) if is_drawn else self._settled(node, request)
        return await self.walk(target, request, attempt, skip)

    async def _call(self, effective: Effective, request: Request, attempt: Attempt) -> Answer:
        answer = await attempt(effective)
        answer.path = effective.path
        if effective.breaker is not None and not answer.final:
            self._breakers.note((request.workspace, effective.circuit), answer.status, effective.breaker)
        return answer

    async def _fall_back(self, node: Node, request: Request, attempt: Attempt, skip: frozenset[str]) -> Answer:
        strategy = node.strategy
        assert strategy is not None
        statuses = strategy.on_status_codes
        *first, last = self._candidates(node, request, skip)
        for target in first:
            answer = await self.walk(target, request, attempt, skip)
            status = answer.status
            # Without a list anything but success leads on, with one only what is in it (FB-01, FB-02).
            leads_on = not 200 <= status <= 299 if statuses is None else status in statuses
            if answer.final or not leads_on:
                return answer
            await answer.close()
        return await self.walk(last, request, attempt, skip)

    def _settled(self, node: Node, request: Request) -> Node:
        """The target of a strategy that leaves nothing to chance: ``single`` (SGL-01) and ``conditional``."""
        strategy = node.strategy
        assert strategy is not None
        if strategy.mode == "single":
            return node.targets[0]
        name = conditions.choose(strategy, conditions.facts(request))
        for target in node.targets:
            if target.effective.name == name:
                return target
        raise ApiError(400, f"Invalid target name found in the query router: {name}", code="invalid_config")

    # What may be tried

    def _candidates(self, node: Node, request: Request, skip: frozenset[str]) -> Sequence[Node]:
        """The targets in their order, without those to skip and those whose circuit is open (CB-03)."""
        targets = node.targets
        if skip:
            targets = tuple(target for target in targets if self._is_open_to(target, request, skip)) or targets
        if is_stateful(request):
            return targets
        admitted = [target for target in targets if self._admits(target, request)]
        return admitted or targets

    def _is_open_to(self, node: Node, request: Request, skip: frozenset[str]) -> bool:
        """Whether there is a target in ``node`` that is not to be skipped."""
        if node.strategy is None:
            return node.effective.path not in skip
        match node.strategy.mode:
            case "fallback":
                return any(self._is_open_to(target, request, skip) for target in node.targets)
            case "loadbalance":
                return any(self._is_open_to(target, request, skip) for target in _weighty(node.targets))
            case _:
                return self._is_open_to(self._settled(node, request), request, skip)

    def _admits(self, node: Node, request: Request) -> bool:
        effective = node.effective
        if node.strategy is None:
            return effective.breaker is None or self._breakers.admits((request.workspace, effective.circuit))
        match node.strategy.mode:
            case "single":
                return self._admits(node.targets[0], request)
            case "conditional":
                return True  # not evaluated (CB-04)
            case _:
                return any(self._admits(target, request) for target in node.targets)

    # Load balancing

    def _draw(self, node: Node, request: Request, skip: frozenset[str]) -> Node:
        assert node.strategy is not None
        targets = _weighty(node.targets)
        if len(targets) == 1:
            return targets[0]
        sticky = node.strategy.stuck
        key = None if sticky is None else _sticky_key(sticky, node, request)
        if is_stateful(request):
            if key is None:
                raise _stateless(node, sticky)
            # The objects outlive every time to live and this process, so no promise is remembered: the key decides.
            return _at(targets, int.from_bytes(key[:8]) / 2**64)
        if skip:
            targets = [target for target in targets if self._is_open_to(target, request, skip)] or targets
        targets = [target for target in targets if self._admits(target, request)] or targets
        if sticky is None or key is None:
            return _at(targets, self._dice())
        now = self._now()
        pin = self._pins.get(key)
        if pin is not None and now < pin[1]:
            for target in targets:
                if target.effective.index == pin[0]:
                    return target
        target = _at(targets, self._dice())
        self._pins.pop(key, None)
        if len(self._pins) >= _MOST_PINS:
            del self._pins[next(iter(self._pins))]
        self._pins[key] = (target.effective.index, now + sticky.ttl)
        return target


def _weighty(targets: Sequence[Node]) -> list[Node]:
    """Those that may be drawn (LB-02); a config where there is none is refused when it is read (LB-03)."""
    found = [target for target in targets if target.effective.weight > 0]
    if not found:
        raise ApiError(400, "Every target of a loadbalance strategy has weight 0.", code="invalid_config")
    return found


def _at(targets: Sequence[Node], share: float) -> Node:
    """The target at ``share`` (0 up to 1) of the weights laid end to end (LB-01)."""
    mark = share * sum(target.effective.weight for target in targets)
    for target in targets:
        mark -= target.effective.weight
        if mark < 0:
            return target
    return targets[-1]


def _sticky_key(sticky: Sticky, node: Node, request: Request) -> bytes | None:
    """What the values of the sticky fields come to; None if the request has none of them (LB-05)."""
    known = conditions.facts(request)
    values = [conditions.fact(known, field) for field in sticky.hash_fields]
    if all(value is None for value in values):
        return None
    weights = [target.effective.weight for target in node.targets]
    told = msgspec.json.encode([request.workspace, node.effective.path, sticky.hash_fields, weights, values])
    return blake2b(told, digest_size=16).digest()


def _stateless(node: Node, sticky: Sticky | None) -> ApiError:
    need = (
        "Give the strategy a 'sticky' rule, or name one target."
        if sticky is None
        else f"Send one of the fields of its 'sticky' rule ({', '.join(sticky.hash_fields)})."
    )
    return ApiError(
        400,
        "Assistants, threads, vector stores and uploads live in one account, so their requests cannot be balanced over "
        f"several targets ({node.effective.path}). {need}",
        code="stateful_loadbalance",
    )
