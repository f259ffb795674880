"""Keyset pages: one statement a page, flat in cost however long the list (BEHAVIOUR section 3).

The order key is ``position``, given under the parent row's lock: total, never shared, never given again.
"""

from functools import lru_cache
from typing import Any

import sqlalchemy as sa

from loomgate.errors import bad_request
from loomgate.store.database import Statement, Tx
from loomgate.wire.page import Page, PageQuery


class Listing:
    """A list: the table that is paged through, and the column that names the list's parent."""

    def __init__(self, table: sa.Table, parent: str) -> None:
        self._table = table
        self._parent = table.c[parent]
        self._cursor = Statement(
            sa.select(table.c.position).where(
                table.c.id == sa.bindparam("cursor"), self._parent == sa.bindparam("parent")
            )
        )

    def _base(self, columns: tuple[str, ...], filters: tuple[str, ...]) -> tuple[sa.Select[Any], sa.ColumnElement[int]]:
        """The list without bounds or order, and the column that orders it."""
        table = self._table
        query = sa.select(*(table.c[name] for name in columns)).where(self._parent == sa.bindparam("parent"))
        for name in filters:
            query = query.where(table.c[name] == sa.bindparam(name))
        return query, table.c.position

    @lru_cache  # noqa: B019 - a handful of module-level objects, each with a handful of forms
    def _select(
        self, descending: bool, low: bool, high: bool, filters: tuple[str, ...], columns: tuple[str, ...]
    ) -> Statement:
        query, position = self._base(columns, filters)
        if low:
            query = query.where(position > sa.bindparam("low"))
        if high:
            query = query.where(position < sa.bindparam("high"))
        order = position.desc() if descending else position.asc()
        return Statement(query.order_by(order).limit(sa.bindparam("count", type_=sa.Integer)))

    async def position(self, tx: Tx, parent: str, cursor: str, name: str) -> int:
        """The order key of the element ``cursor``; 400 naming ``name`` when it is not of this list (LIST-13)."""
        row = await tx.row(self._cursor, cursor=cursor, parent=parent)
        if row is None:
            raise bad_request(f"Invalid '{name}': no element with id '{cursor}' in this list.", name, "invalid_value")
        return row[0]

    async def rows(
        self, tx: Tx, parent: str, query: PageQuery, columns: tuple[str, ...], **filters: Any
    ) -> tuple[list[tuple[Any, ...]], bool]:
        """The rows of one page in the order asked for, and whether another element follows."""
        after = await self.position(tx, parent, query.after, "after") if query.after else None
        before = await self.position(tx, parent, query.before, "before") if query.before else None
        descending = query.order == "desc"
        low, high = (before, after) if descending else (after, before)
        # `before` alone: the elements nearest to it (LIST-09), so walk away from it and turn the page round.
        backwards = before is not None and after is None
        bounds = {name: value for name, value in (("low", low), ("high", high)) if value is not None}
        statement = self._select(
            descending != backwards, low is not None, high is not None, tuple(sorted(filters)), columns
        )
        rows = await tx.rows(statement, parent=parent, count=query.limit + 1, **bounds, **filters)
        has_more = len(rows) > query.limit
        rows = rows[: query.limit]
        if backwards:
            rows.reverse()
        return rows, has_more

    async def page(self, tx: Tx, parent: str, query: PageQuery, **filters: Any) -> Page:
        """One page of ids and bodies."""
        rows, has_more = await self.rows(tx, parent, query, ("id", "body"), **filters)
        return Page([row[0] for row in rows], [row[1] for row in rows], has_more)
