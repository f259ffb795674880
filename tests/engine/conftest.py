"""An engine's store is one on SQLite, and one on PostgreSQL."""

from tests.support.storage import anyio_backend, database, store

__all__ = ["anyio_backend", "database", "store"]
