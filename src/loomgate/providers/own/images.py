"""Pictures from texts in the formats of their vendors, from and to OpenAI's.

What must live here: one row of `TABLE` for each vendor whose image generation is not OpenAI's. What must not: chats.
"""

import base64
import math
import re
from typing import Any, cast

from loomgate import clock
from loomgate.providers import vertex
from loomgate.providers.dialect import Target
from loomgate.providers.operation import Fields, Form, Operation, Translated, refused

# Fields of OpenAI's, which have other names or no meaning elsewhere; the rest is the vendor's own, and goes along.
_OURS = frozenset({"prompt", "model", "n", "size", "response_format", "user", "quality", "style", "stream"})


def _prompt(fields: Fields) -> str:
    found = fields.get("prompt")
    if not isinstance(found, str) or not found:
        raise refused("prompt", "a text")
    if fields.get("stream"):
        raise refused("stream", "false, since this vendor sends pictures whole", "true")
    return found


def _as_base64(fields: Fields) -> None:
    """Refuse what a vendor that only ever sends pictures cannot do."""
    if fields.get("response_format") == "url":
        raise refused("response_format", "'b64_json', since this vendor sends pictures, not addresses", "'url'")


def _one(fields: Fields) -> None:
    if fields.get("n") not in (None, 1):
        raise refused("n", "1, since this vendor makes one picture per call", str(fields["n"]))


def _size(fields: Fields) -> tuple[int, int] | None:
    found = fields.get("size")
    if found is None or found == "auto":
        return None
    match = re.fullmatch(r"(\d{2,5})[xX](\d{2,5})", found) if isinstance(found, str) else None
    if match is None:
        raise refused("size", "'<width>x<height>'", repr(found))
    return int(match[1]), int(match[2])


def _ratio(fields: Fields, known: frozenset[str]) -> str | None:
    """The shape of ``size``, for vendors that do not know sizes."""
    size = _size(fields)
    if size is None:
        return None
    by = math.gcd(*size)
    ratio = f"{size[0] // by}:{size[1] // by}"
    if ratio not in known:
        raise refused("size", f"one whose sides relate as {', '.join(sorted(known))}", ratio)
    return ratio


def _more(fields: Fields) -> Fields:
    return {name: value for name, value in fields.items() if name not in _OURS}


def _measured(fields: Fields, width: str, height: str) -> Fields:
    size = _size(fields)
    return {width: size[0], height: size[1]} if size else {}


def _pictures(made: list[Any]) -> Fields:
    return {"created": clock.timestamp(), "data": [{"b64_json": str(each)} for each in made]}


# --- Stability, also on Bedrock ------------------------------------------------------------------------------------

_RATIOS = frozenset("16:9 1:1 21:9 2:3 3:2 4:5 5:4 9:16 9:21".split())
_FIRST = "stable-diffusion-"  # models of the first version of the API; the second has sd3, core and ultra


def _stability_old(fields: Fields) -> bool:
    return str(fields.get("model")).startswith(_FIRST)


def _stability_path(fields: Fields, _target: Target) -> str:
    if _stability_old(fields):
        return "/v1/generation/{model}/text-to-image"
    return "/v2beta/stable-image/generate/{model}"


def _stability_prompts(fields: Fields) -> Fields:
    made: Fields = {"text_prompts": [{"text": _prompt(fields), "weight": 1}], **_more(fields)}
    made.update(_measured(fields, "width", "height"))
    if fields.get("style") is not None:
        made["style_preset"] = fields["style"]
    return made


def _stability_ask(fields: Fields, _target: Target) -> Any:
    _as_base64(fields)
    if _stability_old(fields):
        made = _stability_prompts(fields)
        if fields.get("n") is not None:
            made["samples"] = fields["n"]
        return made
    _one(fields)
    form: Fields = {"prompt": _prompt(fields), **_more(fields)}
    if (ratio := _ratio(fields, _RATIOS)) is not None:
        form["aspect_ratio"] = ratio
    if fields.get("style") is not None:
        form["style_preset"] = fields["style"]
    return Form({name: str(value) for name, value in form.items()})


def _stability_tell(found: Any, _fields: Fields, _target: Target) -> Fields:
    if isinstance(found, bytes):
        return _pictures([base64.b64encode(found).decode()])
    if "artifacts" in found:
        return _pictures([each["base64"] for each in found["artifacts"]])
    return _pictures([found["image"]])


def _bedrock_ask(fields: Fields, _target: Target) -> Fields:
    _as_base64(fields)
    model = str(fields.get("model"))
    if "stability." in model:
        _one(fields)
        if _FIRST in model:
            return _stability_prompts(fields)
        made: Fields = {"prompt": _prompt(fields), **_more(fields)}
        if (ratio := _ratio(fields, _RATIOS)) is not None:
            made["aspect_ratio"] = ratio
        return made
    # Titan and Nova Canvas
    how: Fields = _measured(fields, "width", "height")
    for theirs, ours in (("numberOfImages", "n"), ("quality", "quality"), ("cfgScale", "cfg_scale"), ("seed", "seed")):
        if fields.get(ours) is not None:
            how[theirs] = fields[ours]
    text: Fields = {"text": _prompt(fields)}
    if fields.get("negative_prompt") is not None:
        text["negativeText"] = fields["negative_prompt"]
    return {"taskType": "TEXT_IMAGE", "textToImageParams": text, "imageGenerationConfig": how}


