"""What these tests share: a store on a database of its own, of either engine."""

import pytest
from tests.support.storage import anyio_backend, database, store

__all__ = ["anyio_backend", "database", "store"]

# What is about SQLite's planner; of PostgreSQL's is `test_plans_postgres`.
_OF_SQLITE = {
    "test_a_search_for_what_is_rare_looks_through_so_much_and_no_more",
    "test_a_trace_is_found_by_its_index",
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave the PostgreSQL form of what is about SQLite out."""
    items[:] = [
        item for item in items if not (getattr(item, "originalname", None) in _OF_SQLITE and "[postgresql" in item.name)
    ]
