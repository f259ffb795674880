"""Roles of API keys, integrations, saved configs and guardrails with their versions; more about a virtual key.

In a SQLite file, tables that gain columns are written anew, so that they end up word for word as `tables` makes them.
API keys that exist get the role ``user``: until now none could change what others use, and none shall by an upgrade
alone.
"""

import sqlalchemy as sa
from alembic import op

from loomgate.store.migrations import TEXT, on_postgresql

revision = "0002"
down_revision = "0001"


def _account(name: str) -> None:
    op.create_table(
        name,
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("slug", TEXT, nullable=False),
        sa.Column("provider", TEXT, nullable=False),
        sa.Column("base_url", TEXT, nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("integration", TEXT, nullable=True),
        sa.Column("data", sa.LargeBinary(), nullable=True),
        sa.Column("about", sa.LargeBinary(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "slug", name=f"pk_{name}"),
        sa.UniqueConstraint("id", name=f"uq_{name}_id"),
    )


def _widen() -> None:
    op.add_column("api_keys", sa.Column("role", TEXT, nullable=False, server_default="user"))
    op.alter_column("api_keys", "role", server_default=None)
    for name, kind in (
        ("id", TEXT),
        ("name", TEXT),
        ("integration", TEXT),
        ("data", sa.LargeBinary()),
        ("about", sa.LargeBinary()),
        ("updated_at", sa.BigInteger()),
    ):
        op.add_column("virtual_keys", sa.Column(name, kind))
    # The operator made these keys, so their addresses are trusted.
    op.execute(
        "UPDATE virtual_keys SET id = gen_random_uuid()::text, name = slug, updated_at = created_at,"
        """ about = convert_to('{"trusted": true}', 'UTF8')"""
    )
    for name in ("id", "name", "about", "updated_at"):
        op.alter_column("virtual_keys", name, nullable=False)
    op.create_unique_constraint("uq_virtual_keys_id", "virtual_keys", ["id"])


def _anew() -> None:
    op.execute("ALTER TABLE api_keys RENAME TO api_keys_before")
    op.create_table(
        "api_keys",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("hint", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.Column("role", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )
    op.execute("INSERT INTO api_keys SELECT *, 'user' FROM api_keys_before")
    op.execute("DROP TABLE api_keys_before")

    op.execute("ALTER TABLE virtual_keys RENAME TO virtual_keys_before")
    _account("virtual_keys")
    # The ids are random UUIDs of version 4. The operator made these keys, so their addresses are trusted.
    op.execute(
        "INSERT INTO virtual_keys SELECT workspace, slug, provider, base_url, sealed, created_at,"
        " lower(hex(randomblob(4)) || '-' || hex(randomblob(2)) || '-4' || substr(hex(randomblob(2)), 2) || '-'"
        " || substr('89ab', 1 + (abs(random()) % 4), 1) || substr(hex(randomblob(2)), 2) || '-' || hex(randomblob(6))),"
        """ slug, NULL, NULL, CAST('{"trusted": true}' AS BLOB), created_at FROM virtual_keys_before"""
    )
    op.execute("DROP TABLE virtual_keys_before")


def upgrade() -> None:
    """Make the new tables, and give the two old ones their new columns."""
    if on_postgresql():
        _widen()
    else:
        _anew()

    op.create_table(
        "document_versions",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("document_id", TEXT, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", TEXT, nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_document_versions"),
    )
    op.create_index(
        "ix_document_versions_document_id_number", "document_versions", ["document_id", "number"], unique=True
    )
    op.create_table(
        "documents",
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("slug", TEXT, nullable=False),
        sa.Column("id", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("is_default", sa.Boolean(), nullable=False),
        sa.Column("version_id", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("updated_at", sa.BigInteger(), nullable=False),
        sa.Column("created_by", TEXT, nullable=True),
        sa.Column("updated_by", TEXT, nullable=True),
        sa.PrimaryKeyConstraint("workspace", "kind", "slug", name="pk_documents"),
        sa.UniqueConstraint("id", name="uq_documents_id"),
    )
    op.create_table(
        "generations",
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", name="pk_generations"),
    )
    _account("integrations")
