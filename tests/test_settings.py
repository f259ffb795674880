"""Settings: the order of their sources, one clear line for every mistake, masked secrets, and documentation in step."""

import base64
import re
import typing
from pathlib import Path

import msgspec
import pytest

from loomgate.errors import SettingError
from loomgate.settings import (
    DeclaredConfig,
    DeclaredGuardrail,
    Price,
    Provider,
    RunEvent,
    Secret,
    Settings,
    VirtualKey,
    Webhook,
    decode_seal_key,
    describe,
    load,
)
from loomgate.settings.provider_data import hidden, is_secret, masked_path, unhidden

DOCS = Path(__file__).parent.parent / "docs" / "settings.md"
WHSEC = "whsec_" + base64.b64encode(bytes(range(32))).decode()
KEY = bytes(range(200, 232))
KINDS = (Settings, Provider, VirtualKey, DeclaredConfig, DeclaredGuardrail, Webhook, Price)


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # pyright: ignore[reportUnusedFunction]
    monkeypatch.chdir(tmp_path)


def write(text: str, path: str = "loomgate.toml") -> Path:
    Path(path).write_text(text, "utf-8")
    return Path(path)


def refusal(text: str = "", /, **env: str) -> str:
    """The message with which a file's ``text`` and an environment are refused."""
    write(text)
    with pytest.raises(SettingError) as caught:
        load(env=env)
    return str(caught.value)


# --- sources ---


def test_defaults_alone_make_a_server_on_the_loopback_address() -> None:
    made = load(env={})
    assert made == Settings()
    assert (made.host, made.port, made.database_path) == ("127.0.0.1", 8787, Path("loomgate-data/loomgate.db"))
    assert made.default_provider is None


def test_the_last_source_that_has_a_key_wins() -> None:
    write('port = 1\nhost = "file"\nlog_level = "debug"\ndrain_seconds = 3\n')
    made = load({"port": "3", "host": None}, {"LOOMGATE_PORT": "2", "LOOMGATE_HOST": "env"})
    assert (made.port, made.host, made.log_level, made.drain_seconds) == (3, "env", "debug", 3.0)


def test_the_file_is_the_given_one_then_that_of_the_environment_then_the_folders() -> None:
    write("port = 1")
    write("port = 2", "named.toml")
    write("port = 3", "given.toml")
    env = {"LOOMGATE_CONFIG": "named.toml"}
    assert load(env={}).port == 1
    assert load(env=env).port == 2
    assert load(env=env, file=Path("given.toml")).port == 3


@pytest.mark.parametrize(
    ("variable", "text", "value"),
    [
        ("LOOMGATE_CANCEL_ON_DISCONNECT", "true", True),
        ("LOOMGATE_CANCEL_ON_DISCONNECT", "0", False),
        ("LOOMGATE_LEASE_SECONDS", "12.5", 12.5),
        ("LOOMGATE_HOST", "0", "0"),
        ("LOOMGATE_DATA", "/srv/x", Path("/srv/x")),
        ("LOOMGATE_WEBHOOK_RETRY_SECONDS", "[1, 2.5]", (1.0, 2.5)),
        ("LOOMGATE_CONTEXT_WINDOW", '{"gpt-*": 8192}', {"gpt-*": 8192}),
    ],
)
def test_the_environment_is_read_as_the_key_wants(variable: str, text: str, value: object) -> None:
    assert getattr(load(env={variable: text}), variable.removeprefix("LOOMGATE_").lower()) == value


def test_what_kubernetes_says_about_a_service_is_no_setting() -> None:
    env = {
        "LOOMGATE_PORT": "tcp://10.0.0.1:80",
        "LOOMGATE_SERVICE_HOST": "10.0.0.1",
        "LOOMGATE_SERVICE_PORT": "80",
        "LOOMGATE_SERVICE_PORT_HTTP": "80",
        "LOOMGATE_PORT_80_TCP": "tcp://10.0.0.1:80",
        "LOOMGATE_PORT_80_TCP_ADDR": "10.0.0.1",
        "LOOMGATE_DB_SERVICE_HOST": "10.0.0.2",
    }
    assert load(env=env) == Settings()


