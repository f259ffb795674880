"""Token counts against published and reference numbers, and the promises about cost and memory."""

import base64
import gzip
import hashlib
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tiktoken_ext import openai_public  # pyright: ignore[reportMissingTypeStubs]

from loomgate.providers import models, tokens
from loomgate.wire.chat import Chat, ChatMessage, FunctionTool, ImagePart, ImageUrl, TextPart, ToolCall

# The members of an OpenAI encoding, one model of each.
O200K, CL100K = "gpt-4o", "gpt-4"

# (text, o200k_base, cl100k_base): counts by tiktoken, OpenAI's own library, from the published rank files.
REFERENCE = [
    ("", 0, 0),
    ("tiktoken is great!", 6, 6),
    ("antidisestablishmentarianism", 6, 6),
    ("2 + 2 = 4", 7, 7),
    ("お誕生日おめでとう", 8, 9),
    ("<|endoftext|>", 7, 7),
    ("<|im_start|>system<|im_sep|>", 13, 13),
    ("Zażółć gęślą jaźń", 11, 12),
    ("Съешь ещё этих мягких французских булок", 11, 26),
    ("نص عربي قصير", 5, 9),
    ("हिन्दी में एक वाक्य", 8, 18),
    ("我能吞下玻璃而不伤身体。", 11, 17),
    ("ภาษาไทยไม่มีช่องว่าง", 6, 20),
    ("👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽", 21, 32),
    ("e\u0301a\u0300", 4, 4),
    ("def f(x):\n\treturn x**2\n\n\n    # done\r\n", 13, 13),
    ("\x00\x01\x7f\u2028\ufeff", 5, 6),
    ("   \n \t x  ", 4, 4),
    ("I'LL we've DON'T it's", 6, 9),
    ("1234567890", 4, 4),
    ("\ufffd", 1, 1),
]


@pytest.mark.parametrize(("text", "o200k", "cl100k"), REFERENCE)
def test_counts_are_those_of_the_reference(text: str, o200k: int, cl100k: int) -> None:
    assert (tokens.count_text(text, O200K), tokens.count_text(text, CL100K)) == (o200k, cl100k)


