"""Alembic's way in: run the migrations on the database that ``schema.py`` names, all of them in one transaction.

What must live here: the connection and its transaction. What must not: changes of tables (``versions/``).
"""

from typing import Any

import sqlalchemy as sa
from alembic import context
from sqlalchemy import event

from loomgate.store import tables

engine = sa.create_engine(context.config.attributes["url"])


@event.listens_for(engine, "connect")
def _leave_transactions_alone(connection: Any, _: Any) -> None:
    # By itself Python's sqlite3 begins none before a CREATE or ALTER, and half an upgrade would stay.
    connection.isolation_level = None


@event.listens_for(engine, "begin")
def _begin(connection: sa.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")


with engine.connect() as connection:
    context.configure(
        connection=connection, target_metadata=tables.metadata, render_as_batch=True, transactional_ddl=True
    )
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