# --- mistakes ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prot = 1", "prot: expected a known key; did you mean `port`?, found an unknown one in loomgate.toml"),
        ("xyzzy = 1", "xyzzy: expected a known key (docs/settings.md lists them), found an unknown one"),
        ("port = 70000", "port: expected a whole number from 0 to 65535, found 70000 in loomgate.toml"),
        ('port = "80"', "port: expected a whole number from 0 to 65535, found '80' in loomgate.toml"),
        ("port = true", "port: expected a whole number from 0 to 65535, found true"),
        ("drain_seconds = inf", "drain_seconds: expected a number of at least 0, found inf"),
        ("lease_seconds = nan", "lease_seconds: expected a number above 0, found nan"),
        ('host = ""', "host: expected text that is not empty, found ''"),
        ("data = 3", "data: expected a path, found 3"),
        ('active_thread = "wait"', 'active_thread: expected one of "reject", "enqueue", "interrupt", found \'wait\''),
        ("cancel_on_disconnect = 1", "cancel_on_disconnect: expected true or false, found 1"),
        ("webhooks = {}", "webhooks: expected a list, found a table"),
        ("context_window = {'gpt-4' = 1}", "context_window.gpt-4: expected a whole number of at least 256, found 1"),
        ("lease_renew_seconds = 9", "lease_renew_seconds: expected at most half of lease_seconds (15), found 9"),
        (
            "cache_max_age_limit_seconds = 3600",
            "cache_max_age_seconds: expected at most cache_max_age_limit_seconds (3600), found 604800",
        ),
        (
            "semantic_cache_model = 'text-embedding-3-small'",
            "semantic_cache_model: expected `@PROVIDER/MODEL`, found 'text-embedding-3-small'",
        ),
        ("run_ttl_max_seconds = 60", "run_ttl_seconds: expected at most run_ttl_max_seconds (60), found 600"),
        ("providers.a = 1", "providers.a: expected a table, found 1"),
        ("providers.a.modles = []", "providers.a.modles: expected a known key; did you mean `models`?"),
        ("providers.a.name = 'b'", "providers.a.name: expected a known key"),
        ("providers.a.models = ['x', 2]", "providers.a.models[1]: expected text, found 2"),
        ("providers.'a b' = {}", "providers.a b.name: expected a name of up to 64"),
        ("providers.a.base_url = 'ftp://x'", "providers.a.base_url: expected an http:// or https:// address"),
        ("providers.a.base_url = 'http://u:p@x'", "providers.a.base_url: expected an http:// or https:// address"),
        ("providers.a.base_url = 'http://x?a=b'", "providers.a.base_url: expected an address without query"),
        ("providers.a.base_url = 'http://x:y'", "providers.a.base_url: expected an http:// or https:// address"),
        ("providers.a.base_url = 'http://localhost:8787/v1'", "expected an endpoint other than this server itself"),
        ("providers = {a = {default = true}, b = {default = true}}", "providers.b.default: expected one default"),
        ("providers.a.api_key = 'env:NOPE'", "providers.a.api_key: expected the environment variable NOPE"),
        (
            "providers.a.aws_access_key_id = 'k'",
            "providers.a.aws_secret_access_key: expected a key, since the one that",
        ),
        (
            "providers.a.aws_secret_access_key = 'k'",
            "providers.a.aws_access_key_id: expected a key, since the one that",
        ),
        (
            "providers.a.aws_session_token = 'k'",
            "providers.a.aws_access_key_id: expected a key, since aws_session_token",
        ),
        (
            "providers.a = {api_key = 'x', aws_access_key_id = 'y', aws_secret_access_key = 'z'}",
            "providers.a.api_key: expected no key beside aws_access_key_id, found one",
        ),
        ("providers.a.region = 'eu/west'", "providers.a.region: expected a name of up to 64"),
        (
            "providers.a.api_key = 'file:nope'",
            "providers.a.api_key: expected a file that can be read, found nope: No such",
        ),
        (
            "providers.a.api_key = 'file:/dev/null'",
            "providers.a.api_key: expected a file that holds it, found an empty",
        ),
        ("virtual_keys.a = {}", "virtual_keys.a.provider: expected a name of up to 64"),
        ("webhooks = [{url = 'http://x'}]", "webhooks[0].secret: expected text, found nothing"),
        (f"webhooks = [{{url = 'x', secret = '{WHSEC}'}}]", "webhooks[0].url: expected an http:// or https:// address"),
        (f"webhooks = [{{url = '', secret = '{WHSEC}'}}]", "webhooks[0].url: expected an http:// or https:// address"),
        (f"webhooks = [{{url = 'http://x', secret = '{WHSEC}', events = ['run.done']}}]", "webhooks[0].events[0]: exp"),
        ("database_url = 'mysql://u:p@h/d'", "`postgresql://…`, or `sqlite:///` and a path, found a `mysql` address"),
        ("database_url = 'loomgate.db'", "`postgresql://…`, or `sqlite:///` and a path, found no address"),
        ("redis_url = 'redis://h'", "none beside a SQLite file"),
        ("database_url = 'postgresql://h/d'\nredis_url = 'http://h'", "`unix://…`, found a `http` address"),
        ("database_url = 'sqlite://'", "`sqlite:///` and the path of a file"),
        ("database_url = 'sqlite:///:memory:'", "`sqlite:///` and the path of a file"),
        ("prices.gpt-4o.input = 1", "prices.gpt-4o: expected a name of the form PROVIDER/MODEL, found 'gpt-4o'"),
        ("prices.'a/b'.input = -1", "prices.a/b.input: expected a number of at least 0, found -1"),
        ("prices.'a/b'.inptu = 1", "prices.a/b.inptu: expected a known key; did you mean `input`?"),
        ("port = ", "config: expected a settings file in TOML, found loomgate.toml: "),
    ],
)
def test_a_mistake_in_the_file_is_named(text: str, message: str) -> None:
    assert message in refusal(text)


