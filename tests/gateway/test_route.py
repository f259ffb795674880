"""Which targets are tried, in which order: some trees by hand, and any tree against a model written another way."""

import random
from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from loomgate.errors import ApiError
from loomgate.gateway.breaker import Breakers
from loomgate.gateway.call import Answer, Effective, Node, Request
from loomgate.gateway.route import Router, is_repeatable, is_stateful
from loomgate.gateway.tree import compile_config
from loomgate.wire.configs import decode_config
from loomgate.wire.endpoints import ENDPOINTS
from loomgate.wire.policy import Naming

pytestmark = pytest.mark.anyio

TARGET = {"provider": "openai", "api_key": "k"}
CHAT = Request(ENDPOINTS["chat"], Naming(), "w")


class Ending(Answer):
    """An answer that knows whether it was closed."""

    closed = False

    async def close(self) -> None:
        self.closed = True


class World:
    """Endpoints by the path of the target: a status for all, or some. Keeps what was tried."""

    def __init__(self, status: int | Callable[[str], int] = 200, final: bool = False) -> None:
        self.status = status
        self.final = final
        self.tried: list[str] = []
        self.answers: list[Ending] = []

    async def attempt(self, effective: Effective) -> Answer:
        path = effective.path
        self.tried.append(path.removeprefix("config").removeprefix("."))
        answer = Ending(self.status if isinstance(self.status, int) else self.status(path))
        answer.final = self.final
        self.answers.append(answer)
        return answer


def tree(mode: str, *targets: dict[str, Any], **strategy: Any) -> dict[str, Any]:
    return {"strategy": {"mode": mode, **strategy}, "targets": list(targets)}


def compiled(config: dict[str, Any]) -> Node:
    return compile_config(decode_config(config))


async def walk(
    config: dict[str, Any],
    world: World,
    *,
    router: Router | None = None,
    request: Request = CHAT,
    skip: Sequence[str] = (),
) -> Answer:
    router = router or Router(lambda: 0.0)
    return await router.walk(compiled(config), request, world.attempt, frozenset(skip))


def by_place(statuses: dict[str, int]) -> Callable[[str], int]:
    return lambda path: statuses.get(path.removeprefix("config."), 200)


# --- single


@pytest.mark.behaviour("SGL-01")
async def test_single_uses_the_first_target_only() -> None:
    world = World(500)
    answer = await walk(tree("single", TARGET, TARGET), world)
    assert world.tried == ["targets[0]"]
    assert (answer.status, answer.path) == (500, "config.targets[0]")


@pytest.mark.behaviour("SGL-02")
async def test_a_config_without_strategy_is_tried_itself() -> None:
    world = World()
    assert (await walk(TARGET, world)).path == "config"


# --- fallback


@pytest.mark.behaviour("FB-01", "FB-07")
@pytest.mark.parametrize(
    ("status", "goes_on"), [(s, not 200 <= s < 300) for s in (200, 204, 246, 299, 300, 400, 408, 503)]
)
async def test_without_a_list_the_first_success_is_final(status: int, goes_on: bool) -> None:
    world = World(by_place({"targets[0]": status}))
    await walk(tree("fallback", TARGET, TARGET), world)
    assert world.tried == (["targets[0]", "targets[1]"] if goes_on else ["targets[0]"])


@pytest.mark.behaviour("FB-02", "FB-06", "TMO-03")
@pytest.mark.parametrize(
    ("status", "goes_on"),
    [(429, True), (246, True), (446, True), (408, True), (500, False), (200, False), (401, False)],
)
async def test_with_a_list_only_what_is_in_it_leads_on(status: int, goes_on: bool) -> None:
    world = World(by_place({"targets[0]": status}))
    answer = await walk(tree("fallback", TARGET, TARGET, on_status_codes=[408, 429, 246, 446]), world)
    assert len(world.tried) == 1 + goes_on
    assert answer.status == (200 if goes_on else status)


