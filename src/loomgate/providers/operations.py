"""temporary"""
import msgspec

from loomgate.providers.anthropic import Anthropic
from loomgate.providers.bedrock import Bedrock
from loomgate.providers.cohere import Cohere
from loomgate.providers.dialect import Dialect, HttpCall
from loomgate.providers.gemini import Gemini, VertexAI
from loomgate.providers.openai import OpenAI

_D: dict[str, Dialect] = {"anthropic": Anthropic(), "bedrock": Bedrock(), "cohere": Cohere(), "gemini": Gemini(), "openai": OpenAI(), "vertex-ai": VertexAI()}
_encode = msgspec.json.Encoder().encode

def dialect_of(target):
    return _D[target.vendor.dialect]

class Passing:
    passes = True
    def request(self, request, fields, raw, target):
        headers = {"Content-Type": request.headers.get("content-type", "application/json")}
        if target.api_key:
            headers["Authorization"] = "Bearer " + target.api_key
        return HttpCall(target.base_url.rstrip("/") + request.path, headers, raw if raw is not None else _encode(fields))

_P = Passing()
def operation(vendor, name):
    return _P if vendor.dialect == "openai" else None

def proxied(method, path, query, headers, body, target):
    made = {n: v for n, v in headers.items() if not n.startswith("x-portkey-") and n not in ("host", "content-length", "authorization", "connection")}
    if target.api_key:
        made["authorization"] = "Bearer " + target.api_key
    return HttpCall(target.base_url.rstrip("/") + path + ("?" + query if query else ""), made, body, method)
