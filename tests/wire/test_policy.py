"""Configs as clients write them: every field and its limits, what is said about mistakes, and nothing but a 400."""

import re
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn

from loomgate.errors import ApiError
from loomgate.gateway import conditions
from loomgate.gateway.tree import compile_config
from loomgate.settings.provider_data import PROVIDER_DATA
from loomgate.wire.configs import COMPARISONS, DEEPEST, LOGICAL, MOST_NODES, check_options, decode_config
from loomgate.wire.policy import Breaker, Condition, Config, Mode, Naming, Retry, Sticky, Strategy
from loomgate.wire.provider_data import OPTION_HEADERS, OPTIONS

ROOT = Path(__file__).parents[2]
KEYED = {"provider": "openai", "api_key": "k"}


def refused(config: Any, where: str = "x-portkey-config") -> ApiError:
    with pytest.raises(ApiError) as caught:
        decode_config(config, where=where)
    assert caught.value.status == 400
    assert caught.value.param == where
    return caught.value


def details(config: Any) -> list[str]:
    error = refused(config)
    assert error.message.startswith(
        f"Invalid config passed. In x-portkey-config, {error.details[0]}"
    ) or error.message.startswith(error.details[0].partition("message: ")[2])
    return error.details


# --- what is not a config at all


@pytest.mark.behaviour("VAL-08")
@pytest.mark.parametrize("data", ["", "{", "pc-saved-slug", "{'a':1}", b"\xff{}", '{"a":"\ud800"}', "[" * 100_000])
def test_what_is_not_json(data: str | bytes) -> None:
    assert refused(data).message.startswith("Invalid config passed. You need to pass a valid json")
    assert "config 'mine'" in refused(data, "config 'mine'").message


@pytest.mark.behaviour("VAL-07")
def test_the_old_format() -> None:
    error = refused({"mode": "fallback", "options": []})
    assert error.message == (
        "This version of config is not supported in this route. Please migrate to the latest version"
    )


@pytest.mark.behaviour("VAL-06")
@pytest.mark.parametrize("data", ["[]", "3", "null", '"x"'])
def test_json_that_is_not_an_object(data: str) -> None:
    assert details(data) == ["path: config, message: Expected `object`, a config"]


@pytest.mark.behaviour("VAL-06", "CFG-30")
def test_every_mistake_is_told_with_its_place() -> None:
    found = details(
        {
            "strategy": {"mode": "fallback", "on_status_codes": ["429"], "sticki": {}},
            "targets": [
                {"provider": 3, "typo": 1, "retry": {"attempts": 9}},
                {"targets": [{"weight": -1}, 7]},
                {"default_params": []},
            ],
        }
    )
    assert [line.partition(", message: ")[0].removeprefix("path: ") for line in found] == [
        "strategy.on_status_codes[0]",
        "targets[0].provider",
        "targets[0].typo",
        "targets[0].retry.attempts",
        "targets[1].targets[0].weight",
        "targets[1].targets[1]",
        "targets[2].default_params",
    ]
    assert found[2].endswith("Unrecognized key")
    assert found[3].endswith("Expected `int` <= 5")
    assert "(and 6 more)" in refused({"cache": {}, **{f"x{n}": 1 for n in range(6)}}).message
    assert len(refused({f"x{n}": 1 for n in range(500)}).details) <= 20


@pytest.mark.behaviour("CFG-01", "CFG-14")
def test_modes_are_refused_in_the_words_of_the_reference() -> None:
    assert get_args(Mode) == ("single", "loadbalance", "fallback", "conditional")
    assert details({"strategy": {"mode": "random"}, "targets": [KEYED]}) == [
        "path: strategy.mode, message: Invalid 'mode' value. Must be one of: single, loadbalance, fallback, conditional"
    ]
    assert details({"targets": [{"cache": {"mode": "x"}}], "strategy": {"mode": "single"}}) == [
        "path: targets[0].cache.mode, message: Invalid 'cache.mode' value. Must be one of: simple, semantic"
    ]
    assert "missing required field `mode`" in details({"cache": {}})[0]


# --- fields