@pytest.mark.behaviour("FB-03")
async def test_the_last_answer_is_returned_even_if_it_is_in_the_list() -> None:
    world = World(429)
    answer = await walk(tree("fallback", TARGET, TARGET, on_status_codes=[429]), world)
    assert (answer.status, answer.path) == (429, "config.targets[1]")


@pytest.mark.behaviour("FB-04")
async def test_an_answer_of_the_gateway_itself_is_final() -> None:
    world = World(500, final=True)
    inner = tree("fallback", TARGET, TARGET)
    answer = await walk(tree("fallback", inner, TARGET), world)
    assert answer.status == 500
    assert world.tried == ["targets[0].targets[0]"]


@pytest.mark.behaviour("FB-05")
async def test_answers_that_are_passed_over_are_closed_before_the_next_try() -> None:
    world = World(503)
    open_before: list[int] = []

    async def attempt(effective: Effective) -> Answer:
        open_before.append(sum(not answer.closed for answer in world.answers))
        return await world.attempt(effective)

    answer = await Router().walk(compiled(tree("fallback", TARGET, TARGET, TARGET)), CHAT, attempt)
    assert open_before == [0, 0, 0]
    assert [ending.closed for ending in world.answers] == [True, True, False]
    assert answer is world.answers[2]


async def test_what_a_try_raises_ends_the_walk() -> None:
    async def attempt(_effective: Effective) -> Answer:
        raise ApiError(400, "no")

    with pytest.raises(ApiError, match="no"):
        await Router().walk(compiled(tree("fallback", TARGET, TARGET)), CHAT, attempt)


# --- any tree


