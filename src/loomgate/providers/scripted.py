"""The deterministic model ``scripted``: no network, no chance; the conversation itself says what it answers.

What must live here: the grammar of slash lines (docs/scripted.md), the default answer, and `play`, a pure function
from a model call to the beats of its answer. What must not: I/O other than waiting (`stream`).
"""

import hashlib
import re
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import Any, cast, get_args

import msgspec

from loomgate import clock
from loomgate.errors import ProviderError, ProviderErrorKind
from loomgate.providers.failure import status_kind
from loomgate.providers.sample import sample_json
from loomgate.wire.chat import (
    Chat,
    ChatMessage,
    Chunk,
    Finish,
    FinishReason,
    NamedFunction,
    RefusalDelta,
    TextDelta,
    TextPart,
    ToolCallDelta,
    Usage,
)

_MOST_CHARACTERS = 1_000_000
_MOST_SECONDS = 86_400.0
_WORD = re.compile(r"\s*\S+\s*")


class Wait(msgspec.Struct, frozen=True):
    """A pause of ``seconds`` before the next beat."""

    seconds: float


class Fail(msgspec.Struct, frozen=True):
    """The answer ends here with an error; ``status`` is the HTTP status if the script named one."""

    kind: ProviderErrorKind
    status: int | None = None
    retry_after: float | None = None
    times: int | None = None

    def error(self) -> ProviderError:
        """The error that `stream` raises for it."""
        said = f"The scripted model failed as asked: {self.status or self.kind}."
        return ProviderError(self.kind, said, status=self.status, retry_after=self.retry_after)


Beat = Chunk | Wait | Fail


class _Say(msgspec.Struct, frozen=True):
    text: str


class _Refuse(msgspec.Struct, frozen=True):
    text: str


class _Call(msgspec.Struct, frozen=True):
    name: str
    arguments: str


class _Tokens(msgspec.Struct, frozen=True):
    usage: Usage


class _End(msgspec.Struct, frozen=True):
    reason: FinishReason


class _Size(msgspec.Struct, frozen=True):
    characters: int


class _NextTurn(msgspec.Struct, frozen=True):
    pass


_Step = _Say | _Refuse | _Call | _Tokens | _End | _Size | _NextTurn | Wait | Fail


def is_scripted(model: str) -> bool:
    """Whether ``model`` is played here: ``scripted`` and every ``scripted-…``."""
    return model == "scripted" or model.startswith("scripted-")


async def stream(chat: Chat, attempt: int = 0) -> AsyncGenerator[Chunk, None]:
    """Play ``chat`` in time: yields its chunks, waits its pauses on `loomgate.clock`, raises its `ProviderError`.

    ``attempt`` counts the failed tries of this same model call (0 at first); ``/error … times=N`` looks at it.
    """
    for number, beat in enumerate(play(chat, attempt)):
        if isinstance(beat, Wait):
            await clock.sleep(beat.seconds)
        elif isinstance(beat, Fail):
            raise beat.error()
        else:
            if number % 64 == 63:
                await clock.sleep(0)  # a very long answer must not keep the event loop to itself
            yield beat


def play(chat: Chat, attempt: int = 0) -> list[Beat]:
    """The beats of the answer to ``chat``: the same call gives the same beats, ids of tool calls included.

    The last beat is a `Finish` with usage, or a `Fail`. ``attempt`` as in `stream`.
    """
    words, after = _newest_user_message(chat.messages)
    turns, wrong = _script(words, one_call_a_turn=chat.parallel_tool_calls is False)
    number = sum(1 for message in after if message.role == "assistant" and message.tool_calls)
    steps: list[_Step]
    if wrong:
        steps = [_Say("\n".join(["The script has mistakes, so nothing of it was played.", *wrong]))]
    elif number < len(turns):
        steps = turns[number]
    else:
        steps = _default(chat, words, after)
    return _perform(steps, chat, attempt)


def count_words(text: str) -> int:
    """Tokens of ``text`` by this model's rule: a token is a run of characters without white space."""
    return len(text.split())


