"""libpq's connection URIs against real servers: sockets, several hosts, TLS; and what is refused by name."""

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest
from tests.support.authority import Authority
from tests.support.engines import PostgresServer, folder, free_port

from loomgate.errors import StoreError
from loomgate.store.dsn import arguments
from loomgate.store.postgres import connect

pytestmark = pytest.mark.anyio

_HBA = """
local all all trust
host all plain 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    """A server that wants a password over TCP."""
    with folder() as place:
        (place / "hba").write_text(_HBA)
        (place / "hba").chmod(0o644)
        server = PostgresServer(place, {"hba_file": str(place / "hba")})
        server.start()

        async def prepare() -> None:
            admin = await asyncpg.connect(host=str(place), port=server.port, user="loomgate", database="postgres")
            await admin.execute("ALTER ROLE loomgate PASSWORD 'p@ss/wörd?'; CREATE ROLE plain LOGIN")
            await admin.close()

        asyncio.run(prepare())
        yield server
        server.stop()


@asynccontextmanager
async def with_tls(server: PostgresServer, context: ssl.SSLContext) -> AsyncIterator[tuple[int, list[str]]]:
    """A port where ``server`` speaks TLS, which not every build can: its end of TLS is here. And what came."""
    came: list[str] = []
    tasks: set[asyncio.Task[None]] = set()

    async def forward(source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            to.write(data)
        to.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            if await reader.readexactly(8) != struct.pack("!ll", 8, 80877103):
                came.append("plain")
                writer.close()
                return
            writer.write(b"S")
            await writer.drain()
            await writer.start_tls(context)
            came.append("tls")
            behind, out = await asyncio.open_connection("127.0.0.1", server.port)
            tasks.update({asyncio.create_task(forward(reader, out)), asyncio.create_task(forward(behind, writer))})

    made = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield made.sockets[0].getsockname()[1], came
    finally:
        made.close()
        for task in tasks:
            task.cancel()


PASSWORD = quote("p@ss/wörd?", safe="")


async def ask(url: str, sql: str = "SELECT 1") -> object:
    connection = await connect(arguments(url))
    try:
        return await connection.fetchval(sql)
    finally:
        await connection.close()


async def test_unix_sockets(server: PostgresServer) -> None:
    place, port = str(server.folder), server.port
    assert await ask(f"postgresql://loomgate@{quote(place, safe='')}:{port}/postgres") == 1
    assert await ask(f"postgresql:///postgres?host={place}&port={port}&user=loomgate") == 1
    assert await ask(f"postgres:///postgres?host={quote(place, safe='')}&port={port}&user=loomgate") == 1


async def test_several_hosts_are_tried_in_turn(server: PostgresServer) -> None:
    dead = free_port()
    login = f"loomgate:{PASSWORD}"
    assert await ask(f"postgresql://{login}@127.0.0.1:{dead},127.0.0.1:{server.port}/postgres") == 1
    assert await ask(f"postgresql://{login}@/postgres?host=127.0.0.1,127.0.0.1&port={dead},{server.port}") == 1
    role = f"postgresql://{login}@127.0.0.1:{server.port}/postgres?target_session_attrs"
    assert await ask(f"{role}=read-write", "SELECT pg_is_in_recovery()") is False
    with pytest.raises(StoreError, match="cannot open the database"):
        await ask(f"{role}=standby")


async def test_tls(server: PostgresServer, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    root = authority.ca_file
    async with with_tls(server, authority.context("localhost")) as (port, came):
        place = f"loomgate:{PASSWORD}@localhost:{port}/postgres"
        by_number = place.replace("localhost", "127.0.0.1")
        for one in (
            f"{place}?sslmode=require",
            f"{place}?sslmode=verify-full&sslrootcert={root}",
            f"{by_number}?sslmode=verify-ca&sslrootcert={root}",
        ):
            assert await ask(f"postgresql://{one}") == 1
        assert came == ["tls"] * 3
        with pytest.raises(StoreError, match=r"cannot open the database 127.0.0.1:\d+/postgres: .*certificate"):
            await ask(f"postgresql://{by_number}?sslmode=verify-full&sslrootcert={root}")
        with pytest.raises(StoreError, match="cannot open the database"):
            await ask(f"postgresql://{place}?sslmode=disable")
        assert came[-1] == "plain"
    plain = f"loomgate:{PASSWORD}@127.0.0.1:{server.port}/postgres"
    with pytest.raises(StoreError, match="rejected SSL upgrade"):
        await ask(f"postgresql://{plain}?sslmode=require")
    with pytest.raises(StoreError, match="sslrootcert in its URL has to be a file"):
        arguments(f"postgresql://{plain}?sslmode=verify-full&sslrootcert=/nowhere.pem")


async def test_what_is_wrong_is_one_line_without_the_password(server: PostgresServer) -> None:
    port = server.port
    for url, words in (
        (f"postgresql://loomgate:s3cret@127.0.0.1:{port}/postgres", "password authentication failed"),
        (f"postgresql://plain:s3cret@127.0.0.1:{port}/nowhere?sslmode=disable", 'database "nowhere" does not exist'),
        (f"postgresql://plain:s3cret@127.0.0.1:{free_port()}/postgres", "Connection refused"),
        ("postgresql://plain:s3cret@nowhere.invalid/postgres", "cannot open the database nowhere.invalid/postgres"),
        (f"postgresql:///postgres?host=/nowhere&port={port}&password=s3cret", "No such file or directory"),
        ("postgresql://h/d?password=s3cret&colour=s3cret", "its URL has `colour`, which is not known here"),
        ("postgresql://h/d?password=s3cret&search_path=x", "`search_path`"),
        ("postgresql://h/d?password=s3cret&gssencmode=require", "gssencmode in its URL has to be"),
        ("postgresql://h/d?password=s3cret&connect_timeout=soon", "connect_timeout in its URL has to be"),
        ("postgresql://h,i,j/d?password=s3cret&port=1,2", "as many ports as hosts"),
        ("postgresql://h/d?password=s3cret&hostaddr=::1&host=h&sslmode=verify-full", "`hostaddr` beside `host`"),
        ("postgresql://h/d?password=s3cret&service=none&servicefile=/nowhere", "does not have the service none"),
    ):
        with pytest.raises(StoreError) as caught:
            await ask(url)
        message = str(caught.value)
        assert words in message
        assert "s3cret" not in message
        assert "\n" not in message


async def test_settings_of_the_session(server: PostgresServer) -> None:
    url = f"postgresql://loomgate:{PASSWORD}@127.0.0.1:{server.port}/postgres"
    assert await ask(url, "SHOW application_name") == "loomgate"
    assert await ask(f"{url}?application_name=a+b%20c", "SHOW application_name") == "a+b c", "a plus is no space"
    assert await ask(url, "SHOW idle_in_transaction_session_timeout") == "5s"
    own = f"{url}?options=-c%20lock_timeout%3D7s%20--work-mem=5MB"
    assert await ask(own, "SHOW lock_timeout") == "7s"
    assert await ask(own, "SHOW work_mem") == "5MB"


async def test_files_with_passwords_and_services(server: PostgresServer, tmp_path: Path) -> None:
    passwords = tmp_path / "pgpass"
    passwords.write_text(f"127.0.0.1:{server.port}:*:loomgate:p@ss/wörd?\n")
    passwords.chmod(0o600)
    assert await ask(f"postgresql://loomgate@127.0.0.1:{server.port}/postgres?passfile={passwords}") == 1
    assert await ask(f"postgresql://loomgate@/postgres?hostaddr=127.0.0.1&port={server.port}&passfile={passwords}") == 1
    services = tmp_path / "services"
    services.write_text(f"[ours]\nhost={server.folder}\nport={server.port}\nuser=loomgate\ndbname=postgres\n")
    assert await ask(f"postgresql://?service=ours&servicefile={services}") == 1
    assert await ask(f"postgresql:///template1?service=ours&servicefile={services}", "SELECT current_database()") == (
        "template1"
    ), "what the URL says goes before"


async def test_options_of_the_connection_itself(server: PostgresServer) -> None:
    url = f"postgresql://loomgate:{PASSWORD}@127.0.0.1:{server.port}/postgres"
    for given, idle, timeout in (
        ("", 5, 10_000),
        ("?keepalives_idle=60&tcp_user_timeout=4000&keepalives=1", 60, 4_000),
    ):
        connection = await connect(arguments(url + given))
        found = connection._transport.get_extra_info("socket")
        assert found.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == idle
        assert found.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == timeout
        await connection.close()
    assert (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 0) in arguments(f"{url}?keepalives=0").tcp