@pytest.mark.behaviour(
    "CFG-02", "CFG-03", "CFG-04", "CFG-05", "CFG-06", "CFG-07", "CFG-08", "CFG-09", "CFG-10", "CFG-11", "CFG-12"
)
@pytest.mark.behaviour("CFG-13", "CFG-15", "CFG-19", "CFG-20", "CFG-21", "CFG-22", "CFG-23", "CFG-35")
def test_every_field_is_read() -> None:
    breaker = {"failure_threshold": 3, "cooldown_interval": 40_000, "failure_status_codes": [500]}
    config = {
        "strategy": {"mode": "fallback", "on_status_codes": [429, 246, 446], "cb_config": breaker},
        "retry": {"attempts": 5, "on_status_codes": [], "use_retry_after_headers": True},
        "cache": {"mode": "semantic", "max_age": 60},
        "request_timeout": 1,
        "forward_headers": ["X-Mine"],
        "strict_open_ai_compliance": False,
        "override_params": {"snakeAnd_camel": {"aB_c": 1}},
        "input_guardrails": ["slug", {"default.contains": {"words": ["x"]}}],
        "after_request_hooks": [{"id": "x", "type": "guardrail", "checks": []}],
        "targets": [
            {"name": "a", "provider": "openai", "api_key": "k", "weight": 0.5, "cb_config": breaker},
            {"virtual_key": "vk", "custom_host": "https://h.example/v1", "retry": {"attempts": 0}},
            {
                "strategy": {
                    "mode": "loadbalance",
                    "sticky": {"hash_fields": ("metadata.user",), "ttl": 60},
                },
                "targets": [
                    {
                        "strategy": {
                            "mode": "conditional",
                            "conditions": [{"query": {"metadata.a": "b"}, "then": "x"}],
                            "default": "x",
                        },
                        "targets": [{"name": "x", "provider": "@slug"}],
                    }
                ],
            },
        ],
    }
    read = decode_config(msgspec.json.encode(config))
    assert msgspec.to_builtins(read) == config
    assert decode_config(config) == read


@pytest.mark.behaviour("CFG-13")
def test_both_spellings_of_the_retry_after_switch() -> None:
    for name in ("use_retry_after_headers", "use_retry_after_header"):
        retry = decode_config({"retry": {"attempts": 1, name: True}}).retry
        assert retry is not None
        assert getattr(retry, name) is True
    assert "attempts" in details({"retry": {"on_status_codes": [500]}})[0]


@pytest.mark.behaviour("CFG-27", "RH-30", "RH-31", "RH-32", "RH-33", "RH-34", "RH-35", "RH-36", "RH-37", "RH-38")
@pytest.mark.behaviour("RH-39", "RH-40", "RH-41", "CFG-35")
def test_all_provider_data_of_the_description_is_known_in_configs_and_headers() -> None:
    text = (ROOT / "tests" / "data" / "GATEWAY.md").read_text("utf-8")
    row = next(line for line in text.splitlines() if line.startswith("| **CFG-27**"))
    names = [name.partition("[")[0] for name in re.findall(r"`([a-z_]+(?:\[[^`]*)?)`", row)]
    assert len(names) == 20
    assert set(names) <= set(OPTIONS)
    for line in text.splitlines():
        if not line.startswith("| **RH-3") and not line.startswith(("| **RH-40", "| **RH-41")):
            continue
        cells = line.split("|")
        first = ""
        for name in re.findall(r"`(-?[a-z0-9-]+)`", cells[3].partition("→")[0]):
            # A table row writes the common beginning once: `amzn-sagemaker-custom-attributes`, `-target-model`.
            if name in {"entra", "managed", "workload", "drop"} or name == "extra-parameters":
                continue
            if not first:
                first = "-".join(name.split("-")[:2]) if name.startswith("amzn") else name.split("-")[0]
            header = first + name if name.startswith("-") else name
            assert OPTION_HEADERS.get(header) in OPTIONS, (line, header)