def count_prompt(chat: Chat) -> int:
    """Tokens of everything the messages of ``chat`` say, names and arguments of tool calls included."""
    return sum(
        count_words(text_of(message))
        + count_words(message.refusal or "")
        + sum(1 + count_words(call.arguments) for call in message.tool_calls)
        for message in chat.messages
    )


def text_of(message: ChatMessage) -> str:
    """The text of ``message``: its text parts joined by newlines."""
    content = message.content
    if content is None or isinstance(content, str):
        return content or ""
    return "\n".join(part.text for part in content if isinstance(part, TextPart))


def _newest_user_message(messages: list[ChatMessage]) -> tuple[str, list[ChatMessage]]:
    """The newest user message's text, and what came after it."""
    for place in range(len(messages) - 1, -1, -1):
        if messages[place].role == "user":
            return text_of(messages[place]), messages[place + 1 :]
    return "", messages


# --- the grammar ---------------------------------------------------------------------------------------------------

_SLASH = re.compile(r"/([A-Za-z]+)(?:[ \t]+(.*))?")


def _script(words: str, *, one_call_a_turn: bool) -> tuple[list[list[_Step]], list[str]]:
    """The turns of the script in ``words`` (none: there is no slash line) and what is wrong with its lines."""
    lines: list[tuple[int, str, str]] = []
    for number, line in enumerate(words.splitlines(), 1):
        if match := _SLASH.fullmatch(line.rstrip()):
            lines.append((number, match[1], match[2] or ""))
        elif lines:  # a line without a slash belongs to the slash line before it
            first, name, rest = lines[-1]
            lines[-1] = (first, name, f"{rest}\n{line}")
    turns: list[list[_Step]] = [[]] if lines else []
    wrong: list[str] = []
    for number, name, rest in lines:
        read = _COMMANDS.get(name)
        if read is None:
            known = ", ".join(f"/{known}" for known in _COMMANDS)
            wrong.append(f"Line {number}: /{name} is not a command; expected one of {known}.")
            continue
        try:
            step = read(rest if name in _KEEPS_LINES else rest.strip())
        except ValueError as error:
            wrong.append(f"Line {number}: /{name} {error}.")
            continue
        calls_again = one_call_a_turn and isinstance(step, _Call) and any(isinstance(s, _Call) for s in turns[-1])
        if isinstance(step, _NextTurn) or calls_again:
            turns.append([])
        if not isinstance(step, _NextTurn):
            turns[-1].append(step)
    return turns, wrong


def _read_say(rest: str) -> _Step:
    return _Say(_some(rest, "a text", "/say Hello."))


def _read_refuse(rest: str) -> _Step:
    return _Refuse(_some(rest, "a text", "/refuse I cannot help with that."))


def _read_call(rest: str) -> _Step:
    name, _, arguments = rest.partition(" ") if " " in rest.split("\n", 1)[0] else rest.partition("\n")
    if not re.fullmatch(r"[A-Za-z0-9_.-]+", name):
        raise ValueError(
            f'expected a function\'s name and JSON, such as /call get_weather {{"city": "Oslo"}}{_found(rest)}'
        )
    arguments = arguments.strip() or "{}"
    try:
        msgspec.json.decode(arguments)
    except msgspec.DecodeError:
        raise ValueError(f"expected JSON after the name {name}{_found(arguments)}") from None
    return _Call(name, arguments)


def _read_wait(rest: str) -> _Step:
    return Wait(_seconds(rest, "/wait 0.5"))


def _read_error(rest: str) -> _Step:
    what, *options = rest.split() or [""]
    values = _options(options, {"retry_after": _seconds, "times": _count}, "/error 429 retry_after=2 times=1")
    status: int | None = None
    kinds = cast(tuple[ProviderErrorKind, ...], get_args(ProviderErrorKind))
    if re.fullmatch(r"[45]\d\d", what):
        status = int(what)
        kind = status_kind(status)
    elif what in kinds:
        kind = what
    else:
        raise ValueError(f"expected an HTTP status from 400 to 599 or one of {', '.join(kinds)}{_found(what)}")
    return Fail(kind, status, values.get("retry_after"), values.get("times"))