def _bedrock_tell(found: Any, _fields: Fields, _target: Target) -> Fields:
    if "artifacts" in found:
        return _pictures([each["base64"] for each in found["artifacts"]])
    if found.get("error"):
        raise KeyError("images")
    return _pictures(found["images"])


# --- others --------------------------------------------------------------------------------------------------------


def _segmind_ask(fields: Fields, _target: Target) -> Fields:
    _as_base64(fields)
    made: Fields = {"prompt": _prompt(fields), **_more(fields), **_measured(fields, "img_width", "img_height")}
    if fields.get("n") is not None:
        made["samples"] = fields["n"]
    if fields.get("style") is not None:
        made["style"] = fields["style"]
    if "steps" in made:
        made["num_inference_steps"] = made.pop("steps")
    return {**made, "base64": True}


def _segmind_tell(found: Any, _fields: Fields, _target: Target) -> Fields:
    if isinstance(found, bytes):
        return _pictures([base64.b64encode(found).decode()])
    made = found["image"]
    return _pictures(cast("list[Any]", made) if isinstance(made, list) else [made])


def _fireworks_ask(fields: Fields, _target: Target) -> Fields:
    _as_base64(fields)
    made: Fields = {"text_prompts": [{"text": _prompt(fields), "weight": 1}], **_more(fields)}
    made.update(_measured(fields, "width", "height"))
    if fields.get("n") is not None:
        made["samples"] = fields["n"]
    return made


def _fireworks_tell(found: Any, _fields: Fields, _target: Target) -> Fields:
    return _pictures([each["base64"] for each in found])


def _workers_ask(fields: Fields, _target: Target) -> Fields:
    _as_base64(fields)
    _one(fields)
    return {"prompt": _prompt(fields), **_more(fields), **_measured(fields, "width", "height")}


def _workers_tell(found: Any, _fields: Fields, _target: Target) -> Fields:
    if isinstance(found, bytes):
        return _pictures([base64.b64encode(found).decode()])
    return _pictures([found["result"]["image"]])


_IMAGEN_RATIOS = frozenset("1:1 3:4 4:3 9:16 16:9".split())


def _imagen_ask(fields: Fields, _target: Target) -> Fields:
    _as_base64(fields)
    parameters: Fields = {"sampleCount": fields.get("n") or 1, **_more(fields)}
    if (ratio := _ratio(fields, _IMAGEN_RATIOS)) is not None:
        parameters["aspectRatio"] = ratio
    return {"instances": [{"prompt": _prompt(fields)}], "parameters": parameters}


def _imagen_tell(found: Any, _fields: Fields, _target: Target) -> Fields:
    return _pictures([each["bytesBase64Encoded"] for each in found["predictions"]])


def _siliconflow_ask(fields: Fields, _target: Target) -> Fields:
    made: Fields = {"prompt": _prompt(fields), **_more(fields)}
    if fields.get("size") is not None:
        made["image_size"] = fields["size"]
    if fields.get("n") is not None:
        made["batch_size"] = fields["n"]
    return made


def _siliconflow_tell(found: Any, _fields: Fields, _target: Target) -> Fields:
    made = found["images"] if "images" in found else found["data"]
    kept = [{name: each[name] for name in ("url", "b64_json") if name in each} for each in made]
    return {"created": clock.timestamp(), "data": kept}


def _hyperbolic_ask(fields: Fields, _target: Target) -> Fields:
    _as_base64(fields)
    made: Fields = {"model_name": fields.get("model"), "prompt": _prompt(fields), **_more(fields)}
    if fields.get("n") is not None:
        made["num_images"] = fields["n"]
    return {**made, **_measured(fields, "width", "height")}


def _hyperbolic_tell(found: Any, _fields: Fields, _target: Target) -> Fields:
    return _pictures([each["image"] for each in found["images"]])


_JSON = {"Accept": "application/json"}

TABLE: dict[str, Operation] = {
    "bedrock": Translated(endpoint="generate_image", ask=_bedrock_ask, tell=_bedrock_tell, headers=_JSON),
    "fireworks-ai": Translated(endpoint="generate_image", ask=_fireworks_ask, tell=_fireworks_tell, headers=_JSON),
    "hyperbolic": Translated(endpoint="generate_image", ask=_hyperbolic_ask, tell=_hyperbolic_tell),
    "segmind": Translated(endpoint="generate_image", ask=_segmind_ask, tell=_segmind_tell),
    "siliconflow": Translated(endpoint="generate_image", ask=_siliconflow_ask, tell=_siliconflow_tell),
    "stability-ai": Translated(
        endpoint="generate_image", ask=_stability_ask, tell=_stability_tell, path=_stability_path, headers=_JSON
    ),
    "vertex-ai": Translated(endpoint="generate_image", ask=_imagen_ask, tell=_imagen_tell, url=vertex.predict_url),
    "workers-ai": Translated(endpoint="generate_image", ask=_workers_ask, tell=_workers_tell),
}
