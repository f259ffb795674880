"""A power cut: what was acknowledged is on disk.

What is proven: SQLite syncs the write-ahead log before an answer goes out, and from what was synced alone (``disk.py``)
the server starts again and has everything that it acknowledged. What is not: that the operating system and the disk
keep what they were told to sync, that a new file's entry in its folder is on disk (the database's own folder is made
once), and a disk that keeps some of what was not synced and loses the rest; SQLite's checksums are for that.
"""

from pathlib import Path

import pytest

from tests.crash.check import check_consistent
from tests.crash.rig import Client, Crash, Forge, Refused, World, text_of
from tests.crash.stories import STORIES
from tests.crash.test_points import play


@pytest.mark.behaviour("RUN-99")
@pytest.mark.parametrize(
    "crash", [(point, count) for point, count in STORIES["text_then_tools"].points.items()], ids=lambda crash: crash[0]
)
def test_a_run_survives_a_power_cut(forge: Forge, tmp_path: Path, crash: Crash) -> None:
    play(World(forge, tmp_path, crash, power=True), "text_then_tools")


def _cut_after_an_answer(world: World) -> tuple[Client, str, list[str]]:
    """A client that was just answered when the power went; its thread, and the texts that were acknowledged."""
    client = Client(world)
    thread = client.thread()
    said = [text_of(client.say(thread, f"message {number}")) for number in range(20)]
    world.end()
    world.cut_power()
    world.start()
    return client, thread, said


def test_an_acknowledged_message_survives_a_power_cut(forge: Forge, tmp_path: Path) -> None:
    world = World(forge, tmp_path, power=True)
    client, thread, said = _cut_after_an_answer(world)
    assert [text_of(message) for message in client.messages(thread)] == said
    client.close()
    world.end()
    check_consistent(world.database)


def test_the_disk_of_these_tests_does_forget(forge: Forge, tmp_path: Path) -> None:
    """With `sqlite_synchronous = "normal"`, which promises less, the same messages are gone."""
    world = World(forge, tmp_path, power=True, env={"LOOMGATE_SQLITE_SYNCHRONOUS": "normal"})
    client, thread, _ = _cut_after_an_answer(world)
    with pytest.raises(Refused, match="No thread found"):
        client.messages(thread)
    client.close()
    world.end()
    check_consistent(world.database)
