"""JavaScript's regular expressions, searched in time that grows with the text only (GATEWAY CND-06).

What must live here: syntax and matching. What must not: where patterns come from.

The patterns of conditions are written by clients and decided on the event loop, for every request: one that backtracks
would stop the server for everybody. Python's `re` cannot be interrupted, and a limit on lengths does not help
(``(a+)+$`` takes hours on 40 characters); a limit on time would make a route depend on how busy the machine is. So a
pattern becomes an automaton that looks at each character once (Thompson's construction, its states found and remembered
as they are needed) and that has a budget of steps. What no automaton can do is refused: looking around and
back-references.
"""

from bisect import bisect_right
from collections.abc import Iterable
from functools import lru_cache

import msgspec

from loomgate.errors import ApiError

STEPS = 200_000  # the budget of one decision: some tens of milliseconds

_MOST_INSTRUCTIONS = 2_000
_DEEPEST = 50
_MOST_REMEMBERED = 5_000  # transitions, a pattern
_LAST = 0x10FFFF

Ranges = tuple[tuple[int, int], ...]  # sorted, apart from each other


class Budget:
    """Steps that are left for one decision, however many patterns it takes."""

    __slots__ = ("left",)

    def __init__(self, steps: int = STEPS) -> None:
        self.left = steps

    def spend(self, steps: int) -> None:
        """Raises a 400 `ApiError` when nothing is left."""
        self.left -= steps
        if self.left < 0:
            raise ApiError(
                400,
                "The patterns of the conditions take too long on this request: make them simpler.",
                code="pattern_too_complex",
            )


def search(pattern: str, text: str, budget: Budget | None = None) -> bool:
    """Whether ``pattern`` (JavaScript's syntax, no flags) matches somewhere in ``text``; False if it is not valid.

    Raises a 400 `ApiError` as `check` does, and when the budget is used up.
    """
    automaton = _compiled(pattern)
    if isinstance(automaton, str):
        raise _unsupported(automaton)
    return automaton is not None and automaton.search(text, budget or Budget())


def check(pattern: str) -> None:
    """Raises a 400 `ApiError` if ``pattern`` may be valid, but asks for what is not offered here."""
    automaton = _compiled(pattern)
    if isinstance(automaton, str):
        raise _unsupported(automaton)


def _unsupported(what: str) -> ApiError:
    return ApiError(400, f"Unsupported in a $regex: {what}", code="invalid_pattern")


@lru_cache(maxsize=512)
def _compiled(pattern: str) -> "_Automaton | str | None":
    """The automaton, or what it would have to do and cannot, or None for what is not a pattern."""
    try:
        return _Automaton(_Parser(pattern).parse())
    except _Invalid:
        return None
    except _Beyond as error:
        return str(error)


class _Invalid(ValueError):  # stays within this file
    """Not a pattern in JavaScript either."""


class _Beyond(ValueError):  # stays within this file
    """A pattern that is not offered, and why."""


# --- sets of characters


def _union(*ranges: Iterable[tuple[int, int]]) -> Ranges:
    found: list[tuple[int, int]] = []
    for low, high in sorted(item for each in ranges for item in each):
        if found and low <= found[-1][1] + 1:
            found[-1] = (found[-1][0], max(high, found[-1][1]))
        else:
            found.append((low, high))
    return tuple(found)


def _inverse(ranges: Ranges) -> Ranges:
    found: list[tuple[int, int]] = []
    start = 0
    for low, high in ranges:
        if start < low:
            found.append((start, low - 1))
        start = high + 1
    if start <= _LAST:
        found.append((start, _LAST))
    return tuple(found)


def _of(text: str) -> Ranges:
    return _union((ord(char), ord(char)) for char in text)


_DIGIT: Ranges = ((48, 57),)
_WORD = _union(_DIGIT, ((65, 90), (95, 95), (97, 122)))
_SPACE = _union(_of("\t\n\v\f\r \u00a0\u1680\u2028\u2029\u202f\u205f\u3000\ufeff"), ((0x2000, 0x200A),))
_CLASSES = {
    "d": _DIGIT,
    "D": _inverse(_DIGIT),
    "w": _WORD,
    "W": _inverse(_WORD),
    "s": _SPACE,
    "S": _inverse(_SPACE),
}
_DOT = _inverse(_of("\n\r\u2028\u2029"))
_ESCAPES = {"t": "\t", "n": "\n", "v": "\v", "f": "\f", "r": "\r"}
_WORD_CHARS = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_")


# --- syntax


class _Chars(msgspec.Struct, frozen=True):
    ranges: Ranges


class _Assertion(msgspec.Struct, frozen=True):
    kind: str  # ^ $ b B


class _Sequence(msgspec.Struct, frozen=True):
    parts: list["_Part"]


class _Choice(msgspec.Struct, frozen=True):
    options: list["_Part"]


class _Repeat(msgspec.Struct, frozen=True):
    part: "_Part"
    least: int
    most: int | None


_Part = _Chars | _Assertion | _Sequence | _Choice | _Repeat


