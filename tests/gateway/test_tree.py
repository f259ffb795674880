"""What a target inherits, and what the headers change: held to models of their own."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ApiError
from loomgate.gateway import tree
from loomgate.gateway.call import Effective, Node
from loomgate.gateway.hosts import trusted_from_env
from loomgate.gateway.tree import Guardrails, compile_config, compile_naming, needs_headers, split_model
from loomgate.wire.configs import decode_config
from loomgate.wire.policy import Config, Naming, Retry

KEYED = {"provider": "openai", "api_key": "k"}


def compiled(config: dict[str, Any], **options: Any) -> Node:
    return compile_config(decode_config(config), **options)


def leaves(node: Node) -> list[Effective]:
    if node.strategy is None:
        return [node.effective]
    return [leaf for target in node.targets for leaf in leaves(target)]


def single(*targets: dict[str, Any], **above: Any) -> dict[str, Any]:
    return {"strategy": {"mode": "single"}, "targets": list(targets), **above}


def named(config: Config) -> Guardrails:
    """Guardrails that say from which field they come."""
    before = [*(config.input_guardrails or ()), *(str(hook["id"]) for hook in config.before_request_hooks or ())]
    after = [*(config.output_guardrails or ()), *(str(hook["id"]) for hook in config.after_request_hooks or ())]
    return tuple(before), tuple(after)


# --- paths


@pytest.mark.behaviour("SGL-02", "RSP-02")
def test_a_config_without_strategy_is_its_own_target() -> None:
    node = compiled({**KEYED, "weight": 3, "name": "n"})
    assert node.strategy is None
    assert node.effective == Effective(provider="openai", api_key="k", weight=3.0, name="n")
    assert node.effective.path == "config"


@pytest.mark.behaviour("RSP-02")
def test_every_target_knows_its_place() -> None:
    node = compiled(single(KEYED, single(KEYED, single(KEYED, KEYED))))
    assert [leaf.path for leaf in leaves(node)] == [
        "config.targets[0]",
        "config.targets[1].targets[0]",
        "config.targets[1].targets[1].targets[0]",
        "config.targets[1].targets[1].targets[1]",
    ]
    assert [leaf.index for leaf in leaves(node)] == [0, 0, 0, 1]


# --- inheritance

PARENT: dict[str, Any] = {
    "retry": {"attempts": 3},
    "cache": {"mode": "simple"},
    "request_timeout": 1000,
    "strict_open_ai_compliance": True,
    "forward_headers": ["X-Parent"],
    "custom_host": "https://parent.example",
    "input_guardrails": ["parent-in"],
    "output_guardrails": ["parent-out"],
    "drop_params": ["parent"],
    "cb_config": {"failure_threshold": 9},
    "override_params": {"a": 1, "b": {"x": 1}},
    "default_params": {"c": 1, "d": 1},
}
CHILD: dict[str, Any] = {
    "retry": {"attempts": 1},
    "cache": {"mode": "semantic"},
    "request_timeout": 5,
    "strict_open_ai_compliance": False,
    "forward_headers": ["X-Child"],
    "custom_host": "https://child.example",
    "input_guardrails": ["child-in"],
    "output_guardrails": ["child-out"],
    "drop_params": ["child"],
    "cb_config": {"failure_threshold": 1},
    "override_params": {"b": {"y": 1}},
    "default_params": {"d": 2},
}


@pytest.mark.behaviour("INH-01", "INH-04")
@pytest.mark.parametrize("field", sorted(PARENT))
def test_each_field_is_inherited_and_replaced_or_merged(field: str) -> None:
    def shown(config: dict[str, Any]) -> Effective:
        (leaf,) = leaves(compiled(config, compile_guardrails=named))
        return Effective(
            **{  # without its place, which differs
                name: getattr(leaf, name) for name in leaf.__struct_fields__ if name not in {"path", "circuit", "index"}
            }
        )

    bare = shown({**KEYED, field: PARENT[field]})
    assert bare != shown(KEYED)
    assert shown(single(KEYED, **{field: PARENT[field]})) == bare
    assert shown(single(single(KEYED), **{field: PARENT[field]})) == bare
    merged = {**PARENT[field], **CHILD[field]} if field in {"override_params", "default_params"} else CHILD[field]
    assert shown(single({**KEYED, field: CHILD[field]}, **{field: PARENT[field]})) == shown({**KEYED, field: merged})


@pytest.mark.behaviour("INH-02")
def test_a_targets_own_things_are_not_inherited() -> None:
    node = compiled(single(single({"override_params": {"model": "@x/y"}}), name="root", weight=7))
    for level in (node.targets[0].effective, *leaves(node)):
        assert (level.provider, level.api_key, level.weight, level.name) == (None, None, 1.0, None)


@pytest.mark.behaviour("INH-04", "CFG-06")
def test_the_breaker_of_a_strategy_is_that_of_its_targets() -> None:
    config = {
        "strategy": {"mode": "fallback", "cb_config": {"failure_threshold": 2}},
        "cb_config": {"failure_threshold": 1},
        "targets": [
            KEYED,
            {**KEYED, "cb_config": {"failure_threshold": 3}},
            {"strategy": {"mode": "single", "cb_config": {"failure_threshold": 4}}, "targets": [KEYED]},
            single(KEYED),
        ],
    }
    found = [leaf.breaker.failure_threshold for leaf in leaves(compiled(config)) if leaf.breaker]
    assert found == [2, 3, 4, 2]


@pytest.mark.behaviour("STR-04")
def test_strictness_is_off_when_anybody_says_so() -> None:
    def strict(root: bool | None, middle: bool | None, leaf: bool | None, header: bool) -> bool | None:
        def said(config: dict[str, Any], value: bool | None) -> dict[str, Any]:
            return config if value is None else {**config, "strict_open_ai_compliance": value}

        config = decode_config(said(single(said(single(said(KEYED, leaf)), middle)), root))
        return leaves(compile_naming(Naming(inline=config, strict=header), None))[0].strict

    choices = (None, True, False)
    for root in choices:
        for middle in choices:
            for leaf in choices:
                assert strict(root, middle, leaf, False) is False
                off = False in (root, middle, leaf)
                assert (strict(root, middle, leaf, True) is False) == off


def test_a_side_of_the_guardrails_is_replaced_whole() -> None:
    config = single(
        {**KEYED, "before_request_hooks": [{"id": "child-hook"}]}, input_guardrails=["in"], output_guardrails=["out"]
    )
    (leaf,) = leaves(compiled(config, compile_guardrails=named))
    assert (leaf.before, leaf.after) == (("child-hook",), ("out",))


def test_a_mistake_in_a_guardrail_is_told_with_its_place() -> None:
    def refusing(_config: Config) -> Guardrails:
        raise ApiError(400, "Unknown check 'x'")

    with pytest.raises(ApiError, match=r"Unknown check 'x' \(in config 'mine', path: targets\[0\]\)"):
        compiled(single({**KEYED, "input_guardrails": ["x"]}), compile_guardrails=refusing, where="config 'mine'")


inheritable = st.fixed_dictionaries(
    {},
    optional={
        "retry": st.integers(0, 5).map(lambda n: {"attempts": n}),
        "request_timeout": st.integers(1, 99),
        "forward_headers": st.lists(st.sampled_from(["a", "b"]), max_size=2),
        "override_params": st.dictionaries(st.sampled_from("xyz"), st.integers(0, 9), max_size=3),
        "drop_params": st.lists(st.sampled_from(["a", "b"]), max_size=2),
        "input_guardrails": st.lists(st.sampled_from(["g", "h"]), max_size=2),
    },
)


@pytest.mark.behaviour("INH-01")
@given(st.lists(inheritable, min_size=1, max_size=6))
@settings(max_examples=200, deadline=None)
def test_inheritance_equals_the_model(levels: list[dict[str, Any]]) -> None:
    config: dict[str, Any] = {**KEYED, **levels[-1]}
    for level in reversed(levels[:-1]):
        config = single(config, **level)
    last: dict[str, Any] = {}
    params: dict[str, int] = {}
    for level in levels:
        params.update(level.get("override_params", {}))
        last.update(level)
    (leaf,) = leaves(compiled(config, compile_guardrails=named))
    assert leaf.override_params == params
    assert leaf.retry == (Retry(**last["retry"]) if "retry" in last else None)
    assert leaf.request_timeout == last.get("request_timeout")
    assert leaf.forward_headers == tuple(last.get("forward_headers", ()))
    assert leaf.drop_params == tuple(last.get("drop_params", ()))
    assert leaf.before == tuple(last.get("input_guardrails", ()))


# --- what is checked here


@pytest.mark.behaviour("HOST-04")
def test_custom_hosts_are_checked_at_every_depth() -> None:
    bad = {**KEYED, "custom_host": "http://169.254.169.254"}
    for config, path in (
        (bad, "custom_host"),
        (single(KEYED, bad), "targets[1].custom_host"),
        (single(single(bad)), "targets[0].targets[0].custom_host"),
        (single(KEYED, custom_host="http://10.0.0.1"), "custom_host"),
        ({**KEYED, "huggingface_base_url": "http://localhost"}, "huggingface_base_url"),
        ({**KEYED, "azure_foundry_url": "http://metadata"}, "azure_foundry_url"),
    ):
        with pytest.raises(ApiError) as caught:
            compiled(config)
        assert caught.value.status == 400
        assert caught.value.details[0].startswith(f"path: {path}, message: Invalid custom host: ")
    good = {**KEYED, "custom_host": "http://127.0.0.1:9/v1/"}
    assert leaves(compiled(good, trusted=trusted_from_env("127.0.0.1")))[0].custom_host == "http://127.0.0.1:9/v1"


@pytest.mark.behaviour("CFG-09")
def test_unknown_providers_are_refused_when_the_known_ones_are_told() -> None:
    known = frozenset({"openai", "anthropic"})
    with pytest.raises(ApiError) as caught:
        compiled(single(KEYED, {"provider": "opnai", "api_key": "k"}), providers=known)
    assert caught.value.details == [
        "path: targets[1].provider, message: Invalid 'provider' value. Must be one of: anthropic, openai"
    ]
    assert compiled(single(KEYED, {"provider": "@anything"}), providers=known)


@pytest.mark.behaviour("CND-06")
def test_patterns_that_cannot_be_searched_here_are_refused_at_once() -> None:
    config = {
        "strategy": {
            "mode": "conditional",
            "conditions": [{"query": {"$or": [{"metadata.a": {"$regex": "(?=x)"}}]}, "then": "a"}],
        },
        "targets": [{"name": "a", **KEYED}],
    }
    with pytest.raises(ApiError) as caught:
        compiled(config)
    assert caught.value.details[0].startswith("path: strategy.conditions[0].query, message: Unsupported in a $regex: ")


# --- headers


def named_by(
    naming: Naming, config: dict[str, Any] | None = None, saved: dict[str, Any] | None = None
) -> list[Effective]:
    if config is not None:
        naming = Naming(
            **{**{n: getattr(naming, n) for n in naming.__struct_fields__}, "inline": decode_config(config)}
        )
    return leaves(compile_naming(naming, decode_config(saved) if saved is not None else None, named))


@pytest.mark.behaviour("AUTH-02")
def test_headers_alone() -> None:
    assert named_by(Naming(provider="openai", api_key="k")) == [Effective(provider="openai", api_key="k")]
    assert named_by(Naming(virtual_key="vk")) == [Effective(virtual_key="vk")]
    (leaf,) = named_by(
        Naming(
            provider="azure-openai",
            api_key="k",
            custom_host="https://h.example/v1/",
            options={"resource_name": "r"},
            request_timeout=5,
            strict=False,
            forward={"x-a": "1"},
            input_guardrails=["i"],
            output_guardrails=["o"],
        )
    )
    assert leaf == Effective(
        provider="azure-openai",
        api_key="k",
        custom_host="https://h.example/v1",
        options={"resource_name": "r"},
        request_timeout=5,
        strict=False,
        forward_headers=("x-a",),
        before=("i",),
        after=("o",),
    )


@pytest.mark.behaviour("CFG-34")
def test_a_config_that_names_no_provider_takes_it_from_the_headers() -> None:
    naming = Naming(provider="openai", api_key="header", virtual_key=None)
    (leaf,) = named_by(naming, {"retry": {"attempts": 1}})
    assert (leaf.provider, leaf.api_key, leaf.retry) == ("openai", "header", Retry(attempts=1))
    (leaf,) = named_by(Naming(virtual_key="vk"), {"retry": {"attempts": 1}})
    assert (leaf.provider, leaf.virtual_key) == (None, "vk")
    for config in ({"provider": "anthropic", "api_key": "own"}, single({"provider": "anthropic", "api_key": "own"})):
        (leaf,) = named_by(naming, config)
        assert (leaf.provider, leaf.api_key) == ("anthropic", "own")
    (leaf,) = named_by(naming, {"virtual_key": "vk"})
    assert (leaf.provider, leaf.virtual_key, leaf.api_key) == (None, "vk", None)
    (leaf,) = named_by(naming, {"provider": "anthropic", "retry": {"attempts": 1}})
    assert leaf.api_key is None  # the client's key is for the provider that its header names


@pytest.mark.behaviour("CFG-34", "AUTH-02")
def test_a_target_whose_model_names_its_provider_takes_nothing_from_the_headers() -> None:
    config = single(
        {"override_params": {"model": "@slug/gpt-4o"}}, {"override_params": {"model": "gpt-4o"}}, {"virtual_key": "vk"}
    )
    for naming in (Naming(provider="openai", api_key="k"), Naming(provider="openai", api_key="k", request_timeout=5)):
        first, second, third = named_by(naming, config)
        assert (first.provider, first.api_key) == (None, None)
        assert not needs_headers(first)
        assert (second.provider, second.api_key) == ("openai", "k")
        assert (third.provider, third.virtual_key, third.api_key) == (None, "vk", None)


@pytest.mark.behaviour("CFG-24")
def test_passthrough_takes_the_provider_of_the_request() -> None:
    config = single({"passthrough": True}, KEYED)
    first, second = named_by(Naming(provider="@mine"), config)
    assert (first.provider, first.passthrough) == ("@mine", True)
    assert (second.provider, second.passthrough) == ("openai", False)
    (first, _) = named_by(Naming(), config)
    assert first.provider is None
    assert needs_headers(first)  # then the body's model has to say


@pytest.mark.behaviour("AUTH-08")
@pytest.mark.parametrize(
    ("model", "split"),
    [
        ("@a/b", ("@a", "b")),
        ("@a/b/c", ("@a", "b/c")),
        ("a/b", (None, "a/b")),
        ("@a", (None, "@a")),
        ("@/b", (None, "@/b")),
        ("@a/", (None, "@a/")),
        ("", (None, "")),
    ],
)
def test_a_model_may_name_its_provider(model: str, split: tuple[str | None, str]) -> None:
    assert split_model(model) == split


@pytest.mark.behaviour("RH-50")
def test_provider_data_in_headers_are_for_the_provider_in_headers() -> None:
    naming = Naming(provider="azure-openai", options={"resource_name": "header"})
    own, other = named_by(naming, single({"retry": {"attempts": 1}}, {**KEYED, "resource_name": "config"}))
    assert own.options == {"resource_name": "header"}
    assert other.options == {"resource_name": "config"}
    with pytest.raises(ApiError, match="x-portkey-azure-resource-name"):
        named_by(Naming(provider="azure-openai", options={"resource_name": "a/b"}))
    with pytest.raises(ApiError, match="Invalid custom host") as caught:
        named_by(Naming(provider="huggingface", options={"huggingface_base_url": "http://localhost"}))
    assert caught.value.param == "x-portkey-huggingface-base-url"


@pytest.mark.behaviour("RH-05", "RH-11", "RH-13")
def test_headers_count_before_the_config() -> None:
    config = single(
        {**KEYED, "request_timeout": 1, "custom_host": "https://own.example", "forward_headers": ["x-c"]}, KEYED
    )
    naming = Naming(custom_host="https://h.example", request_timeout=9, forward={"x-h": "1"})
    for leaf in named_by(naming, config):
        assert leaf.custom_host == "https://h.example"
        assert leaf.request_timeout == 9
        assert leaf.forward_headers == ("x-h",)
    first, second = named_by(Naming(), config)
    assert (first.custom_host, first.request_timeout, first.forward_headers) == ("https://own.example", 1, ("x-c",))
    assert (second.custom_host, second.request_timeout, second.forward_headers) == (None, None, ())
    with pytest.raises(ApiError, match="Invalid custom host") as caught:
        named_by(Naming(custom_host="http://localhost"), KEYED)
    assert caught.value.param == "x-portkey-custom-host"


@pytest.mark.behaviour("INH-03", "RH-18")
def test_default_guardrails_apply_at_every_depth_in_addition() -> None:
    naming = Naming(input_guardrails=["default-in"], output_guardrails=["default-out"])
    config = single({**KEYED, "input_guardrails": ["own"]}, single(KEYED), output_guardrails=["parent"])
    first, second = named_by(naming, config)
    assert (first.before, first.after) == (("own", "default-in"), ("parent", "default-out"))
    assert (second.before, second.after) == (("default-in",), ("parent", "default-out"))


def test_the_keys_of_a_saved_config_are_not_sent_where_a_header_says() -> None:
    naming = Naming(config="saved", custom_host="https://thief.example")
    for secret in ({"api_key": "k"}, {"aws_secret_access_key": "k"}, {"azure_entra_client_secret": "k"}):
        with pytest.raises(ApiError, match="saved config"):
            named_by(naming, saved=single({"provider": "openai", **secret}))
    assert named_by(naming, saved={"retry": {"attempts": 1}})[0].custom_host == "https://thief.example"
    assert named_by(naming, KEYED)[0].custom_host == "https://thief.example"  # its own keys


def test_a_compiled_config_is_used_as_it_is() -> None:
    config = decode_config(single(KEYED, KEYED))
    node = compile_config(config)
    assert compile_naming(Naming(config="x"), config, compiled=node) is node
    assert compile_naming(Naming(inline=config, provider="anthropic"), None, compiled=node) is node
    assert compile_naming(Naming(config="x", request_timeout=1), config, compiled=node) is not node
    assert leaves(node)[0].request_timeout is None


def test_a_config_is_compiled_once_for_each_kind_of_compiling() -> None:
    text = '{"provider": "openai", "input_guardrails": ["a"]}'
    config = decode_config(text)
    assert decode_config(text) is config
    assert compile_config(config) is compile_config(config)
    assert leaves(compile_config(config))[0].before == ()
    assert leaves(compile_config(config, named))[0].before == ("a",)
    again = decode_config(text, where="config 'x'")
    assert (again, again is config) == (config, False)


def test_what_is_kept_stays_little() -> None:
    kept = tree._compiled  # pyright: ignore[reportPrivateUsage]
    for number in range(200):
        compiled(single(KEYED, request_timeout=number + 1))
    assert len(kept) <= 64
    large = decode_config(single(*[KEYED] * 900))
    assert compile_config(large) is not compile_config(large)


def test_circuits_are_per_config_target_and_header_provider() -> None:
    config = {"retry": {"attempts": 1}, "cb_config": {"failure_threshold": 1}}
    two = single(config, config)
    found = {
        leaf.circuit
        for naming in (Naming(provider="a"), Naming(provider="b"), Naming(provider="a", api_key="k"))
        for shape in (config, two)
        for leaf in named_by(naming, shape)
    }
    assert len(found) == 3 * 3
    assert [leaf.circuit for leaf in named_by(Naming(provider="a"), two)] == [
        leaf.circuit for leaf in named_by(Naming(provider="a"), two)
    ]
    assert leaves(compiled(single(KEYED)))[0].circuit == ""
