"""Embeddings in the formats of their vendors, from and to OpenAI's.

What must live here: one row of `TABLE` for each vendor whose embeddings are not OpenAI's. What must not: chats.
"""

from typing import Any, cast

from loomgate.providers import vertex
from loomgate.providers.dialect import Target
from loomgate.providers.operation import Fields, Operation, Translated, embeddings, refused, texts_of


def _given(fields: Fields, **names: str) -> Fields:
    """Of ``fields`` those that are given, under the vendor's names: ``theirs="ours"``."""
    return {theirs: fields[ours] for theirs, ours in names.items() if fields.get(ours) is not None}


def _one(fields: Fields, vendor: str) -> str:
    texts = texts_of(fields)
    if len(texts) > 1:
        raise refused("input", f"one text, since {vendor} embeds one at a time", f"{len(texts)} texts")
    return texts[0]


# --- Google: generativelanguage, PaLM, Vertex AI -------------------------------------------------------------------


def _gemini_path(fields: Fields, _target: Target) -> str:
    many = isinstance(fields.get("input"), list)
    return "/v1beta/models/{model}:" + ("batchEmbedContents" if many else "embedContent")


def _gemini_ask(fields: Fields, _target: Target) -> Fields:
    model = "models/" + str(fields.get("model")).removeprefix("models/")
    more = _given(fields, outputDimensionality="dimensions", taskType="task_type", title="title")
    texts = texts_of(fields)
    made = [{"model": model, "content": {"parts": [{"text": text}]}, **more} for text in texts]
    return {"requests": made} if isinstance(fields.get("input"), list) else made[0]


def _gemini_tell(found: Any, fields: Fields, _target: Target) -> Fields:
    many = found["embeddings"] if "embeddings" in found else [found["embedding"]]
    return embeddings([each["values"] for each in many], fields)


def _palm_path(fields: Fields, _target: Target) -> str:
    many = isinstance(fields.get("input"), list)
    return "/models/{model}:" + ("batchEmbedText" if many else "embedText")


def _palm_ask(fields: Fields, _target: Target) -> Fields:
    texts = texts_of(fields)
    return {"texts": texts} if isinstance(fields.get("input"), list) else {"text": texts[0]}


def _palm_tell(found: Any, fields: Fields, _target: Target) -> Fields:
    many = found["embeddings"] if "embeddings" in found else [found["embedding"]]
    return embeddings([each["value"] for each in many], fields)


def _vertex_ask(fields: Fields, _target: Target) -> Fields:
    more = _given(fields, task_type="task_type", title="title")
    made: Fields = {"instances": [{"content": text, **more} for text in texts_of(fields)]}
    if parameters := _given(fields, outputDimensionality="dimensions", autoTruncate="auto_truncate"):
        made["parameters"] = parameters
    return made


def _vertex_tell(found: Any, fields: Fields, _target: Target) -> Fields:
    made = [each["embeddings"] for each in found["predictions"]]
    tokens = sum(int(each.get("statistics", {}).get("token_count", 0)) for each in made)
    return embeddings([each["values"] for each in made], fields, tokens)


# --- Cohere, also on Bedrock; Titan --------------------------------------------------------------------------------


def _cohere_ask(fields: Fields, _target: Target) -> Fields:
    more = _given(fields, output_dimension="dimensions", truncate="truncate", max_tokens="max_tokens")
    return {
        "model": fields.get("model"),
        "texts": texts_of(fields),
        "input_type": fields.get("input_type") or "search_document",
        "embedding_types": ["float"],
        **more,
    }


def _cohere_tell(found: Any, fields: Fields, _target: Target) -> Fields:
    made = found["embeddings"]
    if isinstance(made, dict):
        made = cast(Any, made)["float"]
    tokens = int(found.get("meta", {}).get("billed_units", {}).get("input_tokens", 0))
    return embeddings(made, fields, tokens)


def _of_cohere(fields: Fields) -> bool:
    return "cohere." in str(fields.get("model"))