def test_provider_data_stays_in_its_place() -> None:
    for name in OPTIONS:
        if name not in {"vertex_service_account_json", "oracle_private_key", "oracle_key_passphrase"}:
            assert name in details({"provider": "x", name: "a\r\nx-evil: 1"})[0]
    for name in ("resource_name", "aws_region", "vertex_region", "azure_region", "oracle_region"):
        for value in ("evil.example/", "a.b", "a#", "a@b", "-a", "", "a" * 64):
            assert details({"provider": "x", name: value}) == [
                f"path: {name}, message: Expected letters, digits and hyphens"
            ]
        assert getattr(decode_config({"provider": "x", name: "eu-west-1"}), name) == "eu-west-1"
    for name in ("deployment_id", "workers_ai_account_id", "fireworks_account_id", "vertex_project_id"):
        for value in ("..", ".", "a/b", "a?b", "a b", ""):
            assert name in details({"provider": "x", name: value})[0]


@pytest.mark.behaviour("RH-30")
def test_provider_data_in_headers_is_held_to_the_same_limits() -> None:
    check_options({"resource_name": "mine", "api_version": "2024-10-21"})
    with pytest.raises(ApiError) as caught:
        check_options({"resource_name": "evil.example/"})
    assert (
        caught.value.message == "Invalid header 'x-portkey-azure-resource-name': Expected letters, digits and hyphens."
    )


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"request_timeout": 0}, "request_timeout"),
        ({"request_timeout": 10**400}, "request_timeout"),
        ({"request_timeout": 1.5}, "request_timeout"),
        ({"weight": float("inf"), **KEYED}, "weight"),
        ({"weight": float("nan"), **KEYED}, "weight"),
        ({"weight": "1", **KEYED}, "weight"),
        ({"cache": {"mode": "simple", "max_age": 59}}, "cache.max_age"),
        ({"cache": {"mode": "simple", "max_age": 7_776_001}}, "cache.max_age"),
        ({"retry": {"attempts": 6}}, "retry.attempts"),
        ({"retry": {"attempts": True}}, "retry.attempts"),
        ({"retry": {"attempts": 1, "on_status_codes": [99]}}, "retry.on_status_codes[0]"),
        ({"drop_params": ["a..b"]}, "drop_params[0]"),
        ({"drop_params": ["a[-1]"]}, "drop_params[0]"),
        ({"drop_params": ["[0]"]}, "drop_params[0]"),
        ({"drop_params": ["a[b]"]}, "drop_params[0]"),
        ({"forward_headers": ["x y"]}, "forward_headers[0]"),
        ({"cb_config": {"failure_threshold": 1, "cooldown_interval": 29_999}, **KEYED}, "cb_config.cooldown_interval"),
        ({"cb_config": {"cooldown_interval": 30_000}, **KEYED}, "cb_config"),
        ({"targets": [], "strategy": {"mode": "single"}}, "targets"),
        ({"provider": "openai", "api_key": "a\nb"}, "api_key"),
        ({"passthrough": True, "provider": "openai"}, "passthrough"),
    ],
)
@pytest.mark.behaviour("VAL-06")
def test_limits(config: dict[str, Any], path: str) -> None:
    assert details(config)[0].startswith(f"path: {path}, message: ")


@pytest.mark.behaviour("CFG-25")
def test_prompt_templates_are_refused_by_name() -> None:
    assert details({"prompt_id": "p"}) == [
        "path: prompt_id, message: This server has no prompt templates: send messages"
    ]


@pytest.mark.behaviour("VAL-09", "RH-13")
def test_forwarding_the_list_itself() -> None:
    assert refused({"forward_headers": ["X-Portkey-Forward-Headers"]}).message.startswith(
        "forward_headers must not contain the 'x-portkey-forward-headers' header"
    )


# --- sense


@pytest.mark.behaviour("CFG-31")
@pytest.mark.parametrize(
    "config",
    [
        KEYED,
        {"provider": "openai", "custom_host": "https://h.example"},
        {"provider": "@slug"},
        {"virtual_key": "vk"},
        {"strategy": {"mode": "single"}, "targets": [KEYED]},
        {"cache": {"mode": "simple"}},
        {"retry": {"attempts": 1}},
        {"forward_headers": []},
        {"request_timeout": 1000},
        {"provider": "bedrock", "aws_access_key_id": "a", "aws_secret_access_key": "b", "aws_region": "us-east-1"},
        {"provider": "vertex-ai", "vertex_region": "us-central1", "vertex_project_id": "p"},
        {"provider": "azure-openai", "resource_name": "r", "deployment_id": "d", "api_version": "v", "api_key": "k"},
        {"input_guardrails": []},
        {"output_guardrails": []},
        {"before_request_hooks": []},
        {"after_request_hooks": []},
        {"passthrough": True},
        {"default_params": {}},
        {"drop_params": []},
        {"override_params": {"model": "@slug/gpt-4o"}},
    ],
)
def test_a_config_that_says_something(config: dict[str, Any]) -> None:
    assert decode_config(config)
    assert decode_config({"strategy": {"mode": "single"}, "targets": [config]})


