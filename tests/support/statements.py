"""The numbered statements of BEHAVIOUR.md: which exist, and in which section. Reads that one file, nothing else."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

BEHAVIOUR = Path(__file__).parent.parent / "data" / "BEHAVIOUR.md"

_SECTION = re.compile(r"## (\d+)\. (.+)")
# A statement is a list item or a table's row that starts with its id in bold.
_STATEMENT = re.compile(r"(?:- |\| )\*\*([A-Z][A-Z0-9]*-\d+)\*\*(.*)")


@dataclass(frozen=True)
class Statement:
    """One numbered statement: its id, the number and title of its section, and its line without the id."""

    id: str
    section: int
    title: str
    text: str


@cache
def statements() -> dict[str, Statement]:
    """Every statement by its id, in the file's order. Raises `ValueError` for an id that is given twice."""
    found: dict[str, Statement] = {}
    section, title = 0, ""
    for line in BEHAVIOUR.read_text().splitlines():
        if heading := _SECTION.fullmatch(line):
            section, title = int(heading[1]), heading[2]
        elif row := _STATEMENT.match(line):
            if row[1] in found:
                raise ValueError(f"{BEHAVIOUR.name} has {row[1]} twice")
            found[row[1]] = Statement(row[1], section, title, row[2].strip(" |"))
    return found
