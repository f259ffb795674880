"""Clients' patterns: JavaScript's meaning, and what one may cost."""

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from loomgate import clock
from loomgate.gateway.patterns import Pattern
from tests.gateway.checking import answered, find, verdict
from tests.support.waiting import until

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        (r"a$", "a\n", False),
        (r"^.$", "\r", False),
        (r"^.$", "\u2028", False),
        (r"^\d$", "٣", False),
        (r"^\w$", "é", False),
        (r"^\s+$", "\xa0\u2003\ufeff \t", True),
        (r"^[\s]$", "\u3000", True),
        (r"^\S$", "\xa0", False),
        (r"^[^]$", "\n", True),
        (r"[]", "x", False),
        (r"^[]]$", "]", False),
        (r"^[\]]$", "]", True),
        (r"^[a\]^-]+$", "^]a-", True),
        (r"^[[a]$", "[", True),
        (r"^(?<q>['\"]).*\k<q>$", "'x'", True),
        (r"^(a)(b)\2\1$", "abba", True),
        (r"^(?=.*\d)(?!.*x).+$", "ab1", True),
        (r"(?<=\$)\d+", "$12", True),
        (r"^\u0041\x42\cJ\0$", "AB\n\0", True),
        (r"^\/\-\.$", "/-.", True),
        (r"^a{2,3}?b{,2}{}$", "aab{,2}{}", True),
        (r"^(?:ab|c)*$", "ababc", True),
        (r"[&&]~~||--", "&~~||--", True),
    ],
)
async def test_patterns_mean_what_they_mean_in_javascript(source: str, text: str, expected: bool) -> None:
    assert (await Pattern(source).search(text) is not None) is expected


@pytest.mark.parametrize(
    "source",
    [
        "(((a{1000}){1000}){1000})",
        "(?:a{1000}){1000}",
        "a{99999}",
        "(" * 400 + ")" * 400 + "{10000}",
        "a{20}{20}{20}{20}",
        "(?:(?:(?:[[:alpha:]{9}]{99}){99}){99}){99}",
        "x" * 2_001,
        "a++",
        "a{2}+",
        "(?>a)",
        "(?P<n>a)",
        "(?#comment)",
        "(?i)a",
        "(?R)",
        "(a",
        "a)",
        "[a",
        "\\",
        r"\q",
        r"\p{L}",
        r"[\S]",
        r"\x1",
        r"\k<n>",
        "*",
        "a**",
        r"(a)\2",
        "(?<n>a)(?<1n>b)",
        "(" * 1000 + ")" * 1000,
    ],
)
def test_patterns_that_are_wrong_or_too_large_are_refused(source: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        Pattern(source)


@given(st.text(alphabet="ab1(){}[]|*+?.^$\\,-:<=!&sdwkpxu0", max_size=30), st.text(alphabet="ab1 \n", max_size=30))
@settings(max_examples=300, deadline=None)
@example("(?:(?:(?:", "")
async def test_any_pattern_is_refused_or_works(source: str, text: str) -> None:
    try:
        pattern = Pattern(source)
    except ValueError:
        return
    await pattern.search(text)


@pytest.mark.parametrize("length", [60, 10_000])
async def test_a_catastrophic_pattern_holds_nobody_up(length: int) -> None:
    ticks = 0
    longest = 0.0

    async def tick() -> None:
        nonlocal ticks, longest
        while True:
            before = clock.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, clock.monotonic() - before)
            ticks += 1

    beside = asyncio.create_task(tick())
    await until(lambda: ticks)
    longest = 0.0
    found = await find("regexMatch", {"rule": "^(a|aa)+$"}, answered("a" * length + "!"))
    beside.cancel()
    assert found.error is not None
    assert found.error[0] == "TimeoutError"
    assert ticks > 20
    assert longest < 0.2  # a slow machine's; the limit on the event loop is 2 ms


async def test_texts_that_are_too_long_are_not_matched() -> None:
    found = await find("regexMatch", {"rule": "x"}, answered("a" * 500_001))
    assert found.error == ("TimeoutError", "the text is longer than 500000 characters")
    assert await verdict("regexMatch", {"rule": "b$"}, "a" * 499_999 + "b")
