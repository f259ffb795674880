"""Streams are the same within one process, and over a real Redis beside PostgreSQL."""

from tests.support.storage import make_server, server, storage

__all__ = ["make_server", "server", "storage"]
