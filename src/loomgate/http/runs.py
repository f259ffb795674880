"""Handlers of runs and run steps (BEHAVIOUR sections 4, 5, 10)."""

import contextlib
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import msgspec
from msgspec import UnsetType

from loomgate import clock
from loomgate.errors import ApiError, bad_request
from loomgate.http import checks, compose, query
from loomgate.http.call import Answer, Call, Streamed
from loomgate.http.refusal import shortened
from loomgate.http.threads import exists
from loomgate.wire import lifecycle
from loomgate.wire.runs import CreateRun, CreateThreadAndRun, Run, RunSpec, SubmitToolOutputs
from loomgate.wire.threads import CreateThread, ModifyMetadata

if TYPE_CHECKING:
    from loomgate.engine.service import Started

_STATUS = b'"status":"'


async def create(call: Call) -> Answer | Streamed:
    """``POST /threads/{thread_id}/runs``."""
    thread_id = call.path["thread_id"]
    ttl_max = call.settings.run_ttl_max_seconds
    known = exists(call)
    request = await call.decode(CreateRun, lambda body: compose.check_run(body, ttl_max), known)
    try:
        run, spec = await _composed(call, request, thread_id)
    except ApiError:
        await known()  # HDR-08
        raise
    messages = compose.messages(compose.given(request.additional_messages) or [], thread_id, run.created_at)
    stream = _wants_stream(call, request.stream)
    started = await call.engine.create_run(call.workspace, run, spec, messages, stream=stream)
    return _answer(call, started, thread_id, run.id)


async def create_with_thread(call: Call) -> Answer | Streamed:
    """``POST /threads/runs`` (RUN-12)."""
    ttl_max = call.settings.run_ttl_max_seconds
    request = await call.decode(CreateThreadAndRun, lambda body: compose.check_thread_and_run(body, ttl_max), None)
    resources = compose.given(request.tool_resources)
    thread, messages = compose.thread(compose.given(request.thread) or CreateThread(), clock.timestamp(), resources)
    run, spec = await _composed(call, request, thread.id)
    stream = _wants_stream(call, request.stream)
    started = await call.engine.create_run(call.workspace, run, spec, messages, thread, stream=stream)
    return _answer(call, started, thread.id, run.id)


async def _composed(call: Call, request: CreateRun | CreateThreadAndRun, thread_id: str) -> tuple[Run, RunSpec]:
    include = query.include(call.query)
    assistant, sampling = await call.engine.store.assistants.get(call.workspace, request.assistant_id)
    settings = call.settings
    run = compose.run(request, thread_id, assistant, now=clock.timestamp(), ttl=settings.run_ttl_seconds)
    naming = call.caller.naming
    refusal = await call.engine.refusal(run.model, naming, call.workspace)
    if refusal is not None:
        raise bad_request(shortened(refusal, 500), "model", "model_not_found")  # RUN-16
    upstream = await call.engine.remembered(naming, call.workspace, call.headers)
    spec = compose.spec(request, sampling, upstream, include, cancel_on_disconnect=settings.cancel_on_disconnect)
    return run, spec


def _wants_stream(call: Call, asked: bool | None | UnsetType) -> bool:
    """RUN-23. What is wrong with the request's headers for a stream is said before anything happens (ERR-70)."""
    if not compose.given(asked):
        return False
    _wants_ids(call)
    return True


def _answer(call: Call, started: "Started", thread_id: str, run_id: str) -> Answer | Streamed:
    if started.stream is None:
        return Answer(started.body)
    return Streamed(started.stream, with_ids=_wants_ids(call), gone=_gone(call, thread_id, run_id))


def _wants_ids(call: Call) -> bool:
    value = call.headers.get(b"loomgate-event-ids", b"false").lower()
    if value not in (b"true", b"false"):
        raise bad_request("Invalid header 'Loomgate-Event-Ids': expected 'true' or 'false'.", code="invalid_value")
    return value == b"true"