def _read_usage(rest: str) -> _Step:
    names = ("prompt", "completion", "cached", "reasoning")
    values = _options(rest.split(), dict.fromkeys(names, _count), "/usage prompt=120 completion=30")
    if missing := [name for name in ("prompt", "completion") if name not in values]:
        raise ValueError(f"expected {missing[0]}=N, such as /usage prompt=120 completion=30")
    prompt, completion, cached, reasoning = (values.get(name, 0) for name in names)
    if cached > prompt or reasoning > completion:
        raise ValueError("expected cached to be a part of prompt, and reasoning a part of completion")
    return _Tokens(Usage(prompt, completion, cached, reasoning))


def _read_finish(rest: str) -> _Step:
    if rest not in ("stop", "length", "content_filter"):
        raise ValueError(f"expected stop, length or content_filter{_found(rest)}")
    return _End(rest)


def _read_chunk(rest: str) -> _Step:
    return _Size(_count(rest, "/chunk 5", least=1))


def _read_repeat(rest: str) -> _Step:
    times, _, text = rest.partition(" ")
    count = _count(times, "/repeat 3 tick", least=1)
    text = _some(text.strip(), "a text after the number", "/repeat 3 tick")
    if count * (len(text) + 1) > _MOST_CHARACTERS:
        raise ValueError(f"expected at most {_MOST_CHARACTERS} characters in all")
    return _Say(" ".join([text] * count))


def _read_turn(rest: str) -> _Step:
    if rest:
        raise ValueError(f"expected nothing after it{_found(rest)}")
    return _NextTurn()


_COMMANDS: dict[str, Callable[[str], _Step]] = {
    "say": _read_say,
    "call": _read_call,
    "wait": _read_wait,
    "error": _read_error,
    "usage": _read_usage,
    "refuse": _read_refuse,
    "finish": _read_finish,
    "chunk": _read_chunk,
    "repeat": _read_repeat,
    "turn": _read_turn,
}
_KEEPS_LINES = frozenset({"say", "refuse"})


def _found(text: str) -> str:
    return f", found {text[:80]!r}" if text else ", found nothing"


def _some(text: str, what: str, example: str) -> str:
    if not text.strip():
        raise ValueError(f"expected {what}, such as {example}")
    return text


