"""Secrets at rest: keys are hashed or sealed, belong to one workspace, and are nowhere in the file as they are."""

import asyncio
import hashlib
import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.support.storage import at_rest_of

from loomgate.errors import StoreError
from loomgate.store import Store, tables
from loomgate.store.accounts import Integrations, VirtualKeys
from loomgate.store.database import Database, Statement
from loomgate.store.generations import Generations
from loomgate.store.keys import Holder
from loomgate.store.seal import Sealer

pytestmark = pytest.mark.anyio

SECRET = "sk-provider-0123456789abcdefghijklmnopqrstuvwxyz"
MOVE = Statement(
    sa.update(tables.virtual_keys)
    .where(tables.virtual_keys.c.slug == sa.bindparam("key"))
    .values(workspace=sa.bindparam("new_workspace"))
)
SWAP = Statement(
    sa.update(tables.credentials)
    .where(tables.credentials.c.id == sa.bindparam("key"))
    .values(sealed=sa.bindparam("new_sealed"))
)
SEALED = Statement(sa.select(tables.credentials.c.sealed).where(tables.credentials.c.id == sa.bindparam("key")))
DIGESTS = Statement(sa.select(tables.api_keys.c.digest))


class TestApiKeys:
    async def test_a_key_opens_its_workspace(self, store: Store) -> None:
        assert await store.keys.exist() is False
        first = await store.keys.create("default", "laptop")
        second = await store.keys.create("team", "server")
        assert await store.keys.exist() is True
        assert re.fullmatch(r"sk-lg-[0-9a-f]{40}", first.secret)
        assert first.secret != second.secret
        assert await store.keys.holder(first.secret) == Holder(first.id, "default", "user")
        assert await store.keys.holder(second.secret) == Holder(second.id, "team", "user")
        for wrong in ("", "sk-lg-", first.secret[:-1], first.secret + "0", first.secret.upper(), first.id):
            assert await store.keys.holder(wrong) is None

    async def test_a_revoked_key_opens_nothing_for_good(self, store: Store) -> None:
        kept, revoked = [await store.keys.create("default", name) for name in ("kept", "revoked")]
        assert await store.keys.revoke(revoked.id) is True
        assert await store.keys.holder(revoked.secret) is None
        assert await store.keys.holder(kept.secret) is not None
        assert await store.keys.revoke(revoked.id) is False
        assert await store.keys.revoke("key_unknown") is False
        listed = {row.name: row.revoked_at for row in await store.keys.list()}
        assert listed["kept"] is None
        assert listed["revoked"] is not None
        assert await store.keys.exist() is True

    async def test_the_last_key_revoked_does_not_open_the_server_again(self, store: Store) -> None:
        """Whoever had keys wants none of the trust that a new server has in its own machine."""
        key = await store.keys.create("default", "only")
        await store.keys.revoke(key.id)
        assert await store.keys.exist() is True

    async def test_at_rest_there_is_a_hash_and_a_hint(self, store: Store, database: Database, tmp_path: Path) -> None:
        key = await store.keys.create("default", "laptop")
        assert await database.rows(DIGESTS) == [(hashlib.sha256(key.secret.encode()).digest(),)]
        on_disk = await at_rest_of(database, tmp_path)
        assert b"laptop" in on_disk, "what is written is looked at"
        assert key.secret.encode() not in on_disk
        assert key.secret[8:-4].encode() not in on_disk
        (row,) = await store.keys.list()
        assert row.hint == f"{key.secret[:8]}…{key.secret[-4:]}"
        assert key.secret not in repr(row)


