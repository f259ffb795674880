"""Runs: who gets a thread, who may write, and what a claim, a lease and an end change."""

import asyncio
from typing import Any

import msgspec
import pytest
from tests.support.objects import WORKSPACE, make_answer, make_message, make_run, make_step, make_thread
from tests.support.run_fields import wrong_message, wrong_run, wrong_step

from loomgate import clock
from loomgate.errors import ApiError, IllegalTransition, LeaseLost
from loomgate.store import Store
from loomgate.store.runs import Claimed, Commit, Overdue
from loomgate.wire import lifecycle
from loomgate.wire.page import PageQuery
from loomgate.wire.runs import (
    CalledFunction,
    Failure,
    FunctionStepCall,
    RequiredAction,
    RequiredCall,
    RequiredCalls,
    Run,
    RunSpec,
    Step,
    StepToolCall,
    ToolCallsDetails,
    Usage,
)
from loomgate.wire.threads import Thread

pytestmark = pytest.mark.anyio

ALL = PageQuery(limit=100, order="asc")


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "_offset", clock._offset)


async def _thread(store: Store, rule: str | None = None) -> Thread:
    thread = make_thread(rule)
    await store.threads.create(WORKSPACE, thread, [make_message(thread.id)])
    return thread


async def _create(store: Store, thread: Thread, **fields: Any) -> Run:
    run = make_run(thread.id, **fields)
    await store.runs.create(WORKSPACE, run, RunSpec(), [])
    return run


async def _claimed(store: Store, worker: str = "w", **fields: Any) -> tuple[Run, Claimed]:
    thread = await _thread(store)
    run = await _create(store, thread, **fields)
    (claimed,) = await store.runs.claim(worker, 1, 15)
    return run, claimed


async def _shown(store: Store, run: Run) -> dict[str, Any]:
    body = await store.runs.body(WORKSPACE, run.thread_id, run.id)
    assert isinstance(body, bytes)
    shown = msgspec.json.decode(body)
    assert not (wrong := wrong_run(shown)), wrong
    return shown


async def _steps(store: Store, run: Run) -> list[dict[str, Any]]:
    page = await store.runs.steps(WORKSPACE, run.thread_id, run.id, ALL)
    assert not isinstance(page, Overdue)
    steps = [msgspec.json.decode(body) for body in page.bodies]
    for step in steps:
        assert not (wrong := wrong_step(step)), wrong
    return steps


async def _ask(store: Store, claimed: Claimed, *calls: str) -> Step:
    """Let the run wait for outputs of ``calls``, having used ten tokens."""
    step = make_step(claimed.run)
    step.step_details = ToolCallsDetails([StepToolCall(call, FunctionStepCall("look", "{}")) for call in calls])
    required = RequiredAction(RequiredCalls([RequiredCall(call, CalledFunction("look", "{}")) for call in calls]))
    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[step]))
    await store.runs.apply(
        claimed.row,
        Commit(
            turn=1,
            verb="ask",
            fields={"required_action": required},
            put_steps=[(step, Usage(prompt_tokens=7, completion_tokens=3, total_tokens=10))],
        ),
    )
    return step


@pytest.mark.behaviour("LOCK-06", "LOCK-03", "LOCK-11")
async def test_of_two_runs_at_once_one_gets_the_thread(store: Store) -> None:
    thread = await _thread(store)
    runs = [make_run(thread.id) for _ in range(5)]
    found = await asyncio.gather(
        *(store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id)]) for run in runs),
        return_exceptions=True,
    )
    refused = [error for error in found if isinstance(error, ApiError)]
    assert len(refused) == 4
    assert not isinstance(found[0], BaseException), "the first to come"
    text = f"Thread {thread.id} already has an active run {runs[0].id}."
    assert {(error.status, error.message, error.param, error.code) for error in refused} == {(400, text, None, None)}
    messages = await store.threads.messages(WORKSPACE, thread.id, ALL, None)
    assert len(messages.ids) == 2, "messages of refused runs are not added"
    page = await store.runs.page(WORKSPACE, thread.id, ALL)
    assert not isinstance(page, Overdue)
    assert page.ids == [runs[0].id]


