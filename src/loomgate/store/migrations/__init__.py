"""What migrations are written with, so that one tree serves both engines and other nodes work on meanwhile.

What must live here: words that mean the right thing on each engine. What must not: changes of tables (``versions/``).
The rules for a migration are in docs/why/migrations.md.
"""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

# A text that is compared and ordered by its bytes, as in `tables`.
TEXT = sa.Text().with_variant(postgresql.TEXT(collation="C"), "postgresql")


def on_postgresql() -> bool:
    """Does this migration run on PostgreSQL?"""
    return op.get_context().dialect.name == "postgresql"


def where(condition: str) -> dict[str, Any]:
    """What makes an index a partial one."""
    return {"sqlite_where": sa.text(condition), "postgresql_where": sa.text(condition)}


def add_index(
    name: str, table: str, columns: Sequence[str], *, unique: bool = False, condition: str | None = None
) -> None:
    """Make an index on a table that has rows, while others write to it.

    On PostgreSQL that takes no lock that would stop them, but it cannot be undone with a transaction: so it stands last
    in a migration, which has to be one that may be run again. An index that was left behind half made is made anew.
    """
    extra = {} if condition is None else where(condition)
    if not on_postgresql():
        op.create_index(name, table, list(columns), unique=unique, **extra)
        return
    with op.get_context().autocommit_block():
        op.execute("SET lock_timeout = 0")  # it waits for transactions that began before, and stops nobody meanwhile
        op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        op.create_index(name, table, list(columns), unique=unique, postgresql_concurrently=True, **extra)
        op.execute("RESET lock_timeout")
