"""The first tables: assistants, threads, messages, runs and steps, keys, webhook calls."""

import sqlalchemy as sa
from alembic import op

from loomgate.store.migrations import TEXT, where

revision = "0001"
down_revision = None


def upgrade() -> None:
    """Create every table with its indexes."""
    op.create_table(
        "api_keys",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("name", TEXT, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("hint", TEXT, nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_api_keys"),
        sa.UniqueConstraint("digest", name="uq_api_keys_digest"),
    )

    op.create_table(
        "assistants",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("private", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_assistants"),
    )
    op.create_index("ix_assistants_workspace_position", "assistants", ["workspace", "position"], unique=True)

    op.create_table(
        "credentials",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("digest", sa.LargeBinary(), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_credentials"),
        sa.UniqueConstraint("workspace", "digest", name="uq_credentials_workspace_digest"),
    )

    op.create_table(
        "deliveries",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("endpoint", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("attempts", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("due", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("outcome", TEXT, nullable=True),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_deliveries"),
    )
    op.create_index("ix_deliveries_due", "deliveries", ["endpoint", "due"], **where("due IS NOT NULL"))
    op.create_index("ix_deliveries_ended_at", "deliveries", ["ended_at"], **where("ended_at IS NOT NULL"))
    op.create_index(
        "ix_deliveries_owed",
        "deliveries",
        ["endpoint", "run_id", "position"],
        unique=True,
        **where("ended_at IS NULL"),
    )

    op.create_table(
        "messages",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("thread_id", TEXT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("run_id", TEXT, nullable=True),
        sa.Column("place", sa.BigInteger(), nullable=False),
        sa.Column("role", TEXT, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_messages"),
    )
    op.create_index("ix_messages_run", "messages", ["thread_id", "run_id", "position"], **where("run_id IS NOT NULL"))
    op.create_index("ix_messages_thread_id_place_position", "messages", ["thread_id", "place", "position"])
    op.create_index("ix_messages_thread_id_position", "messages", ["thread_id", "position"], unique=True)

    op.create_table(
        "purges",
        sa.Column("thread_id", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("thread_id", name="pk_purges"),
    )

    op.create_table(
        "runs",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("thread_id", TEXT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("expires_at", sa.BigInteger(), nullable=False),
        sa.Column("holds", TEXT, nullable=True),
        sa.Column("due", sa.BigInteger(), nullable=True),
        sa.Column("fence", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("worker", TEXT, nullable=True),
        sa.Column("spec", sa.LargeBinary(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_runs"),
    )
    op.create_index("ix_runs_due", "runs", ["due"], **where("due IS NOT NULL"))
    op.create_index("ix_runs_thread_id_position", "runs", ["thread_id", "position"], unique=True)
    op.create_index("ix_runs_waiting", "runs", ["thread_id", "position"], **where("holds IS NULL AND due IS NOT NULL"))
    op.create_index("uq_runs_holds", "runs", ["holds"], unique=True, **where("holds IS NOT NULL"))

    op.create_table(
        "steps",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("thread_id", TEXT, nullable=False),
        sa.Column("run_id", TEXT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("turn", sa.BigInteger(), nullable=False),
        sa.Column("status", TEXT, nullable=False),
        sa.Column("usage", sa.LargeBinary(), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_steps"),
    )
    op.create_index("ix_steps_run_id_position", "steps", ["run_id", "position"], unique=True)
    op.create_index("ix_steps_thread_id", "steps", ["thread_id"])

    op.create_table(
        "thread_tags",
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("key", TEXT, nullable=False),
        sa.Column("value", TEXT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("thread_id", TEXT, nullable=False),
        sa.PrimaryKeyConstraint("workspace", "key", "value", "position", name="pk_thread_tags"),
    )
    op.create_index("ix_thread_tags_thread_id", "thread_tags", ["thread_id"])

    op.create_table(
        "threads",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("positions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("messages", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("on_active_run", TEXT, nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_threads"),
    )
    op.create_index("ix_threads_workspace_position", "threads", ["workspace", "position"], unique=True)

    op.create_table(
        "virtual_keys",
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("slug", TEXT, nullable=False),
        sa.Column("provider", TEXT, nullable=False),
        sa.Column("base_url", TEXT, nullable=True),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "slug", name="pk_virtual_keys"),
    )

    op.create_table(
        "workspaces",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("positions", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_workspaces"),
    )