@pytest.mark.behaviour("LOCK-02", "LOCK-06")
async def test_a_message_that_races_a_run_is_before_it_or_refused(store: Store) -> None:
    thread = await _thread(store)
    run, message = make_run(thread.id), make_message(thread.id)
    late = make_message(thread.id)
    found = await asyncio.gather(
        store.threads.add_message(WORKSPACE, message),
        store.runs.create(WORKSPACE, run, RunSpec(), []),
        store.threads.add_message(WORKSPACE, late),
        return_exceptions=True,
    )
    assert isinstance(found[2], ApiError)
    assert found[2].message == f"Can't add messages to {thread.id} while a run {run.id} is active."
    ids = (await store.threads.messages(WORKSPACE, thread.id, ALL, None)).ids
    assert message.id in ids
    assert late.id not in ids


@pytest.mark.behaviour("RUN-13", "RUN-14", "RUN-12")
async def test_a_run_needs_something_to_answer(store: Store) -> None:
    thread = make_thread()
    with pytest.raises(ApiError) as refused:
        await store.runs.create(WORKSPACE, make_run(thread.id), RunSpec(), [], thread)
    assert (refused.value.status, refused.value.code, refused.value.param) == (400, "invalid_thread", None)
    with pytest.raises(ApiError, match="No thread found"):
        await store.threads.body(WORKSPACE, thread.id)
    assistant = make_message(thread.id, role="assistant")
    with pytest.raises(ApiError, match="requires a Thread with a user message"):
        await store.runs.create(WORKSPACE, make_run(thread.id), RunSpec(), [assistant], thread)
    await store.runs.create(WORKSPACE, make_run(thread.id, instructions="Hum."), RunSpec(), [], thread)


async def test_every_due_run_is_claimed_by_one_worker(store: Store) -> None:
    runs = {(await _create(store, await _thread(store))).id for _ in range(20)}
    found = await asyncio.gather(*(store.runs.claim(f"w{n}", 3, 15) for n in range(10)))
    claimed = [one.row.id for part in found for one in part]
    assert len(claimed) == len(set(claimed)) == 20
    assert set(claimed) == runs
    assert await store.runs.claim("w", 5, 15) == []
    for part in found:
        for one in part:
            assert one.row.fence == 1
            assert one.run.status == "in_progress"
            assert one.run.started_at is not None
            assert len(one.events) == 1


async def test_a_lapsed_lease_is_claimed_again_under_a_new_token_and_the_old_one_writes_nothing(store: Store) -> None:
    run, old = await _claimed(store, "old")
    assert await store.runs.claim("new", 1, 15) == []
    clock.advance(16)
    (new,) = await store.runs.claim("new", 1, 15)
    assert new.row.fence == old.row.fence + 1
    assert new.events == [], "it was started before"
    answer = make_answer(run)
    before = await _shown(store, run)
    for commit in (
        Commit(turn=1, open_steps=[make_step(run, answer)], open_messages=[answer]),
        Commit(verb="complete"),
        Commit(put_messages=[answer]),
    ):
        with pytest.raises(LeaseLost):
            await store.runs.apply(old.row, commit)
    with pytest.raises(LeaseLost):
        await store.runs.end(run.id, "cancel", fence=old.row.fence)
    assert await _shown(store, run) == before
    assert await _steps(store, run) == []
    assert len((await store.threads.messages(WORKSPACE, run.thread_id, ALL, None)).ids) == 1
    applied = await store.runs.apply(new.row, Commit(verb="complete"))
    assert applied.run.status == "completed"


async def test_only_held_leases_are_renewed(store: Store) -> None:
    run, claimed = await _claimed(store)
    other, parted = await _claimed(store)
    clock.advance(10)
    assert await store.runs.renew([(run.id, 1), (other.id, 99), ("run_nobody", 1)], 15) == [other.id, "run_nobody"]
    clock.advance(10)
    assert [one.row.id for one in await store.runs.claim("w", 5, 15)] == [other.id]
    assert await store.runs.renew([(other.id, parted.row.fence)], 15) == [other.id], "the token moved on"
    await store.runs.apply(claimed.row, Commit(verb="complete"))
    assert await store.runs.renew([(run.id, 1)], 15) == [run.id], "nothing to hold any more"