def test_a_mistake_elsewhere_names_its_place() -> None:
    assert refusal(LOOMGATE_PROT="1").startswith("LOOMGATE_PROT: expected a known key; did you mean `LOOMGATE_PORT`?")
    assert refusal(LOOMGATE_PORT="x") == "port: expected a whole number from 0 to 65535, found 'x' in LOOMGATE_PORT"
    assert "providers: expected a table written as JSON" in refusal(LOOMGATE_PROVIDERS="openai")
    with pytest.raises(SettingError, match=r"found 'x' in --port"):
        load({"port": "x"}, {})
    with pytest.raises(SettingError, match=r"config: expected a settings file that can be read, found none\.toml"):
        load(env={"LOOMGATE_CONFIG": "none.toml"})


@pytest.mark.parametrize(
    "text",
    [
        "seal_key = 'hush-hush'",
        "seal_key = 4711471147114711",
        "providers.a = {api_key = ['hush-hush']}",
        "webhooks = [{url = 'http://x', secret = 'whsec_hush-hush'}]",
        "webhooks = [{url = 'http://x', secret = 'hush-hush'}]",
        "database_url = 'mysql://user:hush-hush@host/d'",
        "redis_url = 'http://user:hush-hush@host/d'",
        "providers.a.base_url = 'http://user:hush-hush@host'",
    ],
)
def test_no_message_shows_a_secret(text: str) -> None:
    assert not re.search("hush|4711", refusal(text))


# --- secrets ---


def test_no_text_of_the_settings_shows_a_secret() -> None:
    write(f"""
        seal_key = "{KEY.hex()}"
        providers.a.api_key = "sk-hush"
        virtual_keys.v = {{provider = "a", api_key = "env:V"}}
        webhooks = [{{url = "http://127.0.0.1:1/", secret = "{WHSEC}"}}]
    """)
    made = load(env={"V": "sk-hush-too"})
    for text in (
        repr(made),
        str(made),
        f"{made.providers['a'].api_key}",
        f"{made.seal_key!r:>9}",
        str([made.webhooks]),
    ):
        assert not re.search(f"hush|{KEY.hex()}|{re.escape(WHSEC[6:])}", text)
    assert made.providers["a"].api_key.reveal() == "sk-hush"
    assert made.virtual_keys["v"].api_key.reveal() == "sk-hush-too"
    assert made.webhooks[0].signing_key() == bytes(range(32))
    with pytest.raises(TypeError):
        msgspec.json.encode(made.providers["a"])


def test_a_secret_is_true_when_it_holds_something_and_equal_by_value() -> None:
    assert Secret("a")
    assert not Secret()
    assert Secret("a") == Secret("a") != Secret("b")
    assert len({Secret("a"), Secret("a")}) == 1


@pytest.mark.parametrize(
    "text",
    [
        KEY.hex(),
        KEY.hex().upper(),
        base64.b64encode(KEY).decode(),
        base64.urlsafe_b64encode(KEY).decode().rstrip("="),
        f" {KEY.hex()}\n",
    ],
)
def test_a_seal_key_is_read_in_every_usual_form(text: str) -> None:
    assert decode_seal_key(text) == KEY


@pytest.mark.parametrize("text", ["", "abc", KEY.hex()[:-2], "g" * 64, base64.b64encode(KEY + b"1").decode(), "ü" * 43])
def test_another_seal_key_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match="32 bytes in base64 or hex"):
        decode_seal_key(text)


# --- providers ---


