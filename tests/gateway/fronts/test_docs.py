"""docs/gateway/translation.md says what becomes of every field."""

import re
from pathlib import Path

from loomgate.gateway.fronts import chat, messages, responses
from loomgate.providers import parts

PAGE = (Path(__file__).parents[3] / "docs" / "gateway" / "translation.md").read_text()


def section(title: str) -> str:
    return re.split(r"^## ", PAGE.split(f"\n## {title}\n")[1], maxsplit=1, flags=re.MULTILINE)[0]


def rows(text: str) -> set[str]:
    found = re.findall(r"^\| ([^|]+) \|", text, re.MULTILINE)
    return {name for row in found for name in re.findall(r"`(\w+)`", row)}


def test_every_field_of_chat_completions() -> None:
    assert rows(section("Chat completions")) == set(chat._Body.__struct_fields__)  # pyright: ignore[reportPrivateUsage]
    for name in (*parts._TUNING, *parts._ONLY_OPENAI, "audio", "modalities"):  # pyright: ignore[reportPrivateUsage]
        assert f"`{name}`" in section("Chat completions") or f"`{name}: " in section("Chat completions"), name


def test_every_field_of_messages() -> None:
    known = messages._KNOWN | set(messages._REFUSED)  # pyright: ignore[reportPrivateUsage]
    assert rows(section("Messages")) == known


def test_every_field_of_responses() -> None:
    assert rows(section("Responses")) == responses._KNOWN  # pyright: ignore[reportPrivateUsage]
