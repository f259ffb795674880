"""Facts about models: one table, from a model's name to what is published about its family.

What lives here: numbers and yes-or-no facts about models. What must not: how to talk to a vendor (a dialect),
where a vendor is (the catalogue), counting (``tokens``). A model that is not in the table gets `UNKNOWN`, whose
numbers are guesses; the operator's settings can correct a window (``overrides`` of `facts`).
"""

from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Literal

import msgspec

Encoding = Literal["o200k_base", "cl100k_base"]


class Thinking(msgspec.Struct, frozen=True, kw_only=True):
    """How a model's reasoning is asked for, where that is not by OpenAI's ``reasoning_effort`` alone.

    ``mode``: ``budget`` takes a number of tokens, ``adaptive`` decides by itself. ``efforts``: the levels it knows,
    rising; empty if none. ``off``: ``default`` (it does not think unless asked to), ``disabled`` or ``between_tools``
    (what to say so that it does not, or as little as it can), ``never`` (it always thinks).
    """

    mode: Literal["budget", "adaptive"]
    efforts: tuple[str, ...] = ()
    off: Literal["default", "disabled", "between_tools", "never"] = "default"


class ModelFacts(msgspec.Struct, frozen=True, kw_only=True):
    """What is published about a family of models. All counts are numbers of tokens.

    ``context_window``: prompt and answer together. ``max_output``: the longest answer, ``None`` if not published.
    ``accepts_temperature``: whether ``temperature`` and ``top_p`` other than 1 are taken without conditions; where
    false, a value that the client did not give must not be sent (BEHAVIOUR RSN-03). ``encoding``: the tokenizer.
    ``image_low`` and ``image_high``: the most that one image can cost with detail ``low``, and with ``high`` or
    ``auto``, after the vendor's own scaling: the size of the picture is not known here. ``tool_init``: the constant
    per function of the published rule for tool definitions (see ``tokens.count_tools``). ``thinking``: see `Thinking`.
    ``json_schema``: whether an answer can be held to a schema by the endpoint itself, as far as that depends on the
    model.
    """

    context_window: int
    max_output: int | None = None
    accepts_temperature: bool = True
    encoding: Encoding = "o200k_base"
    image_low: int = 85
    image_high: int = 1445
    tool_init: int = 7
    thinking: Thinking | None = None
    json_schema: bool = True

    def prompt_limit(self, answer: int | None = None) -> int:
        """The most tokens a prompt may have so that the window still has room for an answer.

        ``answer``: tokens wanted for the answer (what is left of the run's ``max_completion_tokens``), ``None`` if
        the run sets no bound, for which the model's longest answer is reserved, or 4,096 where that is not known.
        Never more than the longest answer is reserved, and never more than half of the window, since a bound on the
        answer is a target, not a claim (BEHAVIOUR RUN-94): "at most 8,192" on an 8,192 window must not leave nothing.
        """
        longest = self.max_output if self.max_output is not None else self.context_window
        wanted = answer if answer is not None else (self.max_output or 4096)
        return self.context_window - min(wanted, longest, self.context_window // 2)


UNKNOWN = ModelFacts(context_window=128_000)


def _tiles(base: int, tile: int) -> tuple[int, int]:
    """(low, high) for a family priced by 512-pixel tiles: scaled into 2048 x 768, a picture has at most 8 of them."""
    return base, base + 8 * tile


def _patches(multiplier_in_hundredths: int) -> tuple[int, int]:
    """(low, high) for a family priced by at most 1,536 patches times a multiplier; ``low`` is bounded by the same."""
    most = -(-1536 * multiplier_in_hundredths // 100)
    return most, most


def _chat(window: int, output: int, images: tuple[int, int] = _tiles(85, 170)) -> ModelFacts:
    return ModelFacts(context_window=window, max_output=output, image_low=images[0], image_high=images[1])


def _reasoning(window: int, output: int, images: tuple[int, int]) -> ModelFacts:
    return ModelFacts(
        context_window=window,
        max_output=output,
        accepts_temperature=False,
        image_low=images[0],
        image_high=images[1],
    )


def _older(window: int, output: int | None) -> ModelFacts:
    return ModelFacts(context_window=window, max_output=output, encoding="cl100k_base", tool_init=10)


_GPT5 = _reasoning(400_000, 128_000, _tiles(70, 140))
_GPT5_MINI = _reasoning(400_000, 128_000, _patches(162))
_GPT5_NANO = _reasoning(400_000, 128_000, _patches(246))
_GPT54 = _reasoning(1_050_000, 128_000, (2500, 2500))
_CHAT_LATEST = _chat(128_000, 16_384, _tiles(70, 140))
# The "-chat" models of later GPT-5 releases are reasoning models and take no temperature; the first one does.
_CHAT_LATEST_REASONING = _reasoning(128_000, 16_384, _tiles(70, 140))

_EFFORTS = ("low", "medium", "high", "xhigh", "max")
_BUDGET = Thinking(mode="budget")


def _claude(
    window: int, output: int, thinking: Thinking | None, *, json_schema: bool = True, sampling: bool = True
) -> ModelFacts:
    # Models without sampling parameters are those that look at pictures three times as closely.
    image = 1600 if sampling else 4784
    return ModelFacts(
        context_window=window,
        max_output=output,
        accepts_temperature=sampling,
        image_low=image,
        image_high=image,
        thinking=thinking,
        json_schema=json_schema,
    )


def _claude_adaptive(off: Literal["default", "disabled", "between_tools", "never"]) -> ModelFacts:
    return _claude(1_000_000, 128_000, Thinking(mode="adaptive", efforts=_EFFORTS, off=off), sampling=False)


_CLAUDE_46 = _claude(1_000_000, 128_000, Thinking(mode="adaptive", efforts=("low", "medium", "high", "max")))


def _gemini(output: int, thinking: Thinking | None, images: tuple[int, int] = (258, 6 * 258)) -> ModelFacts:
    # The window is that of the prompt, the answer does not count against it. Pictures are tiles of 258 tokens.
    return msgspec.structs.replace(_chat(1_048_576, output, images), thinking=thinking)


def _gemini_level(*efforts: str) -> ModelFacts:
    return _gemini(65_536, Thinking(mode="adaptive", efforts=efforts, off="never"), (280, 1120))


# Family -> facts, from the vendor's model pages. The longest family that the name equals or continues with "-" or
# ":" wins; a family that ends with "." also stands for every release after the point.
_FAMILIES: dict[str, ModelFacts] = {
    "scripted": ModelFacts(context_window=128_000),
    "gemini": _gemini_level("minimal", "low", "medium", "high"),  # one that is newer than this table
    "gemini-2.0": _gemini(8192, None),
    "gemini-2.5": _gemini(65_536, _BUDGET),
    "gemini-3-pro": _gemini_level("low", "high"),
    "gemini-3.1-pro": _gemini_level("low", "medium", "high"),
    "gpt-3.5-turbo": _older(16_385, 4096),
    "gpt-3.5-turbo-instruct": _older(4096, 4096),
    "gpt-3.5-turbo-0301": _older(4096, 4096),
    "gpt-3.5-turbo-0613": _older(4096, 4096),
    "gpt-3.5-turbo-16k": _older(16_385, 4096),
    "gpt-35-turbo": _older(16_385, 4096),
    "gpt-35-turbo-16k": _older(16_385, 4096),
    "gpt-4": _older(8192, 8192),
    "gpt-4-32k": _older(32_768, 8192),
    "gpt-4-turbo": _older(128_000, 4096),
    "gpt-4-1106-preview": _older(128_000, 4096),
    "gpt-4-0125-preview": _older(128_000, 4096),
    "gpt-4-vision-preview": _older(128_000, 4096),
    "gpt-4-1106-vision-preview": _older(128_000, 4096),
    "gpt-4o": _chat(128_000, 16_384),
    "gpt-4o-2024-05-13": _chat(128_000, 4096),
    "gpt-4o-mini": _chat(128_000, 16_384, _tiles(2833, 5667)),
    "chatgpt-4o": _chat(128_000, 16_384),
    "gpt-4.1": _chat(1_047_576, 32_768),
    "gpt-4.1-mini": _chat(1_047_576, 32_768, _patches(162)),
    "gpt-4.1-nano": _chat(1_047_576, 32_768, _patches(246)),
    "gpt-4.5": _chat(128_000, 16_384),
    "o1": _reasoning(200_000, 100_000, _tiles(75, 150)),
    "o1-mini": _reasoning(128_000, 65_536, _tiles(75, 150)),
    "o1-preview": _reasoning(128_000, 32_768, _tiles(75, 150)),
    "o3": _reasoning(200_000, 100_000, _tiles(75, 150)),
    "o4": _reasoning(200_000, 100_000, _patches(172)),
    "codex-mini": _reasoning(200_000, 100_000, _patches(172)),
    "gpt-5": _GPT5,
    "gpt-5-mini": _GPT5_MINI,
    "gpt-5-nano": _GPT5_NANO,
    "gpt-5-pro": _reasoning(400_000, 272_000, _tiles(70, 140)),
    "gpt-5-chat": _CHAT_LATEST,
    "gpt-5.": _GPT5,
    "gpt-5.1-chat": _CHAT_LATEST_REASONING,
    "gpt-5.2-chat": _CHAT_LATEST_REASONING,
    "gpt-5.3-chat": _CHAT_LATEST_REASONING,
    "gpt-5.4": _GPT54,
    "gpt-5.4-mini": _GPT5_MINI,
    "gpt-5.4-nano": _GPT5_NANO,
    "gpt-5.5": _GPT54,
    "gpt-5.6": _GPT54,
    "gpt-oss": _chat(131_072, 131_072),
    "claude": _claude_adaptive("disabled"),  # one that is newer than this table
    "claude-3": _claude(200_000, 4096, None, json_schema=False),
    "claude-3-5": _claude(200_000, 8192, None, json_schema=False),
    "claude-3-7": _claude(200_000, 64_000, _BUDGET, json_schema=False),
    "claude-sonnet-4": _claude(200_000, 64_000, _BUDGET, json_schema=False),
    "claude-opus-4": _claude(200_000, 32_000, _BUDGET, json_schema=False),
    "claude-opus-4-1": _claude(200_000, 32_000, _BUDGET),
    "claude-sonnet-4-5": _claude(200_000, 64_000, _BUDGET),
    "claude-haiku-4-5": _claude(200_000, 64_000, _BUDGET),
    "claude-opus-4-5": _claude(200_000, 64_000, Thinking(mode="budget", efforts=("low", "medium", "high"))),
    "claude-opus-4-6": _CLAUDE_46,
    "claude-sonnet-4-6": _CLAUDE_46,
    "claude-opus-4-7": _claude_adaptive("default"),
    "claude-opus-4-8": _claude_adaptive("default"),
    "claude-opus-5": _claude_adaptive("disabled"),
    "claude-sonnet-5": _claude_adaptive("disabled"),
    "claude-haiku-5": _claude_adaptive("disabled"),
    "claude-sonnet-5-5": _claude_adaptive("between_tools"),
    "claude-opus-5-5": _claude_adaptive("never"),
    "claude-fable": _claude_adaptive("never"),
    "claude-mythos": _claude_adaptive("never"),
    "text-embedding-3": _older(8192, None),
    "text-embedding-ada": _older(8192, None),
}


def _belongs(name: str, family: str) -> bool:
    if not name.startswith(family):
        return False
    return len(name) == len(family) or family.endswith(".") or name[len(family)] in "-:@"


@lru_cache(maxsize=1024)
def _look_up(model: str) -> ModelFacts:
    name = model.lower().rpartition("/")[2].removeprefix("ft:")
    for maker in ("anthropic.", "openai."):  # as Bedrock names them: "eu.anthropic.claude-…"
        name = name.rpartition(maker)[2]
    families = [family for family in _FAMILIES if _belongs(name, family)]
    return _FAMILIES[max(families, key=len)] if families else UNKNOWN


def facts(model: str, overrides: Mapping[str, int] | None = None) -> ModelFacts:
    """What is known about ``model``, a name as a client sends it.

    Case, a vendor in front (``openai/gpt-4o``, ``@team/gpt-4o``, Bedrock's ``us.anthropic.claude-opus-4-6-v1``), a
    fine-tune (``ft:gpt-4o:...``) and a dated or named variant behind (``gpt-4o-2024-08-06``) do not matter. A name of
    no known family gets `UNKNOWN`: a window of 128,000 tokens and the newest encoding, both guesses.

    ``overrides``: shell-style pattern (``llama-3*``) of the whole name, in lower case -> context window in tokens;
    the first that matches wins, whatever the table says, and an answer is then no longer than that window.
    """
    known = _look_up(model)
    for pattern, window in (overrides or {}).items():
        if fnmatchcase(model.lower(), pattern.lower()):
            output = None if known.max_output is None else min(known.max_output, window)
            return msgspec.structs.replace(known, context_window=window, max_output=output)
    return known
