"""The checks that look at the text alone, and at JSON and code within it (GATEWAY GR-22).

What must live here: a verdict on a text. What must not: which checks there are (``checks.py``).
"""

import asyncio
from collections.abc import Callable
from typing import Annotated, Any, Literal, cast

import msgspec
from msgspec import Meta

from loomgate.gateway import code_formats, json_in_text
from loomgate.gateway.patterns import Pattern
from loomgate.gateway.subject import Subject
from loomgate.gateway.verdicts import Door, Finding, Operator, Parameters, Run, Words, excerpt, operated

Count = Annotated[int, Meta(ge=0)]


class RegexMatch(Parameters, frozen=True):
    """``rule`` in JavaScript's syntax, found anywhere in the text."""

    rule: Annotated[str, Meta(min_length=1)]
    not_: bool = msgspec.field(default=False, name="not")


def prepare_regex_match(wanted: RegexMatch) -> Run:
    """The check ``regexMatch``."""
    pattern = Pattern(wanted.rule)

    async def run(subject: Subject, _: Door) -> Finding:
        text = subject.text
        if not text:
            return Finding.failed("There is no text to match")
        try:
            found = await pattern.search(text)
        except TimeoutError as error:
            return Finding.failed(str(error) or "The pattern took too long on this text", "TimeoutError")
        verdict = (found is not None) != wanted.not_
        said = "matched" if found is not None else "did not match"
        return Finding(
            verdict,
            {
                "regexPattern": wanted.rule,
                "not": wanted.not_,
                "verdict": verdict,
                "explanation": f"The pattern '{wanted.rule}' {said} the text.",
                "matchDetails": found
                and {
                    "matchedText": found.group(),
                    "index": found.start(),
                    "groups": found.groupdict(),
                    "captures": list(found.groups()),
                },
                "textExcerpt": excerpt(text),
            },
        )

    return run


class SentenceCount(Parameters, frozen=True):
    """Sentences are counted by their ends: every ``.``, ``!`` and ``?``."""

    min_sentences: Count = 0
    max_sentences: Count = 99_999
    not_: bool = msgspec.field(default=False, name="not")


class WordCount(Parameters, frozen=True):
    """Words are what white space stands between."""

    min_words: Count = 0
    max_words: Count = 99_999
    not_: bool = msgspec.field(default=False, name="not")


class CharacterCount(Parameters, frozen=True):
    """Characters are Unicode code points."""

    min_characters: Count = 0
    max_characters: Count = 9_999_999
    not_: bool = msgspec.field(default=False, name="not")


def _counting(noun: str, low: int, high: int, inverted: bool, count: Callable[[str], int]) -> Run:
    if low > high:
        raise ValueError(f"min{noun} is larger than max{noun}")

    def run(subject: Subject, _: Door) -> Finding:
        text = subject.text
        number = count(text)
        verdict = (low <= number <= high) != inverted
        return Finding(
            verdict,
            {
                f"{noun[:-1].lower()}Count": number,
                f"min{noun}": low,
                f"max{noun}": high,
                "not": inverted,
                "verdict": verdict,
                "explanation": f"The text has {number} {noun.lower()}; the range is {low} to {high}.",
                "textExcerpt": excerpt(text),
            },
        )

    return run


def prepare_sentence_count(wanted: SentenceCount) -> Run:
    """The check ``sentenceCount``."""

    def count(text: str) -> int:
        return text.count(".") + text.count("!") + text.count("?")

    return _counting("Sentences", wanted.min_sentences, wanted.max_sentences, wanted.not_, count)


def prepare_word_count(wanted: WordCount) -> Run:
    """The check ``wordCount``."""
    return _counting("Words", wanted.min_words, wanted.max_words, wanted.not_, lambda text: len(text.split()))


def prepare_character_count(wanted: CharacterCount) -> Run:
    """The check ``characterCount``."""
    return _counting("Characters", wanted.min_characters, wanted.max_characters, wanted.not_, len)


class Contains(Parameters, frozen=True):
    """``words`` as they are written, capitals included, also within longer words."""

    words: Words
    operator: Operator = "any"


def prepare_contains(wanted: Contains) -> Run:
    """The check ``contains``."""

    def run(subject: Subject, _: Door) -> Finding:
        verdict, found, missing = operated(wanted.operator, wanted.words, subject.text)
        return Finding(
            verdict,
            {
                "operator": wanted.operator,
                "foundWords": found,
                "missingWords": missing,
                "verdict": verdict,
                "explanation": f"{len(found)} of {len(wanted.words)} words were found; '{wanted.operator}' was wanted.",
            },
        )

    return run


class Case(Parameters, frozen=True):
    """No parameters but ``not``."""

    not_: bool = msgspec.field(default=False, name="not")


