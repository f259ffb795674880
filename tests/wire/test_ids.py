"""Ids: their form, and that nobody can guess or meet one twice."""

import re
from collections import Counter
from typing import get_args

import pytest

from loomgate.wire.ids import Prefix, new_id, new_request_id


@pytest.mark.behaviour("ID-01")
@pytest.mark.parametrize("prefix", get_args(Prefix))
def test_an_id_is_its_prefix_and_24_letters_or_digits(prefix: Prefix) -> None:
    for _ in range(200):
        assert re.fullmatch(rf"{prefix}_[A-Za-z0-9]{{24}}", new_id(prefix))


@pytest.mark.behaviour("ID-01")
def test_the_prefixes_of_the_api_are_among_them() -> None:
    assert {"asst", "thread", "msg", "run", "step", "call"} <= set(get_args(Prefix))


@pytest.mark.behaviour("ID-10")
def test_no_id_comes_twice() -> None:
    assert len({new_id("run") for _ in range(20_000)}) == 20_000


def test_every_character_is_used_in_every_place() -> None:
    """A place that only ever held a few of them would make ids easier to guess. 62 characters, 12,400 ids: each is
    expected 200 times a place, and less than 100 or more than 300 times does not happen by chance."""
    ids = [new_id("run").removeprefix("run_") for _ in range(12_400)]
    for place in range(24):
        counted = Counter(id[place] for id in ids)
        assert len(counted) == 62, place
        assert min(counted.values()) > 100, place
        assert max(counted.values()) < 300, place


@pytest.mark.behaviour("HDR-20")
def test_a_request_id_has_32_hex_digits() -> None:
    made = {new_request_id() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", id) for id in made)
