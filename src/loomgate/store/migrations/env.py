"""Alembic's way in: run the migrations on the database that ``schema.py`` names, in one transaction."""

import sqlalchemy as sa
from alembic import context

from loomgate.store import tables

engine = sa.create_engine(context.config.attributes["url"])
with engine.connect() as connection:
    context.configure(connection=connection, target_metadata=tables.metadata, render_as_batch=True)
    with context.begin_transaction():
        context.run_migrations()
engine.dispose()