class _Parser:
    """Recursive descent over the pattern, by ECMA-262 with its Annex B, without flags."""

    def __init__(self, pattern: str) -> None:
        self._text = pattern
        self._at = 0
        self._depth = 0
        self._names: set[str] = set()

    def parse(self) -> _Part:
        part = self._choice()
        if self._at < len(self._text):
            raise _Invalid(")")
        return part

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _take(self, text: str) -> bool:
        if self._text.startswith(text, self._at):
            self._at += len(text)
            return True
        return False

    def _next(self) -> str:
        char = self._peek()
        if not char:
            raise _Invalid("end")
        self._at += 1
        return char

    def _choice(self) -> _Part:
        options = [self._sequence()]
        while self._take("|"):
            options.append(self._sequence())
        return options[0] if len(options) == 1 else _Choice(options)

    def _sequence(self) -> _Part:
        parts: list[_Part] = []
        while (char := self._peek()) and char not in "|)":
            part = self._atom()
            bounds = self._quantifier()
            if bounds is not None:
                if isinstance(part, _Assertion):
                    raise _Invalid("nothing to repeat")
                part = _Repeat(part, *bounds)
            parts.append(part)
        return _Sequence(parts)

    def _quantifier(self) -> tuple[int, int | None] | None:
        char = self._peek()
        bounds = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(char)
        if bounds is not None:
            self._at += 1
        else:
            bounds = self._braces() if char == "{" else None
            if bounds is None:
                return None
        self._take("?")  # lazy or greedy: both match the same texts
        return bounds

    def _braces(self) -> tuple[int, int | None] | None:
        """``{n}``, ``{n,}``, ``{n,m}``; anything else in braces is literal, and None."""
        inner, closed, _ = self._text[self._at + 1 :].partition("}")
        low, comma, high = inner.partition(",")
        if not closed or not _is_number(low) or (high and not _is_number(high)):
            return None
        self._at += len(inner) + 2
        least = _bounded(low)
        most = least if not comma else (_bounded(high) if high else None)
        if most is not None and most < least:
            raise _Invalid("numbers out of order")
        return least, most

    def _atom(self) -> _Part:
        char = self._next()
        match char:
            case "^" | "$":
                return _Assertion(char)
            case "(":
                return self._group()
            case "[":
                return _Chars(self._class())
            case ".":
                return _Chars(_DOT)
            case "\\":
                if (kind := self._peek()) in {"b", "B"}:
                    self._at += 1
                    return _Assertion(kind)
                return _Chars(self._escape(in_class=False))
            case "*" | "+" | "?":
                raise _Invalid("nothing to repeat")
            case "{":
                self._at -= 1
                if self._braces() is not None:
                    raise _Invalid("nothing to repeat")
                self._at += 1
                return _Chars(_of(char))
            case _:
                return _Chars(_of(char))

    def _group(self) -> _Part:
        if self._take("?"):
            if any(self._take(sign) for sign in ("=", "!", "<=", "<!")):
                raise _Beyond("looking ahead or behind, (?=…), (?!…), (?<=…), (?<!…)")
            if self._take("<"):
                self._name()
            elif self._peek() in {"i", "m", "s", "-"}:
                raise _Beyond("flags within a pattern, (?i:…)")
            elif not self._take(":"):
                raise _Invalid("group")
        self._depth += 1
        if self._depth > _DEEPEST:
            raise _Beyond(f"groups nested more than {_DEEPEST} deep")
        part = self._choice()
        self._depth -= 1
        if not self._take(")"):
            raise _Invalid("unterminated group")
        return part

    def _name(self) -> None:
        name, closed, _ = self._text[self._at :].partition(">")
        if not closed or not name.replace("$", "_").isidentifier() or name in self._names:
            raise _Invalid("group name")
        self._names.add(name)
        self._at += len(name) + 1

    def _escape(self, *, in_class: bool) -> Ranges:
        char = self._next()
        if char in _CLASSES:
            return _CLASSES[char]
        if char in _ESCAPES:
            return _of(_ESCAPES[char])
        if char == "b" and in_class:
            return _of("\b")
        if char in {"x", "u"}:
            digits = self._text[self._at : self._at + (2 if char == "x" else 4)]
            if len(digits) == (2 if char == "x" else 4) and all(digit in "0123456789abcdefABCDEF" for digit in digits):
                self._at += len(digits)
                return _of(chr(int(digits, 16)))
            return _of(char)
        if char == "c":
            letter = self._peek()
            if letter.isascii() and letter.isalpha():
                self._at += 1
                return _of(chr(ord(letter) % 32))
            self._at -= 1  # a backslash that stands for itself
            return _of("\\")
        if char == "0" and not self._peek().isdecimal():
            return _of("\0")
        if char in "0123456789":
            raise _Beyond("back-references and octal escapes, \\1")
        if char == "k" and "(?<" in self._text:
            raise _Beyond("back-references, \\k<name>")
        return _of(char)

    def _class(self) -> Ranges:
        negated = self._take("^")
        found: list[tuple[int, int]] = []
        while not self._take("]"):
            low = self._member()
            if self._peek() == "-" and self._text[self._at + 1 : self._at + 2] not in {"]", ""}:
                self._at += 1
                high = self._member()
                if _is_single(low) and _is_single(high):
                    if high[0][0] < low[0][0]:
                        raise _Invalid("range out of order")
                    low = ((low[0][0], high[0][0]),)
                else:  # a class such as \d at an end: the hyphen stands for itself
                    low = _union(low, high, _of("-"))
            found += low
        ranges = _union(found)
        return _inverse(ranges) if negated else ranges

    def _member(self) -> Ranges:
        char = self._next()
        return self._escape(in_class=True) if char == "\\" else _of(char)


