"""Alembic's way in: run the migrations on the database that ``schema.py`` names.

What must live here: the connection and its transactions. What must not: changes of tables (``versions/``).

In a file all migrations are one transaction. On PostgreSQL, whose connection is given, each is one of its own: an index
that is made while others write (`add_index`) cannot be in a transaction.
"""

from typing import Any

import sqlalchemy as sa
from alembic import context
from sqlalchemy import event

from loomgate.store import tables


def _leave_transactions_alone(connection: Any, _: Any) -> None:
    # By itself Python's sqlite3 begins none before a CREATE or ALTER, and half an upgrade would stay.
    connection.isolation_level = None


def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


def _run() -> None:
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    context.configure(
        connection=given, target_metadata=tables.metadata, transactional_ddl=True, transaction_per_migration=True
    )
    _run()
else:
    engine = sa.create_engine(context.config.attributes["url"])
    event.listen(engine, "connect", _leave_transactions_alone)
    event.listen(engine, "begin", _begin)
    with engine.connect() as opened:
        context.configure(
            connection=opened, target_metadata=tables.metadata, transactional_ddl=True, render_as_batch=True
        )
        _run()
    engine.dispose()