def model(config: dict[str, Any], statuses: dict[str, int], share: Fraction, place: str = "") -> tuple[list[str], int]:
    """The places that are tried and the status that comes out, from the config as it is written."""
    if "targets" not in config:
        return [place], statuses.get(place, 200)
    dot = "." if place else ""
    targets = [(f"{place}{dot}targets[{i}]", target) for i, target in enumerate(config["targets"])]
    strategy = config["strategy"]
    if strategy["mode"] == "single":
        return model(targets[0][1], statuses, share, targets[0][0])
    if strategy["mode"] == "loadbalance":
        parts = [(Fraction(target.get("weight", 1)), place, target) for place, target in targets]
        total = sum(part[0] for part in parts)
        low = Fraction(0)
        for weight, at, target in parts:
            if low <= share * total < low + weight:
                return model(target, statuses, share, at)
            low += weight
        raise AssertionError
    tried: list[str] = []
    status = 0
    for at, target in targets:
        places, status = model(target, statuses, share, at)
        tried += places
        codes = strategy.get("on_status_codes")
        if (status // 100 == 2) if codes is None else (status not in codes):
            break
    return tried, status


STATUSES = [200, 246, 401, 429, 446, 500, 503]


@st.composite
def trees(draw: st.DrawFn, depth: int = 0) -> dict[str, Any]:
    if depth == 3 or (depth and draw(st.booleans())):
        return {**TARGET, "weight": draw(st.integers(0, 3))}
    targets = draw(st.lists(trees(depth + 1), min_size=1, max_size=3))
    mode = draw(st.sampled_from(["single", "fallback", "fallback", "loadbalance"]))
    config = {**tree(mode, *targets), "weight": draw(st.integers(0, 3))}
    if mode == "fallback" and draw(st.booleans()):
        config["strategy"]["on_status_codes"] = draw(st.lists(st.sampled_from(STATUSES), max_size=4))
    if mode == "loadbalance" and not any(target["weight"] for target in targets):
        targets[0]["weight"] = 1
    return config


def leaves(config: dict[str, Any], place: str = "") -> list[str]:
    if "targets" not in config:
        return [place]
    dot = "." if place else ""
    return [leaf for i, target in enumerate(config["targets"]) for leaf in leaves(target, f"{place}{dot}targets[{i}]")]


def random_statuses(config: dict[str, Any], seed: int) -> dict[str, int]:
    dice = random.Random(seed)
    return {place: dice.choice(STATUSES) for place in leaves(config)}


@pytest.mark.behaviour("FB-01", "FB-02", "FB-03", "LB-01", "LB-04", "SGL-01", "RSP-02")
@given(trees(), st.integers(), st.integers(0, 63))
@settings(max_examples=200, deadline=None)
async def test_any_tree_is_walked_as_the_model_walks_it(config: dict[str, Any], seed: int, part: int) -> None:
    statuses = random_statuses(config, seed)
    world = World(by_place(statuses))
    answer = await walk(config, world, router=Router(lambda: part / 64))
    tried, status = model(config, statuses, Fraction(part, 64))
    assert world.tried == tried
    assert answer.status == status
    assert answer.path == f"config.{tried[-1]}"
    assert [ending.closed for ending in world.answers] == [True] * (len(tried) - 1) + [False]


@given(trees(), st.integers(), st.integers(0, 63))
@settings(max_examples=100, deadline=None)
async def test_what_is_to_be_skipped_is_skipped_as_long_as_there_is_another(
    config: dict[str, Any], seed: int, part: int
) -> None:
    """A run whose stream breaks over and over comes to every target that its config leads to, then starts anew."""
    broken: set[str] = set()
    router = Router(lambda: part / 64)
    world = World(by_place(random_statuses(config, seed)))
    seen: list[str] = []
    for _ in range(len(leaves(config)) + 1):
        answer = await walk(config, world, router=router, skip=sorted(broken))
        if answer.path in broken:
            break
        seen.append(answer.path)
        broken.add(answer.path)
    else:
        raise AssertionError("never came to an end")
    assert len(set(seen)) == len(seen)


async def test_a_broken_target_leads_on_to_the_next() -> None:
    config = tree("fallback", TARGET, tree("loadbalance", TARGET, {**TARGET, "weight": 0}, TARGET), TARGET)
    first, drawn, other, last = (
        "config.targets[0]",
        "config.targets[1].targets[0]",
        "config.targets[1].targets[2]",
        "config.targets[2]",
    )
    for skip, expected in (
        ((), first),
        ((first,), drawn),
        ((first, drawn), other),
        ((first, drawn, other), last),
        ((first, drawn, other, last), first),
        ((drawn, other, last), first),
    ):
        assert (await walk(config, World(), skip=skip)).path == expected


# --- loadbalance


async def drawn(config: dict[str, Any], router: Router, request: Request = CHAT) -> int:
    world = World()
    await walk(config, world, router=router, request=request)
    return int(world.tried[0].removeprefix("targets[").removesuffix("]"))


@pytest.mark.behaviour("LB-01", "LB-02", "LB-06", "CFG-12")
@pytest.mark.parametrize("weights", [[1, 1], [5, 3, 1], [0.75, 0.25], [0, 1, 2, 0], [1e-9, 1e9], [0.1, 0.2, 0.7]])
async def test_shares_of_the_dice_are_shares_of_the_weights(weights: list[float]) -> None:
    config = tree("loadbalance", *({**TARGET, "weight": weight} for weight in weights))
    sides = 360
    counts = [0] * len(weights)
    for side in range(sides):
        counts[await drawn(config, Router(lambda side=side: side / sides))] += 1
    for count, weight in zip(counts, weights, strict=True):
        assert abs(count - sides * weight / sum(weights)) <= 1
        assert weight or not count


@pytest.mark.behaviour("LB-01", "LB-06")
async def test_ten_thousand_draws_keep_to_the_weights() -> None:
    weights = [5, 3, 1, 0]
    node = compiled(tree("loadbalance", *({**TARGET, "weight": weight} for weight in weights)))
    world = World()
    router = Router()
    for _ in range(10_000):
        await router.walk(node, CHAT, world.attempt)
    for index, weight in enumerate(weights):
        share = weight / sum(weights)
        deviation = (10_000 * share * (1 - share)) ** 0.5
        assert abs(world.tried.count(f"targets[{index}]") - 10_000 * share) <= 4 * deviation


@pytest.mark.behaviour("LB-01")
async def test_the_default_weight_is_one() -> None:
    config = tree("loadbalance", TARGET, {**TARGET, "weight": 1})
    assert [await drawn(config, Router(lambda share=share: share)) for share in (0.0, 0.49, 0.5, 0.999)] == [0, 0, 1, 1]


@pytest.mark.behaviour("LB-04")
async def test_no_second_target_is_tried() -> None:
    world = World(503)
    assert (await walk(tree("loadbalance", TARGET, TARGET), world)).status == 503
    assert len(world.tried) == 1


@pytest.mark.behaviour("LB-03")
async def test_weights_that_are_all_zero_are_no_internal_error() -> None:
    node = compiled(tree("loadbalance", TARGET))
    broken = Node(effective=node.effective, strategy=node.strategy, targets=(Node(effective=Effective(weight=0)),))
    with pytest.raises(ApiError, match="weight 0"):
        await Router().walk(broken, CHAT, World().attempt)


# --- sticky


class Time:
    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def cycling() -> Callable[[], float]:
    shares = iter([n / 10 for _ in range(1_000) for n in (0, 9, 4, 7, 2)])
    return lambda: next(shares)


def of_user(user: str | None, workspace: str = "w", **options: Any) -> Request:
    metadata = {} if user is None else {"user": user}
    return Request(options.pop("endpoint", ENDPOINTS["chat"]), Naming(metadata=metadata), workspace, **options)


STICKY = tree("loadbalance", *[TARGET] * 4, sticky={"hash_fields": ["metadata.user"], "ttl": 60})


@pytest.mark.behaviour("LB-05", "CFG-05")
async def test_equal_fields_go_to_one_target_until_the_time_is_over() -> None:
    time = Time()
    router = Router(cycling(), now=time)
    first = {user: await drawn(STICKY, router, of_user(user)) for user in ("a", "b", "c")}
    assert first == {"a": 0, "b": 3, "c": 1}
    for _ in range(5):
        for user, target in first.items():
            assert await drawn(STICKY, router, of_user(user)) == target
        time.now += 11
    time.now = 1_060.0
    assert [await drawn(STICKY, router, of_user(user)) for user in first] == [2, 0, 0]  # drawn anew


@pytest.mark.behaviour("LB-05")
async def test_what_has_none_of_the_fields_is_not_sticky_and_workspaces_share_nothing() -> None:
    router = Router(cycling())
    assert [await drawn(STICKY, router, of_user(None)) for _ in range(5)] == [0, 3, 1, 2, 0]
    assert await drawn(STICKY, router, of_user("a", "one")) == 0
    assert await drawn(STICKY, router, of_user("a", "two")) == 3
    off = tree("loadbalance", *[TARGET] * 4, sticky={"hash_fields": ["metadata.user"], "enabled": False})
    assert [await drawn(off, router, of_user("a", "one")) for _ in range(3)] == [1, 2, 0]


@pytest.mark.behaviour("LB-05")
async def test_a_sticky_rule_may_look_at_the_body() -> None:
    config = tree("loadbalance", *[TARGET] * 4, sticky_session={"hash_fields": ["params.user", "metadata.user"]})
    router = Router(cycling())

    def request(user: object) -> Request:
        return Request(ENDPOINTS["chat"], Naming(), "w", body=msgspec.json.encode({"user": user}))

    assert [await drawn(config, router, request(user)) for user in ("a", 1, "1", "a", 1, "1")] == [0, 3, 1, 0, 3, 1]


async def test_promises_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("loomgate.gateway.route._MOST_PINS", 50)
    router = Router()
    for number in range(500):
        await drawn(STICKY, router, of_user(str(number)))
    assert len(router._pins) == 50  # pyright: ignore[reportPrivateUsage]


# --- conditional


@pytest.mark.behaviour("CND-01")
async def test_conditions_choose_the_target() -> None:
    config = tree(
        "conditional",
        {"name": "cheap", **TARGET},
        {"name": "good", **TARGET},
        conditions=[
            {"query": {"metadata.user": {"$eq": "paying"}}, "then": "good"},
            {"query": {"params.model": {"$regex": "^gpt-4"}}, "then": "good"},
        ],
        default="cheap",
    )
    for request, target in (
        (of_user("paying"), 1),
        (of_user("other"), 0),
        (of_user(None), 0),
        (of_user(None, body=b'{"model":"gpt-4o"}'), 1),
    ):
        assert await drawn(config, Router(), request) == target


@pytest.mark.behaviour("CND-09")
async def test_conditions_that_lead_nowhere() -> None:
    config = tree("conditional", {"name": "a", **TARGET}, conditions=[{"query": {"metadata.user": "x"}, "then": "a"}])
    with pytest.raises(ApiError, match=r"^Query router did not resolve to any valid target$") as caught:
        await walk(config, World())
    assert caught.value.status == 400


# --- circuits

OPENING = {"failure_threshold": 1}


async def fail(config: dict[str, Any], router: Router, times: int = 2, *, request: Request = CHAT) -> list[list[str]]:
    found: list[list[str]] = []
    for _ in range(times):
        world = World(by_place({"targets[0]": 503, "targets[0].targets[0]": 503, "targets[0].targets[1]": 503}))
        await walk(config, world, router=router, request=request)
        found.append(world.tried)
    return found


@pytest.mark.behaviour("CB-03", "CB-05")
async def test_targets_with_open_circuits_are_left_out_and_paths_stay() -> None:
    time = Time()
    router = Router(lambda: 0.0, now=time)
    config = {**tree("fallback", TARGET, TARGET), "cb_config": OPENING}
    both, second = ["targets[0]", "targets[1]"], ["targets[1]"]
    assert await fail(config, router, 4) == [both, both, second, second]
    assert (await walk(config, World(), router=router)).path == "config.targets[1]"
    time.now += 30
    assert await fail(config, router, 1) == [both]


@pytest.mark.behaviour("CB-03")
async def test_if_all_are_open_all_are_used() -> None:
    router = Router(lambda: 0.0, Breakers(Time()))
    config = {**tree("fallback", TARGET, TARGET), "cb_config": OPENING}
    for _ in range(4):
        world = World(503)
        await walk(config, world, router=router)
        assert world.tried == ["targets[0]", "targets[1]"]
    single = {**tree("single", TARGET), "cb_config": OPENING}
    assert await fail(single, router, 4) == [["targets[0]"]] * 4


@pytest.mark.behaviour("CB-03", "INH-04")
async def test_load_is_balanced_over_those_whose_circuit_is_closed() -> None:
    router = Router(lambda: 0.0)
    config = tree("loadbalance", TARGET, TARGET, cb_config=OPENING)
    assert await fail(config, router, 4) == [["targets[0]"], ["targets[0]"], ["targets[1]"], ["targets[1]"]]


@pytest.mark.behaviour("CB-03", "LB-05")
async def test_a_promise_does_not_hold_for_a_target_that_fails() -> None:
    router = Router(lambda: 0.0)
    config = tree("loadbalance", TARGET, TARGET, cb_config=OPENING, sticky={"hash_fields": ["metadata.user"]})
    assert await fail(config, router, 3, request=of_user("a")) == [["targets[0]"], ["targets[0]"], ["targets[1]"]]


async def test_a_group_is_left_out_when_all_of_it_is_open() -> None:
    router = Router(lambda: 0.0)
    config = {**tree("fallback", tree("fallback", TARGET, TARGET), TARGET), "cb_config": OPENING}
    inner = ["targets[0].targets[0]", "targets[0].targets[1]"]
    assert await fail(config, router, 3) == [[*inner, "targets[1]"], [*inner, "targets[1]"], ["targets[1]"]]


@pytest.mark.behaviour("CB-04")
async def test_conditional_targets_are_not_left_out() -> None:
    router = Router()
    config = {
        **tree(
            "conditional", {"name": "a", **TARGET}, {"name": "b", **TARGET}, conditions=[{"query": {}, "then": "a"}]
        ),
        "cb_config": OPENING,
    }
    assert await fail(config, router, 4) == [["targets[0]"]] * 4
    inner = tree("conditional", {"name": "a", **TARGET}, conditions=[{"query": {}, "then": "a"}])
    outer = {**tree("fallback", inner, TARGET), "cb_config": OPENING}
    assert (await fail(outer, router, 4))[-1] == ["targets[0].targets[0]", "targets[1]"]


async def test_workspaces_do_not_see_each_others_failures() -> None:
    router = Router(lambda: 0.0)
    config = {**tree("fallback", TARGET, TARGET), "cb_config": OPENING}
    await fail(config, router, 3, request=of_user("a", "one"))
    assert (await fail(config, router, 1, request=of_user("a", "two")))[0][0] == "targets[0]"
    assert (await fail(config, router, 1, request=of_user("a", "one")))[0][0] == "targets[1]"


async def test_the_gateways_own_errors_are_nobodys_failure() -> None:
    router = Router(lambda: 0.0)
    config = {**tree("fallback", TARGET, TARGET), "cb_config": OPENING}
    for _ in range(4):
        world = World(503, final=True)
        await walk(config, world, router=router)
        assert world.tried == ["targets[0]"]


# --- objects that live in one account

PROXY = ENDPOINTS["proxy"]


def at(path: str, method: str = "POST", user: str | None = None) -> Request:
    return of_user(user, endpoint=PROXY, path=path, method=method)


@pytest.mark.behaviour("PRX-11")
@pytest.mark.parametrize("path", ["/assistants", "/threads/t/runs", "/vector_stores/v", "/uploads/u/parts"])
async def test_stateful_paths_are_not_balanced_over_accounts(path: str) -> None:
    with pytest.raises(ApiError, match="sticky") as caught:
        await walk(tree("loadbalance", TARGET, TARGET), World(), request=at(path))
    assert caught.value.status == 400
    with pytest.raises(ApiError, match=r"metadata\.user"):
        await walk(STICKY, World(), request=at(path))
    for config in (tree("loadbalance", TARGET, {**TARGET, "weight": 0}), tree("fallback", TARGET, TARGET), TARGET):
        assert (await walk(config, World(), request=at(path))).status == 200
    assert (await walk(tree("loadbalance", TARGET, TARGET), World(), request=at("/assistantsx"))).status == 200
    assert (await walk(tree("loadbalance", TARGET, TARGET), World())).status == 200


@pytest.mark.behaviour("PRX-11", "LB-05")
async def test_stateful_paths_stick_for_good_in_every_process() -> None:
    users = [str(number) for number in range(200)]
    time = Time()
    first = [await drawn(STICKY, Router(now=time), at("/threads", user=user)) for user in users]  # a process each
    assert {first.count(target) > 20 for target in range(4)} == {True}  # spread over all
    time.now += 1e9
    failing = {**STICKY, "cb_config": OPENING}
    router = Router()
    await fail(failing, router, 4)
    assert [await drawn(STICKY, router, at("/threads/t/messages", user=user)) for user in users] == first


@pytest.mark.behaviour("PRX-11")
async def test_a_circuit_does_not_send_stateful_paths_to_another_account() -> None:
    router = Router()
    config = {**tree("fallback", TARGET, TARGET), "cb_config": OPENING}
    assert (await fail(config, router, 3))[-1] == ["targets[1]"]
    assert (await fail(config, router, 1, request=at("/threads/t"))) == [["targets[0]", "targets[1]"]]


@pytest.mark.behaviour("PRX-12")
def test_what_may_be_sent_again() -> None:
    assert is_stateful(at("/threads/t"))
    assert not is_stateful(CHAT)
    assert not is_repeatable(at("/threads"))
    assert is_repeatable(at("/threads", "GET"))
    assert is_repeatable(at("/other"))
    assert is_repeatable(CHAT)