def _reference(encoding: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """OpenAI's own library with its published ranks, which the tokenizer's package happens to carry as a file."""
    package = find_spec("bpe_openai")
    assert package is not None
    assert package.submodule_search_locations is not None
    packed = Path(package.submodule_search_locations[0], "data", f"{encoding}.tiktoken.gz").read_bytes()
    published = gzip.decompress(packed)

    def ranks(_: str, expected_hash: str) -> dict[bytes, int]:
        assert hashlib.sha256(published).hexdigest() == expected_hash
        pairs = (line.split() for line in published.splitlines())
        return {base64.b64decode(token): int(rank) for token, rank in pairs}

    monkeypatch.setattr(openai_public, "load_tiktoken_bpe", ranks)
    return tiktoken.Encoding(**getattr(openai_public, encoding)())


_script = st.sampled_from(
    ["Latin ", "éß", "Жё", "狐の", "नि", "\u0627", "🦊", "👩\u200d👩", "e\u0301", "12345", "don't", "I'LL", "ǅ"]
)
_space = st.sampled_from(
    [" ", "  ", "\n", "\r\n", "\t", "\u3000", "\u00a0", "\u2028", "...", "/*", "<|im_end|>", "\x00"]
)


@pytest.mark.parametrize(("model", "encoding"), [(O200K, "o200k_base"), (CL100K, "cl100k_base")])
def test_counts_equal_the_reference_for_any_text(model: str, encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = _reference(encoding, monkeypatch)

    @given(st.lists(_script | _space | st.text(max_size=8), max_size=20).map("".join))
    def same(text: str) -> None:
        assert tokens.count_text(text, model) == len(reference.encode_ordinary(text))

    same()


def test_names_of_models_choose_the_encoding() -> None:
    newer = [
        "gpt-4o",
        "gpt-4o-mini-2024-07-18",
        "chatgpt-4o-latest",
        "gpt-4.1-nano",
        "gpt-4.5-preview",
        "o1",
        "o3-mini",
    ]
    newer += ["o4-mini", "gpt-5", "gpt-5.2-codex", "gpt-5-chat-latest", "gpt-oss:20b", "ft:gpt-4o:acme::1", "openai/o3"]
    older = ["gpt-4", "gpt-4-0613", "gpt-4-turbo", "GPT-4-32k", "gpt-3.5-turbo-0125", "gpt-35-turbo", "@azure/gpt-4"]
    assert {tokens.encoding_for(name) for name in newer} == {"o200k_base"}
    assert {tokens.encoding_for(name) for name in older} == {"cl100k_base"}
    # An estimate, as documented: nobody knows these tokenizers here.
    assert {tokens.encoding_for(name) for name in ["llama-3.1-70b", "claude-sonnet-4", "", "scripted"]} == {
        "o200k_base"
    }


def _message(text: str, role: Any = "user") -> ChatMessage:
    return ChatMessage(role=role, content=text)


_WEATHER = FunctionTool(
    name="get_current_weather",
    description="Get the current weather in a given location",
    parameters={
        "type": "object",
        "properties": {
            "location": {"type": "string", "description": "The city and state, e.g. San Francisco, CA"},
            "unit": {
                "type": "string",
                "description": "The unit of temperature to return",
                "enum": ["celsius", "fahrenheit"],
            },
        },
        "required": ["location"],
    },
)


@pytest.mark.parametrize(
    ("model", "published"), [("gpt-3.5-turbo", 105), ("gpt-4", 105), ("gpt-4o", 101), ("gpt-4o-mini", 101)]
)
def test_a_call_with_a_tool_costs_what_the_cookbook_says_the_endpoint_charged(model: str, published: int) -> None:
    chat = Chat(
        model=model,
        messages=[
            _message("You are a helpful assistant that can answer to questions about the weather.", "system"),
            _message("What's the weather like in San Francisco?"),
        ],
        tools=[_WEATHER],
    )
    assert tokens.count_chat(chat) == published


def test_a_message_is_three_tokens_its_role_and_its_text() -> None:
    assert tokens.count_message(_message("tiktoken is great!"), O200K) == 3 + 1 + 6
    assert tokens.count_message(ChatMessage(role="assistant"), O200K) == 3 + 1
    parts = ChatMessage(role="user", content=[TextPart("tiktoken is great!"), TextPart("2 + 2 = 4")])
    assert tokens.count_message(parts, O200K) == 3 + 1 + 6 + 7
    assert tokens.count_message(ChatMessage(role="assistant", refusal="tiktoken is great!"), O200K) == 3 + 1 + 6


def test_tool_calls_count_name_and_arguments_but_not_ids() -> None:
    def calling(id: str, arguments: str) -> int:
        message = ChatMessage(role="assistant", tool_calls=[ToolCall(id=id, name="f", arguments=arguments)])
        return tokens.count_message(message, O200K)

    plain = calling("call_1", "{}")
    assert plain == 3 + 1 + tokens.PER_TOOL_CALL + 1 + tokens.count_text("{}", O200K)
    assert calling("call_" + "x" * 100, "{}") == plain
    assert calling("call_1", '{"a": 1}') - plain == tokens.count_text('{"a": 1}', O200K) - tokens.count_text(
        "{}", O200K
    )


@pytest.mark.parametrize(
    ("model", "detail", "cost"),
    [
        ("gpt-4o", "low", 85),
        ("gpt-4o", "high", 1445),
        ("gpt-4o", "auto", 1445),
        ("gpt-4o-mini", "low", 2833),
        ("o1", "low", 75),
    ],
)
def test_an_image_costs_the_most_that_its_family_charges(model: str, detail: Any, cost: int) -> None:
    image = ImagePart(ImageUrl(url="https://example.com/a.png", detail=detail))
    assert tokens.count_message(ChatMessage(role="user", content=[image]), model) == 3 + 1 + cost
    # A picture inside the URL is not text: its base64 never counts.
    inline = ImagePart(ImageUrl(url="data:image/png;base64," + "A" * 100_000, detail=detail))
    assert tokens.count_message(ChatMessage(role="user", content=[inline]), model) == 3 + 1 + cost


def test_what_the_published_rule_does_not_cover_still_counts() -> None:
    def cost(parameters: dict[str, Any] | None) -> int:
        return tokens.count_tools([FunctionTool(name="f", parameters=parameters)], O200K)

    flat = cost({"type": "object", "properties": {"a": {"type": "string"}}})
    nested = {"type": "object", "properties": {"b": {"type": "array", "items": {"type": "string", "maxLength": 9}}}}
    assert cost({"type": "object", "properties": {"a": nested}}) > flat
    assert cost({"type": "object", "properties": {"a": {"type": ["string", "null"], "enum": ["x", None, 3]}}}) > flat
    assert cost({"type": "object", "properties": {"a": True}}) > cost({"type": "object", "properties": {}})
    assert cost({"type": "object", "$defs": {"x": {"type": "string"}}}) > cost({"type": "object"})
    assert cost(None) == cost({}) == cost({"type": "object", "properties": {}, "additionalProperties": False})
    assert tokens.count_tools([], O200K) == 0


def test_a_schema_for_the_answer_is_part_of_the_prompt() -> None:
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "object"}}}
    assert tokens.count_fixed([], None, O200K) == tokens.count_fixed([], {"type": "json_object"}, O200K) == 3
    assert tokens.count_fixed([], schema, O200K) > 10
    chat = Chat(model=O200K, messages=[], response_format=schema)
    assert tokens.count_chat(chat) == tokens.count_fixed([], schema, O200K)


