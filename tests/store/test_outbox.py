"""Webhook calls are owed exactly when the change that they tell of is kept (what becomes of them: test_webhooks)."""

import msgspec
import pytest
from tests.support.objects import WORKSPACE, make_message, make_run, make_thread

from loomgate.errors import ApiError
from loomgate.store import Store
from loomgate.store.database import Database
from loomgate.store.outbox import Endpoint
from loomgate.store.runs import Commit
from loomgate.store.seal import Sealer
from loomgate.wire.runs import RunSpec

pytestmark = pytest.mark.anyio

ENDPOINTS = [
    Endpoint("wh_all", WORKSPACE),
    Endpoint("wh_ends", WORKSPACE, frozenset({"thread.run.completed", "thread.run.failed"})),
    Endpoint("wh_others", "another"),
]


@pytest.fixture
async def store(database: Database) -> Store:
    return Store(database, Sealer(bytes(32)), ENDPOINTS, "reject")


async def test_a_call_for_every_status_and_none_for_what_was_refused(store: Store, database: Database) -> None:
    thread = make_thread()
    run = make_run(thread.id)
    await store.runs.create(WORKSPACE, run, RunSpec(), [make_message(thread.id)], thread)
    with pytest.raises(ApiError):
        await store.runs.create(WORKSPACE, make_run(thread.id), RunSpec(), [])
    (claimed,) = await store.runs.claim("w", 1, 15)
    applied = await store.runs.apply(claimed.row, Commit(verb="complete"))

    owed = [
        (endpoint, run_id, msgspec.json.decode(payload))
        for endpoint, run_id, payload in database._reader.execute(
            "SELECT endpoint, run_id, payload FROM deliveries ORDER BY endpoint, position"
        )
    ]
    assert [(endpoint, payload["type"]) for endpoint, _, payload in owed] == [
        ("wh_all", "thread.run.created"),
        ("wh_all", "thread.run.queued"),
        ("wh_all", "thread.run.in_progress"),
        ("wh_all", "thread.run.completed"),
        ("wh_ends", "thread.run.completed"),
    ]
    assert {run_id for _, run_id, _ in owed} == {run.id}
    assert owed[-1][2]["data"] == msgspec.json.decode(applied.body), "the run as it was then"
