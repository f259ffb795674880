"""The sealed form opens with its key and context alone, and the key file is made once, private and whole."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from loomgate.errors import SettingError, StoreError
from loomgate.store.seal import Sealer, load_key

KEY = bytes(range(32))


@pytest.mark.parametrize("plain", ["", "sk-abc", "ключ \U0001f511", "x" * 10_000])
def test_a_sealed_secret_opens_with_its_key_and_context(plain: str) -> None:
    sealed = Sealer(KEY).seal(plain, context="vk_1")
    assert Sealer(KEY).open(sealed, context="vk_1") == plain
    assert plain.encode() not in sealed or not plain


def test_sealing_twice_gives_different_bytes() -> None:
    sealer = Sealer(KEY)
    assert sealer.seal("same", context="vk_1") != sealer.seal("same", context="vk_1")


def test_another_key_is_named_as_the_reason() -> None:
    sealed = Sealer(KEY).seal("sk-abc", context="vk_1")
    with pytest.raises(StoreError, match=r"vk_1 does not open: it was sealed with another key"):
        Sealer(bytes(32)).open(sealed, context="vk_1")


def test_another_context_does_not_open() -> None:
    sealed = Sealer(KEY).seal("sk-abc", context="vk_1")
    with pytest.raises(StoreError, match="vk_2 does not open"):
        Sealer(KEY).open(sealed, context="vk_2")


def test_every_damaged_byte_is_noticed() -> None:
    sealer = Sealer(KEY)
    sealed = sealer.seal("sk-abc", context="vk_1")
    for at in range(len(sealed)):
        damaged = sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]
        with pytest.raises(StoreError):
            sealer.open(damaged, context="vk_1")
    for length in range(len(sealed)):
        with pytest.raises(StoreError):
            sealer.open(sealed[:length], context="vk_1")


def test_an_unknown_version_is_said_to_be_one() -> None:
    with pytest.raises(StoreError, match="a form that this version does not know"):
        Sealer(KEY).open(b"\x02" + bytes(40), context="vk_1")


def test_the_mark_follows_from_the_key_and_is_not_the_key() -> None:
    assert Sealer(KEY).mark == Sealer(KEY).mark
    assert len({KEY, Sealer(KEY).mark, Sealer(bytes(32)).mark}) == 3


def test_a_key_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        Sealer(b"short")


def test_the_setting_is_used_and_no_file_is_made(tmp_path: Path) -> None:
    assert load_key(KEY.hex(), tmp_path) == KEY
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(SettingError):
        load_key("too short", tmp_path)


def test_the_file_is_made_once_private_and_alone_in_its_folder(tmp_path: Path) -> None:
    data = tmp_path / "a" / "data"
    key = load_key("", data)
    assert len(key) == 32
    assert load_key("", data) == key
    assert [path.name for path in data.iterdir()] == ["seal.key"]
    if os.name == "posix":
        assert stat.S_IMODE((data / "seal.key").stat().st_mode) == 0o600
    assert load_key("", tmp_path / "other") != key


def test_many_starters_agree_on_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        keys = set(pool.map(load_key, [""] * 16, [tmp_path] * 16))
    assert len(keys) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["seal.key"]


@pytest.mark.parametrize("content", [b"", b"abc", b"z" * 64, b"\xff" * 64])
def test_a_file_that_is_no_key_is_refused_and_kept(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "seal.key").write_bytes(content)
    with pytest.raises(StoreError, match="not a seal key"):
        load_key("", tmp_path)
    assert (tmp_path / "seal.key").read_bytes() == content


def test_a_data_path_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StoreError, match=r"data.seal\.key: .*; set seal_key"):
        load_key("", tmp_path / "data")
