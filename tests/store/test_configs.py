"""Documents with versions, accounts and generations: one workspace's, sealed, and never half changed."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa
from tests.support.engines import Databases
from tests.support.storage import at_rest_of, opened_again

from loomgate import clock
from loomgate.errors import StoreError
from loomgate.store import Store, schema, tables
from loomgate.store.accounts import About, Account
from loomgate.store.configs import MOST_VERSIONS, Document
from loomgate.store.database import Database, Statement
from loomgate.store.seal import Sealer
from loomgate.store.sqlite import SqliteDatabase, connect
from loomgate.wire.limits import KeyLimits, RateLimit, UsageLimits

pytestmark = pytest.mark.anyio

SECRET = "sk-provider-0123456789abcdefghijklmnopqrstuvwxyz"
BODY: dict[str, Any] = {"provider": "openai", "api_key": SECRET, "override_params": {"nowhere_else": 1}}
SWAP = Statement(
    sa.update(tables.document_versions)
    .where(tables.document_versions.c.id == sa.bindparam("key"))
    .values(sealed=sa.bindparam("new_sealed"))
)
SEALED = Statement(
    sa.select(tables.document_versions.c.sealed).where(tables.document_versions.c.id == sa.bindparam("key"))
)


def document(slug: str = "pc-x", workspace: str = "default", **fields: Any) -> Document:
    return Document(**{"workspace": workspace, "slug": slug, "body": BODY} | fields)


def to(**changes: Any) -> Callable[[Document], Document]:
    return lambda before: msgspec.structs.replace(before, **changes)


class TestDocuments:
    async def test_kinds_and_workspaces_are_apart(self, store: Store) -> None:
        made = await store.configs.add(document())
        assert made is not None
        assert await store.configs.add(document()) is None
        assert await store.configs.add(document(workspace="other")) is not None
        assert await store.guardrails.add(document()) is not None
        assert await store.configs.find("default", "pc-x") == await store.configs.find("default", made.id) == made
        assert await store.configs.get("default", made.id) is None, "clients name slugs"
        assert await store.configs.find("other", made.id) is None
        assert await store.guardrails.find("default", made.id) is None
        assert [row.workspace for row in await store.configs.list()] == ["default", "other"]
        assert len(await store.configs.list("default")) == 1
        assert await store.configs.delete("other", made.id) is False
        assert await store.configs.delete("default", made.id) is True
        assert await store.configs.versions(made) == []

    async def test_a_change_that_raises_changes_nothing(self, store: Store) -> None:
        made = await store.configs.add(document())
        assert made is not None

        def refuse(_: Document) -> Document:
            raise ValueError("no")

        before = await store.generations.of("default")
        with pytest.raises(ValueError, match="no"):
            await store.configs.change("default", "pc-x", refuse)
        assert await store.configs.find("default", "pc-x") == made
        assert len(await store.configs.versions(made)) == 1
        store.generations.forget("default")
        assert await store.generations.of("default") == before
        assert await store.configs.change("default", "nope", to(name="x")) is None

    async def test_many_changes_at_once_are_as_many_versions(self, store: Store) -> None:
        made = await store.configs.add(document())
        assert made is not None
        await asyncio.gather(*(store.configs.change("default", "pc-x", to(name=f"n{n}")) for n in range(20)))
        versions = await store.configs.versions(made)
        assert len({version.id for version in versions}) == 21
        now = await store.configs.find("default", "pc-x")
        assert now is not None
        assert (versions[0].id, versions[0].name) == (now.version_id, now.name)

    async def test_only_so_many_versions_are_kept(self, store: Store) -> None:
        made = await store.configs.add(document())
        assert made is not None
        for n in range(MOST_VERSIONS + 5):
            await store.configs.change("default", "pc-x", to(name=f"n{n}"))
        versions = await store.configs.versions(made)
        assert len(versions) == MOST_VERSIONS
        assert versions[-1].name == "n5"

    async def test_a_workspace_has_one_default(self, store: Store) -> None:
        await store.configs.add(document("one", is_default=True))
        await store.configs.add(document("two", is_default=True))
        await store.configs.add(document("three", workspace="other", is_default=True))
        found = await store.configs.default("default")
        assert found is not None
        assert found.slug == "two"
        await store.configs.change("default", "one", to(is_default=True))
        found = await store.configs.default("default")
        assert found is not None
        assert found.slug == "one"
        await store.configs.change("default", "one", to(status="archived"))
        assert await store.configs.default("default") is None
        assert await store.configs.default("nowhere") is None

    async def test_bodies_are_sealed_each_for_its_version(
        self, store: Store, database: Database, tmp_path: Path
    ) -> None:
        made = await store.configs.add(document(name="findable"))
        assert made is not None
        on_disk = await at_rest_of(database, tmp_path)
        assert b"findable" in on_disk
        assert SECRET.encode() not in on_disk
        assert b"nowhere_else" not in on_disk
        assert SECRET not in repr(made) + repr(await store.configs.versions(made))
        other = await store.configs.add(document("pc-y"))
        assert other is not None
        row = await database.row(SEALED, key=other.version_id)
        assert row is not None
        await database.write(lambda tx: tx.run(SWAP, key=made.version_id, new_sealed=row[0]))
        with pytest.raises(StoreError, match="does not open"):
            await store.configs.find("default", "pc-x")


class TestAccounts:
    async def test_everything_comes_back_as_it_was_stored(
        self, store: Store, database: Database, tmp_path: Path
    ) -> None:
        about = About(
            note="n",
            limits=KeyLimits(
                usage_limits=UsageLimits(credit_limit=5, type="tokens", periodic_reset="weekly"),
                rate_limits=(RateLimit(type="requests", unit="rpm", value=3),),
            ),
            expires_at=clock.timestamp() + 60,
        )
        given = Account(
            workspace="w", slug="s", provider="openai", secret=SECRET, base_url="https://x/v1", name="N", about=about,
            data={"aws_secret_access_key": "hush-0123456789", "aws_region": "eu"},
        )  # fmt: skip
        made = await store.virtual_keys.add(given)
        assert made is not None
        assert await store.virtual_keys.find("w", "s") == await store.virtual_keys.find("w", made.id) == made
        assert msgspec.structs.replace(made, id="", created_at=0, updated_at=0) == given
        (row,) = await store.virtual_keys.list("w")
        assert (row.secret, row.data) == ("", {})
        (row,) = await store.virtual_keys.list("w", secrets=True)
        assert row == made
        on_disk = await at_rest_of(database, tmp_path)
        for secret in (SECRET, "hush-0123456789"):
            assert secret.encode() not in on_disk
            assert secret not in repr(made) + repr(await store.virtual_keys.get("w", "s"))

    async def test_a_key_of_an_integration_is_opened_with_it(self, store: Store) -> None:
        await store.integrations.add(Account(workspace="w", slug="acc", provider="groq", secret="g1"))
        await store.virtual_keys.add(Account(workspace="w", slug="vk", provider="groq", integration="acc"))
        assert await store.integrations.users("w", "acc") == ["vk"]
        assert await store.integrations.users("other", "acc") == []
        found = await store.virtual_keys.get("w", "vk")
        assert found is not None
        assert (found.provider, found.secret, found.budgets) == ("groq", "g1", ())
        await store.integrations.change("w", "acc", lambda row: msgspec.structs.replace(row, secret="g2"))
        found = await store.virtual_keys.get("w", "vk")
        assert found is not None
        assert found.secret == "g2"
        assert await store.integrations.change("other", "acc", lambda row: row) is None


class TestGenerations:
    async def test_another_process_is_noticed_within_a_second(
        self,
        store: Store,
        database: Database,
        databases: Databases,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        now = 1000.0
        monkeypatch.setattr(clock, "monotonic", lambda: now)
        assert await store.generations.of("default") == 0
        elsewhere = Store(await opened_again(database, tmp_path, databases), Sealer(bytes(32)), [], "reject")
        try:
            await elsewhere.configs.add(document())
        finally:
            await elsewhere.close()
        assert await store.generations.of("default") == 0, "a lookup a second is enough"
        now += 1.0
        assert await store.generations.of("default") == 1
        await store.configs.change("default", "pc-x", to(name="y"))
        assert await store.generations.of("default") == 2, "its own changes at once"
        assert await store.generations.of("other") == 0


async def test_keys_of_the_first_version_are_what_they_were(tmp_path: Path) -> None:
    """Revision 0001 as it was shipped, with a key of each kind, upgraded."""
    from alembic import command

    path, sealer = tmp_path / "old.db", Sealer(bytes(32))
    command.upgrade(schema.alembic_config(path), "0001")
    connection = connect(path)
    sealed = sealer.seal(SECRET, context="virtual_key:default:main")
    digest = bytes(32)
    connection.execute(
        "INSERT INTO virtual_keys VALUES ('default', 'main', 'openai', 'http://10.0.0.1/v1', ?, 7)", (sealed,)
    )
    connection.execute("INSERT INTO virtual_keys VALUES ('other', 'main', 'groq', NULL, ?, 8)", (sealed,))
    connection.execute("INSERT INTO api_keys VALUES ('key_1', 'default', 'ci', ?, 'sk-…', 7, NULL)", (digest,))
    connection.close()
    assert schema.upgrade(path) == ("0001", schema.HEAD)
    store = Store(SqliteDatabase(path), sealer, [], "reject")
    try:
        found = await store.virtual_keys.get("default", "main")
        assert found is not None
        assert (found.provider, found.secret, found.base_url, found.trusted) == (
            "openai",
            SECRET,
            "http://10.0.0.1/v1",
            True,
        )
        first, second = await store.virtual_keys.list()
        assert first.id != second.id
        assert (first.name, first.created_at, first.updated_at) == ("main", 7, 7)
        assert await store.virtual_keys.find("default", first.id) is not None
        (key,) = await store.keys.list()
        assert (key.id, key.role) == ("key_1", "user")
    finally:
        await store.close()