@pytest.mark.behaviour("CFG-31", "CFG-32")
@pytest.mark.parametrize("config", [{}, {"api_key": "k"}, {"weight": 2}, {"name": "n"}, {"resource_name": "r"}])
def test_a_config_that_says_nothing(config: dict[str, Any]) -> None:
    says = (
        "Invalid configuration. It must have either 'provider' and 'api_key', or 'strategy' and 'targets', or 'cache', "
    )
    assert details(config)[0].startswith(f"path: config, message: {says}or 'retry', or 'request_timeout'")
    assert details({"strategy": {"mode": "single"}, "targets": [config]})[0].startswith("path: targets[0], ")


def test_strategy_and_targets_belong_together() -> None:
    assert details({"targets": [KEYED]}) == ["path: config, message: 'targets' needs 'strategy' beside it"]
    assert details({"strategy": {"mode": "single"}}) == ["path: config, message: 'strategy' needs 'targets' beside it"]


@pytest.mark.behaviour("INH-02")
@pytest.mark.parametrize("name", ["provider", "virtual_key", "api_key", "resource_name", "aws_region"])
def test_what_is_not_inherited_has_no_place_beside_targets(name: str) -> None:
    config = {"strategy": {"mode": "single"}, "targets": [KEYED], name: "x"}
    assert details(config)[0].startswith(f"path: {name}, message: Expected '{name}' in the targets")


@pytest.mark.behaviour("CFG-02", "CFG-05")
@pytest.mark.parametrize(
    ("mode", "member"),
    [
        ("loadbalance", {"on_status_codes": [429]}),
        ("single", {"conditions": []}),
        ("fallback", {"default": "x"}),
        ("fallback", {"sticky": {"hash_fields": ["metadata.a"]}}),
        ("conditional", {"sticky_session": {"hash_fields": ["metadata.a"]}}),
    ],
)
def test_what_belongs_to_another_mode_is_refused(mode: str, member: dict[str, Any]) -> None:
    name = next(iter(member))
    assert any(
        line.startswith(f"path: strategy.{name}, message: Expected mode ")
        for line in details({"strategy": {"mode": mode, **member}, "targets": [{"name": "x", **KEYED}]})
    )


@pytest.mark.behaviour("CFG-33")
@pytest.mark.parametrize("extra", [{}, {"vertex_region": "x"}, {"vertex_project_id": "p"}, {"api_key": "k"}])
def test_vertex_needs_a_region_and_a_project(extra: dict[str, str]) -> None:
    assert "vertex_region" in details({"provider": "vertex-ai", **extra})[0]


@pytest.mark.behaviour("CFG-33")
def test_vertex_is_content_with_a_service_account() -> None:
    for account in ("{}", {"project_id": "p"}):
        assert decode_config(
            {"provider": "vertex-ai", "vertex_region": "x", "vertex_service_account_json": account}
        ).options() == {"vertex_region": "x", "vertex_service_account_json": account}


@pytest.mark.behaviour("LB-03", "CFG-12")
def test_weights_that_are_all_zero_are_refused() -> None:
    config = {"strategy": {"mode": "loadbalance"}, "targets": [{**KEYED, "weight": 0}, {**KEYED, "weight": 0}]}
    assert details(config) == ["path: strategy, message: Expected a target with a 'weight' above 0"]
    assert decode_config({**config, "strategy": {"mode": "fallback"}})


