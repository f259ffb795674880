"""Guardrails: checks on what goes to a model and on what comes back (GATEWAY section 7).

What must live here: reading them from a config, running them, the verdicts, and the results as clients see them.
What must not: a check (``checks.py``), or what a verdict does to an answer's status (the pipeline).
"""

import asyncio
import hashlib
import logging
from collections.abc import Callable, Coroutine, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, cast

import msgspec

from loomgate import clock
from loomgate.errors import bad_request
from loomgate.gateway.checks import Check, prepare_check
from loomgate.gateway.subject import Body, Side, Subject
from loomgate.gateway.verdicts import Door, Finding, Send
from loomgate.wire.endpoints import ENDPOINTS

__all__ = [
    "Guardrail",
    "Guards",
    "Outcome",
    "Subject",
    "compile_guardrails",
    "denied_body",
    "with_results",
]

log = logging.getLogger(__name__)

Results = list[dict[str, Any]]

_MOST = 100  # guardrails of one side, and checks in them
_BACKGROUND = 256  # asynchronous runs at a time
_DENIED = (
    "The guardrail checks defined in the config failed. You can find more information in the `hook_results` object."
)


class Feedback(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a success or a failure says about the request (GR-18)."""

    value: float | int | None = None
    weight: float | int | None = None
    metadata: dict[str, Any] = {}


class Effect(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``on_success`` and ``on_fail``."""

    feedback: Feedback | None = None


class _Common(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What both forms have beside their checks (GR-02)."""

    id: str | None = None
    type: Literal["guardrail", "mutator"] = "guardrail"
    deny: bool = False
    background: bool = msgspec.field(default=False, name="async")
    sequential: bool = False
    on_success: Effect | None = None
    on_fail: Effect | None = None
    guardrail_version_id: str | None = None


_RESERVED = frozenset(field.encode_name for field in msgspec.structs.fields(_Common))


class Guardrail(msgspec.Struct, frozen=True, kw_only=True):
    """One guardrail, compiled: its checks, and what follows from them."""

    side: Side
    id: str
    checks: tuple[Check, ...]
    common: _Common

    @property
    def background(self) -> bool:
        """Whether it runs beside the request, which does not wait for it (GR-19)."""
        return self.common.background

    @property
    def deny(self) -> bool:
        """Whether its failure keeps the answer from the client."""
        return self.common.deny

    @property
    def changes(self) -> bool:
        """Whether it may change the body."""
        return not self.background and any(check.changes for check in self.checks)

    @property
    def holds(self) -> bool:
        """Whether a stream has to be held back for it, since it may deny or change what would be sent already."""
        return not self.background and (self.deny or self.changes)

    @property
    def waits(self) -> bool:
        """Whether it asks another server."""
        return any(check.waits for check in self.checks)


def compile_guardrails(
    items: Sequence[str | dict[str, Any]],
    hooks: Sequence[dict[str, Any]],
    side: Side,
    saved: Mapping[str, dict[str, Any]] = {},
) -> tuple[Guardrail, ...]:
    """The guardrails of one side of a config.

    ``items`` are ``input_guardrails`` or ``output_guardrails`` (CFG-22): inline (GR-01), or the name of one in
    ``saved`` (GR-03), which may have either form. ``hooks`` are the long form (CFG-23). Raises a 400 `ApiError` that
    names the field and the check.
    """
    short = "input_guardrails" if side == "input" else "output_guardrails"
    long = "before_request_hooks" if side == "input" else "after_request_hooks"
    if len(items) + len(hooks) > _MOST:
        raise bad_request(f"Invalid {short}: expected at most {_MOST} guardrails.", param=short)
    found: list[Guardrail] = []
    for at, item in enumerate(items):
        where = f"{short}[{at}]"
        if isinstance(item, str):
            if item not in saved:
                raise bad_request(f"Invalid {where}: there is no guardrail named '{item}'.", param=where)
            found.append(_compiled({"id": item, **saved[item]}, side, where))
        else:
            found.append(_compiled(item, side, where))
    found += [_compiled({"checks": [], **hook}, side, f"{long}[{at}]") for at, hook in enumerate(hooks)]
    if sum(len(guard.checks) for guard in found) > _MOST:
        raise bad_request(f"Invalid {short}: expected at most {_MOST} checks in all.", param=short)
    return tuple(found)


def _compiled(given: Any, side: Side, where: str) -> Guardrail:
    if not isinstance(given, dict):
        raise bad_request(f"Invalid {where}: expected an object or the name of a guardrail.", param=where)
    item = cast(dict[str, Any], given)
    if "checks" in item:
        plain = {name: value for name, value in item.items() if name != "checks"}
        checks = _long_checks(item["checks"], where)
    else:
        plain = {name: value for name, value in item.items() if name in _RESERVED}
        checks = [(f"{where}.{name}", name, value) for name, value in item.items() if name not in _RESERVED]
    try:
        common = msgspec.convert(plain, _Common)
    except msgspec.ValidationError as error:
        raise bad_request(f"Invalid {where}: {error}", param=where) from None
    if not 0 < len(checks) <= _MOST:
        raise bad_request(f"Invalid {where}: expected between 1 and {_MOST} checks.", param=where)
    if common.background and (common.type == "mutator" or common.deny):
        what = "a mutator" if common.type == "mutator" else "a guardrail with 'deny'"
        raise bad_request(f"Invalid {where}: {what} cannot be 'async': the request does not wait for it.", param=where)
    made = [prepare_check(name, parameters, side, place) for place, name, parameters in checks]
    # Made from what it says, so that it is the same after a restart and in every process.
    id = common.id or f"{side}_guardrail_{hashlib.sha256(msgspec.json.encode((where, item))).hexdigest()[:6]}"
    return Guardrail(side=side, id=id, checks=tuple(check for check in made if check.enabled), common=common)


def _long_checks(given: Any, where: str) -> list[tuple[str, str, Any]]:
    """Place, id and parameters of each check of the long form."""
    if not isinstance(given, list):
        raise bad_request(f"Invalid {where}.checks: expected an array.", param=f"{where}.checks")
    found: list[tuple[str, str, Any]] = []
    for at, item in enumerate(cast(list[Any], given)):
        place = f"{where}.checks[{at}]"
        try:
            row = msgspec.convert(item, _LongCheck)
        except msgspec.ValidationError as error:
            raise bad_request(f"Invalid {place}: {error}", param=place) from None
        off = {} if row.is_enabled else {"is_enabled": False}
        found.append((place, row.id, {**row.parameters, **off}))
    return found


class _LongCheck(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    parameters: dict[str, Any] = {}
    is_enabled: bool = True


class Outcome(msgspec.Struct, frozen=True):
    """What the synchronous guardrails came to: their ``results`` (GR-17), whether one ``failed`` and one of those
    that deny did, and the bodies as they are now; they are the very same unless ``changed``."""

    results: Results
    failed: bool
    denied: bool
    fields: Body
    answer: Body | None
    changed: bool


class Guards:
    """Runs guardrails: one per process, for all requests.

    ``send`` is the transport's; ``trusted`` says of a URL that its host may be a private one (the operator's list).
    """

    def __init__(self, send: Send, trusted: Callable[[str], bool] = lambda url: False) -> None:
        self._door = Door(send, trusted)
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(
        self, guards: Sequence[Guardrail], subject: Subject, told: Callable[[Results], None] | None = None
    ) -> Outcome:
        """Run ``guards`` on ``subject``: those that can change the body one after the other, the others together.

        The asynchronous ones are started and left to themselves; each gives its result to ``told`` when it is done.
        A check never raises: what goes wrong is in its result.
        """
        endpoint = ENDPOINTS[subject.endpoint_name]
        if not guards or not endpoint.guarded or (subject.side == "output" and not endpoint.answers):
            return Outcome([], False, False, subject.fields, subject.answer, False)
        waited: list[Guardrail] = []
        for guard in guards:
            if guard.background:
                self._start(guard, subject, told)
            elif subject.endpoint_name != "embed" or guard.common.type != "mutator":  # GR-05
                waited.append(guard)
        steps = [_Step(guard.changes, guard.waits, self._guard(guard)) for guard in waited]
        results, last = await _taken(steps, subject, in_order=False)
        failed = [not result["verdict"] for result in results]
        return Outcome(
            results,
            any(failed),
            any(bad and guard.deny for bad, guard in zip(failed, waited, strict=True)),
            last.fields,
            last.answer,
            last is not subject,
        )

    async def close(self, seconds: float) -> None:
        """Let the asynchronous guardrails finish, and cut off what is left after ``seconds``."""
        if self._tasks:
            _, left = await asyncio.wait(tuple(self._tasks), timeout=seconds)
            for task in left:
                task.cancel()
            if left:
                await asyncio.wait(left)

    def _start(self, guard: Guardrail, subject: Subject, told: Callable[[Results], None] | None) -> None:
        if len(self._tasks) >= _BACKGROUND:
            log.warning("guardrail %s was skipped: %d are under way", guard.id, len(self._tasks))
            if told is not None:
                told([{"id": guard.id, "skipped": True, "async": True, "type": guard.common.type}])
            return
        task = asyncio.get_running_loop().create_task(self._behind(guard, subject, told))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _behind(self, guard: Guardrail, subject: Subject, told: Callable[[Results], None] | None) -> None:
        result, _ = await self._guard(guard)(subject)
        if told is not None:
            try:
                told([result])
            except Exception:
                log.exception("the result of guardrail %s was not taken", guard.id)

    def _guard(self, guard: Guardrail) -> "_Taking":
        async def step(subject: Subject) -> tuple[dict[str, Any], Subject]:
            began, created = clock.monotonic(), _iso(clock.now())
            still = guard.background or subject.endpoint_name == "embed"
            steps = [
                _Step(check.changes and not still, check.waits, self._check(check, still=still))
                for check in guard.checks
            ]
            checks, last = await _taken(steps, subject, in_order=guard.common.sequential)
            return _result(guard, checks, created, clock.monotonic() - began, last is not subject), last

        return step

    def _check(self, check: Check, *, still: bool) -> "_Taking":
        async def step(subject: Subject) -> tuple[dict[str, Any], Subject]:
            began, created = clock.monotonic(), _iso(clock.now())
            try:
                found = check.run(subject, self._door)
                if not isinstance(found, Finding):
                    found = await found
            except Exception:
                log.exception("check %s broke", check.id)
                found = Finding(False, None, ("Error", "The check broke."))
            new = subject if still or found.changed is None else found.changed
            result: dict[str, Any] = {
                "data": found.data,
                "verdict": found.verdict,
                "id": check.id,
                "execution_time": _ms(clock.monotonic() - began),
                "transformed": new is not subject,
                "created_at": created,
                "log": None,
                "error": found.error and {"name": found.error[0], "message": found.error[1]},
                "fail_on_error": check.fail_on_error,
            }
            return result, new

        return step


_Taking = Callable[[Subject], Coroutine[Any, Any, tuple[dict[str, Any], Subject]]]


class _Step(NamedTuple):
    changes: bool
    waits: bool
    take: _Taking


async def _taken(steps: Sequence[_Step], subject: Subject, *, in_order: bool) -> tuple[Results, Subject]:
    """Every step's result, in the order of ``steps``, and the subject as the last change left it.

    ``in_order``: each step sees what the former left. Otherwise only those that change something do, so that
    no change undoes another; all the rest see ``subject`` as it came, and those that wait do so together.
    """
    results: Results = [{} for _ in steps]

    async def chain(numbers: Sequence[int], *, passing: bool) -> Subject:
        last = subject
        for at in numbers:
            results[at], new = await steps[at].take(last)
            last = new if passing else last
        return last

    if in_order:
        return results, await chain(range(len(steps)), passing=True)
    changing: list[int] = []
    quick: list[int] = []
    waiting: list[int] = []
    for at, step in enumerate(steps):
        (changing if step.changes else waiting if step.waits else quick).append(at)
    if quick:
        await chain(quick, passing=False)
    if not waiting:  # a task costs more than most checks
        return results, await chain(changing, passing=True)
    last, *_ = await asyncio.gather(chain(changing, passing=True), *(chain([at], passing=False) for at in waiting))
    return results, last


def _passed(check: Mapping[str, Any]) -> bool:
    return check["verdict"] or (check["error"] is not None and not check["fail_on_error"])  # GR-09


def _result(guard: Guardrail, checks: Results, created: str, seconds: float, transformed: bool) -> dict[str, Any]:
    verdict = all(_passed(check) for check in checks)
    found: dict[str, Any] = {
        "verdict": verdict,
        "id": guard.id,
        "transformed": transformed,
        "checks": checks,
        "feedback": _feedback(guard, checks, verdict),
        "execution_time": _ms(seconds),
        "async": guard.background,
        "type": guard.common.type,
        "created_at": created,
        "deny": guard.deny and not verdict,
    }
    if guard.common.guardrail_version_id is not None:
        found["guardrail_version_id"] = guard.common.guardrail_version_id
    return found


def _feedback(guard: Guardrail, checks: Results, verdict: bool) -> dict[str, Any] | None:
    effect = guard.common.on_success if verdict else guard.common.on_fail
    if effect is None or effect.feedback is None:
        return None
    given = effect.feedback

    def ids(wanted: Callable[[dict[str, Any]], bool]) -> str:
        return ", ".join(check["id"] for check in checks if wanted(check))

    counted = {
        "successfulChecks": ids(lambda check: check["verdict"]),
        "failedChecks": ids(lambda check: not check["verdict"] and check["error"] is None),
        "erroredChecks": ids(lambda check: not check["verdict"] and check["error"] is not None),
    }
    return {"value": given.value, "weight": given.weight, "metadata": {**given.metadata, **counted}}


def denied_body(before: Results, after: Results) -> bytes:
    """The body of a 446 (GR-10, GR-11)."""
    error = {"message": _DENIED, "type": "hooks_failed", "param": None, "code": None}
    return msgspec.json.encode({"error": error, "hook_results": _hook_results(before, after)})


def with_results(answer: Body, before: Results, after: Results) -> Body:
    """``answer`` with its ``hook_results``, or the very same if no guardrail ran (GR-12, GR-13)."""
    return {**answer, "hook_results": _hook_results(before, after)} if before or after else answer


def _hook_results(before: Results, after: Results) -> dict[str, Results]:
    return {"before_request_hooks": before, "after_request_hooks": after}


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