def test_a_provider_knows_its_name_and_is_its_own_vendor_unless_it_says_otherwise() -> None:
    write("providers.groq.api_key = 'k'\nproviders.mine = {vendor = 'ollama', total_seconds = 5}")
    made = load(env={}).providers
    assert made["groq"] == Provider(name="groq", vendor="groq", api_key=Secret("k"))
    assert made["mine"] == Provider(name="mine", vendor="ollama", total_seconds=5.0)


@pytest.mark.parametrize(
    ("text", "env", "default"),
    [
        ("", {}, None),
        ("providers.a = {}", {}, "a"),
        ("providers.a = {default = false}", {}, None),
        ("providers.a = {models = ['x']}", {}, None),
        ("providers = {a = {}, b = {}}", {}, None),
        ("providers = {a = {}, b = {default = true}}", {}, "b"),
        ("", {"OPENAI_API_KEY": "k"}, "openai"),
        # A server that was declared keeps its calls, whatever key happens to be in the environment.
        ("providers.a = {}", {"OPENAI_API_KEY": "k"}, "a"),
        ("providers.a = {models = ['x']}", {"OPENAI_API_KEY": "k"}, "openai"),
        ("providers = {a = {}, b = {default = true}}", {"OPENAI_API_KEY": "k"}, "b"),
    ],
)
def test_which_provider_gets_the_models_that_no_pattern_claims(
    text: str, env: dict[str, str], default: str | None
) -> None:
    write(text)
    made = load(env=env).default_provider
    assert (made and made.name) == default


def test_the_usual_environment_declares_openai_unless_the_file_does() -> None:
    env = {"OPENAI_API_KEY": "k", "OPENAI_BASE_URL": "https://proxy.example/v1"}
    made = load(env=env).providers["openai"]
    assert (made.vendor, made.base_url, made.api_key) == ("openai", "https://proxy.example/v1", Secret("k"))
    write("providers.openai = {base_url = 'https://other.example'}")
    made = load(env=env).providers["openai"]
    assert (made.base_url, made.api_key) == ("https://other.example", Secret())
    assert "other than this server itself" in refusal(**env | {"OPENAI_BASE_URL": "http://127.0.0.1:8787/v1"})


@pytest.mark.parametrize(
    ("url", "path"),
    [("sqlite:///a/b.db", "a/b.db"), ("sqlite:////srv/b.db", "/srv/b.db"), ("", "d/loomgate.db")],
)
def test_the_database_is_a_file(url: str, path: str) -> None:
    assert load({"database_url": url, "data": "d"}, {}).database_path == Path(path)


# --- configs, guardrails, provider data ---


def test_a_config_is_a_table_or_a_file_and_its_secrets_are_looked_up() -> None:
    write('{"targets": [{"provider": "openai", "api_key": "env:K"}, {"api_key": "file:key"}]}', "c.json")
    write("from a file\n", "key")
    made = load(env={"K": "from the environment"}, file=write("""
        configs.inline = {config = {api_key = "env:K", override_params = {stop = "env:K"}}, workspace = "blue"}
        configs.apart = {config = "file:c.json", default = true}
        guardrails.g = {guardrail = {checks = [{id = "default.webhook", parameters = {headers = {x = "y"}}}]}}
    """))  # fmt: skip
    assert made.configs["inline"].config.reveal() == {
        "api_key": "from the environment",
        "override_params": {"stop": "env:K"},
    }
    keys = [target["api_key"] for target in made.configs["apart"].config.reveal()["targets"]]
    assert keys == ["from the environment", "from a file"]
    assert (made.configs["inline"].workspace, made.configs["apart"].default) == ("blue", True)
    assert "from" not in repr(made)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("configs.x = {}", "configs.x.config: expected a table"),
        ("configs.x = {config = 1}", "configs.x.config: expected a table, or `file:` and the path of a JSON file"),
        ("configs.x = {config = 'file:gone'}", "configs.x.config: expected a file that can be read"),
        ("configs.x = {config = 'file:loomgate.toml'}", "configs.x.config: expected a file in JSON"),
        ("configs.x = {config = {at = 2020-01-01}}", "configs.x.config.at: expected a value that JSON has too"),
        ("configs.x = {config = {api_key = 'env:NO'}}", "configs.x.config.api_key: expected the environment variable"),
        (
            "configs.x = {config = {}, default = true}\nconfigs.y = {config = {}, default = true}",
            "configs.y.default: expected one default config of a workspace, found x is another of workspace default",
        ),
        ("providers.p = {options = {aws_regio = 'x'}}", "providers.p.options.aws_regio: expected the name of provider"),
        ("virtual_keys.v = {provider = 'p', options = {x = 1}}", "virtual_keys.v.options.x: expected the name of"),
    ],
)
def test_what_is_wrong_with_a_declared_tree_is_said_with_its_place(text: str, line: str) -> None:
    assert refusal(text).startswith(line)