async def test_handed_back_and_adopted_runs_are_due_at_once(store: Store) -> None:
    run, claimed = await _claimed(store)
    assert await store.runs.claim("new", 1, 15) == []
    await store.runs.hand_back([(run.id, claimed.row.fence)])
    (again,) = await store.runs.claim("new", 1, 15)
    assert again.row.fence == 2
    waits = await _claimed(store)
    await _ask(store, waits[1], "call_a")
    assert await store.runs.claim("newer", 5, 15) == []
    assert await store.runs.adopt() == 1, "one that waits for its client is nobody's"
    (adopted,) = await store.runs.claim("newer", 5, 15)
    assert (adopted.row.id, adopted.row.fence) == (run.id, 3)


async def test_a_parked_run_is_due_at_its_expiry(store: Store) -> None:
    run, claimed = await _claimed(store)
    await store.runs.park(claimed.row)
    clock.advance(500)
    assert await store.runs.claim("w", 1, 15) == []
    clock.advance(101)
    (again,) = await store.runs.claim("w", 1, 15)
    assert again.row.id == run.id
    assert again.row.overdue


@pytest.mark.behaviour("RUN-31", "RUN-33", "RUN-42", "RUN-43", "RUN-58", "RUN-98", "STEP-16", "MSG-13")
@pytest.mark.parametrize(
    ("verb", "status", "step_status", "reason"),
    [
        ("cancel", "cancelled", "cancelled", "run_cancelled"),
        ("fail", "failed", "failed", "run_failed"),
        ("expire", "expired", "expired", "run_expired"),
    ],
)
async def test_an_end_closes_what_is_open(store: Store, verb: Any, status: str, step_status: str, reason: str) -> None:
    run, claimed = await _claimed(store)
    answer = make_answer(run, "So f")
    await store.runs.apply(claimed.row, Commit(turn=1, open_steps=[make_step(run, answer)], open_messages=[answer]))
    if verb == "cancel":
        await store.runs.cancel(WORKSPACE, run.thread_id, run.id)
    if verb == "expire":
        clock.advance(601)
    failure = Failure("invalid_prompt", "No.") if verb == "fail" else None
    ended = await store.runs.end(run.id, verb, fence=claimed.row.fence, failure=failure)
    assert ended is not None
    names = [event.split()[1].decode() for event in ended.events]
    assert names == ["thread.message.incomplete", f"thread.run.step.{step_status}", f"thread.run.{status}"]
    shown = await _shown(store, run)
    assert shown["status"] == status
    (step,) = await _steps(store, run)
    assert step["status"] == step_status
    assert step["expires_at"] is None
    message = msgspec.json.decode(await store.threads.message_body(WORKSPACE, run.thread_id, answer.id))
    assert not (wrong := wrong_message(message)), wrong
    assert message["incomplete_details"] == {"reason": reason}
    assert message["content"][0]["text"]["value"] == "So f", "partial content is kept"
    if verb == "fail":
        assert shown["last_error"]["code"] == "invalid_prompt"
        assert step["last_error"]["code"] == "server_error", "a step knows only two codes (RUN-90)"
    with pytest.raises(LeaseLost):
        await store.runs.apply(claimed.row, Commit(verb="complete"))
    assert await store.runs.end(run.id, verb) is None, "an end is the end"


@pytest.mark.behaviour("RUN-44", "RUN-46")
async def test_a_read_finds_a_run_past_its_time_and_a_newcomer_ends_it(store: Store) -> None:
    thread = await _thread(store)
    run = await _create(store, thread)
    clock.advance(599)
    assert isinstance(await store.runs.body(WORKSPACE, thread.id, run.id), bytes)
    assert await store.runs.end(run.id, "expire") is None, "not before its time"
    clock.advance(1.5)
    overdue = Overdue([run.id])
    assert await store.runs.body(WORKSPACE, thread.id, run.id) == overdue
    assert await store.runs.page(WORKSPACE, thread.id, ALL) == overdue
    assert await store.runs.steps(WORKSPACE, thread.id, run.id, ALL) == overdue
    assert await store.runs.cancel(WORKSPACE, thread.id, run.id) == overdue
    assert await store.runs.submit(WORKSPACE, thread.id, run.id, []) == overdue
    assert await store.runs.modify(WORKSPACE, thread.id, run.id, lambda found: found) == overdue
    new = make_run(thread.id)
    created = await store.runs.create(WORKSPACE, new, RunSpec(), [])
    assert [(ended.run.id, ended.run.status) for ended in created.changed] == [(run.id, "expired")]
    assert (await _shown(store, run))["status"] == "expired"


