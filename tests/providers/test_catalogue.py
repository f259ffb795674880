"""The catalogue: every row can be called, and says nothing that contradicts another row."""

from fnmatch import fnmatchcase

import pytest

from loomgate.providers.catalogue import CATALOGUE
from loomgate.providers.dialect import Target
from loomgate.providers.operations import dialect_of
from loomgate.wire.chat import Chat, ChatMessage


@pytest.mark.parametrize("name", CATALOGUE)
def test_every_row_makes_a_request(name: str) -> None:
    row = CATALOGUE[name]
    target = Target(vendor=row, base_url=row.base_url or "http://127.0.0.1:8000/v1", api_key="k")
    call = Chat(model="m", messages=[ChatMessage(role="user", content="x")], max_completion_tokens=3)
    made = dialect_of(target).request(call, target)
    assert made.url.startswith("https://") or row.base_url is None or "127.0.0.1" in row.base_url
    if row.dialect != "openai":
        return  # the conformance suite knows what to expect
    assert made.url.endswith("/v1/chat/completions") or made.url.endswith("/chat/completions")
    assert (b'"max_tokens":3' in made.body) != (b'"max_completion_tokens":3' in made.body)


def test_no_model_name_belongs_to_two_vendors() -> None:
    owners = [(pattern, row.name) for row in CATALOGUE.values() for pattern in row.models]
    for pattern, owner in owners:
        example = pattern.replace("*", "x")
        assert [name for other, name in owners if fnmatchcase(example, other)].count(owner) >= 1
        assert {name for other, name in owners if fnmatchcase(example, other)} == {owner}
