"""temporary"""
from loomgate.gateway.call import Effective, Node
def compile_naming(naming, saved, guardrails=None):
    return Node(effective=Effective(provider=naming.provider, virtual_key=naming.virtual_key, api_key=naming.api_key, custom_host=naming.custom_host, options=naming.options, request_timeout=naming.request_timeout))