@pytest.mark.behaviour("RUN-60", "RUN-63", "RUN-65", "RUN-66", "RUN-70", "STEP-10", "RUN-35")
async def test_outputs_are_taken_when_they_are_exactly_those_asked_for(store: Store) -> None:
    run, claimed = await _claimed(store)
    step = await _ask(store, claimed, "call_a", "call_b")
    shown = await _shown(store, run)
    assert shown["status"] == "requires_action"
    (open_step,) = await _steps(store, run)
    assert (open_step["status"], open_step["usage"]) == ("in_progress", None)
    for wrong in (
        [],
        [("call_a", "1")],
        [("call_a", "1"), ("call_b", "2"), ("call_b", "2")],
        [("call_a", "1"), ("call_b", "2"), ("call_c", "3")],
        [("call_a", "1"), ("call_c", "3")],
    ):
        with pytest.raises(ApiError) as refused:
            await store.runs.submit(WORKSPACE, run.thread_id, run.id, wrong)
        given = [id for id, _ in wrong]
        expected = f"Expected tool outputs for call_ids ['call_a', 'call_b'], got {given}"
        assert (refused.value.status, refused.value.message) == (400, expected)
        assert await _shown(store, run) == shown, "it can be submitted again"
    submitted = await store.runs.submit(WORKSPACE, run.thread_id, run.id, [("call_b", "2"), ("call_a", "1")])
    assert not isinstance(submitted, Overdue)
    after = await _shown(store, run)
    assert after == {**shown, "status": "queued", "required_action": None}
    (done,) = await _steps(store, run)
    assert (done["id"], done["status"], done["usage"]["total_tokens"]) == (step.id, "completed", 10)
    assert [call["function"]["output"] for call in done["step_details"]["tool_calls"]] == ["1", "2"]
    names = [event.split()[1].decode() for event in submitted.events]
    assert names == ["thread.run.step.completed", "thread.run.queued"]
    (again,) = await store.runs.claim("w", 1, 15)
    assert again.row.fence == 2


@pytest.mark.behaviour("RUN-64", "RUN-55", "RUN-56", "RUN-85", "RUN-86", "RUN-89")
async def test_what_each_status_refuses(store: Store) -> None:
    run, claimed = await _claimed(store)
    place = (WORKSPACE, run.thread_id, run.id)

    async def refused(work: Any) -> str:
        with pytest.raises(ApiError) as error:
            await work
        assert (error.value.status, error.value.param, error.value.code) == (400, None, None)
        return error.value.message

    assert await refused(store.runs.submit(*place, [])) == 'Runs in status "in_progress" do not accept tool outputs.'
    assert await refused(store.runs.modify(*place, lambda r: r)) == "Cannot update run with status 'in_progress'."
    ended = await store.runs.cancel(*place)
    assert not isinstance(ended, Overdue)
    assert (ended.run.status, ended.run.cancelled_at) == ("cancelling", None)
    assert await refused(store.runs.cancel(*place)) == "Cannot cancel run with status 'cancelling'."
    assert await refused(store.runs.modify(*place, lambda r: r)) == "Cannot update run with status 'cancelling'."
    with pytest.raises(IllegalTransition):
        await store.runs.apply(claimed.row, Commit(verb="ask"))
    await store.runs.end(run.id, "cancel", fence=claimed.row.fence)
    assert await refused(store.runs.cancel(*place)) == "Cannot cancel run with status 'cancelled'."
    assert await refused(store.runs.submit(*place, [])) == 'Runs in status "cancelled" do not accept tool outputs.'
    before = await _shown(store, run)
    await store.runs.modify(*place, lambda found: msgspec.structs.replace(found, metadata={"a": "b"}))
    assert await _shown(store, run) == {**before, "metadata": {"a": "b"}}


