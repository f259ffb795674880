"""What the settings file declares and what the store has, as one: how the admin routes find, list and add rows.

What must live here: which of the two a slug or id means, and who may change it. What must not: what one resource shows.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

from loomgate.http import admin
from loomgate.http.call import Answer, Call
from loomgate.store.accounts import Account
from loomgate.store.configs import Document

R = TypeVar("R", Account, Document)


class _Stored(Protocol[R]):
    async def find(self, workspace: str, key: str, /) -> R | None: ...
    async def list(self, workspace: str, /) -> list[R]: ...
    async def add(self, row: R, /) -> R | None: ...
    async def delete(self, workspace: str, slug: str, /) -> bool: ...


class Resource(Generic[R]):
    """One kind of rows. ``what`` is its name for people, ``table`` that of the settings file; ``declared`` gives the
    file's rows by slug, ``stored`` the verbs of the store; ``param`` is where the URL has the slug or id."""

    def __init__(
        self,
        what: str,
        table: str,
        declared: Callable[[Call], Mapping[str, R]],
        stored: Callable[[Call], _Stored[R]],
        *,
        param: str = "slug",
    ) -> None:
        self.what = what
        self.table = table
        self.declared = declared
        self.stored = stored
        self.param = param

    async def find(self, call: Call, what: str = "") -> tuple[R, bool]:
        """The row that the URL names, and whether the settings file declares it. Raises a 404 `ApiError`."""
        key = call.path[self.param]
        for row in self.declared(call).values():
            if key in (row.slug, row.id):
                return row, True
        stored = await self.stored(call).find(call.workspace, key)
        if stored is None:
            raise admin.unknown(what or self.what, key)
        return stored, False

    async def own(self, call: Call, what: str = "") -> R:
        """The row that the URL names, to be changed. Raises a 404 or 400 `ApiError`."""
        row, declared = await self.find(call, what)
        if declared:
            raise admin.read_only(self.what, self.table, row.slug)
        return row

    async def all(self, call: Call, stored: Sequence[R] | None = None) -> list[tuple[R, bool]]:
        """The rows that the workspace has, each with whether the file declares it; those of the store if they are not
        given. A slug that both have is the file's."""
        declared = self.declared(call)
        if stored is None:
            stored = await self.stored(call).list(call.workspace)
        return [(row, True) for row in declared.values()] + [(row, False) for row in stored if row.slug not in declared]

    async def add(self, call: Call, row: R) -> R:
        """Store a new row. Raises a 400 `ApiError` when its slug is taken: one that the file has is never reached."""
        one = f"an {self.what}" if self.what[0] in "aeiou" else f"a {self.what}"
        if row.slug in self.declared(call):
            raise admin.taken(f"{one} of the settings file", row.slug)
        made = await self.stored(call).add(row)
        if made is None:
            raise admin.taken(one, row.slug)
        return made

    async def delete(self, call: Call) -> Answer:
        """Delete the row that the URL names. Raises a 404 or 400 `ApiError`."""
        row = await self.own(call)
        await self.stored(call).delete(call.workspace, row.slug)
        return admin.answer({})
