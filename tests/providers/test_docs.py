"""The pages about models say what the code does: the catalogue's table, the commands, the played examples."""

import re
from pathlib import Path
from typing import get_args

from loomgate.errors import RETRYABLE, ProviderErrorKind
from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.scripted import _COMMANDS, play  # pyright: ignore[reportPrivateUsage]
from loomgate.wire.chat import Chat, ChatMessage, Finish, TextDelta, ToolCallDelta

DOCS = Path(__file__).parents[2] / "docs"


KEYS = {
    "key": "needed",
    "optional": "optional",
    "none": "none",
    "service_account": "needed, or a service account",
    "aws": "AWS keys, or a Bedrock key",
    "entra": "needed, or Microsoft Entra",
    "oci": "an API signing key",
}


def catalogue_table() -> str:
    heads = ["vendor", "address", "endpoints", "key", "provider data", "sent as", "not sent", "default", "models"]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for row in CATALOGUE.values():
        local = f" (declared without one: `{row.local}`)" if row.local else ""
        address = f"`{row.base_url}`" if row.base_url else f"give `{row.address or 'base_url'}`{local}"
        offered = ", ".join(f"`{name}`" for name in row.endpoints if name != "models") or "proxied only"
        data = ", ".join(f"`{name}`" + ("*" if name in row.needs else "") for name in sorted(row.options))
        default = f"`{row.default_model}`" if row.default_model else ""
        renamed = ", ".join(f"`{ours}` as `{theirs}`" for ours, theirs in row.rename.items())
        dropped = ", ".join(f"`{name}`" for name in sorted(row.drop))
        models = ", ".join(f"`{pattern}`" for pattern in row.models)
        cells = [f"`{row.name}`", address, offered, KEYS[row.auth], data, renamed, dropped, default, models]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_catalogue_is_documented() -> None:
    page = (DOCS / "providers.md").read_text("utf-8")
    table = page.split("<!-- catalogue: begin -->\n")[1].split("\n<!-- catalogue: end -->")[0]
    assert table == catalogue_table()


def test_every_kind_of_failure_is_documented() -> None:
    page = (DOCS / "providers.md").read_text("utf-8")
    rows = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (yes|no) \|$", page, re.MULTILINE))
    assert rows == {kind: "yes" if kind in RETRYABLE else "no" for kind in get_args(ProviderErrorKind)}


def test_every_command_is_documented() -> None:
    page = (DOCS / "scripted.md").read_text("utf-8")
    assert re.findall(r"^\| `/(\w+)", page, re.MULTILINE) == list(_COMMANDS)


def test_the_examples_are_true() -> None:
    page = (DOCS / "scripted.md").read_text("utf-8")
    examples = re.findall(r"```script\n(.*?)\n```\n\n```answer\n(.*?)\n```", page, re.DOTALL)
    assert len(examples) == 3
    for script, answer in examples:
        said, calls = "", list[str]()
        beats = play(Chat(model="scripted", messages=[ChatMessage(role="user", content=script)]))
        for beat in beats:
            if isinstance(beat, TextDelta):
                said += beat.text
            elif isinstance(beat, ToolCallDelta):
                if beat.name:
                    calls.append(beat.name + "(")
                calls[-1] += beat.arguments
        end = beats[-1]
        assert isinstance(end, Finish)
        assert "\n".join([said, *(call + ")" for call in calls), end.reason]) == answer
