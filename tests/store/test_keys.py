"""API keys are stored as hashes, other secrets sealed, and a workspace sees its own alone."""

from pathlib import Path

import apsw
import pytest

from loomgate.store import Store
from loomgate.store.database import Database

pytestmark = pytest.mark.anyio


def _everything(database: Database) -> bytes:
    """All bytes of the database's files."""
    database._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    path = Path(apsw.Connection.db_filename(database._writer, "main"))  # type: ignore[arg-type]
    return path.read_bytes()


async def test_a_key_opens_its_workspace_until_it_is_revoked(store: Store) -> None:
    assert not await store.keys.exist()
    one = await store.keys.create("team-a", "CI")
    other = await store.keys.create("team-b", "CI")
    assert await store.keys.exist()
    assert await store.keys.workspace_of(one.secret) == "team-a"
    assert await store.keys.workspace_of(other.secret) == "team-b"
    assert await store.keys.workspace_of(one.secret + "x") is None
    assert await store.keys.workspace_of("") is None
    assert await store.keys.revoke(one.id)
    assert not await store.keys.revoke(one.id), "it was valid no more"
    assert not await store.keys.revoke("key_nobody")
    assert await store.keys.workspace_of(one.secret) is None
    assert await store.keys.workspace_of(other.secret) == "team-b"
    assert await store.keys.exist(), "a revoked key was a key: the server stays closed"
    rows = {row.id: row for row in await store.keys.list()}
    assert rows[one.id].revoked_at is not None
    assert rows[other.id].revoked_at is None
    assert all(row.hint.endswith(key.secret[-4:]) for key in (one, other) if (row := rows[key.id]))


async def test_no_secret_is_in_the_file(store: Store, database: Database) -> None:
    key = await store.keys.create("default", "CI")
    await store.virtual_keys.create("default", "mine", "openai", "sk-virtual-secret")
    await store.credentials.keep("default", "sk-credential-secret")
    found = _everything(database)
    assert b"mine" in found
    for secret in (key.secret, "sk-virtual-secret", "sk-credential-secret"):
        assert secret.encode() not in found


async def test_virtual_keys_belong_to_a_workspace(store: Store) -> None:
    assert await store.virtual_keys.create("team-a", "mine", "openai", "sk-a")
    assert await store.virtual_keys.create("team-b", "mine", "anthropic", "sk-b", "https://example.com/v1")
    assert not await store.virtual_keys.create("team-a", "mine", "openai", "sk-other"), "the slug is taken"
    one, other = await store.virtual_keys.get("team-a", "mine"), await store.virtual_keys.get("team-b", "mine")
    assert one is not None
    assert other is not None
    assert (one.provider, one.secret, one.base_url) == ("openai", "sk-a", None)
    assert (other.provider, other.secret, other.base_url) == ("anthropic", "sk-b", "https://example.com/v1")
    assert await store.virtual_keys.get("team-c", "mine") is None
    assert [row.provider for row in await store.virtual_keys.list("team-b")] == ["anthropic"]
    assert len(await store.virtual_keys.list()) == 2
    assert await store.virtual_keys.delete("team-a", "mine")
    assert not await store.virtual_keys.delete("team-a", "mine")
    assert await store.virtual_keys.get("team-a", "mine") is None
    assert await store.virtual_keys.get("team-b", "mine") is not None


async def test_a_credential_is_kept_once_for_each_workspace(store: Store, database: Database) -> None:
    first = await store.credentials.keep("team-a", "sk-x")
    assert await store.credentials.keep("team-a", "sk-x") == first
    other = await store.credentials.keep("team-b", "sk-x")
    assert other != first
    assert await store.credentials.get("team-a", first) == "sk-x"
    assert await store.credentials.get("team-b", first) is None
    marks = list(database._reader.execute("SELECT DISTINCT digest FROM credentials"))
    assert len(marks) == 2, "whether two workspaces have the same key is not to be seen"
