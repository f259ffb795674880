"""What a call costs: the price table that ships (``prices.json``), the operator's own rows over it, and the sum.

What must live here: prices, and how a provider's and a model's name find theirs. What must not: counting tokens
(``gateway/usage``), or what is done with a cost.
"""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any

import msgspec

from loomgate.settings import Price
from loomgate.wire.chat import Usage

_MILLION = 1_000_000
_MOST_REMEMBERED = 4096  # pairs of provider and model: names of models come from clients

# What a vendor appends to a model's name: a date, "latest", a version of Bedrock or Vertex.
_SUFFIX = re.compile(r"(?:[-@](?:\d{8}|\d{4}-\d{2}-\d{2}|latest)|-v\d+(?::\d+)?|:\d+(?:k|m)?|@\w+)$")
# What a vendor puts before it: Bedrock's regions and makers, Vertex AI's publishers.
_PREFIX = re.compile(
    r"^(?:publishers/[^/]+/models/|models/"
    r"|(?:(?:global|us|eu|apac|au|jp|ca|us-gov)\.)?"
    r"(?:(?:anthropic|amazon|meta|mistral|cohere|deepseek|google|openai)[./])?)"
)


class Units(msgspec.Struct, frozen=True):
    """What a call used besides tokens: images made, characters spoken, seconds of audio heard, searches."""

    images: int = 0
    characters: int = 0
    seconds: float = 0.0
    searches: int = 0


NO_UNITS = Units()


class _Shipped(msgspec.Struct, forbid_unknown_fields=True):
    dated: str
    note: str
    like: dict[str, list[str]]
    models: dict[str, dict[str, float]]


@cache
def shipped() -> _Shipped:
    """The table in the package, read once. ``dated`` says of what day its prices are."""
    return msgspec.json.decode((files("loomgate.gateway") / "prices.json").read_bytes(), type=_Shipped)


class Prices:
    """Prices by provider and model: ``own`` rows (``provider/model`` with ``*`` for any text), then those shipped.

    Within either, a row that names the model exactly beats a pattern, and a longer pattern a shorter one. The date
    or version that vendors append to a name is left out when nothing matches with it.
    """

    def __init__(self, own: Mapping[str, Price] = {}) -> None:
        self._own = dict(own)
        self._tables: tuple[_Table, ...] | None = None
        self._found: dict[tuple[str, str], Price | None] = {}

    def find(self, provider: str, model: str) -> Price | None:
        """The price of ``model`` at ``provider`` (a vendor's slug, or the name of a declared provider), if known."""
        key = (provider, model)
        try:
            return self._found[key]
        except KeyError:
            if len(self._found) >= _MOST_REMEMBERED:
                self._found.clear()
            found = self._found[key] = self._look(provider, model)
            return found

    def cost(self, provider: str, model: str, usage: Usage | None, units: Units = NO_UNITS) -> float | None:
        """USD for a call; ``None`` when its price is not known, or it used what the table has no price for.

        ``usage.prompt_tokens`` includes ``cached_tokens`` and ``cache_creation_tokens``, which cost ``cached_input``
        and ``cache_write``, or else ``input``.
        """
        price = self.find(provider, model)
        return None if price is None else total(price, usage, units)

    def _look(self, provider: str, model: str) -> Price | None:
        if self._tables is None:
            rows = {name: Price(**row) for name, row in shipped().models.items()}
            self._tables = (_Table(self._own), _Table(rows))
        owners = (provider, *shipped().like.get(provider, ()))
        names = [f"{owner}/{name}" for name in _names(model) for owner in owners]
        for table in self._tables:
            found = table.find(names)
            if found is not None:
                return found
        return None


def total(price: Price, usage: Usage | None, units: Units = NO_UNITS) -> float | None:
    """USD for what was used at ``price``; ``None`` when something was used that ``price`` says nothing of."""
    amounts: list[tuple[float, float | None]] = [
        (units.images, price.image),
        (units.seconds, price.second),
        (units.searches, price.search),
        (units.characters / _MILLION, price.character),
    ]
    if usage is not None:
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        cached_price = price.input if price.cached_input is None else price.cached_input
        written = min(usage.cache_creation_tokens, usage.prompt_tokens - cached)
        write_price = price.input if price.cache_write is None else price.cache_write
        tokens = (
            (usage.prompt_tokens - cached - written, price.input),
            (cached, cached_price),
            (written, write_price),
            (usage.completion_tokens, price.output),
        )
        amounts += ((count / _MILLION, each) for count, each in tokens)
    sum, priced, unpriced = 0.0, False, False
    for amount, each in amounts:
        if amount and each is not None:
            sum, priced = sum + amount * each, True
        elif amount:
            unpriced = True
    # A model that is priced by the image or the second may count tokens as well, which are then not what is paid for.
    return None if unpriced and not priced else sum


class _Table:
    def __init__(self, rows: Mapping[str, Price]) -> None:
        self._exact = {name.lower(): price for name, price in rows.items() if "*" not in name}
        patterns = sorted((name for name in rows if "*" in name), key=len, reverse=True)
        self._patterns = [(_compiled(name), rows[name]) for name in patterns]

    def find(self, names: list[str]) -> Price | None:
        for name in names:
            if name in self._exact:
                return self._exact[name]
        for name in names:
            for pattern, price in self._patterns:
                if pattern.fullmatch(name):
                    return price
        return None


def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.lower().split("*")), re.DOTALL)


def _names(model: str) -> Iterable[str]:
    """``model`` as it is written, then with less and less of what vendors put around a name."""
    name = model.lower()
    yield name
    for start in (name, _PREFIX.sub("", name, count=1)):
        shorter = start
        if shorter != name:
            yield shorter
        while (next_one := _SUFFIX.sub("", shorter, count=1)) != shorter:
            shorter = next_one
            yield shorter


def pricing_object(price: Price) -> dict[str, Any]:
    """``price`` as Portkey shows one (gateway.openapi.json, ModelPricingConfig): in US cents per token or unit."""

    def cents(dollars: float, per: int = 1) -> dict[str, float]:
        return {"price": float(f"{dollars * 100 / per:.10g}")}

    pay: dict[str, Any] = {
        name: cents(value, _MILLION)
        for name, value in (
            ("request_token", price.input),
            ("response_token", price.output),
            ("cache_write_input_token", price.cache_write),
            ("cache_read_input_token", price.cached_input),
        )
        if value is not None
    }
    units = {
        name: cents(value, per)
        for name, value, per in (
            ("character", price.character, _MILLION),
            ("second", price.second, 1),
            ("search", price.search, 1),
        )
        if value is not None
    }
    if units:
        pay["additional_units"] = units
    if price.image is not None:
        pay["image"] = {"default": {"default": cents(price.image)}}
    return {"pay_as_you_go": pay, "currency": "USD"}
