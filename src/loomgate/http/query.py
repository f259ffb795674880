"""Query strings in: pages, filters and ``include[]`` (BEHAVIOUR LIST-14 to -16, CONV-09, -13, -14). Pure.

Parameters that an operation does not know are ignored (CONV-09).
"""

from urllib.parse import parse_qsl

from loomgate.errors import bad_request
from loomgate.http.refusal import not_one_of, out_of_range, wrong_type
from loomgate.wire.page import PageQuery

_DEFAULT = PageQuery()
_MAX = 100  # LIST-02
# The one thing that can be asked for besides (STEP-14).
INCLUDABLE = "step_details.tool_calls[*].file_search.results[*].content"


def pairs(query: bytes) -> list[tuple[str, str]]:
    """The decoded (name, value) pairs of a raw query string, in order; percent-encoding and ``+`` are undone."""
    if not query:
        return []
    try:
        return parse_qsl(query.decode("latin-1"), keep_blank_values=True, max_num_fields=1000)
    except ValueError:
        raise bad_request("The query string has too many parameters.") from None


def page(query: bytes) -> PageQuery:
    """``limit``, ``order``, ``after``, ``before``. Raises a 400 `ApiError` that names the parameter."""
    return page_of(dict(pairs(query))) if query else _DEFAULT


def page_of(given: dict[str, str]) -> PageQuery:
    """As `page`, from parameters that were parsed already."""
    order = given.get("order", "desc")
    if order != "desc" and order != "asc":  # noqa: PLR1714 - in this form the type checker narrows it
        raise not_one_of("order", order, ["asc", "desc"])
    return PageQuery(
        limit=_limit(given.get("limit")),
        order=order,
        after=given.get("after") or None,
        before=given.get("before") or None,
    )


def _limit(text: str | None) -> int:
    if text is None:
        return _DEFAULT.limit
    digits = text[1:] if text[:1] in ("-", "+") else text
    if not (digits.isascii() and digits.isdigit()):
        raise wrong_type("limit", "an integer", text)
    if text.startswith("-") or not digits.strip("0"):
        raise out_of_range("limit", "integer", 1, text, above=False)
    if len(digits.lstrip("0")) > 3 or int(digits) > _MAX:
        raise out_of_range("limit", "integer", _MAX, text, above=True)
    return int(digits)


def include(query: bytes) -> list[str]:
    """What ``include[]`` (or ``include``) asks for. Raises a 400 `ApiError` for anything that cannot be included."""
    found = [value for name, value in pairs(query) if name in ("include[]", "include")] if query else []
    for index, value in enumerate(found):
        if value != INCLUDABLE:
            raise not_one_of(f"include[{index}]", value, [INCLUDABLE])
    return found[:1]


def bracketed(given: list[tuple[str, str]], name: str) -> dict[str, str]:
    """The parameters of the form ``name[key]=value``, by key."""
    start = name + "["
    return {key[len(start) : -1]: value for key, value in given if key.startswith(start) and key.endswith("]")}
