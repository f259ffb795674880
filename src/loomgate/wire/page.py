"""Lists: the query parameters, and the envelope around bodies that are already JSON (BEHAVIOUR section 3)."""

from typing import Literal

import msgspec


class PageQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Which page: ``limit`` elements in ``order``, after and before the elements with these ids."""

    limit: int = 20
    order: Literal["asc", "desc"] = "desc"
    after: str | None = None
    before: str | None = None


class Page(msgspec.Struct, frozen=True):
    """Elements in the order asked for: ids and encoded bodies, and whether another one follows (LIST-06)."""

    ids: list[str]
    bodies: list[bytes]
    has_more: bool

    def render(self) -> bytes:
        """The list envelope (LIST-01, -04, -05): the bodies are joined, not decoded."""
        if not self.ids:
            return b'{"object":"list","data":[],"first_id":null,"last_id":null,"has_more":false}'
        return b'{"object":"list","data":[%b],"first_id":"%b","last_id":"%b","has_more":%b}' % (
            b",".join(self.bodies),
            self.ids[0].encode(),
            self.ids[-1].encode(),
            b"true" if self.has_more else b"false",
        )