def _bedrock_ask(fields: Fields, target: Target) -> Fields:
    if _of_cohere(fields):
        made = _cohere_ask(fields, target)
        del made["model"]
        return made
    more = _given(fields, dimensions="dimensions", normalize="normalize")
    return {"inputText": _one(fields, "this model"), **more}


def _bedrock_tell(found: Any, fields: Fields, target: Target) -> Fields:
    if _of_cohere(fields):
        return _cohere_tell(found, fields, target)
    return embeddings([found["embedding"]], fields, int(found.get("inputTextTokenCount", 0)))


# --- others --------------------------------------------------------------------------------------------------------


def _nomic_ask(fields: Fields, _target: Target) -> Fields:
    return {
        "texts": texts_of(fields),
        **_given(fields, model="model", task_type="task_type", dimensionality="dimensions"),
    }


def _nomic_tell(found: Any, fields: Fields, _target: Target) -> Fields:
    usage = found.get("usage", {})
    return embeddings(found["embeddings"], fields, usage.get("prompt_tokens", 0), usage.get("total_tokens"))


def _ollama_path(fields: Fields, _target: Target) -> str:
    # The endpoint that GATEWAY PV-21 names takes one prompt; its successor takes several.
    return "/api/embed" if isinstance(fields.get("input"), list) else "/api/embeddings"


def _ollama_ask(fields: Fields, _target: Target) -> Fields:
    texts = texts_of(fields)
    more = _given(fields, model="model", options="options", keep_alive="keep_alive", dimensions="dimensions")
    return {"input": texts, **more} if isinstance(fields.get("input"), list) else {"prompt": texts[0], **more}


def _ollama_tell(found: Any, fields: Fields, _target: Target) -> Fields:
    made = found["embeddings"] if "embeddings" in found else [found["embedding"]]
    return embeddings(made, fields, int(found.get("prompt_eval_count", 0)))


def _workers_ask(fields: Fields, _target: Target) -> Fields:
    return {"text": texts_of(fields), **_given(fields, pooling="pooling")}


def _workers_tell(found: Any, fields: Fields, _target: Target) -> Fields:
    return embeddings(found["result"]["data"], fields)


def _ai21_ask(fields: Fields, _target: Target) -> Fields:
    return {"texts": texts_of(fields), **_given(fields, type="type")}


def _ai21_tell(found: Any, fields: Fields, _target: Target) -> Fields:
    return embeddings([each["embedding"] for each in found["results"]], fields)


def _voyage_ask(fields: Fields, _target: Target) -> Fields:
    made = dict(fields)
    if "dimensions" in made:
        made["output_dimension"] = made.pop("dimensions")
    if made.get("encoding_format") == "float":  # its word for that is nothing
        del made["encoding_format"]
    return made


def _voyage_tell(found: Any, _fields: Fields, _target: Target) -> Fields:
    found["data"][0]["embedding"]  # or it is no answer
    total = found.get("usage", {}).get("total_tokens", 0)
    return {**found, "usage": {"prompt_tokens": total, "total_tokens": total}}


TABLE: dict[str, Operation] = {
    "ai21": Translated(endpoint="embed", ask=_ai21_ask, tell=_ai21_tell),
    "bedrock": Translated(endpoint="embed", ask=_bedrock_ask, tell=_bedrock_tell),
    "cohere": Translated(endpoint="embed", ask=_cohere_ask, tell=_cohere_tell),
    "google": Translated(endpoint="embed", ask=_gemini_ask, tell=_gemini_tell, path=_gemini_path),
    "nomic": Translated(endpoint="embed", ask=_nomic_ask, tell=_nomic_tell),
    "ollama": Translated(endpoint="embed", ask=_ollama_ask, tell=_ollama_tell, path=_ollama_path),
    "palm": Translated(endpoint="embed", ask=_palm_ask, tell=_palm_tell, path=_palm_path),
    "vertex-ai": Translated(endpoint="embed", ask=_vertex_ask, tell=_vertex_tell, url=vertex.predict_url),
    "voyage": Translated(endpoint="embed", ask=_voyage_ask, tell=_voyage_tell),
    "workers-ai": Translated(endpoint="embed", ask=_workers_ask, tell=_workers_tell),
}