@pytest.mark.parametrize(
    ("name", "secret"),
    [("api_key", True), ("awsSecretAccessKey", True), ("aws_access_key_id", True), ("Authorization", True),
     ("x-api-key", True), ("key", True), ("client_secret", True), ("azureAdToken", True), ("max_tokens", False),
     ("virtual_key", False), ("keys", False), ("headerKey", False), ("aws_region", False), ("model", False),
     ("prompt_cache_key", False), ("vertex_service_account_json", True)],
)  # fmt: skip
def test_a_name_tells_whether_it_holds_a_secret(name: str, secret: bool) -> None:
    assert is_secret(name) is secret


def test_masks_go_out_and_come_back() -> None:
    plain = {
        "api_key": "sk-0123456789abcdef",
        "targets": [{"api_key": "short"}, {"parameters": {"headers": {"X": "0123456789abcdef"}, "key": 5}}],
        "vertex_service_account_json": {"private_key": "p"},
    }
    shown = hidden(plain)
    assert shown == {
        "api_key": "sk-…cdef",
        "targets": [{"api_key": "***"}, {"parameters": {"headers": {"X": "012…cdef"}, "key": 5}}],
        "vertex_service_account_json": "***",
    }
    assert unhidden(shown, plain) == plain
    assert masked_path(plain) is None
    assert masked_path(shown, "config") == "config.api_key"
    shown["targets"].reverse()
    assert masked_path(unhidden(shown, plain)) == "targets[1].api_key"


# --- documentation ---


def rows(kind: type[msgspec.Struct]) -> list[str]:
    """The lines of the documentation's table for ``kind``, as the declaration has them."""
    lines: list[str] = []
    for key, env, default, meaning in describe(kind):
        shown = default if default in ("required", "NAME") else f"`{default}`"
        cells = [f"`{key}`", *([f"`{env}`"] if env else []), shown, meaning]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


@pytest.mark.parametrize("kind", KINDS)
def test_every_key_is_documented_as_it_is_declared(kind: type[msgspec.Struct]) -> None:
    assert "\n".join(rows(kind)) + "\n\n" in DOCS.read_text("utf-8")


def test_no_documented_key_is_undeclared() -> None:
    documented = [line for line in DOCS.read_text("utf-8").splitlines() if line.startswith("| `")]
    assert documented == [line for kind in KINDS for line in rows(kind)]


def test_every_event_is_documented() -> None:
    text = DOCS.read_text("utf-8").rpartition("The events are")[2]
    assert set(re.findall(r"`(thread\.run\.\w+)`", text)) == set(typing.get_args(RunEvent))


def test_the_documentations_examples_load_each_and_together() -> None:
    examples = re.findall(r"```toml\n(.*?)```", DOCS.read_text("utf-8"), re.DOTALL)
    env = {"OPENAI_API_KEY": "k", "TEAM_BLUE_KEY": "k2", "WEBHOOK_SECRET": WHSEC}
    assert len(examples) == 7
    for example in examples:
        write(example)
        assert load(env=env) != load(env=env, file=write("", "empty.toml"))
    # Top-level keys must come before the first table, so the tables of the first example go last.
    plain, tables = examples[0].split("\n\n")
    write("\n".join([plain, examples[5], *examples[1:5], examples[6], tables]))
    made = load(env=env)
    assert (made.port, made.active_thread, made.context_window) == (9000, "enqueue", {"llama3.2*": 131072})
    assert made.default_provider == made.providers["openai"]
    assert made.providers["local"].models == ("llama*", "qwen*")
    assert made.virtual_keys["team-blue"].workspace == "blue"
    assert made.configs["steady"].config.reveal()["targets"][1]["api_key"] == "k"
    assert made.guardrails["no-shouting"].guardrail.reveal()["deny"] is True
    assert made.webhooks[0].events == ("thread.run.completed", "thread.run.requires_action")
    assert made.webhook_retry_seconds == (5.0, 60.0, 600.0)
    assert made.prices == {"openai/gpt-4o": Price(input=2.0, cached_input=1.0, output=8.0)}


def test_every_meaning_is_one_sentence() -> None:
    for kind in KINDS:
        for row in describe(kind):
            assert row.meaning[0] in "`" or row.meaning[0].isupper(), row
            assert row.meaning.find(". ") == -1, row
            assert row.meaning.endswith("."), row