_text = st.text(st.characters(), max_size=80)  # surrogates too
_parts = st.lists(
    st.one_of(
        st.builds(TextPart, _text),
        st.builds(ImagePart, st.builds(ImageUrl, url=st.just("u"), detail=st.sampled_from(["low", "high", "auto"]))),
    ),
    max_size=3,
)
_messages = st.builds(
    ChatMessage,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=st.one_of(st.none(), _text, _parts),
    refusal=st.one_of(st.none(), _text),
    tool_calls=st.lists(st.builds(ToolCall, id=_text, name=_text, arguments=_text), max_size=2),
)


@given(message=_messages, model=st.sampled_from(["gpt-4o", "gpt-4", "gpt-5-nano", "llama"]))
def test_the_bound_of_a_message_is_never_below_its_count(message: ChatMessage, model: str) -> None:
    assert 4 <= tokens.count_message(message, model) <= tokens.upper_bound(message, model)


@given(
    parameters=st.dictionaries(
        st.sampled_from(["type", "properties", "required", "$defs"]),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-9, 9)
            | st.text(st.characters(exclude_categories=["Cs"]), max_size=9),
            lambda inner: (
                st.lists(inner, max_size=3)
                | st.dictionaries(st.sampled_from(["type", "enum", "description", "items", "a"]), inner, max_size=3)
            ),
            max_leaves=12,
        ),
    )
)
def test_the_bound_of_tools_is_never_below_their_count_whatever_the_schema(parameters: dict[str, Any]) -> None:
    tools = [FunctionTool(name="f", description="What it does.", parameters=parameters)]
    assert 0 < tokens.count_fixed(tools, None, O200K) <= tokens.fixed_upper_bound(tools, None, O200K)


@given(left=_text, right=_text)
@settings(max_examples=50)
def test_a_line_break_between_two_words_is_a_safe_place_to_cut(left: str, right: str) -> None:
    """Counts add up there, so the counter has no hidden state from one text to the next."""
    one, two = f"{left}a", f"\nb{right}"
    assert tokens.count_text(one + two, O200K) == tokens.count_text(one, O200K) + tokens.count_text(two, O200K)


