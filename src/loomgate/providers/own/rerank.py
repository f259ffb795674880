"""Reranking in the formats of its vendors, in one shape for clients (``/rerank`` of the gateway's OpenAPI file).

What must live here: one row of `TABLE` for each vendor that offers it. What must not: chats.
"""

from typing import Any, cast

from loomgate.providers.dialect import Target
from loomgate.providers.operation import Fields, Operation, Translated, refused
from loomgate.providers.own.plain import within


def _documents(fields: Fields) -> list[str]:
    """The documents' texts, which may come as objects. Raises a 400 `ApiError` for anything else."""
    found = fields.get("documents")
    texts: list[str] = []
    for index, each in enumerate(cast("list[Any]", found) if isinstance(found, list) else ()):
        text = cast("Fields", each).get("text") if isinstance(each, dict) else each
        if not isinstance(text, str):
            raise refused(f"documents[{index}]", "a text, or an object with a text")
        texts.append(text)
    if not texts:
        raise refused("documents", "a list of texts that is not empty")
    return texts


def _asked(fields: Fields, *, top: str = "top_n") -> Fields:
    if not isinstance(fields.get("query"), str):
        raise refused("query", "a text")
    made = {name: value for name, value in fields.items() if name not in ("top_n", "return_documents")}
    made["documents"] = _documents(fields)
    if fields.get("top_n") is not None:
        made[top] = fields["top_n"]
    return made


def _ask(fields: Fields, _target: Target) -> Fields:
    return _asked(fields)


def _ask_voyage(fields: Fields, _target: Target) -> Fields:
    return _asked(fields, top="top_k")


def _tell(found: Any, fields: Fields, _target: Target) -> Fields:
    """Best first. The documents come from the request: no vendor needs to send them back."""
    made = found["results"] if "results" in found else found["data"]
    results: list[Fields] = [
        {"index": int(each["index"]), "relevance_score": float(each["relevance_score"])} for each in made
    ]
    results.sort(key=lambda each: each["relevance_score"], reverse=True)
    if fields.get("return_documents"):
        texts = _documents(fields)
        for each in results:
            each["document"] = {"text": texts[each["index"]]}
    usage = dict(within(found, "usage"))
    units = within(within(found, "meta"), "billed_units")
    if "search_units" in units:
        usage["search_units"] = int(units["search_units"])
    model = found.get("model") or fields.get("model") or ""
    told: Fields = {"object": "list", "results": results, "model": model, "usage": usage}
    return {"id": found["id"], **told} if found.get("id") else told


_OPERATION = Translated(endpoint="rerank", ask=_ask, tell=_tell)

TABLE: dict[str, Operation] = {
    "cohere": _OPERATION,
    "jina": _OPERATION,
    "openai-compatible": _OPERATION,  # servers that offer it took over Jina's shape
    "together-ai": _OPERATION,
    "voyage": Translated(endpoint="rerank", ask=_ask_voyage, tell=_tell),
}
