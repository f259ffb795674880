"""The log of calls, and what virtual keys have spent."""

import sqlalchemy as sa
from alembic import op

from loomgate.store.migrations import TEXT

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Make the two tables."""
    op.create_table(
        "calls",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("status", sa.BigInteger(), nullable=False),
        sa.Column("provider", TEXT, nullable=False),
        sa.Column("model", TEXT, nullable=False),
        sa.Column("trace_id", TEXT, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("request", sa.LargeBinary(), nullable=True),
        sa.Column("response", sa.LargeBinary(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_calls"),
    )
    op.create_index("ix_calls_workspace_id", "calls", ["workspace", "id"])
    op.create_index("ix_calls_workspace_trace_id_id", "calls", ["workspace", "trace_id", "id"])

    op.create_table(
        "spending",
        sa.Column("workspace", TEXT, nullable=False),
        sa.Column("virtual_key", TEXT, nullable=False),
        sa.Column("day", sa.BigInteger(), nullable=False),
        sa.Column("cost", sa.Double, nullable=False),
        sa.Column("tokens", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("workspace", "virtual_key", "day", name="pk_spending"),
    )