# Runs of one character, the classical way to make a tokenizer quadratic.
@pytest.mark.parametrize(
    "unit", ["a", "A", " ", "\n", "1", "!", "'s", "aé", "e\u0301", "🦊", "狐", "\x00", " \n", "-_"]
)
@pytest.mark.parametrize("model", [O200K, CL100K])
def test_a_long_run_of_one_character_takes_linear_time(unit: str, model: str) -> None:
    text = unit * (1_200_000 // len(unit))
    tokens.count_text(unit, model)
    begin = time.perf_counter()
    count = tokens.count_text(text, model)
    assert time.perf_counter() - begin < 3  # about 0.02 s; minutes if it were quadratic
    assert 1_200_000 // 128 <= count <= len(text.encode())


@pytest.mark.parametrize("model", [O200K, CL100K])
def test_more_than_a_megabyte_counts_as_much_as_its_parts(model: str) -> None:
    paragraph = "Grüße an alle: 3 Füchse 🦊 laufen; def f(x): return x**2"
    times = 40_000
    each = tokens.count_text("\n" + paragraph, model)
    assert len((paragraph * times).encode()) > 2_000_000
    assert tokens.count_text(("\n" + paragraph) * times, model) == times * each


def test_half_a_surrogate_pair_counts_as_a_replacement_character() -> None:
    assert tokens.count_text("a\ud800b", O200K) == tokens.count_text("a\ufffdb", O200K)
    assert tokens.count_text("\ud83e\udd8a", O200K) == tokens.count_text("🦊", O200K)


_PROBE = """
import sys, threading
def rss():
    return int(next(l for l in open('/proc/self/status') if l.startswith('VmRSS')).split()[1]) / 1024
from loomgate.providers import tokens
from loomgate.wire.chat import ChatMessage
tokens.upper_bound(ChatMessage(role="user", content="x" * 1000), "gpt-4o")
assert 'bpe_openai._bindings' not in sys.modules and tokens._tokenizer.cache_info().currsize == 0, "loaded too early"
before = rss()
counts = []
count = lambda: counts.append(tokens.count_text("tiktoken is great!", "gpt-4o"))
workers = [threading.Thread(target=count) for _ in range(8)]
[w.start() for w in workers]; [w.join() for w in workers]
assert counts == [6] * 8, counts
one = rss() - before
assert tokens.count_text("tiktoken is great!", "gpt-4") == 6
assert 'bpe_openai' not in sys.modules, "the package's Python part was loaded"
print(one, rss() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_tokenizer_is_loaded_only_for_a_count_and_is_small() -> None:
    done = subprocess.run([sys.executable, "-c", _PROBE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    one, both = map(float, done.stdout.split())
    assert one < 50, one
    assert both < 70, both


def test_a_missing_tokenizer_is_an_error_that_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokens, "find_spec", lambda name: None)  # pyright: ignore[reportUnknownLambdaType, reportUnknownArgumentType]
    load: Any = tokens._tokenizer  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(ImportError, match="bpe-openai"):
        load.__wrapped__("o200k_base")


def test_facts_come_from_the_longest_family() -> None:
    windows = {
        "gpt-3.5-turbo": 16_385,
        "gpt-4": 8192,
        "gpt-4-0613": 8192,
        "gpt-4-32k-0613": 32_768,
        "gpt-4-turbo-2024-04-09": 128_000,
        "gpt-4o-mini": 128_000,
        "gpt-4.1-mini-2025-04-14": 1_047_576,
        "o1": 200_000,
        "o1-mini": 128_000,
        "o3-mini": 200_000,
        "o4-mini": 200_000,
        "gpt-5-nano": 400_000,
        "gpt-5.2": 400_000,
        "gpt-5-chat-latest": 128_000,
        "scripted": 128_000,
        "gpt-4all-falcon": 128_000,  # not a GPT-4
        "some-model": 128_000,
    }
    assert {name: models.facts(name).context_window for name in windows} == windows


def test_facts_about_claude() -> None:
    known = {
        "claude-3-haiku-20240307": (200_000, 4096, None, False),
        "claude-3-7-sonnet-latest": (200_000, 64_000, "budget", False),
        "claude-opus-4-20250514": (200_000, 32_000, "budget", False),
        "claude-opus-4-1": (200_000, 32_000, "budget", True),
        "claude-sonnet-4-5-20250929": (200_000, 64_000, "budget", True),
        "anthropic/claude-sonnet-4-6": (1_000_000, 128_000, "adaptive", True),
        "claude-opus-5-5": (1_000_000, 128_000, "adaptive", True),
        "claude-of-tomorrow-9": (1_000_000, 128_000, "adaptive", True),
    }
    for name, facts in known.items():
        found = models.facts(name)
        mode = found.thinking.mode if found.thinking else None
        assert (found.context_window, found.max_output, mode, found.json_schema) == facts, name
    assert models.facts("gpt-5").thinking is None


def test_reasoning_models_take_no_temperature() -> None:
    assert not any(models.facts(name).accepts_temperature for name in ["o1", "o4-mini", "gpt-5.1", "claude-opus-5"])
    assert all(models.facts(name).accepts_temperature for name in ["gpt-4o", "gpt-5-chat-latest", "gpt-4", "unknown"])


def test_the_operator_can_correct_a_window() -> None:
    overrides = {"local/llama-3*": 8192, "*": 1000}
    assert models.facts("local/Llama-3.1-8B", overrides) == msgspec.structs.replace(models.UNKNOWN, context_window=8192)
    small = models.facts("gpt-4o", overrides)
    assert (small.context_window, small.max_output) == (1000, 1000)
    assert models.facts("gpt-4o", {"gpt-4": 1}) == models.facts("gpt-4o")


def test_the_prompt_leaves_room_for_the_answer() -> None:
    assert models.facts("gpt-4o").prompt_limit() == 128_000 - 16_384
    assert models.facts("gpt-4o").prompt_limit(500) == 127_500
    assert models.facts("gpt-4o").prompt_limit(10_000_000) == 128_000 - 16_384
    assert models.facts("gpt-5").prompt_limit() == 272_000
    assert models.facts("gpt-4").prompt_limit() == models.facts("gpt-4").prompt_limit(8192) == 4096
    assert models.facts("unknown").prompt_limit() == 128_000 - 4096
    assert models.facts("unknown").prompt_limit(10**9) == 64_000