def prepare_case(name: Literal["uppercase", "lowercase"]) -> Callable[[Case], Run]:
    """The check ``alluppercase`` or ``alllowercase``."""

    def prepare(wanted: Case) -> Run:
        def run(subject: Subject, _: Door) -> Finding:
            text = subject.text
            is_so = text == (text.upper() if name == "uppercase" else text.lower())
            verdict = is_so != wanted.not_
            said = f"The text is {'' if is_so else 'not '}all {name}."
            data = {"verdict": verdict, "not": wanted.not_, "explanation": said, "textExcerpt": excerpt(text)}
            return Finding(verdict, data)

        return run

    return prepare


class EndsWith(Parameters, frozen=True):
    """``suffix``, which a full stop may follow."""

    suffix: Annotated[str, Meta(min_length=1)]
    not_: bool = msgspec.field(default=False, name="not")


def prepare_ends_with(wanted: EndsWith) -> Run:
    """The check ``endsWith``."""

    def run(subject: Subject, _: Door) -> Finding:
        ends = subject.text.endswith((wanted.suffix, wanted.suffix + "."))
        verdict = ends != wanted.not_
        said = f"The text {'ends' if ends else 'does not end'} with '{wanted.suffix}'."
        data = {"suffix": wanted.suffix, "not": wanted.not_, "verdict": verdict, "explanation": said}
        return Finding(verdict, data)

    return run


class NotNull(Parameters, frozen=True):
    """No parameters but ``not``."""

    not_: bool = msgspec.field(default=False, name="not")


def prepare_not_null(wanted: NotNull) -> Run:
    """The check ``notNull``."""

    def run(subject: Subject, _: Door) -> Finding:
        empty = not any(part and part.strip() for part in subject.parts)
        verdict = empty == wanted.not_
        said = "The answer has no text." if empty else "The answer has a text."
        return Finding(verdict, {"isNull": empty, "not": wanted.not_, "verdict": verdict, "explanation": said})

    return run


class ContainsCode(Parameters, frozen=True):
    """``format`` is one of the languages of `code_formats.FORMATS`."""

    format: code_formats.Format
    not_: bool = msgspec.field(default=False, name="not")


def prepare_contains_code(wanted: ContainsCode) -> Run:
    """The check ``containsCode``."""

    def run(subject: Subject, _: Door) -> Finding:
        text = subject.text
        if not text:
            return Finding.failed("There is no text to look at")
        formats = code_formats.found_in(text)
        found = wanted.format in formats
        verdict = found != wanted.not_
        said = f"There is {'' if found else 'no '}code in {wanted.format}."
        return Finding(
            verdict,
            {
                "searchedFormat": wanted.format,
                "not": wanted.not_,
                "verdict": verdict,
                "foundFormats": formats,
                "explanation": said,
                "textExcerpt": excerpt(text),
            },
        )

    return run


# --- JSON within the text ---


class JsonSchema(Parameters, frozen=True):
    """``schema`` as an object, or as the text of one."""

    schema: dict[str, Any] | str
    not_: bool = msgspec.field(default=False, name="not")


def prepare_json_schema(wanted: JsonSchema) -> Run:
    """The check ``jsonSchema``."""
    schema = json_in_text.Schema(wanted.schema)

    async def run(subject: Subject, _: Door) -> Finding:
        values = json_in_text.values(subject.text)
        if not values:
            data = {"not": wanted.not_, "explanation": "There is no JSON in the text."}
            return Finding(wanted.not_, data)
        try:
            value, wrong = await asyncio.to_thread(schema.judged, values)
        except TimeoutError as error:
            return Finding.failed(str(error), "TimeoutError")
        verdict = (not wrong) != wanted.not_
        data = {
            "matchedJson": value,
            "not": wanted.not_,
            "verdict": verdict,
            "explanation": f"The JSON is {'not ' if wrong else ''}valid under the schema.",
            **({"validationErrors": wrong} if wrong else {}),
        }
        return Finding(verdict, data)

    return run


class JsonKeys(Parameters, frozen=True):
    """``keys`` at the top of an object."""

    keys: Words
    operator: Operator = "any"


def prepare_json_keys(wanted: JsonKeys) -> Run:
    """The check ``jsonKeys``."""

    def run(subject: Subject, _: Door) -> Finding:
        objects = [cast(dict[str, Any], v) for v in json_in_text.values(subject.text) if isinstance(v, dict)]
        data: dict[str, Any] = {"explanation": "There is no JSON in the text."}
        verdict = wanted.operator == "none"
        for value in objects:
            verdict, present, missing = operated(wanted.operator, wanted.keys, value)
            said = f"The object has {len(present)} of {len(wanted.keys)} keys; '{wanted.operator}' was wanted."
            data = {"matchedJson": value, "explanation": said, "presentKeys": present, "missingKeys": missing}
            # One object that has the keys will do; that none has them must be true of every one.
            if verdict != (wanted.operator == "none"):
                break
        return Finding(verdict, {**data, "operator": wanted.operator, "verdict": verdict})

    return run