def _gone(call: Call, thread_id: str, run_id: str) -> Callable[[], Awaitable[None]]:
    """What a client's early leave means for the run: nothing (SSE-09), or its end if that was asked for."""

    async def gone() -> None:
        with contextlib.suppress(ApiError):  # it may have ended meanwhile, or its thread be deleted
            await call.engine.get_run(call.workspace, thread_id, run_id)
            if (await call.engine.store.runs.spec(run_id)).cancel_on_disconnect:
                await call.engine.cancel_run(call.workspace, thread_id, run_id)

    return gone


async def page(call: Call) -> Answer:
    """``GET /threads/{thread_id}/runs``."""
    found = await call.engine.list_runs(call.workspace, call.path["thread_id"], query.page(call.query))
    return Answer(found.render())


async def get(call: Call) -> Answer:
    """``GET /threads/{thread_id}/runs/{run_id}``; tells pollers when to come back (HDR-22)."""
    body = await call.engine.get_run(call.workspace, call.path["thread_id"], call.path["run_id"])
    wait = call.settings.poll_after_ms
    if wait and not _settled(body):
        return Answer(body, headers=[(b"openai-poll-after-ms", b"%d" % wait)])
    return Answer(body)


def _settled(body: bytes) -> bool:
    """Does a stored run end a poller's wait? Its status is the first one in it: only ids and times come before."""
    start = body.index(_STATUS) + len(_STATUS)
    return body[start : body.index(b'"', start)].decode() in lifecycle.SETTLED


async def modify(call: Call) -> Answer:
    """``POST /threads/{thread_id}/runs/{run_id}``: metadata only, of a run that has ended (RUN-84 to RUN-89)."""
    thread_id, id = call.path["thread_id"], call.path["run_id"]
    request = await call.decode(ModifyMetadata, None, lambda: call.engine.get_run(call.workspace, thread_id, id))

    def change(before: Run) -> Run:
        if request.metadata is msgspec.UNSET:
            return before
        return msgspec.structs.replace(before, metadata=request.metadata or {})

    return Answer(await call.engine.modify_run(call.workspace, thread_id, id, change))


async def cancel(call: Call) -> Answer:
    """``POST /threads/{thread_id}/runs/{run_id}/cancel``."""
    thread_id, id = call.path["thread_id"], call.path["run_id"]
    await call.decode(_Nothing, None, lambda: call.engine.get_run(call.workspace, thread_id, id))
    return Answer(await call.engine.cancel_run(call.workspace, thread_id, id))


class _Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a call that takes none (CONV-07)."""


async def submit_tool_outputs(call: Call) -> Answer | Streamed:
    """``POST /threads/{thread_id}/runs/{run_id}/submit_tool_outputs``."""
    thread_id, id = call.path["thread_id"], call.path["run_id"]
    request = await call.decode(
        SubmitToolOutputs, checks.outputs, lambda: call.engine.get_run(call.workspace, thread_id, id)
    )
    outputs = [(given.tool_call_id or "", given.output or "") for given in request.tool_outputs]
    stream = _wants_stream(call, request.stream)
    started = await call.engine.submit_tool_outputs(call.workspace, thread_id, id, outputs, stream=stream)
    return _answer(call, started, thread_id, id)


async def stream(call: Call) -> Streamed:
    """``GET /threads/{thread_id}/runs/{run_id}/stream``: an extension; joins late, or again after an event id."""
    last = call.headers.get(b"last-event-id", b"").decode("latin-1")
    last = last or dict(query.pairs(call.query)).get("last_event_id", "")
    found = await call.engine.join(call.workspace, call.path["thread_id"], call.path["run_id"], last or None)
    return Streamed(found, with_ids=True)


async def page_steps(call: Call) -> Answer:
    """``GET /threads/{thread_id}/runs/{run_id}/steps``."""
    query.include(call.query)
    found = await call.engine.list_steps(
        call.workspace, call.path["thread_id"], call.path["run_id"], query.page(call.query)
    )
    return Answer(found.render())


async def get_step(call: Call) -> Answer:
    """``GET /threads/{thread_id}/runs/{run_id}/steps/{step_id}``."""
    query.include(call.query)
    path = call.path
    return Answer(await call.engine.get_step(call.workspace, path["thread_id"], path["run_id"], path["step_id"]))
