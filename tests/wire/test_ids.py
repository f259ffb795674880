"""Ids have the real service's form and never repeat."""

import re
from typing import get_args

import pytest

from loomgate.wire.ids import Prefix, new_id, new_request_id


@pytest.mark.behaviour("ID-01")
@pytest.mark.parametrize("prefix", get_args(Prefix))
def test_a_prefix_and_24_letters_or_digits(prefix: Prefix) -> None:
    for _ in range(200):
        assert re.fullmatch(rf"{prefix}_[A-Za-z0-9]{{24}}", new_id(prefix))


@pytest.mark.behaviour("ID-10")
def test_ids_do_not_repeat_and_use_all_letters() -> None:
    ids = [new_id("run") for _ in range(5000)]
    assert len(set(ids)) == 5000
    for place in range(4, 28):
        assert len({id[place] for id in ids}) == 62, "no place is more predictable than another"


@pytest.mark.behaviour("HDR-20")
def test_request_ids() -> None:
    ids = {new_request_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(re.fullmatch(r"req_[0-9a-f]{32}", id) for id in ids)
