"""Model endpoints: how to speak to each of them, and the one door through which that happens.

What must live here: wire dialects (sans-I/O), the catalogue of vendors, SSE framing, the HTTP client, the
deterministic model. What must not: which endpoint a call goes to, with which key, how often (``gateway/``).
"""