def _is_single(ranges: Ranges) -> bool:
    return len(ranges) == 1 and ranges[0][0] == ranges[0][1]


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def _bounded(digits: str) -> int:
    """A count; what is far too much stays so without being a huge number."""
    return int(digits) if len(digits) < 8 else 10**8


# --- the automaton

_Instruction = Ranges | str | tuple[int, ...]


class _Automaton:
    """Instructions by number: a set of characters (then the next one), an assertion (``^ $ b B``, then the next one),
    or a fork (to each of the numbers). The number after the last is the match.

    A state is the set of instructions reached, and what kind of character came before (``""``: none).
    """

    def __init__(self, part: _Part) -> None:
        self._chars: dict[int, tuple[list[int], Ranges]] = {}
        self._assertions: dict[int, str] = {}
        self._forks: dict[int, list[int]] = {}
        self._size = 0
        self._emit(part)
        self._start = frozenset({0})
        self._moves: dict[tuple[frozenset[int], str, str], frozenset[int] | None] = {}

    def search(self, text: str, budget: Budget) -> bool:
        state, before = self._start, ""
        moves = self._moves
        budget.spend(len(text))
        for char in text:
            key = (state, before, char)
            if key in moves:
                following = moves[key]
            else:
                following = self._move(state, before, char, budget)
                if len(moves) >= _MOST_REMEMBERED:
                    moves.clear()
                moves[key] = following
            if following is None:
                return True
            state, before = following, "w" if char in _WORD_CHARS else "n"
        return self._size in self._closure(state, before, "", budget)

    def _move(self, state: frozenset[int], before: str, char: str, budget: Budget) -> frozenset[int] | None:
        """The instructions after ``char``, with a new start; None: there was a match before it."""
        reached = self._closure(state, before, "w" if char in _WORD_CHARS else "n", budget)
        if self._size in reached:
            return None
        code = ord(char)
        following = {0}
        for place in reached:
            if (chars := self._chars.get(place)) is not None:
                lows, ranges = chars
                index = bisect_right(lows, code) - 1
                if index >= 0 and code <= ranges[index][1]:
                    following.add(place + 1)
        return frozenset(following)

    def _closure(self, state: frozenset[int], before: str, after: str, budget: Budget) -> set[int]:
        """All that is reached between two characters, of the kinds ``before`` and ``after``."""
        reached: set[int] = set()
        waiting = list(state)
        while waiting:
            place = waiting.pop()
            if place in reached:
                continue
            reached.add(place)
            if (fork := self._forks.get(place)) is not None:
                waiting += fork
            elif (kind := self._assertions.get(place)) is not None and _holds(kind, before, after):
                waiting.append(place + 1)
        budget.spend(len(reached))
        return reached

    # Thompson's construction, each part followed by what comes after it

    def _place(self) -> int:
        if self._size >= _MOST_INSTRUCTIONS:
            raise _Beyond("so many repetitions")
        self._size += 1
        return self._size - 1

    def _emit(self, part: _Part) -> None:
        match part:
            case _Chars(ranges):
                self._chars[self._place()] = ([low for low, _ in ranges], ranges)
            case _Assertion(kind):
                self._assertions[self._place()] = kind
            case _Sequence(parts):
                for inner in parts:
                    self._emit(inner)
            case _Choice(options):
                fork = self._forks[self._place()] = []
                ends: list[list[int]] = []
                for option in options:
                    fork.append(self._size)
                    self._emit(option)
                    ends.append(self._forks.setdefault(self._place(), []))
                for end in ends:
                    end.append(self._size)
            case _Repeat(inner, least, most):
                self._repeat(inner, least, most)

    def _repeat(self, inner: _Part, least: int, most: int | None) -> None:
        for _ in range(least):
            place = self._place()  # counts, so that repeating nothing comes to an end too
            self._forks[place] = [place + 1]
            self._emit(inner)
        if most is None:
            fork = self._place()
            self._emit(inner)
            self._forks[self._place()] = [fork]
            self._forks[fork] = [fork + 1, self._size]
            return
        skips: list[list[int]] = []
        for _ in range(most - least):
            place = self._place()
            skips.append(self._forks.setdefault(place, [place + 1]))
            self._emit(inner)
        for skip in skips:
            skip.append(self._size)


def _holds(kind: str, before: str, after: str) -> bool:
    match kind:
        case "^":
            return not before
        case "$":
            return not after
        case _:
            return ((before == "w") != (after == "w")) == (kind == "b")