@pytest.mark.behaviour("CFG-05")
def test_sticky_fields() -> None:
    def config(sticky: dict[str, Any], name: str = "sticky") -> dict[str, Any]:
        return {"strategy": {"mode": "loadbalance", name: sticky}, "targets": [KEYED]}

    for name in ("sticky", "sticky_session"):
        strategy = decode_config(config({"hash_fields": ["metadata.user_id"]}, name)).strategy
        assert strategy is not None
        assert strategy.stuck is not None
        assert strategy.stuck.ttl == 3600
    assert "hash_fields" in details(config({}))[0]
    for field in ("user", "metadata", "metadata.", "headers.x", "metadata.a.b"):
        assert "`metadata.KEY` or `params.KEY`" in details(config({"hash_fields": [field]}))[0]
    off = decode_config(config({"enabled": False})).strategy
    assert off is not None
    assert off.stuck is None


def conditional(query: Any, then: str = "a", **strategy: Any) -> dict[str, Any]:
    return {
        "strategy": {"mode": "conditional", "conditions": [{"query": query, "then": then}], **strategy},
        "targets": [{"name": "a", **KEYED}],
    }


@pytest.mark.behaviour("CND-09", "CFG-03", "CFG-04")
def test_conditions_are_checked_when_the_config_is_read() -> None:
    assert refused({"strategy": {"mode": "conditional"}, "targets": [KEYED]}).message == (
        "No conditions passed in the query router (in x-portkey-config, path: strategy.conditions)"
    )
    assert refused(conditional({}, "b")).message.startswith("Invalid target name found in the query router: b (in ")
    assert refused(conditional({}, default="c")).message.startswith("Invalid target name found in the query router: c")
    for query in ({"$not": []}, {"metadata.a": {"$exists": 1}}, {"$or": [{"metadata.a": {"$exists": 1}}]}):
        assert refused(conditional(query)).message.startswith("Unsupported operator used in the query router: $")
    assert decode_config(conditional({"metadata.a": {"$eq": "x"}}, default="a"))


@pytest.mark.behaviour("CND-02", "CND-03")
@pytest.mark.parametrize(
    "query",
    [
        {"metadata.a": {"$in": "abc"}},
        {"metadata.a": {"$nin": {}}},
        {"metadata.a": {"$regex": 3}},
        {"metadata.a": {"$regex": "a" * 1001}},
        {"$and": {}},
        {"$or": [3]},
        {"param.model": "x"},
        {"params.a.b": "x"},
        {"url.path": "x"},
        {"model": "x"},
    ],
)
def test_queries_that_could_never_be_answered_are_refused(query: Any) -> None:
    assert details(conditional(query))[0].startswith("path: strategy.conditions[0].query.")


def test_both_rooms_know_the_same_operators() -> None:
    assert set(conditions.OPERATORS) == set(COMPARISONS)


def nested(depth: int) -> dict[str, Any]:
    config: dict[str, Any] = dict(KEYED)
    for _ in range(depth - 1):
        config = {"strategy": {"mode": "single"}, "targets": [config]}
    return config


@pytest.mark.behaviour("CFG-07")
def test_depth_and_number_are_bounded() -> None:
    assert decode_config(nested(DEEPEST))
    assert str(DEEPEST) in details(nested(DEEPEST + 1))[0]
    many = {"strategy": {"mode": "single"}, "targets": [KEYED] * (MOST_NODES - 1)}
    assert decode_config(many)
    assert str(MOST_NODES) in details({**many, "targets": [KEYED] * MOST_NODES})[0]
    query: Any = {"metadata.a": "x"}
    for _ in range(200):
        query = {"$and": [query]}
    assert "nested" in details(conditional(query))[0]


def test_secrets_are_not_shown() -> None:
    config = decode_config({"provider": "openai", "api_key": "sk-secret", "aws_secret_access_key": "sk-secret"})
    naming = Naming(api_key="sk-secret", inline=config, options={"azure_ad_token": "sk-secret"})
    assert "sk-secret" not in repr(config) + repr(naming) + repr(compile_config(config))


# --- the documentation


PAGE = (ROOT / "docs" / "gateway" / "routing.md").read_text("utf-8")


