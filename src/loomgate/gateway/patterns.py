"""Regular expressions that clients write: JavaScript's syntax, and never longer at work than they may be.

What must live here: the translation of the syntax, and the bounds on compiling and on matching. What must not: what
a match means.

A pattern can take for ever (``(a|aa)+$``). Python's ``re`` then keeps the interpreter locked, so that not even a thread
helps; the ``regex`` package gives up after a time limit and works beside the interpreter. It writes repetitions out
while it compiles, so ``((x{1000}){1000}){1000}`` would fill the memory: that is counted first (docs/why/patterns.md).
"""

import asyncio
import string
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import regex

LONGEST_PATTERN = 2_000  # characters
LONGEST_TEXT = 500_000  # characters; a match that keeps all it has captured takes 200 bytes for each
SECONDS = 0.5  # for one text

_GLANCE_SECONDS = 0.002  # on the event loop, before a thread is asked
_GLANCE_TEXT = 4_000  # characters; longer texts could overrun that by much
_GRACE_SECONDS = 2.0  # for waiting for a thread, and for an overrun in it
_LARGEST = 10_000  # pieces that a pattern has once its repetitions are written out

# What JavaScript and Python mean by these differs: ECMA-262, "CharacterClassEscape", "Assertion" and "Atom".
_SPACES = r"\s\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000\ufeff"
_OUTSIDE = {"s": f"[{_SPACES}]", "S": f"[^{_SPACES}]"}
_DOT = r"[^\n\r\u2028\u2029]"
_OPENINGS = ("?:", "?=", "?!", "?<=", "?<!")


class Pattern:
    """A pattern, ready for use by any number of tasks. ``source`` is as it was written."""

    def __init__(self, source: str) -> None:
        """Compile ``source``. Raises `ValueError` that says what is wrong with it, or that it is too large."""
        import regex

        if len(source) > LONGEST_PATTERN:
            raise ValueError(f"it is longer than {LONGEST_PATTERN} characters")
        translated = _translated(source)
        try:
            self._compiled = regex.compile(translated, regex.ASCII | regex.VERSION0, cache_pattern=False)
        except (regex.error, RecursionError, OverflowError, MemoryError, IndexError, KeyError) as error:
            raise ValueError(str(error) or type(error).__name__) from None
        self.source = source

    def glance(self, text: str) -> bool:
        """Whether it matches in ``text``, told at once: for what cannot wait. Raises `TimeoutError` for one that takes
        more than a glance, or a text that is long."""
        if len(text) > _GLANCE_TEXT:
            raise TimeoutError
        return self._compiled.search(text, timeout=_GLANCE_SECONDS) is not None

    async def search(self, text: str) -> "regex.Match[str] | None":
        """The first match in ``text``. Raises `TimeoutError` when that is not found out in time (`SECONDS`)."""
        if len(text) <= _GLANCE_TEXT:
            try:
                return self._compiled.search(text, timeout=_GLANCE_SECONDS)
            except TimeoutError:
                pass
        _check(text)
        work = asyncio.get_running_loop().run_in_executor(_threads(), self.search_now, text)
        async with asyncio.timeout(SECONDS + _GRACE_SECONDS):
            return await work

    def search_now(self, text: str) -> "regex.Match[str] | None":
        """The same in this very thread, which must not be the event loop's."""
        _check(text)
        return self._compiled.search(text, timeout=SECONDS, concurrent=True)

    async def replaced(self, text: str, template: "Template") -> str | None:
        """``text`` with ``template`` in the place of every match; None if there is none. Raises as `search`."""
        if await self.search(text) is None:
            return None
        work = asyncio.get_running_loop().run_in_executor(_threads(), self._replaced_now, text, template)
        async with asyncio.timeout(SECONDS + _GRACE_SECONDS):
            return await work

    def _replaced_now(self, text: str, template: "Template") -> str:
        return self._compiled.sub(template.filled, text, timeout=SECONDS, concurrent=True)


class Template:
    """What comes in the place of a match: text in which ``$1``, ``$<name>``, ``$&`` and ``$$`` mean what they mean in
    JavaScript's ``replace``."""

    def __init__(self, source: str) -> None:
        self._pieces: list[str | int] = []  # texts, and numbers or names of groups
        self._groups: list[bool] = []
        rest = source
        while rest:
            before, dollar, rest = rest.partition("$")
            self._add(before)
            if not dollar:
                break
            if rest[:1] in ("$", "&"):
                self._add("$" if rest[0] == "$" else 0, group=rest[0] == "&")
                rest = rest[1:]
            elif rest[:1].isdecimal() and rest[0] != "0":
                self._add(int(rest[0]), group=True)
                rest = rest[1:]
            elif rest[:1] == "<" and ">" in rest:
                name, _, rest = rest[1:].partition(">")
                self._add(name, group=True)
            else:
                self._add("$")

    def _add(self, piece: str | int, *, group: bool = False) -> None:
        self._pieces.append(piece)
        self._groups.append(group)

    def filled(self, match: "regex.Match[str]") -> str:
        """The text for ``match``; a group that the pattern does not have, or that took no part, is empty."""
        out: list[str] = []
        for piece, group in zip(self._pieces, self._groups, strict=True):
            if not group:
                out.append(str(piece))
                continue
            try:
                out.append(match.group(piece) or "")
            except IndexError:
                out.append("" if isinstance(piece, str) else f"${piece}")
        return "".join(out)


def _check(text: str) -> None:
    if len(text) > LONGEST_TEXT:
        raise TimeoutError(f"the text is longer than {LONGEST_TEXT} characters")


@cache
def _threads() -> ThreadPoolExecutor:
    # Of their own, so that slow patterns keep nobody waiting but each other.
    return ThreadPoolExecutor(2, thread_name_prefix="patterns")