async def test_waiting_runs_have_their_turn_in_order(store: Store) -> None:
    thread = await _thread(store, "enqueue")
    runs = [await _create(store, thread) for _ in range(4)]
    order: list[str] = []
    await store.runs.cancel(WORKSPACE, thread.id, runs[2].id)  # one of those that wait
    while True:
        claimed = await store.runs.claim("w", 5, 15)
        if not claimed:
            break
        for one in claimed:
            order.append(one.row.id)
            if one.run.status == "cancelling":
                ended = await store.runs.end(one.row.id, "cancel", fence=one.row.fence)
                assert ended is not None
                assert ended.promoted is None, "it did not hold the thread"
            else:
                applied = await store.runs.apply(one.row, Commit(verb="complete"))
                left = [run.id for run in (runs[1], runs[3]) if run.id not in order]
                assert applied.promoted == (left[0] if left else None)
    assert sorted(order[:2]) == sorted([runs[0].id, runs[2].id])
    assert order[2:] == [runs[1].id, runs[3].id]


async def test_an_interrupting_run_asks_for_the_end_of_the_other_and_waits(store: Store) -> None:
    thread = await _thread(store, "interrupt")
    run, claimed = None, None
    run = await _create(store, thread)
    (claimed,) = await store.runs.claim("w", 1, 15)
    new = make_run(thread.id)
    created = await store.runs.create(WORKSPACE, new, RunSpec(), [])
    assert created.waits
    assert [(ended.run.id, ended.run.status) for ended in created.changed] == [(run.id, "cancelling")]
    assert await store.runs.claim("w", 5, 15) == []
    ended = await store.runs.end(run.id, "cancel", fence=claimed.row.fence)
    assert ended is not None
    assert ended.promoted == new.id
    (next_one,) = await store.runs.claim("w", 5, 15)
    assert (next_one.row.id, next_one.run.status) == (new.id, "in_progress")


async def test_a_waiting_run_expires_in_its_own_time(store: Store) -> None:
    thread = await _thread(store, "enqueue")
    first = await _create(store, thread, ttl=5000)
    second = await _create(store, thread, ttl=600)
    (claimed,) = await store.runs.claim("w", 5, 10_000)
    assert claimed.row.id == first.id
    clock.advance(601)
    (late,) = await store.runs.claim("w", 5, 15)
    assert late.row.id == second.id
    ended = await store.runs.end(second.id, "expire", fence=late.row.fence)
    assert ended is not None
    assert (ended.run.status, ended.promoted) == ("expired", None)


@pytest.mark.behaviour("RUN-81", "RUN-82", "RUN-83")
async def test_a_run_is_known_in_its_own_thread_and_workspace(store: Store) -> None:
    run, _ = await _claimed(store)
    other = await _thread(store)
    for workspace, thread, text in (
        (WORKSPACE, other.id, f"No run found with id '{run.id}'."),
        (WORKSPACE, "thread_nobody", "No thread found with id 'thread_nobody'."),
        ("another", run.thread_id, f"No thread found with id '{run.thread_id}'."),
    ):
        for verb in (
            store.runs.body(workspace, thread, run.id),
            store.runs.cancel(workspace, thread, run.id),
            store.runs.submit(workspace, thread, run.id, []),
            store.runs.modify(workspace, thread, run.id, lambda found: found),
            store.runs.steps(workspace, thread, run.id, ALL),
        ):
            with pytest.raises(ApiError) as error:
                await verb
            assert (error.value.status, error.value.message) == (404, text)
    page = await store.runs.page(WORKSPACE, other.id, ALL)
    assert not isinstance(page, Overdue)
    assert page.ids == []
    page = await store.runs.page(WORKSPACE, run.thread_id, ALL)
    assert not isinstance(page, Overdue)
    assert page.bodies == [await store.runs.body(WORKSPACE, run.thread_id, run.id)]


@pytest.mark.behaviour("RUN-31")
@pytest.mark.parametrize("verb", list(lifecycle.RUN))
async def test_a_terminal_run_goes_nowhere(store: Store, verb: Any) -> None:
    run, claimed = await _claimed(store)
    await store.runs.apply(claimed.row, Commit(verb="complete"))
    before = await _shown(store, run)
    with pytest.raises(IllegalTransition):
        await store.runs.apply(claimed.row, Commit(verb=verb))
    assert await store.runs.end(run.id, verb, fence=claimed.row.fence) is None
    assert await _shown(store, run) == before
    assert await store.runs.active() == 0
    clock.advance(10_000)
    assert await store.runs.claim("w", 5, 15) == []
    assert await store.runs.seconds_to_next() == float("inf")
