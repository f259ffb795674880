"""The checker of databases can fail: every kind of harm that it is for, done to a database that is in order."""

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.crash.check import check_consistent
from tests.crash.rig import Client, Forge, World
from tests.crash.stories import STORIES

# Shorthand in the statements below.
WORDS = {
    "A_MESSAGE": "id = (SELECT max(id) FROM messages WHERE run_id IS NOT NULL)",
    "A_CALL": """id = (SELECT id FROM steps WHERE CAST(body AS TEXT) LIKE '%"type":"tool_calls"%')""",
    # SQLite's JSON functions read and write text; the column holds bytes.
    "json_set(body,": "json_set(CAST(body AS TEXT),",
}

HARM = {
    "a doubled message": "INSERT INTO messages SELECT id || 'x', thread_id, position + 90, run_id, place, role, body"
    " FROM messages WHERE run_id IS NOT NULL",
    "a lost message": "DELETE FROM messages WHERE A_MESSAGE",
    "a message of no run": "UPDATE messages SET run_id = 'run_x' WHERE A_MESSAGE",
    "a message left open": "UPDATE messages SET body ="
    " json_set(body, '$.status', 'in_progress', '$.completed_at', null) WHERE A_MESSAGE",
    "a wrong counter": "UPDATE threads SET messages = messages + 1",
    "an order key out of range": "UPDATE messages SET position = position + 100",
    "a column that says something else": "UPDATE runs SET status = 'failed'",
    "a run without its time": "UPDATE runs SET body = json_set(body, '$.completed_at', null)",
    "a run left at work": "UPDATE runs SET due = 1",
    "a thread still held": "UPDATE runs SET holds = thread_id",
    "a step left open": "UPDATE steps SET status = 'in_progress', body = json_set(body, '$.status', 'in_progress',"
    " '$.completed_at', null, '$.usage', null) WHERE position = (SELECT max(position) FROM steps)",
    "a step of no run": "UPDATE steps SET run_id = 'run_x'",
    "a lost step": "DELETE FROM steps WHERE A_CALL",
    "a lost turn": "UPDATE steps SET turn = turn + 1 WHERE turn > 1",
    "an output that is missing": "UPDATE steps SET body ="
    " json_set(body, '$.step_details.tool_calls[0].function.output', null) WHERE A_CALL",
    "tokens that do not add up": "UPDATE runs SET body = json_set(body, '$.usage.total_tokens', 7)",
    "a message in another's place": "UPDATE messages SET place = place + 1 WHERE A_MESSAGE",
    "rows without their thread": "DELETE FROM threads",
}


@pytest.fixture(scope="module")
def sound(forge: Forge, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database with a run of two turns."""
    world = World(forge, tmp_path_factory.mktemp("sound"))
    client = Client(world)
    STORIES["text_then_tools"].tell(client)
    client.close()
    world.stop()
    check_consistent(world.database, ended=True)
    return world.database


@pytest.mark.parametrize("harm", HARM)
def test_harm_is_found(sound: Path, tmp_path: Path, harm: str) -> None:
    path = tmp_path / "loomgate.db"
    shutil.copyfile(sound, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        statement = HARM[harm]
        for word, meaning in WORDS.items():
            statement = statement.replace(word, meaning)
        assert connection.execute(statement).rowcount
    with pytest.raises(AssertionError):
        check_consistent(path, ended=True)