def _translated(source: str) -> str:
    """``source`` in the syntax of ``regex``. Raises `ValueError` for what is not JavaScript's, or is too large.

    Reads the pattern once: `sizes` has the pieces so far of each group that is open, since ``regex`` writes out what
    is repeated at least so often (``x{5}`` takes five pieces).
    """
    out: list[str] = []
    sizes = [0]
    last = 0  # the size of the item that a quantifier would repeat
    at = 0
    while at < len(source):
        char = source[at]
        if char == "[":
            piece, at = _character_class(source, at)
            last = 1
        elif char == "(":
            piece, at = _opening(source, at)
            sizes.append(0)
            out.append(piece)
            continue
        elif char == ")":
            if len(sizes) == 1:
                raise ValueError(f"unmatched ) at position {at}")
            last, piece = sizes.pop() + 1, ")"
            at += 1
        elif char == "\\":
            piece, at = _escape(source, at)
            last = 1
        elif char == "{" and (counted := _counted(source, at)):
            least, at, piece = counted
            # What stands there was counted once already.
            sizes[-1] += last * (max(least, 1) - 1)
            last *= max(least, 1)
            if sum(sizes) > _LARGEST:
                raise ValueError("its repetitions make it too large")
            out.append(piece)
            continue
        elif char in "*+?|^":
            piece, at = char, at + 1
            if char in "*+?" and source[at : at + 1] == "+":
                raise ValueError(f"possessive quantifier at position {at}")
            out.append(piece)
            continue
        else:
            piece = {".": _DOT, "$": r"\Z", "{": r"\{", "}": r"\}"}.get(char, char)
            at, last = at + 1, 1
        sizes[-1] += last
        out.append(piece)
        if sum(sizes) > _LARGEST:
            raise ValueError("its repetitions make it too large")
    if len(sizes) > 1:
        raise ValueError("a ( is not closed")
    return "".join(out)


def _counted(source: str, at: int) -> tuple[int, int, str] | None:
    """``{n}``, ``{n,}`` or ``{n,m}`` at ``at``: the least count, where it ends, and its text; None: a mere brace."""
    end = source.find("}", at)
    least, comma, most = source[at + 1 : end].partition(",")
    if end < 0 or not least.isdecimal() or not least.isascii() or (most and not (most.isdecimal() and most.isascii())):
        return None
    if len(least) > 5 or len(most) > 5 or int(least) > _LARGEST:
        raise ValueError("a repetition counts too far")
    if source[end + 1 : end + 2] == "+":
        raise ValueError(f"possessive quantifier at position {end + 1}")
    return int(least), end + 1, f"{{{least}{comma}{most}}}"


def _opening(source: str, at: int) -> tuple[str, int]:
    if source[at + 1 : at + 2] != "?":
        return "(", at + 1
    for known in _OPENINGS:
        if source.startswith(known, at + 1):
            return "(" + known, at + 1 + len(known)
    if source.startswith("?<", at + 1):
        end = source.find(">", at)
        name = source[at + 3 : end]
        if end > 0 and name.isidentifier():
            return f"(?<{name}>", end + 1
    raise ValueError(f"unknown kind of group at position {at}")


def _escape(source: str, at: int) -> tuple[str, int]:
    char = source[at + 1 : at + 2]
    if not char:
        raise ValueError("a \\ stands at the end")
    if char == "k" and source[at + 2 : at + 3] == "<" and (end := source.find(">", at)) > 0:
        name = source[at + 3 : end]
        if not name.isidentifier():
            raise ValueError(f"unknown group at position {at}")
        return f"(?P={name})", end + 1
    return _OUTSIDE.get(char) or _plain(source, at), at + _length(source, at)


def _length(source: str, at: int) -> int:
    """Characters of the escape at ``at``."""
    return {"x": 4, "u": 6, "c": 3}.get(source[at + 1], 2)


def _plain(source: str, at: int) -> str:
    """One escape that is the same in and outside of a class."""
    char = source[at + 1]
    text = source[at : at + _length(source, at)]
    if char in "dDwWbBtnrfv123456789":
        return text
    if char == "0":
        return r"\x00"
    if char in "xu":
        digits = text[2:]
        if len(text) != _length(source, at) or any(digit not in string.hexdigits for digit in digits):
            raise ValueError(f"\\{char} at position {at} wants {_length(source, at) - 2} hexadecimal digits")
        return text
    if char == "c" and len(text) == 3 and text[2] in string.ascii_letters:
        return f"\\x{ord(text[2]) % 32:02x}"
    if char.isalnum() and char.isascii():
        raise ValueError(f"unknown escape \\{char} at position {at}")
    return "\\" + char


def _character_class(source: str, at: int) -> tuple[str, int]:
    """The class at ``at``, and where it ends. JavaScript's has no sets within sets, and may be empty."""
    negated = source[at + 1 : at + 2] == "^"
    at += 2 if negated else 1
    out: list[str] = []
    while at < len(source) and source[at] != "]":
        if source[at] == "\\":
            char = source[at + 1 : at + 2]
            if not char:
                break
            if char == "S" or char in "B":
                raise ValueError(f"\\{char} within [] is not supported")
            out.append(_SPACES if char == "s" else r"\x08" if char == "b" else _plain(source, at))
            at += _length(source, at)
        else:
            out.append("\\" + source[at] if source[at] in "[&~|" else source[at])
            at += 1
    if at >= len(source):
        raise ValueError("a [ is not closed")
    if not out:
        return (r"[\s\S]" if negated else r"(?!)"), at + 1
    if out[0] == "^":
        out[0] = r"\^"
    return f"[{'^' if negated else ''}{''.join(out)}]", at + 1
