"""The command line as its users run it: a process, its two outputs and its exit code."""

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

import loomgate as package
from loomgate import __version__

# What this process was told about Loomgate and providers must not reach the commands under test; they run the package
# that this process has, wherever their working directory is.
CLEAN = {key: value for key, value in os.environ.items() if not key.startswith(("LOOMGATE_", "OPENAI_"))}
CLEAN["PYTHONPATH"] = str(Path(package.__path__[0]).parent)


VERBS = ((), ("put",), ("list",), ("show",), ("versions",), ("restore",), ("delete",))


def loomgate(folder: Path, *args: str, stdin: str | None = None, **env: str) -> subprocess.CompletedProcess[str]:
    """One command, run in ``folder``; standard input is empty unless given."""
    return subprocess.run(
        [sys.executable, "-m", "loomgate", *args],
        cwd=folder,
        env=CLEAN | env,
        input=stdin or "",
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def failure(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line with which a command failed."""
    assert done.returncode == code, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("loomgate: ")
    return line.removeprefix("loomgate: ")


def test_version(tmp_path: Path) -> None:
    done = loomgate(tmp_path, "--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"loomgate {__version__}\n", "")


def test_the_version_loads_no_library(tmp_path: Path) -> None:
    code = (
        "import sys; from loomgate.cli import main\n"
        "try: main(['--version'])\n"
        "except SystemExit: print(sorted(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=CLEAN, capture_output=True, text=True, timeout=60, check=True
    )
    loaded = done.stdout.splitlines()[1]
    assert "'loomgate.cli'" in loaded
    for library in ("msgspec", "sqlalchemy", "apsw", "httptools", "starlette", "uvicorn", "cryptography"):
        assert f"'{library}'" not in loaded


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("serve",),
        ("migrate",),
        ("backup",),
        ("doctor",),
        ("keys",),
        ("keys", "create"),
        ("keys", "list"),
        ("keys", "revoke"),
        ("virtual-keys",),
        ("virtual-keys", "create"),
        ("virtual-keys", "list"),
        ("virtual-keys", "delete"),
        ("integrations",),
        ("integrations", "create"),
        ("integrations", "list"),
        ("integrations", "delete"),
        *((group, *verb) for group in ("configs", "guardrails") for verb in VERBS),
    ],
)
def test_every_command_has_help(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = loomgate(tmp_path, *words, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: {' '.join(('loomgate', *words))} ")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "the following arguments are required: COMMAND (`loomgate --help` shows the usage)"),
        (("weave",), "argument COMMAND: invalid choice: 'weave'"),
        (("keys",), "the following arguments are required: VERB (`loomgate keys --help` shows the usage)"),
        (("keys", "create"), "the following arguments are required: --name"),
        (("virtual-keys", "create", "x"), "one of the arguments --provider --integration is required"),
        (("virtual-keys", "create", "x", "--provider", "openai", "--api-key", "sk-1"), "unrecognized arguments"),
    ],
)
def test_wrong_usage_is_one_line(tmp_path: Path, words: tuple[str, ...], line: str) -> None:
    assert failure(loomgate(tmp_path, *words), 2).startswith(line)


@pytest.mark.parametrize("words", [("serve",), ("migrate",), ("keys", "list"), ("virtual-keys", "list")])
def test_every_command_names_a_wrong_setting(tmp_path: Path, words: tuple[str, ...]) -> None:
    (tmp_path / "loomgate.toml").write_text("prot = 1")
    expected = "prot: expected a known key; did you mean `port`?, found an unknown one in loomgate.toml"
    assert failure(loomgate(tmp_path, *words), 2) == expected
    assert "found none.toml" in failure(loomgate(tmp_path, *words, "--config", "none.toml"), 2)


def test_an_option_is_checked_like_a_setting(tmp_path: Path) -> None:
    line = failure(loomgate(tmp_path, "serve", "--port", "x"), 2)
    assert line == "port: expected a whole number from 0 to 65535, found 'x' in --port"
    assert "a `mysql` address" in failure(loomgate(tmp_path, "migrate", "--database-url", "mysql://h/d"), 2)


@pytest.mark.parametrize(
    ("words", "stdin", "line"),
    [
        (("a b", "--provider", "openai"), "", "SLUG: expected a name of up to 64 letters"),
        (("a", "--provider", "openai", "--workspace", "-"), "", "--workspace: expected a name of up to 64 letters"),
        (("a", "--provider", "openai", "--base-url", "x"), "", "--base-url: expected an http:// or https:// address"),
        (("a", "--provider", "openai"), "sk-1", "--api-key-stdin: expected the option, since there is no terminal"),
        (("a", "--provider", "openai", "--api-key-stdin"), "\n", "the API key: expected a key, found nothing"),
    ],
)
def test_a_virtual_key_is_checked_before_it_is_stored(
    tmp_path: Path, words: tuple[str, ...], stdin: str, line: str
) -> None:
    done = loomgate(tmp_path, "virtual-keys", "create", *words, stdin=stdin, OPENAI_API_KEY="sk-2")
    assert failure(done, 2).startswith(line)
    assert list(tmp_path.iterdir()) == []


# --- doctor ---


def test_doctor_of_an_empty_folder_says_what_to_do_and_leaves_no_trace(tmp_path: Path) -> None:
    done = loomgate(tmp_path, "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    assert "no provider: only the model `scripted` works" in done.stdout
    assert "-> set OPENAI_API_KEY" in done.stdout
    assert "none: open to every program of this machine, on 127.0.0.1 only" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("no problems, ")
    assert list(tmp_path.iterdir()) == []


def test_doctor_reports_wrong_settings_as_a_problem(tmp_path: Path) -> None:
    done = loomgate(tmp_path, "doctor", LOOMGATE_PROT="1")
    assert (done.returncode, done.stderr) == (1, "")
    assert "problem  Settings  LOOMGATE_PROT: expected a known key; did you mean `LOOMGATE_PORT`?" in done.stdout


def test_doctor_finds_an_open_address_without_keys(tmp_path: Path) -> None:
    done = loomgate(tmp_path, "doctor", "--host", "192.0.2.1")
    assert done.returncode == 1
    assert "none, but the server is to listen on 192.0.2.1" in done.stdout


def test_doctor_finds_a_data_folder_that_is_a_file_and_a_readable_seal_key(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = loomgate(tmp_path, "doctor", "--data", "file")
    assert done.returncode == 1
    assert "file is not a folder" in done.stdout
    if os.name == "posix":
        (tmp_path / "seal.key").touch(0o644)
        (tmp_path / "seal.key").chmod(0o644)
        done = loomgate(tmp_path, "doctor", "--data", ".")
        assert done.returncode == 1
        assert "-> chmod 600 seal.key" in done.stdout


def test_doctor_shows_routes_and_webhooks_but_no_secret(tmp_path: Path) -> None:
    (tmp_path / "loomgate.toml").write_text("""
        providers.local = {vendor = "openai-compatible", base_url = "http://127.0.0.1:1/v1", models = ["llama*"]}
        providers.big = {vendor = "openai", api_key = "sk-hush", default = true}
        virtual_keys.blue = {provider = "big", api_key = "sk-hush"}
        [[webhooks]]
        url = "http://127.0.0.1:1/token-hush?hush=1"
        secret = "whsec_aHVzaGh1c2hodXNoaHVzaGh1c2hodXNo"
    """)
    done = loomgate(tmp_path, "doctor", "--offline")
    assert done.returncode == 0, done
    assert "llama* -> local" in done.stdout
    assert "every other model -> big" in done.stdout
    assert "big: has a key; not called (--offline)" in done.stdout
    assert "local: has no key; not called (--offline)" in done.stdout
    assert "blue (big)" in done.stdout
    assert "http://127.0.0.1:1: all events of workspace default" in done.stdout
    assert "hush" not in done.stdout + done.stderr


def test_a_declared_config_that_is_none_stops_the_start_and_doctor_says_so(tmp_path: Path) -> None:
    for text, line in (
        ("configs.x.config = {retry = {}}", "configs.x.config: expected a routing config"),
        ("guardrails.x.guardrail = {deny = true}", "guardrails.x.guardrail: expected a guardrail"),
        ("providers.openai.options = {deployments = []}", "providers.openai.options.deployments: expected a list of"),
    ):
        (tmp_path / "loomgate.toml").write_text(text)
        assert failure(loomgate(tmp_path, "serve", "--port", "0"), 2).startswith(line)
        done = loomgate(tmp_path, "doctor", "--offline")
        assert done.returncode == 1
        assert f"problem  Settings         {line}" in re.sub(r" +Settings +", "  Settings         ", done.stdout)
    (tmp_path / "loomgate.toml").write_text("""
        configs.steady = {config = {retry = {attempts = 1}}, workspace = "blue"}
        guardrails.polite = {guardrail = {checks = [{id = "default.contains"}]}}
    """)
    done = loomgate(tmp_path, "doctor", "--offline")
    assert "steady (workspace blue)" in done.stdout
    assert "polite (workspace default)" in done.stdout


@contextmanager
def endpoint(status: int, answer: bytes = b"") -> Generator[tuple[str, list[tuple[str, str | None, bytes]]]]:
    """A model endpoint that answers everything with ``status``: its address, and the calls it got (with which key)."""
    calls: list[tuple[str, str | None, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            calls.append((self.path, self.headers["authorization"] or self.headers["x-goog-api-key"], body))
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}", calls
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "state", "words"),
    [
        (400, "ok", "is reachable"),
        (422, "ok", "is reachable"),
        (401, "problem", "refused the key (401)"),
        (403, "problem", "refused the key (403)"),
        (404, "problem", "nothing there takes chat completions (404)"),
        (200, "problem", "nothing there takes chat completions (200)"),
        (429, "note", "does not serve now (429)"),
        (503, "note", "does not serve now (503)"),
    ],
)
def test_doctor_says_what_an_endpoint_answers(tmp_path: Path, status: int, state: str, words: str) -> None:
    with endpoint(status) as (url, calls):
        done = loomgate(tmp_path, "doctor", OPENAI_API_KEY="sk-hush", OPENAI_BASE_URL=f"{url}/v1")
    assert done.returncode == (1 if state == "problem" else 0)
    assert re.search(rf"^  {state} +Provider +openai: {url} .*{re.escape(words)}", done.stdout, re.MULTILINE)
    assert calls == [("/v1/chat/completions", "Bearer sk-hush", b"{}")]
    assert "hush" not in done.stdout


@pytest.mark.parametrize(
    ("status", "reason", "state", "words"),
    [
        (400, "CONTENTS_MISSING", "ok", "is reachable"),
        (404, "MODEL_NOT_FOUND", "ok", "is reachable"),
        (400, "API_KEY_INVALID", "problem", "refused the key (400)"),
    ],
)
def test_doctor_understands_google(tmp_path: Path, status: int, reason: str, state: str, words: str) -> None:
    """The model is a part of the address there, and a wrong key is a 400."""
    said = json.dumps({"error": {"code": status, "message": "No.", "details": [{"reason": reason}]}}).encode()
    with endpoint(status, said) as (url, calls):
        (tmp_path / "loomgate.toml").write_text(f'providers.google = {{base_url = "{url}", api_key = "env:KEY"}}')
        done = loomgate(tmp_path, "doctor", KEY="AIza-hush")
    assert re.search(rf"^  {state} +Provider +google: {url} .*{re.escape(words)}", done.stdout, re.MULTILINE)
    assert calls == [("/v1beta/models/none:streamGenerateContent?alt=sse", "AIza-hush", b"{}")]
    assert "hush" not in done.stdout


def test_doctor_says_that_nothing_answers_and_what_a_provider_lacks(tmp_path: Path) -> None:
    (tmp_path / "loomgate.toml").write_text("""
        providers.gone = {vendor = "openai-compatible", base_url = "http://127.0.0.1:1/v1"}
        providers.keyless = {vendor = "openai"}
        providers.nowhere = {vendor = "openai-compatible"}
        providers.unknown = {}
    """)
    done = loomgate(tmp_path, "doctor")
    assert done.returncode == 1
    assert "gone: http://127.0.0.1:1 is not reachable: No connection to 127.0.0.1" in done.stdout
    assert "keyless: no key, and the vendor needs one" in done.stdout
    assert "nowhere: the vendor has no address of its own" in done.stdout
    assert "unknown: no vendor `unknown` in the catalogue" in done.stdout


def test_doctor_signs_what_it_sends_to_aws(tmp_path: Path) -> None:
    with endpoint(400) as (url, calls):
        (tmp_path / "loomgate.toml").write_text(f"""
            [providers.bedrock]
            base_url = "{url}"
            region = "eu-west-1"
            aws_access_key_id = "AKIDEXAMPLE"
            aws_secret_access_key = "hush"
            [providers.openai]
            api_key = "hush"
            region = "eu-west-1"
        """)
        done = loomgate(tmp_path, "doctor")
    assert f"bedrock: {url} is reachable" in done.stdout
    assert "providers.openai.region: expected nothing, since the vendor `openai` has no region" in done.stdout
    ((path, authorization, body),) = calls
    assert (path, body) == ("/model/none/converse-stream", b"{}")
    assert (authorization or "").startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert "hush" not in done.stdout


# --- the store ---


def test_keys_are_made_shown_and_revoked(tmp_path: Path) -> None:
    made = loomgate(tmp_path, "keys", "create", "--workspace", "blue", "--name", "ci")
    assert made.returncode == 0
    secret = made.stdout.strip()
    assert re.fullmatch(r"\S{20,}", secret)
    id = made.stderr.split()[0]
    shown = loomgate(tmp_path, "keys", "list").stdout
    assert re.search(rf"^{id} +blue +ci .* UTC$", shown, re.MULTILINE)
    assert secret not in shown
    assert "API keys      1 in force" in loomgate(tmp_path, "doctor").stdout
    assert loomgate(tmp_path, "keys", "revoke", id).returncode == 0
    assert "every key is revoked: no request is let in" in loomgate(tmp_path, "doctor").stdout
    assert len(re.findall("UTC", loomgate(tmp_path, "keys", "list").stdout)) == 2
    assert id in failure(loomgate(tmp_path, "keys", "revoke", id), 1)


def test_virtual_keys_are_made_shown_and_deleted(tmp_path: Path) -> None:
    create = ("virtual-keys", "create", "team", "--provider", "groq", "--api-key-stdin")
    made = loomgate(tmp_path, *create, stdin="sk-hush\n")
    assert (made.returncode, made.stdout) == (0, "")
    assert "has a virtual key team already" in failure(loomgate(tmp_path, *create, stdin="sk-hush\n"), 1)
    assert loomgate(tmp_path, *create, "--workspace", "blue", stdin="sk-hush").returncode == 0
    shown = loomgate(tmp_path, "virtual-keys", "list").stdout
    assert [line.split()[:3] for line in shown.splitlines()[1:]] == [
        ["team", "blue", "groq"],
        ["team", "default", "groq"],
    ]
    assert loomgate(tmp_path, "virtual-keys", "list", "--workspace", "red").stdout == ""
    assert "team (groq), team (groq)" in loomgate(tmp_path, "doctor").stdout
    assert loomgate(tmp_path, "virtual-keys", "delete", "team").returncode == 0
    assert "no virtual key team in workspace default" in failure(
        loomgate(tmp_path, "virtual-keys", "delete", "team"), 1
    )
    unknown = loomgate(tmp_path, "virtual-keys", "create", "x", "--provider", "gorq", "--api-key-stdin", stdin="k")
    assert "groq" in failure(unknown, 2)
    for path in (tmp_path / "loomgate-data").iterdir():
        assert b"sk-hush" not in path.read_bytes()


def test_an_admin_key_says_so(tmp_path: Path) -> None:
    made = loomgate(tmp_path, "keys", "create", "--name", "boss", "--role", "admin")
    assert "role admin" in made.stderr
    assert re.search(r" boss +admin ", loomgate(tmp_path, "keys", "list").stdout)
    assert "invalid choice: 'root'" in failure(loomgate(tmp_path, "keys", "create", "--name", "x", "--role", "root"), 2)


def test_integrations_lend_their_key_to_virtual_keys(tmp_path: Path) -> None:
    (tmp_path / "data.json").write_text('{"aws_access_key_id": "AKIA-hush", "aws_secret_access_key": "hush-secret"}')
    create = ("integrations", "create", "aws", "--provider", "bedrock", "--options-file", "data.json")
    assert loomgate(tmp_path, *create, "--option", "aws_region=eu-west-1").returncode == 0
    assert "has an integration aws already" in failure(loomgate(tmp_path, *create), 1)
    key = ("virtual-keys", "create", "team", "--integration")
    assert "no integration nope" in failure(loomgate(tmp_path, *key, "nope"), 1)
    assert "no key, address or provider data" in failure(loomgate(tmp_path, *key, "aws", "--option", "aws_region=x"), 2)
    assert loomgate(tmp_path, *key, "aws").returncode == 0
    shown = loomgate(tmp_path, "virtual-keys", "list").stdout
    assert shown.splitlines()[1].split() == ["team", "default", "bedrock", "aws"]
    assert "aws is used by the virtual keys team" in failure(loomgate(tmp_path, "integrations", "delete", "aws"), 1)
    loomgate(tmp_path, "virtual-keys", "delete", "team")
    assert loomgate(tmp_path, "integrations", "delete", "aws").returncode == 0
    for option, words in (
        ("aws_secret_access_key=x", "--options-file"),
        ("aws_regio=x", "no such field"),
        ("aws_region", "NAME=VALUE"),
    ):
        assert words in failure(loomgate(tmp_path, *create, "--option", option), 2)
    for path in (tmp_path / "loomgate-data").iterdir():
        assert b"hush" not in path.read_bytes()


def test_configs_are_saved_shown_and_restored(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('{"provider": "openai", "api_key": "sk-hush-0123456789abcd"}')
    (tmp_path / "two.json").write_text('{"retry": {"attempts": 2}}')
    first = loomgate(tmp_path, "configs", "put", "steady", "one.json", "--default", "--name", "Steady")
    assert (first.returncode, first.stdout) == (0, "")
    version = first.stderr.split()[-1]
    assert loomgate(tmp_path, "configs", "put", "steady", "two.json").returncode == 0
    shown = loomgate(tmp_path, "configs", "list").stdout.splitlines()
    assert shown[1].split()[:4] == ["steady", "default", "Steady", "default"]
    assert json.loads(loomgate(tmp_path, "configs", "show", "steady").stdout) == {"retry": {"attempts": 2}}
    old = loomgate(tmp_path, "configs", "show", "steady", "--version", version).stdout
    assert json.loads(old) == {"provider": "openai", "api_key": "sk-…abcd"}
    versions = loomgate(tmp_path, "configs", "versions", "steady").stdout.splitlines()[1:]
    assert [line.split()[0] for line in versions][1] == version
    assert loomgate(tmp_path, "configs", "restore", "steady", version).returncode == 0
    assert json.loads(loomgate(tmp_path, "configs", "show", "steady").stdout)["provider"] == "openai"
    assert len(loomgate(tmp_path, "configs", "versions", "steady").stdout.splitlines()) == 4
    assert loomgate(tmp_path, "configs", "delete", "steady").returncode == 0
    for words in (("show", "steady"), ("versions", "steady"), ("restore", "steady", "x"), ("delete", "steady")):
        assert "no config steady in workspace default" in failure(loomgate(tmp_path, "configs", *words), 1)
    for path in (tmp_path / "loomgate-data").iterdir():
        assert b"sk-hush" not in path.read_bytes()


def test_what_is_no_config_or_guardrail_is_not_saved(tmp_path: Path) -> None:
    for text, words, code in (
        ('{"retry": {}}', "attempts", 1),
        ('{"virtual_key": "nope"}', "config.virtual_key: 'nope' is not a virtual key", 1),
        ("[]", "an object in JSON", 2),
        ("{", "an object in JSON", 2),
    ):
        done = loomgate(tmp_path, "configs", "put", "x", "-", stdin=text)
        assert words in failure(done, code)
    assert "a file that can be read" in failure(loomgate(tmp_path, "configs", "put", "x", "gone.json"), 2)
    for text, words, code in (('{"deny": true}', "checks", 2), ('{"checks": []}', "at least one check", 1)):
        assert words in failure(loomgate(tmp_path, "guardrails", "put", "x", "-", stdin=text), code)
    body = '{"checks": [{"id": "default.contains", "parameters": {"words": ["x"], "operator": "none"}}], "deny": true}'
    assert loomgate(tmp_path, "guardrails", "put", "polite", "-", stdin=body).returncode == 0
    assert json.loads(loomgate(tmp_path, "guardrails", "show", "polite").stdout)["id"] == "polite"


def test_migrate_says_from_where_to_where(tmp_path: Path) -> None:
    first, second = (loomgate(tmp_path, "migrate") for _ in range(2))
    revision = first.stdout.strip().removeprefix("no database -> ")
    assert revision
    assert second.stdout == f"already at {revision}\n"
    done = loomgate(tmp_path, "doctor")
    assert done.returncode == 0
    assert f"revision {revision}; not opened, it has no seal key" in done.stdout
    assert not (tmp_path / "loomgate-data" / "seal.key").exists()


def test_a_store_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "loomgate-data").write_text("")
    line = failure(loomgate(tmp_path, "keys", "list"), 1)
    assert "loomgate-data" in line
