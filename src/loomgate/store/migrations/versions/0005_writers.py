"""The number of each connection's last write, by which the fate of one that broke off in its commit is told."""

import sqlalchemy as sa
from alembic import op

from loomgate.store.migrations import TEXT

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    """Make the table."""
    op.create_table(
        "writers",
        sa.Column("id", TEXT, nullable=False),
        sa.Column("number", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_writers"),
    )