def _seconds(text: str, example: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SECONDS:
        raise ValueError(f"expected seconds from 0 to {_MOST_SECONDS:g}, such as {example}{_found(text)}")
    return seconds


def _count(text: str, example: str, least: int = 0) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < least:
        raise ValueError(f"expected a whole number from {least}, such as {example}{_found(text)}")
    return int(text)


def _options(words: list[str], readers: dict[str, Callable[[str, str], Any]], example: str) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for word in words:
        name, equals, value = word.partition("=")
        if name not in readers or not equals or name in values:
            allowed = ", ".join(f"{name}=N" for name in readers)
            raise ValueError(f"expected {allowed}, each at most once, such as {example}{_found(word)}")
        values[name] = readers[name](value, example)
    return values


# --- what is said without a script ---------------------------------------------------------------------------------


def _default(chat: Chat, words: str, after: list[ChatMessage]) -> list[_Step]:
    """Report tool results, else call what must be called, else echo; as JSON where that was asked for."""
    names = {call.id: call.name for message in after for call in message.tool_calls}
    results = [message for message in after if message.role == "tool"]
    echo = " ".join(words.split())
    choice = chat.tool_choice
    if not results and isinstance(choice, NamedFunction):
        schema = next((tool.parameters for tool in chat.tools if tool.name == choice.name), None)
        return [_Call(choice.name, sample_json(schema, echo))]
    if not results and choice == "required" and chat.tools:
        return [_Call(chat.tools[0].name, sample_json(chat.tools[0].parameters, echo))]
    told = [f"{names.get(message.tool_call_id or '', 'a tool')} answered: {text_of(message)}" for message in results]
    text = "\n".join(told) or (f"You said: {echo}" if echo else "There is no user message to answer.")
    wanted = (chat.response_format or {}).get("type")
    if wanted == "json_object":
        return [_Say(msgspec.json.encode({"reply": text}).decode())]
    if wanted == "json_schema":
        schema = cast(dict[str, Any], (chat.response_format or {}).get("json_schema") or {}).get("schema")
        return [_Say(sample_json(schema, text))]
    return [_Say(text)]


# --- from steps to beats -------------------------------------------------------------------------------------------


def _perform(steps: list[_Step], chat: Chat, attempt: int) -> list[Beat]:
    """Lay out ``steps`` as deltas, within ``max_completion_tokens`` and up to a text of ``stop``, closed by one
    `Finish` or `Fail`."""
    beats: list[Beat] = []
    size: int | None = None
    told: Usage | None = None
    reason: FinishReason | None = None
    most = chat.max_completion_tokens
    spent, calls, cut, stopped = 0, 0, False, False
    before: type[_Say | _Refuse] | None = None
    for step in steps:
        if isinstance(step, _Size):
            size = step.characters
        elif isinstance(step, _Tokens):
            told = step.usage
        elif isinstance(step, _End):
            reason = step.reason
        elif isinstance(step, Fail):
            if step.times is None or attempt < step.times:
                return [*beats, step]
        elif isinstance(step, Wait):
            if not cut and not stopped:
                beats.append(step)
        elif isinstance(step, _Say | _Refuse):
            if cut or stopped:
                continue
            said = "\n" + step.text if before is type(step) else step.text
            before = type(step)
            whole = said[: min((at for stop in chat.stop if (at := said.find(stop)) >= 0), default=None)]
            stopped = whole != said
            text = _within(whole, most, spent)
            spent += count_words(text)
            cut = text != whole
            delta = TextDelta if isinstance(step, _Say) else RefusalDelta
            beats.extend(delta(piece) for piece in _pieces(text, size))
        elif isinstance(step, _Call) and not cut and not stopped:
            if most is not None and spent >= most:
                cut = True
                continue
            arguments = _within(step.arguments, most, spent + 1)
            spent += 1 + count_words(arguments)
            cut = arguments != step.arguments
            beats.append(ToolCallDelta(calls, _call_id(chat, calls), step.name, ""))
            beats.extend(ToolCallDelta(calls, None, None, piece) for piece in _pieces(arguments, size))
            calls += 1
    if told is None:
        told = Usage(count_prompt(chat), spent)
    elif most is not None and told.completion_tokens > most:
        told, cut = msgspec.structs.replace(told, completion_tokens=most), True
        told = msgspec.structs.replace(told, reasoning_tokens=min(told.reasoning_tokens, most))
    beats.append(Finish("length" if cut else reason or ("tool_calls" if calls else "stop"), told))
    return beats


def _within(text: str, most: int | None, spent: int) -> str:
    """``text``, or as many of its words as ``most`` leaves after ``spent``."""
    if most is None or spent + count_words(text) <= most:
        return text
    kept = [match[0] for match, _ in zip(_WORD.finditer(text), range(max(0, most - spent)), strict=False)]
    return "".join(kept).rstrip()


def _pieces(text: str, size: int | None) -> Iterator[str]:
    """``text`` cut into deltas: of ``size`` characters, else of one word each."""
    if size is None:
        yield from (match[0] for match in re.finditer(r"\s*\S+\s*|\s+", text))
    else:
        yield from (text[start : start + size] for start in range(0, len(text), size))


def _call_id(chat: Chat, number: int) -> str:
    """An id in the form of BEHAVIOUR ID-01 that depends on the whole conversation and the call's number."""
    seed = msgspec.json.encode([chat.messages, number])
    return "call_" + hashlib.sha256(seed).hexdigest()[:24]
