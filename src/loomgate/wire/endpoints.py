"""The endpoints of the gateway: what a client may ask a model vendor for, one row each (GATEWAY RT-02).

What must live here: names, paths, and facts about an endpoint that hold for every vendor. What must not: which vendor
offers what (``providers/catalogue``), and what is done with a request (``gateway/``).
"""

from typing import Literal

import msgspec

EndpointName = Literal[
    "chat",
    "complete",
    "embed",
    "moderate",
    "rerank",
    "generate_image",
    "edit_image",
    "vary_image",
    "speak",
    "transcribe",
    "translate",
    "messages",
    "count_tokens",
    "respond",
    "responses",
    "models",
    "files",
    "batches",
    "fine_tuning",
    "realtime",
    "proxy",
]


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """One endpoint. ``path`` is below ``/v1``; what has ids below it (``files``, ``batches`` …) is a prefix.

    ``inner``: the reference's name for it, which it shows in errors (GERR-04). ``guarded``: guardrails look at its
    input, and at its output if ``answers`` (GR-05). ``cached``: answers may be kept (CCH-05, CCH-10). ``mapped``:
    bodies and errors may be translated; the others pass as they are (GERR-08).
    """

    name: EndpointName
    path: str
    inner: str
    guarded: bool = False
    answers: bool = False
    cached: bool = False
    mapped: bool = True


_ROWS = (
    Endpoint(name="chat", path="/chat/completions", inner="chatComplete", guarded=True, answers=True, cached=True),
    Endpoint(name="complete", path="/completions", inner="complete", guarded=True, answers=True, cached=True),
    Endpoint(name="messages", path="/messages", inner="messages", guarded=True, answers=True, cached=True),
    Endpoint(name="count_tokens", path="/messages/count_tokens", inner="messagesCountTokens"),
    Endpoint(name="embed", path="/embeddings", inner="embed", guarded=True, cached=True),
    Endpoint(name="moderate", path="/moderations", inner="moderate", mapped=False),
    Endpoint(name="rerank", path="/rerank", inner="rerank", cached=True),
    Endpoint(name="generate_image", path="/images/generations", inner="imageGenerate", cached=True),
    Endpoint(name="edit_image", path="/images/edits", inner="imageEdit"),
    Endpoint(name="vary_image", path="/images/variations", inner="imageVariation"),
    Endpoint(name="speak", path="/audio/speech", inner="createSpeech", cached=True),
    Endpoint(name="transcribe", path="/audio/transcriptions", inner="createTranscription"),
    Endpoint(name="translate", path="/audio/translations", inner="createTranslation"),
    Endpoint(name="respond", path="/responses", inner="createModelResponse"),
    Endpoint(name="responses", path="/responses/", inner="getModelResponse"),
    Endpoint(name="models", path="/models", inner="listModels", mapped=False),
    Endpoint(name="files", path="/files", inner="uploadFile"),
    Endpoint(name="batches", path="/batches", inner="createBatch"),
    Endpoint(name="fine_tuning", path="/fine_tuning", inner="createFinetune"),
    Endpoint(name="realtime", path="/realtime", inner="realtime", mapped=False),
    Endpoint(name="proxy", path="", inner="proxy", mapped=False),
)

ENDPOINTS: dict[EndpointName, Endpoint] = {row.name: row for row in _ROWS}
