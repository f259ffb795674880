"""docs/gateway/jobs.md says which vendor has what."""

from pathlib import Path

from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target
from loomgate.providers.jobs import job
from loomgate.providers.operations import verbs_of

PAGE = Path(__file__).parents[2] / "docs" / "gateway" / "jobs.md"
VENDORS = ["bedrock", "vertex-ai", "fireworks-ai", "cohere"]


def table() -> str:
    lines: list[str] = []
    for (endpoint, method, has_id, after), name in job._VERBS.items():  # pyright: ignore[reportPrivateUsage]
        path = job._ROOTS[endpoint] + ("/{id}" if has_id else "") + ("/" + after if after else "")  # pyright: ignore[reportPrivateUsage]
        has: list[str] = []
        for vendor in VENDORS:
            row = CATALOGUE[vendor]
            verbs = verbs_of(Target(vendor=row, base_url=str(row.base_url)), endpoint)
            assert verbs is not None
            has.append("yes" if name in verbs else "")
        lines.append(f"| `{method} /v1{path}` | `{name}` | {' | '.join(has)} |")
    return "\n".join(lines)


def test_the_table_of_verbs_is_documented() -> None:
    page = PAGE.read_text("utf-8")
    assert table() in page, table()