@pytest.mark.parametrize("example", re.findall(r"^```json\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL))
def test_the_examples_of_the_documentation_are_configs(example: str) -> None:
    assert compile_config(decode_config(example.replace("…", "x")))


def test_every_field_is_documented() -> None:
    shapes = (Config, Strategy, Retry, Breaker, Sticky, Condition)
    for name in {name for shape in shapes for name in shape.__struct_fields__} - set(OPTIONS):
        if name not in {"fetch_integrated_models", "use_retry_after_header", "enabled"}:
            assert re.search(rf"[`\"]{name}[`\"]", PAGE), name
    for operator in (*COMPARISONS, *LOGICAL):
        assert f"`{operator}`" in PAGE


# --- fuzz: a Config or a 4xx, whatever comes

names = st.sampled_from(sorted(Config.__struct_fields__)) | st.sampled_from(
    "mode query then hash_fields ttl attempts options typo $and $regex metadata.a".split()
)
plain = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["fallback", "loadbalance", "conditional", "openai", "@a", "(a+)+$", "https://h.example", "a[0].b"]
    )
)
anything = st.recursive(
    plain, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names | st.text(max_size=5), inner, max_size=4)
)


@st.composite
def configs(draw: DrawFn, depth: int = 0) -> dict[str, Any]:
    """Valid ones."""
    config: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "retry": st.fixed_dictionaries({"attempts": st.integers(0, 5)}),
                "cache": st.just({"mode": "simple"}),
                "request_timeout": st.integers(1, 9999),
                "override_params": st.dictionaries(
                    st.sampled_from(["model", "n"]), st.sampled_from(["gpt-4o", 1, None])
                ),
                "drop_params": st.just(["a[*].b"]),
                "custom_host": st.just("https://h.example/v1"),
                "cb_config": st.just({"failure_threshold": 2}),
                "forward_headers": st.just(["x-a"]),
                "name": st.sampled_from(["a", "b"]),
                "weight": st.integers(1, 5),
            },
        )
    )
    if depth >= 2 or draw(st.booleans()):
        return {**config, "provider": draw(st.sampled_from(["openai", "@slug"])), "api_key": "k"}
    targets = draw(st.lists(configs(depth + 1), min_size=1, max_size=3))
    mode = draw(st.sampled_from(get_args(Mode)))
    strategy: dict[str, Any] = {"mode": mode}
    if mode == "conditional":
        targets[0]["name"] = "a"
        strategy["conditions"] = [{"query": {"metadata.x": {"$regex": "^a"}, "$or": [{"params.n": 1}]}, "then": "a"}]
    return {**config, "strategy": strategy, "targets": targets}


def read(data: Any) -> Config | None:
    try:
        config = decode_config(data)
        compile_config(config)
    except ApiError as error:
        assert error.status == 400  # noqa: PT017 - the form of a refusal is what is held, not that there is one
        assert error.message  # noqa: PT017
        return None
    return config


@pytest.mark.behaviour("VAL-06", "VAL-08")
@given(anything)
@settings(max_examples=200, deadline=None)
def test_arbitrary_json_is_a_config_or_a_400(value: Any) -> None:
    read(value if isinstance(value, dict) else {"targets": value})
    read(msgspec.json.encode(value))


@given(st.binary(max_size=200) | st.text(max_size=200))
@settings(max_examples=200, deadline=None)
def test_arbitrary_text_is_a_config_or_a_400(data: bytes | str) -> None:
    read(data)


@given(configs())
@settings(max_examples=50, deadline=None)
def test_valid_configs_are_read(config: dict[str, Any]) -> None:
    assert decode_config(config) == decode_config(msgspec.json.encode(config))
    assert compile_config(decode_config(config))


@given(configs(), st.data())
@settings(max_examples=150, deadline=None)
def test_mutated_configs_are_configs_or_400s(config: dict[str, Any], data: st.DataObject) -> None:
    for _ in range(data.draw(st.integers(1, 3))):
        place: Any = config
        while True:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            if not keys:
                break
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            act = data.draw(st.sampled_from(["replace", "remove", "add"]))
            if act == "remove":
                del place[key]
            elif act == "add" and isinstance(place, dict):
                place[data.draw(names)] = data.draw(anything)
            else:
                place[key] = data.draw(anything)
            break
    read(config)
    read(msgspec.json.encode(config))


def test_settings_and_configs_know_the_same_provider_data() -> None:
    assert set(OPTIONS) == PROVIDER_DATA