class TestVirtualKeys:
    async def test_a_slug_opens_in_its_workspace_alone(self, store: Store) -> None:
        keys = store.virtual_keys
        assert await keys.create("default", "main", "openai", SECRET, "https://models.example/v1") is True
        opened = await keys.get("default", "main")
        assert opened is not None
        assert (opened.provider, opened.secret, opened.base_url) == ("openai", SECRET, "https://models.example/v1")
        assert await keys.get("other", "main") is None
        assert await keys.get("default", "unknown") is None

    async def test_a_slug_is_given_once_for_each_workspace(self, store: Store) -> None:
        keys = store.virtual_keys
        assert await keys.create("default", "main", "openai", SECRET) is True
        assert await keys.create("default", "main", "groq", "another") is False
        assert await keys.create("other", "main", "groq", "another") is True
        opened = [await keys.get(workspace, "main") for workspace in ("default", "other")]
        assert [one and (one.provider, one.secret) for one in opened] == [("openai", SECRET), ("groq", "another")]

    async def test_lists_show_no_secret_and_one_workspace_if_asked(self, store: Store) -> None:
        keys = store.virtual_keys
        for workspace, slug in (("a", "one"), ("a", "two"), ("b", "one")):
            await keys.create(workspace, slug, "openai", SECRET)
        assert [(row.workspace, row.slug) for row in await keys.list()] == [("a", "one"), ("a", "two"), ("b", "one")]
        assert [row.slug for row in await keys.list("a")] == ["one", "two"]
        assert not any(row.secret for row in await keys.list())
        assert SECRET not in repr(await keys.list())

    async def test_a_deleted_one_is_gone_and_its_slug_is_free(self, store: Store) -> None:
        keys = store.virtual_keys
        await keys.create("default", "main", "openai", SECRET)
        assert await keys.delete("other", "main") is False
        assert await keys.delete("default", "main") is True
        assert await keys.delete("default", "main") is False
        assert await keys.get("default", "main") is None
        assert await keys.create("default", "main", "openai", "new") is True

    async def test_at_rest_it_is_sealed(self, store: Store, database: Database, tmp_path: Path) -> None:
        await store.virtual_keys.create("default", "findable-slug", "openai", SECRET)
        on_disk = await at_rest_of(database, tmp_path)
        assert b"findable-slug" in on_disk
        assert SECRET.encode() not in on_disk
        assert SECRET[10:30].encode() not in on_disk

    async def test_it_opens_neither_with_another_seal_nor_in_another_row(
        self, store: Store, database: Database
    ) -> None:
        """Whoever can write to the file cannot move a key to a workspace of their own."""
        await store.virtual_keys.create("default", "main", "openai", SECRET)
        other, generations = Sealer(bytes([1]) * 32), Generations(database)
        integrations = Integrations(database, other, generations)
        with pytest.raises(StoreError, match="does not open") as caught:
            await VirtualKeys(database, other, generations, integrations).get("default", "main")
        assert SECRET not in str(caught.value)
        await database.write(lambda tx: tx.run(MOVE, key="main", new_workspace="mine"))
        with pytest.raises(StoreError, match="does not open"):
            await store.virtual_keys.get("mine", "main")


class TestCredentials:
    async def test_the_same_secret_keeps_its_id_within_a_workspace(self, store: Store) -> None:
        keep = store.credentials.keep
        id = await keep("default", SECRET)
        assert await keep("default", SECRET) == id
        assert await keep("default", SECRET + "x") != id
        assert await keep("other", SECRET) != id
        assert await store.credentials.get("default", id) == SECRET
        assert await store.credentials.get("other", id) is None
        assert await store.credentials.get("default", "cred_unknown") is None

    async def test_many_at_once_agree_on_one_id(self, store: Store) -> None:
        assert len(set(await asyncio.gather(*(store.credentials.keep("default", SECRET) for _ in range(20))))) == 1

    async def test_at_rest_there_is_neither_the_secret_nor_a_hash_to_try_guesses_on(
        self, store: Store, database: Database, tmp_path: Path
    ) -> None:
        id = await store.credentials.keep("default", SECRET)
        on_disk = await at_rest_of(database, tmp_path)
        assert id.encode() in on_disk
        for text in (SECRET, f"default:{SECRET}"):
            assert text.encode() not in on_disk
            assert hashlib.sha256(text.encode()).digest() not in on_disk
        another = await store.credentials.keep("default", "another-secret-of-some-length")
        row = await database.row(SEALED, key=another)
        assert row is not None
        await database.write(lambda tx: tx.run(SWAP, key=id, new_sealed=row[0]))
        with pytest.raises(StoreError, match="does not open"):
            await store.credentials.get("default", id)
