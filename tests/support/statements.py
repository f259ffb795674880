"""The numbered statements of BEHAVIOUR.md and GATEWAY.md: which exist, and in which section. Reads these files only."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FILES = ("BEHAVIOUR", "GATEWAY")
_DATA = Path(__file__).parent.parent / "data"

_SECTION = re.compile(r"## (\d+)\. (.+)")
# A statement is a list item or a table's row that starts with its id in bold.
_STATEMENT = re.compile(r"(?:- |\| )\*\*([A-Z][A-Z0-9]*-\d+)\*\*(.*)")


@dataclass(frozen=True)
class Statement:
    """One numbered statement: its id, its file, the number and title of its section, and its line without the id."""

    id: str
    file: str
    section: int
    title: str
    text: str


@cache
def statements() -> dict[str, Statement]:
    """Every statement by its id, in the files' order. Raises `ValueError` for an id that is given twice."""
    found: dict[str, Statement] = {}
    for file in FILES:
        section, title = 0, ""
        for line in (_DATA / f"{file}.md").read_text().splitlines():
            if heading := _SECTION.fullmatch(line):
                section, title = int(heading[1]), heading[2]
            elif row := _STATEMENT.match(line):
                if row[1] in found:
                    raise ValueError(f"{file}.md gives {row[1]} again")
                found[row[1]] = Statement(row[1], file, section, title, row[2].strip(" |"))
    return found
